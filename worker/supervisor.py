"""All models of one daemon: which are served, trained, adapted, and whether any may be in memory."""

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
    Role,
)
from worker.models import Choice
from worker.served import served_model
from worker.service import ModelService
from worker.surroundings import Surroundings

Key = tuple[str, Role]  # the model's name, and what is done for it


class Supervisor:
    """Runs a `ModelService` for each model, one more for each that is trained as well, and one for each whose
    adapters another engine applies than serves it. While paused, none of them runs and nothing is in memory.
    """

    def __init__(self) -> None:
        self._services: dict[Key, ModelService] = {}
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._files = AttemptFiles()
        self._deliveries = Deliveries()
        self._trainings: dict[AttemptId, Assigned] = {}  # until their engine has finished
        self._silent: set[AttemptId] = set()  # of these, those of which no step was told
        self._roles: dict[AttemptId, Role] = {}  # of each that its model's service has
        self._beside_seen = 0  # in memory, when it was last looked
        self._paused = ""
        self._turn = asyncio.Lock()  # one change of all at a time

    @property
    def models(self) -> dict[str, ModelService]:
        """Those that serve, by name."""
        return {name: service for (name, role), service in self._services.items() if role is Role.SERVE}

    @property
    def beside(self) -> list[ModelService]:
        """Those that train or adapt, and are in memory or on their way there."""
        return [
            service
            for (_, role), service in self._services.items()
            if role is not Role.SERVE and service.in_memory
        ]

    @property
    def engines(self) -> int:
        """How many there may be at once, if each model is in memory: one of them trains."""
        roles = [role for _, role in self._services]
        return len(roles) - max(0, roles.count(Role.TRAIN) - 1)

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
        around = self._services[assigned.model, self._role(assigned)].around

        def start(assigned: Assigned) -> None:
            role = self._role(assigned)  # now: it may have failed while files were fetched
            if (service := self._services.get((assigned.model, role))) is None:
                around.emit(EngineFailed(assigned.attempt, _gone(assigned.model)))
                return
            self._roles[assigned.attempt] = role
            if assigned.trains:
                self._trainings[assigned.attempt] = assigned
                self._silent.add(assigned.attempt)
            service.start(assigned)

        needs = Needs(around.store, around.downloads, around.artifacts, around.workroom)
        self._files.begin(assigned, needs=needs, start=start, emit=around.emit)

    def _role(self, assigned: Assigned) -> Role:
        if assigned.trains:
            return Role.TRAIN
        return Role.ADAPT if assigned.adapts and Role.ADAPT in self._able(assigned.model) else Role.SERVE

    def _able(self, model: str) -> set[Role]:
        """What engines beside the one that serves it may do for this model, as far as is known."""
        asked = {role: self._services.get((model, role)) for role in (Role.TRAIN, Role.ADAPT)}
        failed = session_pb2.MODEL_STATE_FAILED
        return {role for role, service in asked.items() if service is not None and service.state != failed}

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
        if isinstance(event, ModelsChanged) and len(self.beside) != self._beside_seen:
            self._beside_seen = len(self.beside)
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
        self._roles.pop(attempt, None)

    def stop(self, attempt: AttemptId, model: str) -> None:
        """What it made is not delivered; its files stay until its engine has ended it."""
        if self._files.stop(attempt):
            return
        self._trainings.pop(attempt, None)
        service = self._services.get((model, self._roles.get(attempt, Role.SERVE)))
        if self._deliveries.stop(attempt) or service is None or service.stop(attempt):
            self._forget(attempt)

    # --- what is seen of it ---

    def poke(self) -> None:
        for service in self._services.values():
            service.poke()

    def served(self) -> list[session_pb2.ServedModel]:
        """What can be trained is said with the model, as one more kind of work; adapters, as a feature."""
        return [served_model(service, self._able(name)) for name, service in self.models.items()]

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
