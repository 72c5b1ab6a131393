"""The gRPC streams of the workers: one reader, one writer each, no decisions.

The newest stream of a worker wins. An outbox is bounded: a worker that does not drain it is cut off, and
what was lost with it comes back through leases. So is what a worker may say to no purpose. Cancellation and
a clean end look alike (grpc.aio ends handlers either way), so cleaning up happens in `finally`.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import grpc
import structlog
from google.protobuf.message import DecodeError

from coordinator.at_once import AtOnce
from coordinator.core.jobs import WorkerId
from coordinator.records import EnrolledWorker
from coordinator.unwelcome import Unwelcome
from potluck.v1 import session_pb2, session_pb2_grpc

log = structlog.get_logger(__name__)

PROTOCOL_MIN = PROTOCOL_MAX = 1
OUTBOX_MAX = 1_024  # messages
OUTBOX_BYTES_MAX = 64 * 1024 * 1024
WRITE_S_MAX = 30.0  # in which a worker must read what makes room for the next message
GREETING_MAX = 4  # streams of one worker that have not said Hello
COMINGS_MAX = 60  # streams of one worker within a moment
COMINGS_PER_S = 1.0  # of them are forgiven
BUNDLE_MESSAGES_MAX = 256
BUNDLE_BYTES_MAX = 512 * 1024
HELLO_S = 10.0
USELESS_MAX = 2_000  # messages of one worker that changed nothing, before it is cut off
USELESS_PER_S = 20.0  # of them are forgiven: a stream may live for months

UNREAD = "the worker does not read what it is sent"

Context = grpc.aio.ServicerContext[session_pb2.WorkerMessage, session_pb2.CoordinatorMessage]


class Reports(Protocol):
    """Where messages go. `enrolled` raises Unwelcome for who was shut out; `hello` answers with the welcome.

    `receive` says what a message was worth: 1 if it was news, 0 for a sign of life, -1 for each part of it
    that changed nothing.
    """

    async def enrolled(self, worker: WorkerId) -> EnrolledWorker: ...
    def hello(self, row: EnrolledWorker, hello: session_pb2.Hello) -> session_pb2.Welcome: ...
    async def receive(self, worker: WorkerId, message: session_pb2.WorkerMessage) -> int: ...
    def gone(self, worker: WorkerId) -> None: ...


@dataclass(slots=True)
class Stream:
    outbox: asyncio.Queue[session_pb2.CoordinatorMessage] = field(
        default_factory=lambda: asyncio.Queue(OUTBOX_MAX)
    )
    outbox_bytes: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    verdict: Unwelcome | None = None
    greeted: bool = False
    bundles: bool = False  # the worker reads them

    def greet(self, welcome: session_pb2.Welcome) -> None:
        """The first message down; whatever else is sent waits for it."""
        self.put(session_pb2.CoordinatorMessage(welcome=welcome))
        self.greeted = True

    def put(self, message: session_pb2.CoordinatorMessage) -> bool:
        """False: so much waits that it is not read."""
        size = message.ByteSize()
        if self.outbox.full() or (self.outbox_bytes and self.outbox_bytes + size > OUTBOX_BYTES_MAX):
            return False
        self.outbox.put_nowait(message)
        self.outbox_bytes += size
        return True

    def taken(self, message: session_pb2.CoordinatorMessage) -> session_pb2.CoordinatorMessage:
        """The message, which is in the outbox no more."""
        self.outbox_bytes -= message.ByteSize()
        return message

    def end(self, code: grpc.StatusCode, sentence: str) -> None:
        self.verdict = self.verdict or Unwelcome(code, sentence)
        self.ended.set()


@dataclass(slots=True)
class Sessions:
    streams: dict[WorkerId, Stream] = field(default_factory=dict)
    sessions_max: int = 12_000
    refused: Callable[[str], None] = lambda _: None  # counts by a fixed word

    def open(self, worker: WorkerId) -> Stream:
        """Raises Unwelcome if there are too many."""
        if worker not in self.streams and len(self.streams) >= self.sessions_max:
            self.refused("sessions")
            raise Unwelcome(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{self.sessions_max} workers are connected, and this pool takes no more",
            )
        if (older := self.streams.get(worker)) is not None:
            older.end(grpc.StatusCode.ABORTED, "a newer stream of this worker has taken over")
        stream = self.streams[worker] = Stream()
        return stream

    def close(self, worker: WorkerId, stream: Stream) -> bool:
        """True: it was the worker's newest, so the worker is gone."""
        if self.streams.get(worker) is not stream:
            return False
        del self.streams[worker]
        return True

    def send(self, worker: WorkerId, message: session_pb2.CoordinatorMessage) -> bool:
        """False: not on its way, because the worker has no stream or does not read it."""
        stream = self.streams.get(worker)
        if stream is None or not stream.greeted or stream.ended.is_set():
            return False
        if not stream.put(message):
            self.unread(stream)
            return False
        return True

    def unread(self, stream: Stream) -> None:
        """The worker does not read: it is cut off, and what it had goes to others."""
        self.refused("slow_worker")
        stream.end(grpc.StatusCode.RESOURCE_EXHAUSTED, UNREAD)

    def tell_all(self, coordinators: Sequence[str]) -> None:
        """Where else the pool may be found, from now on."""
        message = session_pb2.CoordinatorMessage(
            coordinators=session_pb2.Coordinators(addresses=coordinators)
        )
        for worker in list(self.streams):
            self.send(worker, message)

    def expel(self, worker: WorkerId, sentence: str) -> None:
        """Close the live stream of a worker that was revoked."""
        if (stream := self.streams.get(worker)) is not None:
            stream.end(grpc.StatusCode.PERMISSION_DENIED, sentence)

    def end_all(self, sentence: str) -> None:
        for stream in self.streams.values():
            stream.end(grpc.StatusCode.UNAVAILABLE, sentence)


