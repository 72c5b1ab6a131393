"""Where an engine lives, as the supervisor sees it, and what every kind of host keeps in mind about it.

A host is a loaded engine somewhere: a process of this machine (`process`), a Ray actor on any machine of the
owner (`ray`), or several of these that serve as one (`site`).
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

from potluck.v1 import engine_pb2, work_pb2
from worker.engines import engine

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


class Talk:
    """What was asked of one engine and what it said: what runs, whether it is loaded, how it ended."""

    def __init__(self, load: engine_pb2.Load, on_event: OnEvent) -> None:
        loop = asyncio.get_running_loop()
        self.name = load.engine
        self.model = load.model
        self.closing = False
        self.loaded = engine_pb2.Loaded()
        self.loading: asyncio.Future[engine_pb2.Loaded] = loop.create_future()
        self.exited: asyncio.Future[str] = loop.create_future()
        self._on_event = on_event
        self._load_s_max = load.load_s_max or LOAD_S_MAX
        self._running: dict[engine.Key, work_pb2.Attempt] = {}
        self._error = engine.EngineError("engine_died", "")

    @property
    def running(self) -> frozenset[engine.Key]:
        return frozenset(self._running)

    async def until_loaded(self) -> None:
        """Raises EngineStartError."""
        try:
            self.loaded = await asyncio.wait_for(asyncio.shield(self.loading), self._load_s_max)
        except TimeoutError:
            raise EngineStartError(
                "load_timeout", f"{self.model} did not load within {self._load_s_max:.0f} s"
            ) from None

    def asked(self, command: engine_pb2.EngineCommand) -> bool:
        """Before a command is handed over. False: the engine is gone, and whoever waits is told so."""
        if command.HasField("start"):
            attempt = command.start.attempt
            if self.exited.done():
                gone = engine.failed(attempt, self._error)
                asyncio.get_running_loop().call_soon(self._on_event, gone)
            else:
                self._running[engine.key_of(attempt)] = attempt
        return not self.exited.done()

    def heard(self, event: engine_pb2.EngineEvent) -> None:
        match event.WhichOneof("body"):
            case "load_failed":
                failure = event.load_failed.failure
                self._not_loaded(EngineStartError(failure.code, failure.message))
                return
            case "loaded":
                self._on_event(event)
                if not self.loading.done():
                    self.loading.set_result(event.loaded)
                return
            case "done":
                self._running.pop(engine.key_of(event.done.attempt), None)
            case "failed":
                self._running.pop(engine.key_of(event.failed.attempt), None)
        self._on_event(event)

    def over(self, error: engine.EngineError) -> None:
        """The engine is gone; `error` says why, unless it was closed. Its attempts are told."""
        if self.closing:
            closed = f"engine {self.name} was closed"
            error = engine.EngineError("engine_closed", closed, fault=work_pb2.FAULT_NONE)
        self._error = error
        self._not_loaded(EngineStartError(error.code, str(error)))
        self.exited.set_result(str(error))
        running, self._running = self._running, {}
        for attempt in running.values():
            self._on_event(engine.failed(attempt, error))

    def _not_loaded(self, error: EngineStartError) -> None:
        if not self.loading.done():
            self.loading.set_exception(error)
            self.loading.exception()  # heard, even if the start was cancelled meanwhile
