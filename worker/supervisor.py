"""All models of one daemon: which are served, and whether any may be in memory at all."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from potluck.v1 import session_pb2
from worker import wire
from worker.adapters import Adapters
from worker.messages import (
    Assigned,
    AttemptId,
    EngineFailed,
    EngineFinished,
    Event,
    Failure,
    Fault,
    ModelWithdrawn,
)
from worker.models import Choice
from worker.service import ModelService
from worker.surroundings import Surroundings


class Supervisor:
    """Runs a `ModelService` for each model. While paused, none of them runs and nothing is in memory."""

    def __init__(self) -> None:
        self.models: dict[str, ModelService] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._adapters = Adapters()
        self._paused = ""
        self._turn = asyncio.Lock()  # one change of all at a time

    async def serve(self, choices: list[Choice], around: Surroundings) -> None:
        """From now on exactly these; what is served already and did not change goes on undisturbed."""
        around = replace(around, emit=partial(self._hear, around.emit))
        async with self._turn:
            wished = {choice.entry.name: choice for choice in choices}
            for name in list(self.models):
                if wished.get(name) != self.models[name].choice:
                    around.emit(ModelWithdrawn(name, "no longer served here"))
                    await self._end(name)
            for name, choice in wished.items():
                if name not in self.models:
                    self.models[name] = ModelService(choice, around)
            self._begin()

    def _begin(self) -> None:
        for name, service in self.models.items():
            if self._paused:
                service.rest(self._paused)
            elif name not in self._tasks:
                self._tasks[name] = asyncio.create_task(service.run(), name=f"model {name}")

    async def _end(self, name: str) -> None:
        service = self.models.pop(name)
        service.refuse_waiting(Failure(Fault.NONE, "model_not_served", f"{name} is no longer served here"))
        if (task := self._tasks.pop(name, None)) is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def pause(self, why: str) -> None:
        """Returns when all engines' processes are gone, with all their memory."""
        self._paused = f"paused: {why}"
        async with self._turn:
            await self._stop()
            for service in self.models.values():
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

    def start(self, assigned: Assigned) -> None:
        around = self.models[assigned.model].around

        def start(assigned: Assigned) -> None:
            if (service := self.models.get(assigned.model)) is not None:
                service.start(assigned)
            else:
                gone = Failure(Fault.NONE, "model_not_served", f"{assigned.model} is no longer served here")
                around.emit(EngineFailed(assigned.attempt, gone))

        self._adapters.begin(
            assigned,
            store=around.store,
            downloads=around.downloads,
            artifacts=around.artifacts,
            start=start,
            emit=around.emit,
        )

    def _hear(self, emit: Callable[[Event], None], event: Event) -> None:
        if isinstance(event, EngineFinished | EngineFailed):
            self._adapters.ended(event.attempt)
        emit(event)

    def stop(self, attempt: AttemptId, model: str) -> None:
        service = self.models.get(model)
        if not self._adapters.stop(attempt) and service is not None:
            service.stop(attempt)

    def poke(self) -> None:
        for service in self.models.values():
            service.poke()

    def served(self) -> list[session_pb2.ServedModel]:
        return [service.served() for service in self.models.values()]

    def progress(self) -> Iterator[session_pb2.Progress]:
        """A sign of life for each attempt that waits for its model or its adapter."""
        for attempt in self._adapters.waiting():
            yield session_pb2.Progress(attempt=wire.attempt_to(attempt), stage="downloading")
        for service in self.models.values():
            downloading = service.state in {
                session_pb2.MODEL_STATE_DOWNLOADING,
                session_pb2.MODEL_STATE_ABSENT,
            }
            for attempt in service.waiting():
                yield session_pb2.Progress(
                    attempt=wire.attempt_to(attempt),
                    stage="downloading" if downloading else "loading",
                    done=service.bytes_done,
                    total=service.bytes_total,
                )

    async def close(self) -> None:
        """Ends every engine; returns when their processes are gone."""
        await self._adapters.close()
        await self._stop()
        self.models.clear()
