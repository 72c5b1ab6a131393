"""One connection to the coordinator: a bidirectional stream with a reader, a writer, and no decisions.

The writer is the only place that writes. The outbox is bounded: a coordinator that reads too slowly is
left, and the attempts go on over the next connection from what was acknowledged.
"""

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import grpc
import grpc.aio

from potluck.v1 import session_pb2, session_pb2_grpc
from worker.errors import Revoked, WorkerConflict, WorkerError
from worker.membership import Certificate

SERVER_NAME: Final = "coordinator.potluck"
OUTBOX_MESSAGES_MAX: Final = 16_384
OUTBOX_BYTES_MAX: Final = 64 * 1024 * 1024
CONGESTED_MESSAGES: Final = 256
RELIEVED_MESSAGES: Final = 32
RECEIVE_BYTES_MAX: Final = 16 * 1024 * 1024
SEND_BYTES_MAX: Final = 32 * 1024 * 1024
BUNDLE_MESSAGES_MAX: Final = 256
BUNDLE_BYTES_MAX: Final = 512 * 1024
APART: Final = frozenset({"hello", "heartbeat"})  # what no bundle may carry
WELCOME_S_MAX: Final = 10.0
FAREWELL_S_MAX: Final = 2.0
BACKOFF_S_MIN: Final = 0.1
BACKOFF_S_MAX: Final = 15.0
TURNED_AWAY_S: Final = (10.0, 60.0)  # where the pool is full, or has cut us off: many wait as we do

CHANNEL_OPTIONS: Final = (
    ("grpc.ssl_target_name_override", SERVER_NAME),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),  # an idle worker's only sign that the line is dead
    ("grpc.max_receive_message_length", RECEIVE_BYTES_MAX),
    ("grpc.max_send_message_length", SEND_BYTES_MAX),
    ("grpc.use_local_subchannel_pool", 1),  # a new connection must not wait for an old one's backoff
    ("grpc.enable_http_proxy", 0),
)


class SessionLost(Exception):  # noqa: N818 -- named for what happened
    """The connection ended; another try may succeed. `handshake`: TLS itself failed. `turned_away`: the
    pool does not want us just now."""

    def __init__(self, why: str, *, handshake: bool = False, turned_away: bool = False) -> None:
        super().__init__(why)
        self.handshake, self.turned_away = handshake, turned_away


@dataclass(slots=True)
class Backoff:
    """At once, then exponentially longer with full jitter (AWS Architecture Blog, 2015)."""

    rng: random.Random = field(default_factory=random.Random)
    failures: int = 0

    def next_s(self) -> float:
        self.failures += 1
        if self.failures == 1:
            return 0.0
        ceiling = min(BACKOFF_S_MAX, BACKOFF_S_MIN * 2.0 ** min(self.failures, 30))
        return self.rng.uniform(BACKOFF_S_MIN, ceiling)

    def turned_away_s(self) -> float:
        """Long, and another time for each who was turned away together."""
        return self.rng.uniform(*TURNED_AWAY_S)

    def reset(self) -> None:
        self.failures = 0


