"""One model's life on this worker: fetched, loaded when it is wanted, started again when it dies, unloaded.

A model goes absent -> downloading -> present -> loading -> ready; from anywhere to failed, and from there it
is tried again, ever more slowly. Work that comes while a model is not ready waits for it here. A model leaves
memory when it was idle for long, or when another one needs the room.
"""

import asyncio
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import structlog

from potluck.fetch import FetchError
from potluck.v1 import engine_pb2, session_pb2
from worker import wire
from worker.budget import Resident
from worker.engines.pipe import PipeError
from worker.files import ModelFiles
from worker.hosts.host import EngineStartError, Host
from worker.loads import load_of, slots_of
from worker.memory import NoRoom
from worker.messages import (
    Assigned,
    AttemptId,
    EngineFailed,
    Failure,
    Fault,
    ModelOffered,
    ModelsChanged,
    ModelWithdrawn,
    Role,
)
from worker.models import Choice
from worker.pace import Pace
from worker.speeds import ModelSpeed
from worker.surroundings import Surroundings

RESTART_S_MIN: Final = 0.5
RESTART_S_MAX: Final = 60.0
RETRY_S_MIN: Final = 5.0
RETRY_S_MAX: Final = 300.0
STEADY_S: Final = 60.0  # an engine that lived so long has not failed in a row
PROGRESS_S_MIN: Final = 1.0
BESIDE_IDLE_S: Final = 120.0  # parts of a fine-tune follow each other, and others want their cores back
LORA: Final = "lora"  # the feature of an engine that answers with adapters
ON_DISK: Final = frozenset(
    {session_pb2.MODEL_STATE_PRESENT, session_pb2.MODEL_STATE_LOADING, session_pb2.MODEL_STATE_READY}
)


