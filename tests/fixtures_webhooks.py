"""A member's own server that hears webhooks, and a pool that brings them to it."""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from fixtures_api import Stand, open_stand


@dataclass
class Receiver:
    """Somebody's server, as it would be. It answers with `statuses`, one after the other, then with 204."""

    url: str = ""
    statuses: list[int] = field(default_factory=list)
    got: list[tuple[dict[str, str], str]] = field(default_factory=list)
    news: threading.Condition = field(default_factory=threading.Condition)

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.got]

    async def until(self, count: int) -> None:
        def wait() -> None:
            with self.news:
                assert self.news.wait_for(lambda: len(self.got) >= count, 30), self.got

        await asyncio.to_thread(wait)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"])).decode()
            self.send_response(made.statuses.pop(0) if made.statuses else 204)
            self.send_header("location", "http://127.0.0.1:1/elsewhere")
            self.send_header("content-length", "0")
            self.end_headers()
            with made.news:
                made.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
                made.news.notify_all()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- likewise
            del format, args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_port}/hook?a=1"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.asynccontextmanager
async def telling(tmp_path: Any) -> AsyncIterator[Stand]:
    """A pool that brings what it is told, to private addresses too."""
    async with open_stand(tmp_path, webhooks_private=True) as stand:
        task = asyncio.create_task(stand.context.webhooks.run())
        try:
            yield stand
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