class Session:
    """`on_message` hears every message after the Welcome, which `on_welcome` hears first, both in order."""

    def __init__(
        self,
        *,
        target: str,
        certificate: Certificate,
        tls_key: bytes,
        on_welcome: Callable[[session_pb2.Welcome], None],
        on_message: Callable[[session_pb2.CoordinatorMessage], None],
        on_congestion: Callable[[bool], None],
    ) -> None:
        self._target = target
        self._credentials = grpc.ssl_channel_credentials(certificate.ca, tls_key, certificate.certificate)
        self._on_welcome, self._on_message, self._on_congestion = on_welcome, on_message, on_congestion
        self._outbox: deque[session_pb2.WorkerMessage] = deque()
        self._outbox_bytes = 0
        self._wake = asyncio.Event()
        self._congested = False
        self._bundles = False  # the coordinator reads them
        self._closing = False
        self._broken: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def send(self, message: session_pb2.WorkerMessage) -> None:
        """Queues the message; a full outbox ends the session instead."""
        if self._broken.done() or self._closing:
            return
        self._outbox.append(message)
        self._outbox_bytes += message.ByteSize()
        self._wake.set()
        if len(self._outbox) > OUTBOX_MESSAGES_MAX or self._outbox_bytes > OUTBOX_BYTES_MAX:
            self.abandon("the coordinator reads too slowly")
        elif not self._congested and len(self._outbox) >= CONGESTED_MESSAGES:
            self._congested = True
            self._on_congestion(True)

    def abandon(self, why: str) -> None:
        """Ends the session without a farewell."""
        if not self._broken.done():
            self._broken.set_result(why)
        self._wake.set()

    def close(self) -> None:
        """Sends what is queued, then ends the stream; `run` returns."""
        self._closing = True
        self._wake.set()

    async def run(self, hello: session_pb2.Hello) -> None:
        """Returns after `close`. Raises SessionLost, or WorkerError if trying again is of no use."""
        async with grpc.aio.secure_channel(
            self._target, self._credentials, options=list(CHANNEL_OPTIONS)
        ) as channel:
            call = session_pb2_grpc.WorkerServiceStub(channel).Session()
            try:
                await self._talk(call, hello)
            except grpc.aio.AioRpcError as error:
                raise _reason(error) from None
            except asyncio.InvalidStateError:  # grpc.aio's answer to a write after the end of the call
                raise SessionLost("the connection ended") from None
            finally:
                call.cancel()

    async def _talk(self, call: "_Call", hello: session_pb2.Hello) -> None:
        try:
            async with asyncio.timeout(WELCOME_S_MAX):
                await call.write(session_pb2.WorkerMessage(hello=hello))
                first = await call.read()
        except TimeoutError:
            raise SessionLost("the coordinator does not answer") from None
        if not isinstance(first, session_pb2.CoordinatorMessage):
            raise await _end_of(call)
        if not first.HasField("welcome"):
            raise SessionLost("the coordinator did not begin with a welcome")
        self._bundles = first.welcome.bundles
        self._on_welcome(first.welcome)
        reader = asyncio.create_task(self._read(call))
        writer = asyncio.create_task(self._write(call))
        waits: list[asyncio.Future[str] | asyncio.Task[None]] = [reader, writer, self._broken]
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if writer in done and self._closing and writer.exception() is None:
                await asyncio.wait([reader], timeout=FAREWELL_S_MAX)
                return
            if self._broken in done:
                raise SessionLost(self._broken.result())
            for task in (reader, writer):
                if task in done:
                    task.result()
            raise await _end_of(call)
        finally:
            for task in (reader, writer):
                task.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)

    async def _read(self, call: "_Call") -> None:
        while isinstance(message := await call.read(), session_pb2.CoordinatorMessage):
            for one in message.bundle.messages if message.HasField("bundle") else (message,):
                self._on_message(one)

    async def _write(self, call: "_Call") -> None:
        while True:
            while self._outbox:
                await call.write(self._next())
                if self._congested and len(self._outbox) <= RELIEVED_MESSAGES:
                    self._congested = False
                    self._on_congestion(False)
            if self._closing:
                await call.done_writing()
                return
            self._wake.clear()
            await self._wake.wait()

    def _next(self) -> session_pb2.WorkerMessage:
        """The first message of the outbox; what waits behind it travels with it.

        A write costs far more than a message, so under load this is what decides how much a worker can send.
        """
        first = self._take()
        if not self._outbox or not self._joins(first):
            return first
        together, size = [first], first.ByteSize()
        while self._outbox and len(together) < BUNDLE_MESSAGES_MAX and self._joins(self._outbox[0]):
            size += self._outbox[0].ByteSize()
            if size > BUNDLE_BYTES_MAX:
                break
            together.append(self._take())
        return session_pb2.WorkerMessage(bundle=session_pb2.WorkerBundle(messages=together))

    def _joins(self, message: session_pb2.WorkerMessage) -> bool:
        return self._bundles and message.WhichOneof("body") not in APART

    def _take(self) -> session_pb2.WorkerMessage:
        message = self._outbox.popleft()
        self._outbox_bytes -= message.ByteSize()
        return message


_Call = grpc.aio.StreamStreamCall[session_pb2.WorkerMessage, session_pb2.CoordinatorMessage]


async def _end_of(call: _Call) -> Exception:
    """Why the coordinator ended the stream."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(FAREWELL_S_MAX):
            return _explained(await call.code(), await call.details() or "")
    return SessionLost("the connection ended")


def _reason(error: grpc.aio.AioRpcError) -> Exception:
    return _explained(error.code(), error.details() or "")


def _explained(code: grpc.StatusCode, details: str) -> SessionLost | WorkerError:
    said = details[:300]
    match code:
        case grpc.StatusCode.FAILED_PRECONDITION:
            return WorkerConflict(f"the coordinator does not speak with this version: {said}", code="version")
        case grpc.StatusCode.UNAUTHENTICATED | grpc.StatusCode.PERMISSION_DENIED:
            return Revoked(said)
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return SessionLost(f"the pool turns this worker away: {said}", turned_away=True)
        case grpc.StatusCode.OK:
            return SessionLost("the coordinator ended the connection")
        case _:
            handshake = any(word in details.lower() for word in ("handshake", "ssl", "certificate"))
            return SessionLost(f"{said or 'no reason given'} ({code.name})", handshake=handshake)