class ModelService:
    """One model: its files, its engine, and the attempts that wait for it."""

    def __init__(self, choice: Choice, around: Surroundings) -> None:
        self.choice = choice
        self.state = session_pb2.MODEL_STATE_ABSENT
        self.why = ""
        self._files = ModelFiles(choice.variant, around.store, around.downloads, self._downloading)
        digests = tuple(file.sha256 for file in choice.variant.files) or (choice.entry.name,)
        self.speed = ModelSpeed(around.speeds, around.speeds.key(choice.engine, digests))
        self.bytes_done, self.bytes_total = 0, self._files.bytes_total
        self.host: Host | None = None
        self.around = around
        self.loaded = engine_pb2.Loaded()
        self._loaded_threads = 0
        self._share = 0  # of a capped memory, since it was last taken
        self._waiting: dict[AttemptId, Assigned] = {}
        self._wanted = asyncio.Event()
        self._poked = asyncio.Event()
        self._leaving = False
        self._failures = 0
        self._used_at = 0.0
        self._told_at = 0.0
        self._load_took_s = 0.0
        self.pace = Pace(0.0, 0)
        self._log = structlog.get_logger("worker.models").bind(model=choice.entry.name, engine=choice.engine)

    @property
    def name(self) -> str:
        return self.choice.tenant

    @property
    def in_memory(self) -> bool:
        """Or on its way there."""
        return self.state in {session_pb2.MODEL_STATE_LOADING, session_pb2.MODEL_STATE_READY}

    # --- what the daemon says ---

    def start(self, assigned: Assigned) -> None:
        self._used_at = asyncio.get_running_loop().time()
        alone = self.choice.role is Role.TRAIN
        if self.host is None or (alone and self.host.running):  # one may still be ending
            self._waiting[assigned.attempt] = assigned
            self._wanted.set()
        else:
            self._leaving = False
            self._hand_over(self.host, assigned)

    def stop(self, attempt: AttemptId) -> bool:
        """Whether it waited here, and never begins; else its engine says when it has ended."""
        if self._waiting.pop(attempt, None) is not None:
            return True
        if self.host is not None:
            self.host.send(wire.stop_command(attempt))
        return False

    def poke(self) -> None:
        """The share of cores may have changed."""
        self._poked.set()

    def refuse_waiting(self, failure: Failure) -> None:
        waiting, self._waiting = self._waiting, {}
        for attempt in waiting:
            self.around.emit(EngineFailed(attempt, failure))

    def waiting(self) -> list[AttemptId]:
        return list(self._waiting)

    def rest(self, why: str) -> None:
        """Its task was cancelled: the model is out of memory until `run` begins anew."""
        self.loaded = engine_pb2.Loaded()
        self._wanted.clear()
        there = self.state in {session_pb2.MODEL_STATE_PRESENT, session_pb2.MODEL_STATE_READY}
        loading = self.state == session_pb2.MODEL_STATE_LOADING
        self._move(
            session_pb2.MODEL_STATE_PRESENT if there or loading else session_pb2.MODEL_STATE_ABSENT, why
        )

    def slots(self) -> int:
        return slots_of(self.choice, self.around.settings, self.loaded)

    # --- what its memory asks ---

    def resident(self) -> Resident:
        """Its size is what the catalogue says, until the engine has measured it; of a capped memory, all that
        it may take.
        """
        measured = self.host.loaded.memory_bytes if self.host is not None else 0
        return Resident(
            name=self.name,
            place=self.around.place(self.choice.engine),
            size_bytes=max(measured or self.choice.variant.memory_bytes, self._share),
            used_at=self._used_at,
            busy=self.host is None or bool(self.host.running or self._waiting),  # without one, it just loads
        )

    def leave(self) -> None:
        self._leaving = True
        self._poked.set()

    # --- its life ---

    async def run(self) -> None:
        """Until cancelled; the engine process is then gone."""
        self.why = ""  # of the pause before it, which is over
        self._offer()
        if self.choice.eager:
            self._wanted.set()
        evict = False  # who was asked for by name is loaded at once, though not at the cost of another
        while True:
            with ExitStack() as held:
                try:
                    if not self._wanted.is_set():
                        await self._until_wanted()
                    held.enter_context(self.around.store.using(self.choice.variant.files))
                    paths = await self._fetch()  # again: they may have given way to other models'
                    self._share = self.around.share(self.name)
                    await self.around.memory.take(self, evict=evict or bool(self._waiting))
                except NoRoom as none:
                    self._no_room(none)
                    continue
                except (FetchError, OSError) as error:
                    await self._fail(error)
                    continue
                finally:
                    evict = True
                await self._in_memory(paths)

    async def _until_wanted(self) -> None:
        """What serves has its files already then. Raises FetchError."""
        if not self.choice.beside:
            await self._fetch()
            self._move(session_pb2.MODEL_STATE_PRESENT, self.why)
        await self._wanted.wait()

    async def _fetch(self) -> list[Path]:
        """Raises FetchError."""
        paths = await self._files.fetch(self.around.artifacts)
        self.bytes_done = self._files.bytes_done
        return paths

    async def _in_memory(self, paths: list[Path]) -> None:
        """From the load to the end of the engine's process."""
        try:
            host = await self._load(paths)
            try:
                await self._serve(host)
            finally:
                self.host = None
                await _closed(host)
        except EngineStartError as error:
            self.around.memory.give(self)
            await self._fail(error)
        finally:
            self.around.memory.give(self)

    def _downloading(self) -> None:
        self.bytes_done, self.pace = self._files.bytes_done, self._files.pace
        if self.state is not session_pb2.MODEL_STATE_DOWNLOADING:
            self._move(session_pb2.MODEL_STATE_DOWNLOADING)
        self._tell("downloading")

    async def _load(self, paths: list[Path]) -> Host:
        """Raises EngineStartError."""
        began = asyncio.get_running_loop().time()
        self.bytes_done, self.pace = 0, Pace(began, 0, self._load_took_s)
        self._move(session_pb2.MODEL_STATE_LOADING, self.why)
        self._loaded_threads = self.around.threads()  # now: a training that is loading counts
        load = load_of(
            self.choice,
            self.around.settings,
            paths=paths,
            threads=self._loaded_threads,
            memory_bytes_max=self._share,
            cache_dir=self.around.converted,
        )
        self._log.info("loading", action="model_loading", threads=self._loaded_threads)
        host = await self.around.start_host(load, self._heard, memory_bytes=self.choice.variant.memory_bytes)
        self._load_took_s = asyncio.get_running_loop().time() - began
        return host

    async def _serve(self, host: Host) -> None:
        """Returns when the engine died, or should be unloaded or loaded anew."""
        loop = asyncio.get_running_loop()
        since = self._used_at = loop.time()
        self.loaded, self.host, self._leaving = host.loaded, host, False
        self.bytes_done = self.bytes_total
        self.speed.measured(host.loaded)
        self._move(session_pb2.MODEL_STATE_READY)
        self._offer()
        self._log.info("ready", action="model_ready", slots=self.slots(), pids=host.pids)
        self._hand_over_waiting(host)
        while not host.exited.done():
            self.around.memory.stir()
            await self._something(host)
            if host.exited.done() or host.running:
                continue
            if self._leaving:
                self._unload("unloaded: another model needs the room")
                return
            if self._loaded_threads != self.around.threads():
                self._log.info("another share of the cores", action="model_reloading")
                self._want_again()
                return
            if self._idle_s() is not None and loop.time() - self._used_at >= (self._idle_s() or 0.0):
                self._unload("unloaded: nobody asked for it")
                return
        self.host = None
        self._failures = 0 if loop.time() - since >= STEADY_S else self._failures
        await self._restart(host.exited.result())

    def _want_again(self) -> None:
        """At once, unless it is loaded on demand and there is none."""
        self._wanted.set()
        if self.choice.beside and not self._waiting:
            self._unload("unloaded: nobody waits for it")

    def _unload(self, why: str) -> None:
        self._log.info(why, action="model_unloaded")
        self.loaded = engine_pb2.Loaded()
        self._wanted.clear()
        self._move(session_pb2.MODEL_STATE_PRESENT)

    async def _something(self, host: Host) -> None:
        """Waits until the engine died, an attempt ended, the cores changed, it was idle for long, or is in
        the way."""
        if self._leaving and not host.running:
            return
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
        wished = self.around.settings.unload_after_s or None
        if self.choice.beside:
            return min(wished or BESIDE_IDLE_S, BESIDE_IDLE_S)
        return None if self.choice.eager else wished

    async def _restart(self, why: str) -> None:
        self._log.warning("the engine died and is started again", action="engine_died", why=why)
        self._move(session_pb2.MODEL_STATE_LOADING, why)
        self._want_again()
        self.around.memory.give(self)
        pause_s = min(RESTART_S_MAX, RESTART_S_MIN * 2.0**self._failures)
        self._failures = min(self._failures + 1, 30)
        await asyncio.sleep(pause_s)

    def _no_room(self, none: NoRoom) -> None:
        """Nobody's fault: what waits is better done elsewhere, and the next job asks again."""
        self._log.info("no room in memory", action="model_waits", why=str(none))
        self._wanted.clear()
        self.why = str(none)
        self.refuse_waiting(Failure(Fault.NONE, "no_room", str(none)))

    async def _fail(self, error: FetchError | EngineStartError | OSError) -> None:
        """What waits is told; another try follows later, since disks are emptied and networks come back."""
        self._log.error("the model cannot be served", action="model_failed", why=str(error))
        self._move(session_pb2.MODEL_STATE_FAILED, str(error))
        self.around.emit(ModelWithdrawn(self.choice.entry.name, str(error), self.choice.role))
        code = error.code if isinstance(error, EngineStartError) else "model_not_there"
        self.refuse_waiting(Failure(Fault.WORKER, code, str(error)))
        pause_s = min(RETRY_S_MAX, RETRY_S_MIN * 2.0**self._failures)
        self._failures = min(self._failures + 1, 30)
        await asyncio.sleep(pause_s)
        if self.choice.beside:  # nobody waits: whoever asks next may find that it works again
            self._unload("it may be tried again")
            self._offer()

    # --- words in and out ---

    def _hand_over_waiting(self, host: Host) -> None:
        waiting, self._waiting = self._waiting, {}
        for assigned in waiting.values():
            self._hand_over(host, assigned)

    def _hand_over(self, host: Host, assigned: Assigned) -> None:
        if isinstance(assigned.files, engine_pb2.LoadedAdapter) and LORA not in host.loaded.features:
            unable = Failure(Fault.NONE, "no_adapters", f"{self.choice.engine} serves no adapters")
            asyncio.get_running_loop().call_soon(self.around.emit, EngineFailed(assigned.attempt, unable))
            return
        try:
            host.send(wire.start_command(assigned))
            self.around.handed(assigned.attempt)
        except PipeError:
            large = Failure(Fault.JOB, "request_too_large", "the request is larger than an engine takes")
            failed = EngineFailed(assigned.attempt, large)
            asyncio.get_running_loop().call_soon(self.around.emit, failed)

    def _heard(self, event: engine_pb2.EngineEvent) -> None:
        if event.HasField("load_progress"):
            self.bytes_done, self.bytes_total = (
                event.load_progress.bytes_done,
                event.load_progress.bytes_total,
            )
            self._tell("loading")
            return
        if event.HasField("loaded") and self.host is not None:  # its room has changed
            self.loaded = event.loaded
            self._offer()
            self.around.emit(ModelsChanged())
        try:
            heard = wire.engine_event_from(event)
        except wire.WireError as error:
            self._log.warning("the engine spoke nonsense", action="engine_nonsense", why=str(error))
            return
        if heard is not None:
            self.around.emit(heard)
        self.speed.heard(event, asyncio.get_running_loop().time())
        if event.HasField("done") or event.HasField("failed"):
            self._used_at = asyncio.get_running_loop().time()
            if self.host is not None and not self.host.running:
                self._hand_over_waiting(self.host)
            self._poked.set()

    def _offer(self) -> None:
        name, role = self.choice.key
        self.around.emit(ModelOffered(name, self.choice.engine, self.slots(), role))

    def _move(self, state: session_pb2.ModelState.ValueType, why: str = "") -> None:
        self.state, self.why = state, why
        self.around.emit(ModelsChanged())

    def _tell(self, stage: str) -> None:
        """Progress, not more often than somebody reads."""
        now = asyncio.get_running_loop().time()
        if now - self._told_at >= PROGRESS_S_MIN:
            self._told_at = now
            done, total = self.bytes_done, self.bytes_total
            self._log.info(stage, action=f"model_{stage}", bytes_done=done, bytes_total=total)
            self.around.emit(ModelsChanged())


async def _closed(host: Host) -> None:
    """Returns when the process is gone, also when cancelled meanwhile: a pause promises the memory."""
    closing = asyncio.ensure_future(host.close())
    try:
        await asyncio.shield(closing)
    except asyncio.CancelledError:
        await closing
        raise
