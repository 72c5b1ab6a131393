"""The models of this worker in memory: engines are started, watched, started again when they die, unloaded.

A model goes absent -> downloading -> present -> loading -> ready; from anywhere to failed, and from there it
is tried again, ever more slowly. Work that comes while a model is not ready waits for it here.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from potluck.fetch import ArtifactSource, FetchError, fetch
from potluck.v1 import engine_pb2, session_pb2
from worker import wire
from worker.engines.pipe import PipeError
from worker.hosts.process import EngineHost, EngineStartError
from worker.messages import (
    Assigned,
    AttemptId,
    EngineFailed,
    Event,
    Failure,
    Fault,
    ModelOffered,
    ModelsChanged,
    ModelWithdrawn,
)
from worker.models import Choice
from worker.settings import Settings

RESTART_S_MIN: Final = 0.5
RESTART_S_MAX: Final = 60.0
RETRY_S_MIN: Final = 5.0
RETRY_S_MAX: Final = 300.0
STEADY_S: Final = 60.0  # an engine that lived so long has not failed in a row
PROGRESS_S_MIN: Final = 1.0
SLOTS_GUESSED: Final = {"llamacpp": 4, "torch": 8, "emulator": 32}  # until the engine says


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What every model of one daemon shares. `threads` is asked when an engine loads."""

    settings: Settings
    cache: Path
    converted: Path
    threads: Callable[[], int]
    emit: Callable[[Event], None]
    artifacts: ArtifactSource | None


