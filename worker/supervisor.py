"""All models of one daemon: which are served and trained, and whether any may be in memory at all."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from potluck.v1 import session_pb2
from worker import wire
from worker.attempt_files import AttemptFiles, Needs
from worker.deliveries import Deliveries
from worker.messages import (
    Assigned,
    AttemptId,
    EngineFailed,
    EngineFinished,
    EngineProduced,
    Event,
    Failure,
    Fault,
    ModelsChanged,
    ModelWithdrawn,
)
from worker.models import Choice
from worker.served import served_model
from worker.service import ModelService
from worker.surroundings import Surroundings

Key = tuple[str, bool]  # the model's name, and whether it is what trains it


class Supervisor:
    """Runs a `ModelService` for each model, and one more for each that is trained as well. While paused, none
    of them runs and nothing is in memory.
    """

    def __init__(self) -> None:
        self._services: dict[Key, ModelService] = {}
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._files = AttemptFiles()
        self._deliveries = Deliveries()
        self._trainings: dict[AttemptId, Assigned] = {}  # until their engine has finished
        self._silent: set[AttemptId] = set()  # of these, those of which no step was told
        self._trainers_seen = 0  # in memory, when it was last looked
        self._paused = ""
        self._turn = asyncio.Lock()  # one change of all at a time

    @property
    def models(self) -> dict[str, ModelService]:
        """Those that serve, by name."""
        return {name: service for (name, trains), service in self._services.items() if not trains}

    @property
    def trainers(self) -> list[ModelService]:
        """Those that are in memory or on their way there."""
        return [service for (_, trains), service in self._services.items() if trains and service.in_memory]

    @property
    def engines(self) -> int:
        """How many there may be at once, if each model is in memory: one of them trains."""
        return len(self.models) + any(trains for _, trains in self._services)

    async def serve(self, choices: list[Choice], around: Surroundings) -> None:
        """From now on exactly these; what is served already and did not change goes on undisturbed."""
        around = replace(around, emit=partial(self._hear, around))
        async with self._turn:
            wished = {choice.key: choice for choice in choices}
            for key in list(self._services):
                if wished.get(key) != self._services[key].choice:
                    around.emit(ModelWithdrawn(key[0], "no longer served here", key[1]))
                    await self._end(key)
            for key, choice in wished.items():
                if key not in self._services:
                    self._services[key] = ModelService(choice, around)
            self._begin()

    def _begin(self) -> None:
        for key, service in self._services.items():
            if self._paused:
                service.rest(self._paused)
            elif key not in self._tasks:
                self._tasks[key] = asyncio.create_task(service.run(), name=f"model {service.name}")

    async def _end(self, key: Key) -> None:
        service = self._services.pop(key)
        service.refuse_waiting(_gone(key[0]))
        if (task := self._tasks.pop(key, None)) is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def pause(self, why: str) -> None:
        """Returns when all engines' processes are gone, with all their memory."""
        self._paused = f"paused: {why}"
        async with self._turn:
            await self._stop()
            for service in self._services.values():
                service.rest(self._paused)

    async def resume(self) -> None:
        self._paused = ""
        async with self._turn:
            self._begin()

    async def _stop(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._tasks.clear()

    # --- attempts ---

    def start(self, assigned: Assigned) -> None:
        key = (assigned.model, assigned.trains)
        around = self._services[key].around

        def start(assigned: Assigned) -> None:
            if (service := self._services.get(key)) is None:
                around.emit(EngineFailed(assigned.attempt, _gone(assigned.model)))
                return
            if assigned.trains:
                self._trainings[assigned.attempt] = assigned
                self._silent.add(assigned.attempt)
            service.start(assigned)

        needs = Needs(around.store, around.downloads, around.artifacts, around.workroom)
        self._files.begin(assigned, needs=needs, start=start, emit=around.emit)

    def _hear(self, around: Surroundings, event: Event) -> None:
        """What the models say, on its way to the core. Training ends when the pool has what it made."""
        if isinstance(event, EngineFinished) and event.attempt in self._trainings:
            assigned = self._trainings.pop(event.attempt)
            over = partial(self._over, around.emit)
            self._deliveries.begin(assigned, event, uploads=around.uploads, emit=over)
            return
        if isinstance(event, EngineProduced):
            self._silent.discard(event.attempt)
        if isinstance(event, EngineFinished | EngineFailed):
            self._over(around.emit, event)
            return
        if isinstance(event, ModelsChanged) and len(self.trainers) != self._trainers_seen:
            self._trainers_seen = len(self.trainers)
            self.poke()  # the cores are shared among more, or fewer
        around.emit(event)

    def _over(self, emit: Callable[[Event], None], event: Event) -> None:
        assert isinstance(event, EngineFinished | EngineFailed)
        self._forget(event.attempt)
        emit(event)

    def _forget(self, attempt: AttemptId) -> None:
        self._files.ended(attempt)
        self._trainings.pop(attempt, None)
        self._silent.discard(attempt)

    def stop(self, attempt: AttemptId, model: str) -> None:
        """What it made is not delivered; its files stay until its engine has ended it."""
        if self._files.stop(attempt):
            return
        trains = self._trainings.pop(attempt, None) is not None
        service = self._services.get((model, trains))
        if self._deliveries.stop(attempt) or service is None or service.stop(attempt):
            self._forget(attempt)

    # --- what is seen of it ---

    def poke(self) -> None:
        for service in self._services.values():
            service.poke()

    def served(self) -> list[session_pb2.ServedModel]:
        """What can be trained is said with the model, as one more kind of work."""
        able = {
            name
            for (name, trains), service in self._services.items()
            if trains and service.state != session_pb2.MODEL_STATE_FAILED
        }
        return [served_model(service, trains=name in able) for name, service in self.models.items()]

    def progress(self) -> Iterator[session_pb2.Progress]:
        """A sign of life for each attempt that has nothing to tell of yet, or whose result is on its way."""
        for attempt in self._files.waiting():
            yield session_pb2.Progress(attempt=wire.attempt_to(attempt), stage="downloading")
        waiting: set[AttemptId] = set()
        for service in self._services.values():
            downloading = service.state in {
                session_pb2.MODEL_STATE_DOWNLOADING,
                session_pb2.MODEL_STATE_ABSENT,
            }
            for attempt in service.waiting():
                waiting.add(attempt)
                yield session_pb2.Progress(
                    attempt=wire.attempt_to(attempt),
                    stage="downloading" if downloading else "loading",
                    done=service.bytes_done,
                    total=service.bytes_total,
                )
        for attempt in self._silent - waiting:
            yield session_pb2.Progress(attempt=wire.attempt_to(attempt), stage="training")
        yield from self._deliveries.progress()

    async def close(self) -> None:
        """Ends every engine; returns when their processes are gone."""
        await self._deliveries.close()
        await self._stop()
        await self._files.close()
        self._services.clear()


def _gone(model: str) -> Failure:
    return Failure(Fault.NONE, "model_not_served", f"{model} is no longer served here")
