"""Streamed answers: each event of a job is written as it comes, as pure ASGI, without a queue in between."""

import structlog
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from coordinator.api.chunks import DONE, Chunks, error_event
from coordinator.api.context import Context
from coordinator.api.errors import ApiError
from coordinator.api.running import Running
from coordinator.relay import Output

HEADERS = ((b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no"))


class EventStream(Response):
    """Nothing is sent before the job's first event: until then whatever goes wrong is a plain HTTP error.

    Later errors are an event of their own, `data: {"error": ...}`, with which the stream ends: there is no
    [DONE] after it, and the official client raises APIError.
    """

    def __init__(
        self, context: Context, running: Running, chunks: Chunks, *, choices: int, include_usage: bool
    ) -> None:
        super().__init__()
        self._context, self._running, self._chunks = context, running, chunks
        self._choices, self._include_usage = choices, include_usage

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        started = False
        head = [*HEADERS, *((name.encode(), value.encode()) for name, value in self._running.headers.items())]
        async with self._running as running:
            running.watch(receive)
            try:
                async for job, event in running.events():
                    if not isinstance(event, Output):
                        continue
                    if not started:
                        await self._start(head, send)
                        started = True
                    data = self._chunks.piece(job * self._choices + event.choice, event)
                    if data:
                        await send({"type": "http.response.body", "body": data, "more_body": True})
                if not started:
                    await self._start(head, send)
                end = (self._chunks.usage(running.usage) if self._include_usage else b"") + DONE
            except ApiError as error:
                if not started:
                    raise
                end = error_event(error.body)
            except Exception:  # the process border of a stream: its reader gets an event, the log the trace
                if not started:
                    raise
                structlog.get_logger("coordinator.api").exception(
                    "a stream failed", action="stream_failed", job=running.job_ids[0]
                )
                end = error_event(_broken().body)
            await send({"type": "http.response.body", "body": end, "more_body": False})

    async def _start(self, head: list[tuple[bytes, bytes]], send: Send) -> None:
        """`head` was made while the engine was at work: now somebody waits for the first token."""
        overhead = self._running.overhead_ms(self._context.clock.now()).encode()
        headers = [*head, (b"x-potluck-overhead-ms", overhead)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})


def _broken() -> ApiError:
    return ApiError(500, "internal_error", "The coordinator made a mistake; its log has the details.")