class ModelService:
    """One model: its files, its engine, and the attempts that wait for it."""

    def __init__(self, choice: Choice, around: Surroundings) -> None:
        self.choice = choice
        self.state = session_pb2.MODEL_STATE_ABSENT
        self.why = ""
        self.bytes_done = 0
        self.bytes_total = sum(file.size_bytes for file in choice.variant.files)
        self.host: EngineHost | None = None
        self._around = around
        self._loaded = engine_pb2.Loaded()
        self._loaded_threads = 0
        self._waiting: dict[AttemptId, Assigned] = {}
        self._wanted = asyncio.Event()
        self._poked = asyncio.Event()
        self._failures = 0
        self._used_at = 0.0
        self._told_at = 0.0
        self._log = structlog.get_logger("worker.models").bind(model=choice.entry.name, engine=choice.engine)
        if choice.eager:
            self._wanted.set()

    # --- what the daemon says ---

    def start(self, assigned: Assigned) -> None:
        if self.host is None:
            self._waiting[assigned.attempt] = assigned
            self._wanted.set()
        else:
            self._hand_over(self.host, assigned)

    def stop(self, attempt: AttemptId) -> None:
        if self._waiting.pop(attempt, None) is None and self.host is not None:
            self.host.send(wire.stop_command(attempt))

    def poke(self) -> None:
        """The share of cores may have changed."""
        self._poked.set()

    def refuse_waiting(self, failure: Failure) -> None:
        waiting, self._waiting = self._waiting, {}
        for attempt in waiting:
            self._around.emit(EngineFailed(attempt, failure))

    def waiting(self) -> list[AttemptId]:
        return list(self._waiting)

    def served(self) -> session_pb2.ServedModel:
        entry, loaded = self.choice.entry, self._loaded
        return session_pb2.ServedModel(
            name=entry.name,
            engine=self.choice.engine,
            kinds=list(loaded.kinds) or [str(kind) for kind in entry.kinds],
            state=self.state,
            bytes_done=self.bytes_done,
            bytes_total=self.bytes_total,
            numerics=loaded.numerics,
            sampler=loaded.sampler,
            prefill_tokens_per_s=loaded.prefill_tokens_per_s,
            decode_tokens_per_s=loaded.decode_tokens_per_s,
            slots=self._slots(),
            context_tokens=loaded.context_tokens or entry.context_tokens,
            why=self.why,
            features=loaded.features,
        )

    def _slots(self) -> int:
        wished = self._around.settings.slots or SLOTS_GUESSED.get(self.choice.engine, 1)
        return self._loaded.slots or wished

    # --- its life ---

    async def run(self) -> None:
        """Until cancelled; the engine process is then gone."""
        self._offer()
        while True:
            try:
                paths = await self._fetch()
                if not self._wanted.is_set():
                    self._move(session_pb2.MODEL_STATE_PRESENT)
                    await self._wanted.wait()
                host = await self._load(paths)
            except (FetchError, EngineStartError, OSError) as error:
                await self._fail(error)
                continue
            try:
                await self._serve(host)
            finally:
                self.host = None
                await host.close()

    async def _fetch(self) -> list[Path]:
        """Raises FetchError."""
        paths = []
        before = 0
        for file in self.choice.variant.files:

            def progress(done: int, total: int, before: int = before) -> None:
                self.bytes_done = before + done
                if done < total:
                    self._downloading()

            source = self._around.artifacts
            paths.append(await fetch(file, self._around.cache, progress=progress, artifacts=source))
            before += file.size_bytes
        self.bytes_done = self.bytes_total
        return paths

    def _downloading(self) -> None:
        if self.state is not session_pb2.MODEL_STATE_DOWNLOADING:
            self._move(session_pb2.MODEL_STATE_DOWNLOADING)
        self._tell("downloading")

    async def _load(self, paths: list[Path]) -> EngineHost:
        """Raises EngineStartError."""
        settings = self._around.settings
        self._loaded_threads = self._around.threads()
        load = engine_pb2.Load(
            engine=self.choice.engine,
            model=self.choice.entry.name,
            paths=[str(path) for path in paths],
            threads=self._loaded_threads,
            slots=settings.slots,
            context_tokens=settings.context_tokens,
            options=settings.engine_options,
            cache_dir=str(self._around.converted),
            kinds=[str(kind) for kind in self.choice.entry.kinds],
        )
        self._move(session_pb2.MODEL_STATE_LOADING, self.why)
        self._log.info("loading", action="model_loading", threads=self._loaded_threads)
        return await EngineHost.start(load, self._heard)

    async def _serve(self, host: EngineHost) -> None:
        """Returns when the engine died, or should be unloaded or loaded anew."""
        loop = asyncio.get_running_loop()
        since = self._used_at = loop.time()
        self._loaded, self.host = host.loaded, host
        self._move(session_pb2.MODEL_STATE_READY)
        self._offer()
        self._log.info("ready", action="model_ready", slots=self._slots(), pid=host.pid)
        waiting, self._waiting = self._waiting, {}
        for assigned in waiting.values():
            self._hand_over(host, assigned)
        while not host.exited.done():
            await self._something(host)
            if host.exited.done() or host.running:
                continue
            if self._loaded_threads != self._around.threads():
                self._log.info("another share of the cores", action="model_reloading")
                self._wanted.set()
                return
            if self._idle_s() is not None and loop.time() - self._used_at >= (self._idle_s() or 0.0):
                self._log.info("unloaded: nobody asked for it", action="model_unloaded")
                self._loaded = engine_pb2.Loaded()
                self._wanted.clear()
                self._move(session_pb2.MODEL_STATE_PRESENT)
                return
        self.host = None
        self._failures = 0 if loop.time() - since >= STEADY_S else self._failures
        await self._restart(host.exited.result())

    async def _something(self, host: EngineHost) -> None:
        """Waits until the engine died, an attempt ended, the cores changed, or it was idle for long."""
        self._poked.clear()
        poked = asyncio.ensure_future(self._poked.wait())
        waits: set[asyncio.Future[Any]] = {host.exited, poked}
        try:
            timeout = None if host.running else self._idle_s()
            await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            poked.cancel()

    def _idle_s(self) -> float | None:
        """How long the engine may be idle; None: for ever."""
        return None if self.choice.eager else self._around.settings.unload_after_s or None

    async def _restart(self, why: str) -> None:
        self._log.warning("the engine died and is started again", action="engine_died", why=why)
        self._move(session_pb2.MODEL_STATE_LOADING, why)
        self._wanted.set()
        pause_s = min(RESTART_S_MAX, RESTART_S_MIN * 2.0**self._failures)
        self._failures = min(self._failures + 1, 30)
        await asyncio.sleep(pause_s)

    async def _fail(self, error: FetchError | EngineStartError | OSError) -> None:
        """What waits is told; another try follows later, since disks are emptied and networks come back."""
        self._log.error("the model cannot be served", action="model_failed", why=str(error))
        self._move(session_pb2.MODEL_STATE_FAILED, str(error))
        self._around.emit(ModelWithdrawn(self.choice.entry.name, str(error)))
        code = error.code if isinstance(error, EngineStartError) else "model_not_there"
        self.refuse_waiting(Failure(Fault.WORKER, code, str(error)))
        pause_s = min(RETRY_S_MAX, RETRY_S_MIN * 2.0**self._failures)
        self._failures = min(self._failures + 1, 30)
        await asyncio.sleep(pause_s)

    # --- words in and out ---

    def _hand_over(self, host: EngineHost, assigned: Assigned) -> None:
        try:
            host.send(wire.start_command(assigned))
        except PipeError:
            large = Failure(Fault.JOB, "request_too_large", "the request is larger than an engine takes")
            failed = EngineFailed(assigned.attempt, large)
            asyncio.get_running_loop().call_soon(self._around.emit, failed)

    def _heard(self, event: engine_pb2.EngineEvent) -> None:
        if event.HasField("load_progress"):
            self.bytes_done, self.bytes_total = (
                event.load_progress.bytes_done,
                event.load_progress.bytes_total,
            )
            self._tell("loading")
            return
        try:
            heard = wire.engine_event_from(event)
        except wire.WireError as error:
            self._log.warning("the engine spoke nonsense", action="engine_nonsense", why=str(error))
            return
        if heard is not None:
            self._around.emit(heard)
        if event.HasField("done") or event.HasField("failed"):
            self._used_at = asyncio.get_running_loop().time()
            self._poked.set()

    def _offer(self) -> None:
        self._around.emit(ModelOffered(self.choice.entry.name, self.choice.engine, self._slots()))

    def _move(self, state: session_pb2.ModelState.ValueType, why: str = "") -> None:
        self.state, self.why = state, why
        self._around.emit(ModelsChanged())

    def _tell(self, stage: str) -> None:
        """Progress, not more often than somebody reads."""
        now = asyncio.get_running_loop().time()
        if now - self._told_at >= PROGRESS_S_MIN:
            self._told_at = now
            done, total = self.bytes_done, self.bytes_total
            self._log.info(stage, action=f"model_{stage}", bytes_done=done, bytes_total=total)
            self._around.emit(ModelsChanged())


