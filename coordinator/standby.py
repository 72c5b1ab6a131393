"""A coordinator that waits beside the one that leads: it says where the pool is, and takes over in its turn.

Nothing is opened but the port for members: the pool's keys, files and books are the leader's. Workers find
nobody at their port and go on to the next address that they know.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Final

import structlog
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import Receive, Scope, Send

from coordinator.api.errors import ApiError, Json
from coordinator.ca import AUTHORITY_FILE, CertificateError
from coordinator.leadership import Seat
from coordinator.listener import Listener
from coordinator.settings import Settings, split_address
from coordinator.store import Store

LEADER_HEADER: Final = "x-potluck-leader"
RETRY_S: Final = 2.0
_API: Final = ("/v1/", "/pool/v1/", "/metrics")  # a key is not taken along to another host
_ANY: Final = ("0.0.0.0", "::")  # noqa: S104 -- compared, not bound

log = structlog.get_logger(__name__)


def seat_of(settings: Settings, listening: socket.socket) -> Seat:
    """Where others reach this coordinator; empty where that cannot be known."""
    host, port = listening.getsockname()[:2]
    named = settings.public_host or ("" if host in _ANY else host)
    if not named:
        http = ""
    elif settings.behind_proxy:
        http = f"https://{named}"
    else:
        http = f"{'https' if settings.tls_cert else 'http'}://{_joined(named, port)}"
    return Seat(http, settings.public_grpc or _workers_address(settings))


def _workers_address(settings: Settings) -> str:
    host, port = split_address(settings.grpc)
    named = settings.public_host or ("" if host in _ANY else host)
    return _joined(named, port) if named and port else ""


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def open_in_turn(
    settings: Settings, now: float, listening: socket.socket, on_standby: Callable[[str], None]
) -> Store:
    """The store, once nobody else leads the pool. `on_standby` is told once who does: the leader's URL.

    Raises as `Store.open` does.
    """
    door = _Door(settings, listening, on_standby)
    try:
        return await Store.open(settings.database_url, now, door.own, door.wait)
    finally:
        await door.close()


class _Door:
    """What members meet meanwhile. Its server begins with the first look at somebody else who leads."""

    def __init__(
        self, settings: Settings, listening: socket.socket, on_standby: Callable[[str], None]
    ) -> None:
        self.own = seat_of(settings, listening)
        self._settings, self._listening, self._on_standby = settings, listening, on_standby
        self._leader, self._told = Seat(), False
        self._opening: asyncio.Task[Listener] | None = None

    def wait(self, leader: Seat, alive: bool) -> None:  # noqa: FBT001 -- as `Waiting` says
        """Raises CertificateError if this home could not take over: it would make another authority."""
        self._leader = leader
        if self._opening is None:
            log.info("standing by", action="standing_by", leader=leader.http)
            mine = self._listening.dup()  # the port stays ours when this server ends
            self._opening = asyncio.create_task(Listener.open(self._settings, self, mine))
        if alive and not self._told:  # after a crash it may be our own row that we watch
            self._told = True
            authority = self._settings.folder / "ca" / AUTHORITY_FILE
            if not authority.exists():
                raise CertificateError(
                    f"another coordinator leads this pool, and this one cannot wait beside it: {authority} is"
                    " not here. Copy the folder `coordinator` of the leader's POTLUCK_HOME, or share it."
                )
            self._on_standby(leader.http)

    async def close(self) -> None:
        """Raises SettingsError if it could not be opened."""
        if self._opening is not None:
            listener = await self._opening
            await listener.stop()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._answer(Request(scope)).__call__(scope, receive, send)

    def _answer(self, request: Request) -> Response:
        where = self._leader.http if self._leader.http != self.own.http else ""
        path = request.url.path
        why = f"it stands by: the pool's leader is at {where}" if where else "it stands by: another one leads"
        if path == "/healthz":
            response: Response = Json({"status": "ok"})
        elif path == "/readyz":
            response = Json({"status": "not ready", "why": why}, 503)
        elif where and request.method in {"GET", "HEAD"} and not path.startswith(_API):
            response = RedirectResponse(where + str(request.url.replace(scheme="", netloc="")), 307)
        else:
            message = f"This coordinator does not lead the pool: {why}. Try there, or again in a moment."
            response = ApiError(503, "standby", message, retry_after_s=RETRY_S).response()
        if where:
            response.headers[LEADER_HEADER] = where
        return response
