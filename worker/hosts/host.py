"""Where an engine lives, as the supervisor sees it, and what every kind of host keeps in mind about it.

A host is a loaded engine somewhere: a process of this machine (`process`), a Ray actor on any machine of the
owner (`ray`), or several of these that serve as one (`site`).
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

import psutil

from potluck.v1 import engine_pb2, work_pb2
from worker.engines import engine, pipe

OnEvent = Callable[[engine_pb2.EngineEvent], None]
LOAD_S_MAX = 1800.0  # where the load does not say
CLOSE_GRACE_S = 2.0


class EngineStartError(Exception):
    """The engine did not load; the sentence says why, `code` is the fixed word for programs."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Host(Protocol):
    """A loaded engine. `exited` becomes a sentence when it is gone for good.

    Every event is heard on the loop's thread, LoadProgress and Loaded included; another Loaded later says
    that the host's room has changed. When the engine is gone, every attempt that ran there gets its Failed:
    `engine_died` (the worker's fault), `node_lost` (nobody's) or, after close(), `engine_closed` (nobody's).
    """

    @property
    def exited(self) -> asyncio.Future[str]: ...

    @property
    def loaded(self) -> engine_pb2.Loaded: ...

    @property
    def pids(self) -> tuple[int, ...]:
        """Its processes on this machine."""

    @property
    def running(self) -> frozenset[engine.Key]:
        """Attempts that have neither ended nor failed."""

    def memory_bytes(self) -> int:
        """Of the machine's memory, now; 0 once it is gone."""

    def send(self, command: engine_pb2.EngineCommand) -> None:
        """Hand a Start or Stop over; a Start to an engine that is gone fails like one that ran when it died.

        Raises PipeError for a command that is too large; then nothing was sent.
        """

    async def close(self, grace_s: float = CLOSE_GRACE_S) -> None:
        """End the engine and wait until it is gone, with all its memory. May be called again."""


class StartHost(Protocol):
    async def __call__(self, load: engine_pb2.Load, on_event: OnEvent, *, memory_bytes: int = 0) -> Host:
        """Load the model, which takes about `memory_bytes`, somewhere. Raises EngineStartError."""


class OneEngine(ABC):
    """A Host of one engine: what was asked of it and what it said, the same wherever it lives."""

    def __init__(self, load: engine_pb2.Load, on_event: OnEvent) -> None:
        loop = asyncio.get_running_loop()
        self._name = load.engine
        self._model = load.model
        self.loaded = engine_pb2.Loaded()
        self.exited: asyncio.Future[str] = loop.create_future()
        self._closing = False
        self._loading: asyncio.Future[engine_pb2.Loaded] = loop.create_future()
        self._on_event = on_event
        self._load_s_max = load.load_s_max or LOAD_S_MAX
        self._running: dict[engine.Key, work_pb2.Attempt] = {}
        self._error = engine.EngineError("engine_died", "")

    @property
    def running(self) -> frozenset[engine.Key]:
        return frozenset(self._running)

    def send(self, command: engine_pb2.EngineCommand) -> None:
        """As Host.send."""
        data = pipe.frame(command)
        if command.HasField("start"):
            attempt = command.start.attempt
            if self.exited.done():
                gone = engine.failed(attempt, self._error)
                asyncio.get_running_loop().call_soon(self._on_event, gone)
            else:
                self._running[engine.key_of(attempt)] = attempt
        if not self.exited.done():
            self._tell(data)

    @abstractmethod
    def _tell(self, frame: bytes) -> None:
        """Hand a command over; an engine that is just going need not get it."""

    @abstractmethod
    async def close(self, grace_s: float = CLOSE_GRACE_S) -> None:
        """As Host.close."""

    async def _until_loaded(self) -> None:
        """Raises EngineStartError, and whenever it raises, nothing of the engine is left behind."""
        try:
            self.loaded = await asyncio.wait_for(asyncio.shield(self._loading), self._load_s_max)
        except BaseException as error:  # cancelled or failed
            await self.close()
            if isinstance(error, TimeoutError):
                late = f"{self._model} did not load within {self._load_s_max:.0f} s"
                raise EngineStartError("load_timeout", late) from None
            raise

    def _heard(self, event: engine_pb2.EngineEvent) -> None:
        match event.WhichOneof("body"):
            case "load_failed":
                failure = event.load_failed.failure
                self._not_loaded(EngineStartError(failure.code, failure.message))
                return
            case "loaded":
                self._on_event(event)
                if not self._loading.done():
                    self._loading.set_result(event.loaded)
                return
            case "done":
                self._running.pop(engine.key_of(event.done.attempt), None)
            case "failed":
                self._running.pop(engine.key_of(event.failed.attempt), None)
        self._on_event(event)

    def _over(self, error: engine.EngineError) -> None:
        """The engine is gone; `error` says why, unless it was closed. Its attempts are told."""
        if self._closing:
            closed = f"engine {self._name} was closed"
            error = engine.EngineError("engine_closed", closed, fault=work_pb2.FAULT_NONE)
        self._error = error
        self._not_loaded(EngineStartError(error.code, str(error)))
        self.exited.set_result(str(error))
        running, self._running = self._running, {}
        for attempt in running.values():
            self._on_event(engine.failed(attempt, error))

    def _not_loaded(self, error: EngineStartError) -> None:
        if not self._loading.done():
            self._loading.set_exception(error)
            self._loading.exception()  # heard, even if the start was cancelled meanwhile


def resident_bytes(pid: int) -> int:
    """Of a process of this machine; 0 once it is gone."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0
