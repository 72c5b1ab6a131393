"""All batches of the pool: one task for each that is open, taken up again after a restart."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import structlog

from coordinator.batches.batch import Batch, BatchState, LineFault
from coordinator.batches.lines import Understand
from coordinator.batches.run import Run
from coordinator.core.jobs import JobEvent, JobId
from coordinator.files import Files
from coordinator.ids import new_id
from coordinator.parts import Parts
from coordinator.records import ApiKey, FileId, Member, Purpose
from coordinator.refusal import Refusal
from coordinator.store import Store

OPEN_MAX: Final = 50  # of one member
CHECKED_AT_ONCE: Final = 4

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Batches:
    parts: Parts
    store: Store
    files: Files
    understand: Understand
    runs: dict[str, Run] = field(default_factory=dict)
    followers: list[Callable[[Batch], None]] = field(default_factory=list)  # told of each batch's end
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _checking: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CHECKED_AT_ONCE))

    def __post_init__(self) -> None:
        self.files.users.append(self._user)

    async def create(
        self,
        member: Member,
        key: ApiKey,
        input_file: str,
        endpoint: str,
        window_s: int,
        metadata: Mapping[str, str],
        *,
        batch_id: str | None = None,
    ) -> Batch:
        """`batch_id`: derived from the request's Idempotency-Key. Raises Refusal."""
        self.parts.pool.accounts.check_open()
        # Until it runs: the file is not deleted, and the same request that comes again finds it.
        async with self.files.deciding:
            if batch_id is not None and (known := await self.store.batch(batch_id)) is not None:
                return self._again(known, input_file, endpoint, window_s, metadata)
            if sum(run.member.id == member.id for run in self.runs.values()) >= OPEN_MAX:
                message = f"You have {OPEN_MAX} open batches, the most at once. Wait for one to end."
                raise Refusal(429, "too_many_batches", message, type="rate_limit_error")
            file = await self.files.get(member.id, input_file)
            if file.purpose is not Purpose.BATCH:
                message = f"{file.id} was uploaded for {file.purpose.value}; a batch needs the purpose batch."
                raise Refusal(400, "wrong_purpose", message, param="input_file_id")
            batch_id, now = batch_id or new_id("batch"), self.parts.pool.now()
            batch = Batch(
                id=batch_id,
                job=JobId("job_" + batch_id.removeprefix("batch_")),
                member=member.id,
                key=key.id,
                input_file=input_file,
                endpoint=endpoint,
                window_s=window_s,
                created_at=now,
                expires_at=now + window_s,
                metadata=metadata,
            )
            path = self.files.path(file)
            await self.store.put_batch(batch)
            self._start(batch, member, key, path)
        return batch

    def _again(
        self, known: Batch, input_file: str, endpoint: str, window_s: int, metadata: Mapping[str, str]
    ) -> Batch:
        before = (known.input_file, known.endpoint, known.window_s, dict(known.metadata))
        if before != (input_file, endpoint, window_s, dict(metadata)):
            message = f"This Idempotency-Key was used for another request (batch {known.id})."
            raise Refusal(409, "idempotency_conflict", message)
        return self.now(known)

    def now(self, batch: Batch) -> Batch:
        """As it is at the moment: of one that runs, memory counts further than the disk."""
        run = self.runs.get(batch.id)
        if run is None:
            return batch
        tally = run.tally
        return replace(run.batch, completed=tally.completed, failed=tally.failed)

    async def cancel(self, batch: Batch, why: str) -> Batch:
        """Raises Refusal 409 if it has ended, or all of it is done."""
        run = self.runs.get(batch.id)
        if run is None or not await run.cancel(why):
            state = batch.state if run is None else run.batch.state
            raise Refusal(409, "batch_ended", f"{batch.id} has ended: all of it is done ({state.value}).")
        await self.parts.pool.ticker.committed()
        return self.now(run.batch)

    async def resume(self) -> None:
        """Go on where the coordinator stopped."""
        await self.store.forget_ended_texts()
        members = {member.id: member for member in await self.store.members()}
        for batch in await self.store.open_batches():
            member = members[batch.member]
            keys = {key.id: key for key in await self.store.list_keys(member.id)}
            file = await self.store.file(FileId(batch.input_file), member=member.id)
            assert file is not None, "a file that an open batch uses is not deleted"
            self._start(batch, member, keys[batch.key], self.files.path(file))

    async def close(self) -> None:
        """Stop; nothing is lost."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def uses_model(self, name: str) -> str | None:
        """An open batch whose lines ask it."""
        asking = (run.batch.id for run in self.runs.values() if run.batch.model == name)
        batch = next(asking, None)
        return None if batch is None else f"the batch {batch}"

    async def _user(self, file_id: FileId) -> str | None:
        batch = await self.store.uses_file(file_id)
        return None if batch is None else f"the batch {batch}"

    def _start(self, batch: Batch, member: Member, key: ApiKey, path: Path) -> None:
        run = Run(
            batch,
            member,
            key,
            path,
            self.parts,
            self.store,
            self.files,
            self.understand,
            checking=self._checking,
        )
        self.runs[batch.id] = run
        task = asyncio.create_task(self._watched(run))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watched(self, run: Run) -> None:
        """A bug in one batch ends that batch, with its parts paid as they are, and nothing else."""
        try:
            await run.run()
        except Exception:
            log.exception("a batch broke", action="batch_broke", batch=run.batch.id)
            fault = LineFault("server_error", "The pool failed to go on with this batch; its log says why.")
            if self.parts.whole(run.batch.job) is not None:
                self.parts.end(run.batch.job, JobEvent.CANCELLED, fault.message, fault.code)
            run.batch = replace(run.batch, state=BatchState.FAILED, faults=(fault,))
            await run.insist(lambda: self.store.put_batch(run.batch))
        finally:
            self.runs.pop(run.batch.id, None)
        if run.batch.ended:
            for follow in self.followers:
                follow(run.batch)
