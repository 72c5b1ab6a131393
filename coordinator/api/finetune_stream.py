"""A fine-tune's events as they happen, as server-sent events (WHATWG HTML, section 9.2)."""

import asyncio
from contextlib import suppress

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from coordinator.api.chunks import DONE
from coordinator.api.finetune_bodies import event_body
from coordinator.api.stream import HEADERS
from coordinator.finetunes.journal import Journal

STILL_HERE = b": still here\n\n"  # a comment, so that nothing in between takes the connection for dead


class EventsStream(Response):
    """From behind one event until the fine-tune ends; leaving early ends nothing but the stream.

    One that ends without [DONE] was cut off: the coordinator stopped, and there is more.
    """

    def __init__(self, finetune_id: str, journal: Journal, after: int) -> None:
        super().__init__()
        self._finetune_id, self._journal, self._after = finetune_id, journal, after

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": list(HEADERS)})
        sending = asyncio.create_task(self._send(send))
        leaving = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait([sending, leaving], return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            for task in (sending, leaving):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def _send(self, send: Send) -> None:
        async for event in self._journal.follow(self._after):
            body = STILL_HERE
            if event is not None:
                body = b"data: " + orjson.dumps(event_body(self._finetune_id, event)) + b"\n\n"
            await send({"type": "http.response.body", "body": body, "more_body": True})
        end = DONE if self._journal.closed else b""
        await send({"type": "http.response.body", "body": end, "more_body": False})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