@dataclass(slots=True)
class Budget:
    """How much more a worker may say to no purpose; kept over its streams, or coming back would refill it."""

    left: float
    at: float

    def spend(self, worth: int, now: float, most: float, per_s: float) -> bool:
        """False: it is used up, and this was once more of no use."""
        forgiven = (now - self.at) * per_s
        self.left, self.at = min(most, max(0.0, self.left + forgiven + worth)), now
        return worth >= 0 or self.left > 0


class WorkerService(session_pb2_grpc.WorkerServiceServicer):
    def __init__(
        self,
        sessions: Sessions,
        reports: Reports,
        identify: Callable[[Context], Awaitable[WorkerId]],
    ) -> None:
        self._sessions, self._reports, self._identify = sessions, reports, identify
        self._budgets: dict[WorkerId, Budget] = {}
        self._comings: dict[WorkerId, Budget] = {}
        self._greeting = AtOnce(GREETING_MAX, "sessions that have not begun")

    async def Session(  # type: ignore[override]  # noqa: N802 -- the RPC's name; grpc.aio also takes writers
        self, request_iterator: AsyncIterator[session_pb2.WorkerMessage], context: Context
    ) -> None:
        try:
            worker = await self._identify(context)
            with self._greeting.counted(worker):
                hello = await self._hello(request_iterator)
            self._comes(worker)
            await self._serve(worker, hello, request_iterator, context)
        except Unwelcome as verdict:
            log.info("stream ended", action="stream_ended", why=verdict.sentence)
            await context.abort(verdict.code, verdict.sentence)
        except Exception:  # the process border of a stream: the worker gets a sentence, the log the trace
            log.exception("a stream failed", action="stream_failed")
            await context.abort(grpc.StatusCode.INTERNAL, "the coordinator made a mistake; its log has it")

    async def _hello(self, requests: AsyncIterator[session_pb2.WorkerMessage]) -> session_pb2.Hello:
        try:
            async with asyncio.timeout(HELLO_S):
                first = await anext(_readable(requests))
        except (TimeoutError, StopAsyncIteration):
            raise Unwelcome(grpc.StatusCode.DEADLINE_EXCEEDED, f"no Hello within {HELLO_S:.0f} s") from None
        if first.WhichOneof("body") != "hello":
            raise Unwelcome(grpc.StatusCode.INVALID_ARGUMENT, "the first message must be Hello")
        if first.hello.protocol < PROTOCOL_MIN:
            raise Unwelcome(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"this worker speaks protocol {first.hello.protocol}, the pool speaks {PROTOCOL_MIN} to "
                f"{PROTOCOL_MAX}: update the worker (pip install --upgrade 'potluck[worker]')",
            )
        return first.hello

    async def _serve(
        self,
        worker: WorkerId,
        hello: session_pb2.Hello,
        requests: AsyncIterator[session_pb2.WorkerMessage],
        context: Context,
    ) -> None:
        stream = self._sessions.open(worker)
        tasks: list[asyncio.Task[None]] = []
        try:
            row = await self._reports.enrolled(worker)
            if stream.verdict is not None:  # meanwhile revoked, or a newer stream is there
                raise stream.verdict
            stream.greet(self._reports.hello(row, hello))
            stream.bundles = hello.bundles
            tasks = [
                asyncio.create_task(self._read(worker, requests)),
                asyncio.create_task(self._write(stream, context)),
                asyncio.create_task(_until(stream)),
            ]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            if stream.verdict is not None:
                raise stream.verdict
        finally:
            for task in tasks:
                task.cancel()
            if self._sessions.close(worker, stream):
                self._reports.gone(worker)

    async def _write(self, stream: Stream, context: Context) -> None:
        try:
            await _written(stream, context)
        except TimeoutError:
            self._sessions.unread(stream)

    async def _read(self, worker: WorkerId, requests: AsyncIterator[session_pb2.WorkerMessage]) -> None:
        async for message in _readable(requests):
            if worth := await self._reports.receive(worker, message):
                self._spend(worker, worth)

    def _comes(self, worker: WorkerId) -> None:
        """Raises Unwelcome for who comes and goes all the time: each time the books are looked at."""
        now = asyncio.get_running_loop().time()
        budget = self._comings.setdefault(worker, Budget(COMINGS_MAX, now))
        if not budget.spend(-1, now, COMINGS_MAX, COMINGS_PER_S):
            self._sessions.refused("useless_worker")
            raise Unwelcome(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"this worker came more than {COMINGS_MAX} times"
            )

    def _spend(self, worker: WorkerId, worth: int) -> None:
        """Raises Unwelcome once too much was of no use."""
        now = asyncio.get_running_loop().time()
        budget = self._budgets.setdefault(worker, Budget(USELESS_MAX, now))
        if not budget.spend(worth, now, USELESS_MAX, USELESS_PER_S):
            self._sessions.refused("useless_worker")
            raise Unwelcome(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"more than {USELESS_MAX} messages of this worker changed nothing",
            )