class Supervisor:
    """All models of one daemon."""

    def __init__(self) -> None:
        self.models: dict[str, ModelService] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def serve(self, choices: list[Choice], around: Surroundings) -> None:
        """From now on exactly these; what is served already and did not change goes on undisturbed."""
        wished = {choice.entry.name: choice for choice in choices}
        for name in list(self.models):
            if wished.get(name) != self.models[name].choice:
                around.emit(ModelWithdrawn(name, "no longer served here"))
                await self._end(name)
        for name, choice in wished.items():
            if name not in self.models:
                self.models[name] = ModelService(choice, around)
                self._tasks[name] = asyncio.create_task(self.models[name].run(), name=f"model {name}")

    async def _end(self, name: str) -> None:
        task, service = self._tasks.pop(name), self.models.pop(name)
        service.refuse_waiting(Failure(Fault.NONE, "model_not_served", f"{name} is no longer served here"))
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    def start(self, assigned: Assigned) -> None:
        self.models[assigned.model].start(assigned)

    def stop(self, attempt: AttemptId, model: str) -> None:
        service = self.models.get(model)
        if service is not None:
            service.stop(attempt)

    def poke(self) -> None:
        for service in self.models.values():
            service.poke()

    def served(self) -> list[session_pb2.ServedModel]:
        return [service.served() for service in self.models.values()]

    def progress(self) -> Iterator[session_pb2.Progress]:
        """A sign of life for each attempt that waits for its model."""
        for service in self.models.values():
            loading = service.state == session_pb2.MODEL_STATE_LOADING
            for attempt in service.waiting():
                yield session_pb2.Progress(
                    attempt=wire.attempt_to(attempt),
                    stage="loading" if loading else "downloading",
                    done=service.bytes_done,
                    total=service.bytes_total,
                )

    async def close(self) -> None:
        """Ends every engine; returns when their processes are gone."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._tasks.clear()
        self.models.clear()
