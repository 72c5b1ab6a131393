"""The way to the coordinator: one session after the other, for as long as the worker has not finished.

It decides nothing about attempts: what is heard becomes events, and a connection that is lost is tried again.
"""

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

import structlog

from potluck.v1 import session_pb2
from worker import wire
from worker.addresses import Addresses
from worker.errors import WorkerConflict, WorkerError
from worker.messages import Congested, Disconnected, Event
from worker.renewal import Renewal
from worker.session import Backoff, Session, SessionLost

STEADY_S: Final = 10.0  # a connection that lived so long was no failure

Heard = Callable[[session_pb2.CoordinatorMessage, Event | None], None]


class Witness(Protocol):
    """Who is told how the line stands."""

    def connecting(self) -> None: ...

    def connected(self) -> None: ...

    def lost(self, why: str) -> None: ...


class Link:
    """`hello` begins every session; `feed` gets what the line itself says; `on_welcome` is called after the
    core knows of the connection, `on_message` with every message and its event, if it is one.
    """

    def __init__(
        self,
        *,
        addresses: Addresses,
        tls_key: bytes,
        renewal: Renewal,
        reporter: Witness,
        hello: Callable[[], session_pb2.Hello],
        feed: Callable[[Event], None],
        on_welcome: Callable[[session_pb2.Welcome], None],
        on_message: Heard,
    ) -> None:
        self._addresses, self._tls_key, self._renewal = addresses, tls_key, renewal
        self._reporter, self._hello, self._feed = reporter, hello, feed
        self._on_welcome, self._on_message = on_welcome, on_message
        self._session: Session | None = None
        self._welcomed = False
        self._heard = False  # was there a welcome in this session, or in the last one?
        self._closing = False
        self._log = structlog.get_logger("worker.link")

    def send(self, message: session_pb2.WorkerMessage) -> None:
        """Nowhere while there is no session: what must arrive is sent again by the core."""
        if self._session is not None:
            self._session.send(message)

    def abandon(self, why: str) -> None:
        """Leave this session for the next one."""
        if self._session is not None:
            self._session.abandon(why)

    def close(self) -> bool:
        """Send what waits, then end; `run` returns. False: nobody is there who could hear it."""
        self._closing = True
        if self._session is None or not self._welcomed:
            return False
        self._session.close()
        return True

    async def run(self) -> None:
        """Returns after `close`. Raises WorkerError if the coordinator does not want us."""
        loop, backoff = asyncio.get_running_loop(), Backoff()
        while True:
            self._reporter.connecting()
            began, turned_away = loop.time(), False
            try:
                await self._converse()
            except SessionLost as lost:
                self._reporter.lost(str(lost))
                if lost.handshake:
                    await self._renewal.after_failed_handshake()
                turned_away = lost.turned_away
                if not self._heard and not turned_away and not self._addresses.turn():
                    continue  # nobody was there: at once to who may be
            if self._closing:
                return
            if loop.time() - began >= STEADY_S:
                backoff.reset()
            await asyncio.sleep(backoff.turned_away_s() if turned_away else backoff.next_s())

    async def _converse(self) -> None:
        """One connection from its beginning to its end; returns after `close`. Raises SessionLost."""
        try:
            certificate = await self._renewal.ensure()
        except WorkerError as error:
            if error.code == "worker_revoked":
                raise
            raise SessionLost(str(error)) from None
        self._heard = False
        self._session = Session(
            target=self._addresses.current,
            certificate=certificate,
            tls_key=self._tls_key,
            on_welcome=self._welcome,
            on_message=self._hear,
            on_congestion=lambda on: self._feed(Congested(on)),
        )
        try:
            await self._session.run(self._hello())
        finally:
            self._session, self._welcomed = None, False
            self._feed(Disconnected())

    def _welcome(self, welcome: session_pb2.Welcome) -> None:
        if welcome.protocol != wire.PROTOCOL:
            raise WorkerConflict(
                f"the pool speaks protocol {welcome.protocol}, this worker {wire.PROTOCOL}: update this"
                " worker with `pip install --upgrade 'potluck[worker]'`.",
                code="version",
            )
        try:
            connected = wire.connected_from(welcome)
        except wire.WireError as error:
            raise SessionLost(f"the coordinator spoke nonsense: {error}") from None
        self._log.info("connected", action="connected", pool=welcome.pool, version=welcome.version)
        self._welcomed = self._heard = True
        self._reporter.connected()
        self._feed(connected)
        self._on_welcome(welcome)

    def _hear(self, message: session_pb2.CoordinatorMessage) -> None:
        try:
            event = wire.event_from(message)
        except wire.WireError as error:
            self._log.warning("the coordinator spoke nonsense", action="nonsense", why=str(error))
            return
        self._on_message(message, event)
