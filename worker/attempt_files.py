"""The files of attempts, fetched from the pool's artifact store before the attempts begin.

They lie in the model store under their digests. An engine finds an adapter's two by name in a folder, and a
training's by their paths, beside a folder of its own for what it makes.
"""

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from potluck.catalogue import File
from potluck.fetch import ArtifactSource, FetchError, Policy
from potluck.store import ModelStore
from potluck.v1 import engine_pb2, session_pb2
from worker.inputs import FilesError, adapter_files, training_files
from worker.messages import Assigned, AttemptId, EngineFailed, Event, Failure, Fault
from worker.workroom import Room, Workroom

KEPT_S: Final = 600.0  # a member's examples, for the next attempt at the same fine-tune
PASSING: Final = frozenset({"adapter", "state"})  # of one attempt: the next goes on from others


@dataclass(slots=True)
class Needs:
    """What one attempt holds until it has ended. `task`: while it waits."""

    store: ModelStore
    downloads: Policy
    artifacts: ArtifactSource | None
    workroom: Workroom
    held: ExitStack = field(default_factory=ExitStack)
    room: Room | None = None
    task: asyncio.Task[None] | None = None

    async def fetch(self, assigned: Assigned) -> object:
        """As the engine is told of them. Raises FilesError, FetchError, OSError."""
        assign = assigned.payload
        assert isinstance(assign, session_pb2.Assign), "assignments come from `wire`"
        if assigned.trains:
            return await self._training(training_files(assign.work.training))
        paths = await self._fetch(adapter_files(assign.adapter), named=True)
        folder = paths[0].parent
        return engine_pb2.LoadedAdapter(name=assign.adapter.name, digest=folder.name, folder=str(folder))

    async def _training(self, files: dict[str, File]) -> engine_pb2.TrainingFiles:
        digests = {name: file.sha256 for name, file in files.items()}
        passing = {digest for name, digest in digests.items() if name in PASSING}
        self.room = self.workroom.open(passing, set(digests.values()) - passing)
        once = list({file.sha256: file for file in files.values()}.values())
        paths = dict(zip((file.sha256 for file in once), await self._fetch(once), strict=True))
        found = engine_pb2.TrainingFiles(folder=str(self.room.folder))
        for name, digest in digests.items():
            setattr(found, name, str(paths[digest]))
        return found

    async def _fetch(self, files: list[File], *, named: bool = False) -> list[Path]:
        self.held.enter_context(self.store.using(files))
        return await self.store.fetch(files, named=named, artifacts=self.artifacts, policy=self.downloads)


class AttemptFiles:
    """Attempts that wait for their files, and the files of those that run.

    An attempt that waits begins, or has failed, unless it was stopped. Until it has ended, no process removes
    its files: an engine reads them when it comes to the attempt.
    """

    def __init__(self) -> None:
        self._needs: dict[AttemptId, Needs] = {}
        self._fetching: set[asyncio.Task[None]] = set()
        self._left: dict[Room, tuple[Workroom, asyncio.TimerHandle]] = {}
        self._tidying: set[asyncio.Task[None]] = set()

    def waiting(self) -> list[AttemptId]:
        return [attempt for attempt, needs in self._needs.items() if needs.task is not None]

    def begin(
        self,
        assigned: Assigned,
        *,
        needs: Needs,
        start: Callable[[Assigned], None],
        emit: Callable[[Event], None],
    ) -> None:
        """`start` is called at once where no files are needed, else when they are here."""
        if not (assigned.trains or assigned.adapts):
            start(assigned)
            return
        what = "training" if assigned.trains else "adapter"
        self._needs[assigned.attempt] = needs

        async def wait() -> None:
            try:
                found = await needs.fetch(assigned)
            except FilesError as error:
                failure = Failure(Fault.JOB, f"bad_{what}", str(error))
            except (FetchError, OSError) as error:
                failure = Failure(Fault.WORKER, f"{what}_not_there", str(error))
            else:
                needs.task = None
                start(replace(assigned, files=found))
                return
            self.ended(assigned.attempt)
            emit(EngineFailed(assigned.attempt, failure))

        task = needs.task = asyncio.create_task(wait(), name=f"files for {assigned.attempt.job_id}")
        self._fetching.add(task)
        task.add_done_callback(self._fetching.discard)

    def stop(self, attempt: AttemptId) -> bool:
        """Whether it was waiting here; then it never begins."""
        needs = self._needs.get(attempt)
        if needs is None or needs.task is None:
            return False
        needs.task.cancel()
        self.ended(attempt)
        return True

    def ended(self, attempt: AttemptId) -> None:
        """Nobody needs its files any more. Said of any attempt, once or more often."""
        if (needs := self._needs.pop(attempt, None)) is None:
            return
        needs.held.close()
        if (room := needs.room) is not None:
            self._in_thread(needs.workroom.leave, room)
            for older in [other for other in self._left if other.kept <= room.kept]:
                self._forget(older)  # this one keeps its files: short parts would pile up records
            loop = asyncio.get_running_loop()
            timer = loop.call_later(KEPT_S, self._forget, room)
            self._left[room] = needs.workroom, timer

    def _forget(self, room: Room) -> None:
        workroom, timer = self._left.pop(room)
        timer.cancel()
        self._in_thread(workroom.close, room)

    def _in_thread(self, tidy: Callable[[Room], None], room: Room) -> None:
        task = asyncio.create_task(asyncio.to_thread(tidy, room))
        self._tidying.add(task)
        task.add_done_callback(self._tidying.discard)

    async def close(self) -> None:
        """Nothing waits any more, and nothing that was fetched for training is left."""
        for task in list(self._fetching):
            task.cancel()
        await asyncio.gather(*self._fetching, return_exceptions=True)
        for attempt in list(self._needs):
            self.ended(attempt)
        for room in list(self._left):
            self._forget(room)
        await asyncio.gather(*self._tidying, return_exceptions=True)