async def _readable(
    requests: AsyncIterator[session_pb2.WorkerMessage],
) -> AsyncIterator[session_pb2.WorkerMessage]:
    """Messages, until one is no protobuf. Raises Unwelcome then."""
    try:
        async for message in requests:
            yield message
    except DecodeError:
        raise Unwelcome(
            grpc.StatusCode.INVALID_ARGUMENT,
            "a message that cannot be read: it is no protobuf of this protocol",
        ) from None


async def _written(stream: Stream, context: Context) -> None:
    """What waits in the outbox goes out together: a write costs far more than what is in it.

    The Welcome is the first of it and travels alone: a worker that got it in a bundle would leave. Raises
    TimeoutError if the worker does not read.
    """
    waiting = [stream.taken(await stream.outbox.get())]
    while True:
        async with asyncio.timeout(WRITE_S_MAX):
            await context.write(_bundled(waiting))
        waiting, size = [stream.taken(await stream.outbox.get())], 0
        while stream.bundles and not stream.outbox.empty() and len(waiting) < BUNDLE_MESSAGES_MAX:
            size += waiting[-1].ByteSize()
            following = stream.taken(stream.outbox.get_nowait())
            if size + following.ByteSize() > BUNDLE_BYTES_MAX:
                async with asyncio.timeout(WRITE_S_MAX):
                    await context.write(_bundled(waiting))
                waiting, size = [], 0
            waiting.append(following)


def _bundled(messages: list[session_pb2.CoordinatorMessage]) -> session_pb2.CoordinatorMessage:
    if len(messages) == 1:
        return messages[0]
    return session_pb2.CoordinatorMessage(bundle=session_pb2.CoordinatorBundle(messages=messages))


async def _until(stream: Stream) -> None:
    await stream.ended.wait()
