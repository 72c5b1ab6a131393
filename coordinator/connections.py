"""The members' connections: how many there may be, and how long one may take for what.

uvicorn reads and writes; it has no limit for a request's head, for how long one may take, and for a client
that does not read. Here a connection is cut off that sends its head too slowly or too long, that sends
nothing at all, or that does not read what it asked for. Where there are too many, each request of those that
came last is answered with when to come back, and health is told all the same; beyond a reserve nobody is let
in.

Who is gone is gone: the request that a connection carried ends as when its client goes away.
"""

import asyncio
import ipaddress
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from coordinator.api.errors import ApiError

HEAD_S_MAX: Final = 15.0  # from the first byte of a request, or from the connection, to the end of its head
HEAD_BYTES_MAX: Final = 64 * 1024  # and what came with it in one piece
UNREAD_S_MAX: Final = 30.0  # in which a client must read what was written for it
RESERVE: Final = 64  # connections beyond the limit that are told so
RETRY_S: Final = 5.0
ALWAYS: Final = frozenset({"/healthz", "/readyz", "/metrics"})
BODY_HEADERS: Final = frozenset({b"content-length", b"transfer-encoding"})

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Doors:
    """The limits, and who is connected, by address. `refused` counts by a fixed word."""

    connections_max: int
    of_address_max: int  # 0: addresses are those of a proxy, and say nothing
    refused: Callable[[str], None] = lambda _: None
    open: int = 0
    addresses: Counter[str] = field(default_factory=Counter)

    def enter(self, address: str) -> str:
        """Empty, or which limit is reached. Whoever enters leaves, too."""
        self.open += 1
        self.addresses[address] += 1
        if self.open > self.connections_max:
            return "connections"
        if self.of_address_max and self.addresses[address] > self.of_address_max:
            return "address_connections"
        return ""

    def leave(self, address: str) -> None:
        self.open -= 1
        self.addresses[address] -= 1
        if not self.addresses[address]:
            del self.addresses[address]


def host_of(client: tuple[str, int] | None) -> str:
    """An address, of IPv6 the /64: a home has that many."""
    host = client[0] if client else ""
    try:
        parsed = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is None:
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)


def full(reason: str) -> ApiError:
    if reason == "connections":
        message = "So many are connected that the coordinator takes no more. Try again shortly."
        return ApiError(503, "too_many_connections", message, retry_after_s=RETRY_S, close=True)
    message = "So many connections came from your address that it takes no more. Close some."
    return ApiError(429, "too_many_connections", message, retry_after_s=RETRY_S, close=True)


class Guarded(HttpToolsProtocol):
    """One connection."""

    def __init__(
        self, config: Config, server_state: ServerState, app_state: dict[str, Any], doors: Doors
    ) -> None:
        super().__init__(config, server_state, app_state)
        self._doors = doors
        self._head_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        self._unparsed = 0  # bytes since the parser gave something away: heads, and what is between chunks
        self._upgrades = False  # what follows the head is no HTTP: the parser says so, and reads no body
        self._answering: RequestResponseCycle | None = None  # `cycle` is the last of those that were asked
        self._host = ""

    # -- who may come in

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        self._host = host_of(self.client)
        reason = self._doors.enter(self._host)
        if self._doors.open > self._doors.connections_max + RESERVE:
            self._cut("connections")
            return
        if reason:
            self._doors.refused(reason)
            self.app = _unless_health(self.app, full(reason))
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._doors.leave(self._host)
        self._head_came()
        self.resume_writing()
        super().connection_lost(exc)
        if (cycle := self._answering) is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()

    # -- what it sends

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing() or self._upgrades:
            return
        if self._head_timer is None and self._idle():
            self._await_head()
        self._unparsed += len(data)
        super().data_received(data)
        if self._unparsed <= HEAD_BYTES_MAX:
            return
        if self._head_timer is not None:
            self._refuse_head(ApiError(431, "head_too_large", _too_long(), close=True), "large_head")
        else:  # an answer is on its way, or trailers never end
            self._cut("large_head")

    def _idle(self) -> bool:
        """Between two requests."""
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is None or cycle.response_complete

    def on_headers_complete(self) -> None:
        self._head_came()
        self._unparsed = 0
        self._upgrades = self.parser.should_upgrade()
        if self._upgrades and any(name in BODY_HEADERS and value != b"0" for name, value in self.headers):
            self.app = _unless_health(self.app, _no_upgrade())
        super().on_headers_complete()
        if self._upgrades:  # no other protocol is spoken here: it is answered as if it had not asked for one
            self.cycle.keep_alive = False

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        self._unparsed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unparsed = 0
        super().on_message_complete()

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_S_MAX, self._head_late)

    def _head_came(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_late(self) -> None:
        self._head_timer = None
        message = f"No whole request came within {HEAD_S_MAX:.0f} seconds."
        self._refuse_head(ApiError(408, "request_timeout", message, close=True), "slow_head")

    def _refuse_head(self, error: ApiError, reason: str) -> None:
        """There is no request that could be answered: the bytes go out as they are."""
        self._doors.refused(reason)
        self._head_came()
        if self.transport.is_closing():
            return
        if self._unparsed:  # who said nothing hears nothing
            self.transport.write(_raw(error))
        self.transport.close()
        self.pause_writing()  # until it has read that, or was too slow for it, too

    # -- what it reads

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread_timer is None:
            self._unread_timer = self.loop.call_later(UNREAD_S_MAX, self._cut, "slow_reader")

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def _cut(self, reason: str) -> None:
        self._doors.refused(reason)
        log.info("a connection was cut off", action="connection_cut", why=reason)
        self.transport.abort()


def _too_long() -> str:
    return f"A request's head has more than {HEAD_BYTES_MAX:,} bytes."


def _no_upgrade() -> ApiError:
    message = "Only HTTP/1.1 is spoken here. Send the request without the header `Upgrade`."
    return ApiError(400, "upgrade_not_supported", message, close=True)


def _raw(error: ApiError) -> bytes:
    response = error.response()
    head = [f"HTTP/1.1 {error.status} {error.code}".encode()]
    head += [name + b": " + value for name, value in response.raw_headers]
    return b"\r\n".join([*head, b"", bytes(response.body)])


def _unless_health(app: ASGIApp, error: ApiError) -> ASGIApp:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in ALWAYS:
            await app(scope, receive, send)
        else:
            await error.response()(scope, receive, send)

    return answer
