"""A span around each request of the API, where spans are collected; the caller's own trace goes on in it."""

from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coordinator.traces import Spans

TRACED: Final = ("/v1/", "/pool/v1/")  # not what pages and probes ask all day
CARRIED: Final = frozenset({b"traceparent", b"tracestate"})


class Traced:
    """Inside of the border, which refuses whom it does not know before anything is begun."""

    def __init__(self, app: ASGIApp, *, traces: Spans) -> None:
        self._app, self._traces = app, traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(TRACED):
            await self._app(scope, receive, send)
            return
        carried = {
            name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in CARRIED
        }
        with self._traces.request(scope["method"], carried, scope["state"]["request_id"]) as asked:

            async def noted(message: Message) -> None:
                if message["type"] == "http.response.start":
                    asked.status = message["status"]
                    asked.route = getattr(scope.get("route"), "path", "")
                await send(message)

            await self._app(scope, receive, noted)
