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

from coordinator.core.jobs import WorkerId
from coordinator.records import EnrolledWorker
from potluck.v1 import session_pb2, session_pb2_grpc

log = structlog.get_logger(__name__)

PROTOCOL_MIN = PROTOCOL_MAX = 1
OUTBOX_MAX = 1_024  # messages
BUNDLE_MESSAGES_MAX = 256
BUNDLE_BYTES_MAX = 512 * 1024
HELLO_S = 10.0
USELESS_MAX = 2_000  # messages of one worker that changed nothing, before it is cut off
USELESS_PER_S = 20.0  # of them are forgiven: a stream may live for months

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


class Unwelcome(Exception):  # noqa: N818 -- named for what happened
    """This stream may not be; the code and the sentence go to the worker."""

    def __init__(self, code: grpc.StatusCode, sentence: str) -> None:
        super().__init__(sentence)
        self.code, self.sentence = code, sentence


@dataclass(slots=True)
class Stream:
    outbox: asyncio.Queue[session_pb2.CoordinatorMessage] = field(
        default_factory=lambda: asyncio.Queue(OUTBOX_MAX)
    )
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    verdict: Unwelcome | None = None
    greeted: bool = False
    bundles: bool = False  # the worker reads them

    def greet(self, welcome: session_pb2.Welcome) -> None:
        """The first message down; whatever else is sent waits for it."""
        self.outbox.put_nowait(session_pb2.CoordinatorMessage(welcome=welcome))
        self.greeted = True

    def end(self, code: grpc.StatusCode, sentence: str) -> None:
        self.verdict = self.verdict or Unwelcome(code, sentence)
        self.ended.set()


@dataclass(slots=True)
class Sessions:
    streams: dict[WorkerId, Stream] = field(default_factory=dict)

    def open(self, worker: WorkerId) -> Stream:
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
        try:
            stream.outbox.put_nowait(message)
        except asyncio.QueueFull:
            stream.end(grpc.StatusCode.RESOURCE_EXHAUSTED, "the worker does not read what it is sent")
            return False
        return True

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

    def spend(self, worth: int, now: float) -> bool:
        """False: it is used up, and this was once more of no use."""
        forgiven = (now - self.at) * USELESS_PER_S
        self.left, self.at = min(USELESS_MAX, max(0.0, self.left + forgiven + worth)), now
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

    async def Session(  # type: ignore[override]  # noqa: N802 -- the RPC's name; grpc.aio also takes writers
        self, request_iterator: AsyncIterator[session_pb2.WorkerMessage], context: Context
    ) -> None:
        try:
            worker = await self._identify(context)
            hello = await self._hello(request_iterator)
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
                asyncio.create_task(_write(stream, context)),
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

    async def _read(self, worker: WorkerId, requests: AsyncIterator[session_pb2.WorkerMessage]) -> None:
        clock = asyncio.get_running_loop().time
        budget = self._budgets.setdefault(worker, Budget(USELESS_MAX, clock()))
        async for message in _readable(requests):
            worth = await self._reports.receive(worker, message)
            if worth and not budget.spend(worth, clock()):
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


async def _write(stream: Stream, context: Context) -> None:
    """What waits in the outbox goes out together: a write costs far more than what is in it.

    The Welcome is the first of it and travels alone: a worker that got it in a bundle would leave.
    """
    await context.write(await stream.outbox.get())
    while True:
        waiting, size = [await stream.outbox.get()], 0
        while stream.bundles and not stream.outbox.empty() and len(waiting) < BUNDLE_MESSAGES_MAX:
            size += waiting[-1].ByteSize()
            following = stream.outbox.get_nowait()
            if size + following.ByteSize() > BUNDLE_BYTES_MAX:
                await context.write(_bundled(waiting))
                waiting, size = [], 0
            waiting.append(following)
        await context.write(_bundled(waiting))


def _bundled(messages: list[session_pb2.CoordinatorMessage]) -> session_pb2.CoordinatorMessage:
    if len(messages) == 1:
        return messages[0]
    return session_pb2.CoordinatorMessage(bundle=session_pb2.CoordinatorBundle(messages=messages))


async def _until(stream: Stream) -> None:
    await stream.ended.wait()
