"""What training made, on its way to the pool: the attempt's end is told when all of it is there."""

import asyncio
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from potluck.v1 import engine_pb2, session_pb2, work_pb2
from worker import wire
from worker.messages import Assigned, AttemptId, EngineFailed, EngineFinished, Event, Failure, Fault
from worker.uploads import Uploader, UploadFailed

ADAPTER: Final = "adapter.safetensors"
DELTA: Final = "delta.safetensors"
STATE: Final = "state.safetensors"
_PIECE_BYTES: Final = 1 << 20


@dataclass(slots=True)
class Delivery:
    """Of one attempt. `sent`: bytes that have arrived, by file."""

    task: asyncio.Task[None]
    bytes_total: int = 0
    sent: dict[str, int] = field(default_factory=dict)


class Deliveries:
    """One for each attempt whose engine has finished: it ends with an EngineFinished or an EngineFailed,
    unless it was stopped.
    """

    def __init__(self) -> None:
        self._deliveries: dict[AttemptId, Delivery] = {}

    def begin(
        self,
        assigned: Assigned,
        finished: EngineFinished,
        *,
        uploads: Uploader | None,
        emit: Callable[[Event], None],
    ) -> None:
        async def deliver() -> None:
            try:
                event: Event = await self._deliver(assigned, finished, uploads)
            except UploadFailed as failed:
                event = EngineFailed(assigned.attempt, failed.failure)
            except OSError as error:
                why = f"what was trained cannot be read: {error.strerror or error}"
                event = EngineFailed(assigned.attempt, Failure(Fault.WORKER, "engine_error", why))
            del self._deliveries[assigned.attempt]
            emit(event)

        task = asyncio.create_task(deliver(), name=f"what {assigned.attempt.job_id} made")
        self._deliveries[assigned.attempt] = Delivery(task)

    async def _deliver(
        self, assigned: Assigned, finished: EngineFinished, uploads: Uploader | None
    ) -> EngineFinished:
        """Raises UploadFailed, OSError."""
        completed, assign, files = finished.completed.payload, assigned.payload, assigned.files
        assert isinstance(completed, session_pb2.Completed), "ends come from `wire`"
        assert isinstance(assign, session_pb2.Assign), "assignments come from `wire`"
        assert isinstance(files, engine_pb2.TrainingFiles), "a training begins with its files"
        delivery, trained = self._deliveries[assigned.attempt], completed.trained
        if not trained.steps:
            return finished  # only validated: there is nothing new
        names = (DELTA,) if assign.work.training.delta else (ADAPTER, STATE)
        made = {name: await asyncio.to_thread(_artifact, Path(files.folder, name)) for name in names}
        delivery.bytes_total = sum(artifact.bytes for artifact in made.values())
        for name, artifact in made.items():
            if uploads is None:
                raise UploadFailed(Failure(Fault.NONE, "upload_failed", "this worker has no way to the pool"))

            def arrived(offset: int, name: str = name) -> None:
                delivery.sent[name] = offset

            await uploads.upload(assigned.attempt, Path(files.folder, name), artifact, arrived)
        whole = work_pb2.Trained()
        whole.CopyFrom(trained)
        whole.adapter.CopyFrom(made[names[0]])
        if STATE in made:
            whole.state.CopyFrom(made[STATE])
        return replace(finished, completed=wire.trained(whole))

    def stop(self, attempt: AttemptId) -> bool:
        """Whether it was under way here; nothing more is said of it then."""
        if (delivery := self._deliveries.pop(attempt, None)) is None:
            return False
        delivery.task.cancel()
        return True

    def progress(self) -> Iterator[session_pb2.Progress]:
        """A sign of life of each."""
        for attempt, delivery in self._deliveries.items():
            yield session_pb2.Progress(
                attempt=wire.attempt_to(attempt),
                stage="uploading",
                done=sum(delivery.sent.values()),
                total=delivery.bytes_total,
            )

    async def close(self) -> None:
        tasks = [delivery.task for delivery in self._deliveries.values()]
        for attempt in list(self._deliveries):
            self.stop(attempt)
        await asyncio.gather(*tasks, return_exceptions=True)


def _artifact(path: Path) -> work_pb2.Artifact:
    """Its name and size. Raises OSError."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while data := file.read(_PIECE_BYTES):
            digest.update(data)
            size += len(data)
    return work_pb2.Artifact(sha256=digest.hexdigest(), bytes=size)
