"""The first and last thing every request meets, as one pure ASGI middleware.

It checks Host and Origin (a page on the web must not reach a pool on someone's machine through a name that
resolves to it: DNS rebinding), gives each request an id, sets the security headers, and turns whatever went
wrong inside into an OpenAI-shaped answer. No BaseHTTPMiddleware: that one puts a queue and a task between a
stream and its socket.
"""

import ipaddress
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import structlog
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coordinator.api.auth import client_address
from coordinator.api.context import Clock
from coordinator.api.errors import ApiError
from coordinator.api.limits import Gauge
from coordinator.metrics import UNKNOWN_ROUTE, Metrics

RETRY_S = 5.0
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
CONTENT_SECURITY_POLICY = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
NO_STORE = (b"cache-control", b"no-store")
NO_REFERRER = (b"referrer-policy", b"no-referrer")
UNLESS_SET = (CONTENT_SECURITY_POLICY, NO_STORE, NO_REFERRER)


class Border:
    """Wraps the whole application. `bound_host` and `public_host` are names or addresses without a port."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        clock: Clock,
        metrics: Metrics,
        bound_host: str,
        public_host: str | None,
        of_address_max: int = 0,
    ) -> None:
        self._app, self._clock, self._metrics = app, clock, metrics
        self._of_address_max, self._addresses = of_address_max, Gauge()
        names = {name.lower().strip("[]") for name in (bound_host, public_host) if name}
        self._wildcard = bool(names & {"0.0.0.0", "::"})  # noqa: S104 -- compared with, not bound to
        self._names = LOOPBACK_NAMES | names
        self._log = structlog.get_logger("coordinator.api")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"req_{secrets.token_hex(12)}"
        received_at, started = self._clock.now(), False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                route = getattr(scope.get("route"), "path", UNKNOWN_ROUTE)
                took_s = self._clock.now() - received_at
                self._metrics.answered(scope["method"], route, message["status"], took_s)
                message["headers"] = _with_headers(message.get("headers", []), request_id)
            await send(message)

        scope.setdefault("state", {}).update(received_at=received_at, request_id=request_id)
        try:
            self._check(scope)
            with self._of_address(scope):
                await self._app(scope, receive, send_with_headers)
        except ApiError as error:
            await error.response()(scope, receive, send_with_headers)
        except Exception:  # the process border: people get a sentence, the log the place
            self._log.exception(
                "a request failed", action="request_failed", request=request_id, path=scope["path"]
            )
            if started:
                raise
            message = f"The coordinator made a mistake. Its log has the details under {request_id}."
            broken = ApiError(500, "internal_error", message)
            await broken.response()(scope, receive, send_with_headers)

    @contextmanager
    def _of_address(self, scope: Scope) -> Iterator[None]:
        """Behind a proxy all connections are its own: there, requests at once are what an address is allowed.

        Raises ApiError 429.
        """
        if not self._of_address_max:
            yield
            return
        address = client_address(Request(scope), behind_proxy=True)
        if not self._addresses.fits(address, self._of_address_max):
            self._metrics.refused("address_connections")
            message = "So many requests of your address are under way that it takes no more. Wait for some."
            raise ApiError(429, "too_many_connections", message, retry_after_s=RETRY_S)
        self._addresses.take(address)
        try:
            yield
        finally:
            self._addresses.give(address)

    def _check(self, scope: Scope) -> None:
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        host = _host_name("//" + hosts[0].decode("latin-1")) if len(hosts) == 1 else None
        if host is None or not self._allowed(host):
            message = (
                f"This pool does not answer to the host name {host or 'that was given'!r}. "
                "If it should, start the coordinator with --public-host."
            )
            raise ApiError(403, "host_not_allowed", message)
        for name, value in scope["headers"]:
            if name == b"origin":
                origin = _host_name(value.decode("latin-1"))
                if origin is None or not self._allowed(origin):
                    raise ApiError(403, "origin_not_allowed", "Pages of other sites may not call this pool.")

    def _allowed(self, host: str) -> bool:
        if host in self._names:
            return True
        # Bound to all interfaces, any address of this machine is right; only names can be rebound.
        return self._wildcard and _is_address(host)


def _host_name(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _with_headers(headers: list[tuple[bytes, bytes]], request_id: str) -> list[tuple[bytes, bytes]]:
    """A page may bring policies and a cache rule of its own; everything else gets the strictest."""
    present = {name for name, _ in headers}
    extra = [header for header in UNLESS_SET if header[0] not in present]
    return [*headers, (b"x-request-id", request_id.encode()), *SECURITY_HEADERS, *extra]
