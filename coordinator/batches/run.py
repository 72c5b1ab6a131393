"""One batch from its file to its answers.

Everything that it needs to go on after a restart is on the disk: which lines are jobs, which could not be,
and what state the batch is in.

`run` is the main flow: check, pay, work, write down.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog

from coordinator.batches import outputs
from coordinator.batches.batch import Batch, BatchState, Failure, LineFault
from coordinator.batches.check import Checked, checked
from coordinator.batches.lines import LineRefused, Understand, custom_id_of, lines_of
from coordinator.core.jobs import Job, JobEvent, JobId, JobState, Kind, part_id
from coordinator.core.wholes import NoRoom
from coordinator.files import Files
from coordinator.parts import Order, Parts
from coordinator.records import ApiKey, FileId, Member, MemberState, Purpose
from coordinator.refusal import Refusal
from coordinator.store import Store
from coordinator.store_errors import StoreUnavailable

WINDOW_MIN: Final = 16  # lines that wait for a worker or are with one
WINDOW_MAX: Final = 256
AHEAD: Final = 2  # for each slot that serves the model
LOOK_S: Final = 5.0  # how old may be what is known of its member
PAUSE_S: Final = 1.0  # before what a full pool or a full disk refused is tried again
RESULTS_AT_ONCE: Final = 200
OUTPUT_BYTES_MAX: Final = 64 << 30
_EVENTS: Final[Mapping[BatchState, JobEvent]] = {
    BatchState.COMPLETED: JobEvent.SUCCEEDED,
    BatchState.EXPIRED: JobEvent.EXPIRED,
    BatchState.CANCELLED: JobEvent.CANCELLED,
}
_STATES: Final[Mapping[JobState, BatchState]] = {
    JobState.SUCCEEDED: BatchState.COMPLETED,
    JobState.EXPIRED: BatchState.EXPIRED,
    JobState.CANCELLED: BatchState.CANCELLED,
    JobState.FAILED: BatchState.FAILED,
}

Result = TypeVar("Result")
log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Tally:
    """What came of the lines that have ended."""

    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    expired: bool = False  # one of them at least
    counted: set[int] = field(default_factory=set)  # parts that ended

    def take(self, part: Job) -> None:
        """Twice is as once: a part may end while the disk is read."""
        if part.part in self.counted:
            return
        self.counted.add(part.part)
        if part.state is JobState.SUCCEEDED:
            self.completed += 1
        else:
            self.failed += 1
        self.expired |= part.state is JobState.EXPIRED
        if part.charge is not None and part.state in (JobState.SUCCEEDED, JobState.CANCELLED):
            self.input_tokens += part.prompt_tokens
            self.output_tokens += part.output_tokens


@dataclass(slots=True)
class Run:
    batch: Batch
    member: Member
    key: ApiKey
    path: Path  # of the input file
    parts: Parts
    store: Store
    files: Files
    understand: Understand
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    tally: Tally = field(default_factory=Tally)
    cancel_why: str = ""
    checking: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))  # of all batches
    _looked_at: float = 0.0
    _active: bool = True
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _ended: Job | None = None  # the whole, once it has

    # -- what others tell it ---------------------------------------------------------------------

    def part_ended(self, part: Job) -> None:
        self.tally.take(part)
        self._news.set()

    def whole_ended(self, whole: Job) -> None:
        self._ended = whole
        self._news.set()

    async def cancel(self, why: str) -> bool:
        """What is under way ends now; the answers that there are get written down, also after a crash. False:
        all of it is done already.
        """
        begun = BatchState.IN_PROGRESS.value in self.batch.moments
        ended = self.parts.pool.cancel(self.batch.job, why)
        if begun and not ended and not self.cancel_why:
            return False
        self.cancel_why = self.cancel_why or why
        self._news.set()
        await self._move(BatchState.CANCELLING)
        return True

    # -- the main flow ---------------------------------------------------------------------------

    async def run(self) -> None:
        self.parts.watch(self.batch.job, self)
        try:
            if self.batch.state is BatchState.CANCELLING:  # and then the coordinator was restarted
                self.cancel_why = self.cancel_why or "its member cancelled it"
                self.parts.pool.cancel(self.batch.job, self.cancel_why)
            if BatchState.IN_PROGRESS.value not in self.batch.moments and not await self._begin():
                return
            await self._work()
            await self._write_down()
        finally:
            self.parts.forget(self.batch.job)

    async def _begin(self) -> bool:
        """Check every line, then set the worst case aside. False: it has ended, and nothing was done."""
        worst = self.parts.worst
        async with self.checking:
            found = await checked(self.batch, self.member, self.key, self._lines, self.understand, worst)
        known = await self.insist(lambda: self.store.job(self.batch.job))
        member = await self.insist(lambda: self.store.member(self.batch.member))
        faults = list(found.faults)
        if member is None or member.state is not MemberState.ACTIVE:
            faults = [LineFault("account_frozen", "The account is frozen or closed: nothing new begins.")]
        if not faults and known is None:
            try:
                await self.insist(lambda: self._open(found))  # a pool that stops opens nothing
            except Refusal as refusal:
                faults = [LineFault(refusal.code, refusal.message)]
        if faults and known is None:
            await self._move(BatchState.FAILED, faults=tuple(faults), total=found.total)
        elif known is None and self.parts.whole(self.batch.job) is None and self._ended is None:
            await self._move(BatchState.CANCELLED, total=found.total)
        else:
            await self._move(BatchState.IN_PROGRESS, total=found.total, model=found.model)
        return not self.batch.ended

    async def _open(self, found: Checked) -> None:
        """Unless it was cancelled. Raises Refusal."""
        if not self.cancel_why:
            self.parts.open(self._order(found))
            await self.parts.pool.ticker.committed()

    async def _lines(self) -> AsyncIterator[tuple[int, bytes]]:
        async for number, line in lines_of(self.path, self.parts.pool.settings.body_bytes_max):
            yield number, line

    def _order(self, found: Checked) -> Order:
        return Order(
            id=self.batch.job,
            kind=Kind.BATCH,
            model=found.base,
            member=self.member,
            key=self.key,
            worst=found.worst,
            prompt_tokens=found.prompt_tokens,
            max_tokens=found.max_tokens,
            expires_at=self.batch.expires_at,
        )

    # -- the work --------------------------------------------------------------------------------

    async def _work(self) -> None:
        """Keep a window of lines in the pool until all have ended, or the batch has."""
        made = await self.insist(self._count)
        failures = await self.insist(lambda: self.store.failures(self.batch.id))
        async for number, line in self._lines():
            if number in made or number in failures:
                continue
            if not await self._room():
                break
            await self._submit(number, line)
        while (whole := self.parts.whole(self.batch.job)) is not None and whole.parts:
            await self._wait()
        await self.parts.pool.ticker.committed()  # whoever ended until now is counted after that
        if self.parts.whole(self.batch.job) is not None:
            self.parts.end(self.batch.job, _EVENTS[self._outcome()], why=self._why(), code=self._code())
        while self._ended is None:  # until that is on the disk; after a restart it may be already
            job = await self.insist(lambda: self.store.job(self.batch.job))
            if job is not None and job.ended:
                self._ended = job
            else:
                await self._wait()

    async def _count(self) -> set[int]:
        """The lines that are jobs; those that have ended are counted."""
        made, after = set(), 0
        self.tally = Tally(failed=len(await self.store.failures(self.batch.id)))
        while page := await self.store.parts(self.batch.job, after=after):
            for part in page:
                after = part.part
                made.add(part.part)
                if part.ended:
                    self.tally.take(part)
        return made

    async def _room(self) -> bool:
        """Wait until another line may be queued. False: the batch has ended, or its time is over."""
        while True:
            may = await self._may()  # first: it may take a while, and what follows must hold when it returns
            whole = self.parts.whole(self.batch.job)
            if whole is None or self.parts.pool.now() >= self.batch.expires_at:
                return False
            if may and len(whole.parts) < self._window(whole.job.model) and not self.parts.busy():
                return True
            await self._wait()

    async def _may(self) -> bool:
        """Whether its member may spend; a frozen account's lines wait. Looked at now and then."""
        if self.parts.pool.now() >= self._looked_at + LOOK_S:
            self._looked_at = self.parts.pool.now()
            member = await self.insist(lambda: self.store.member(self.batch.member))
            self._active = member is not None and member.state is MemberState.ACTIVE
        return self._active

    def _window(self, model: str) -> int:
        fleet = self.parts.pool.engine.fleet
        serving = (fleet.workers[worker] for worker in fleet.by_model.get(model, ()))
        slots = sum(worker.models[model].slots for worker in serving if worker.connected)
        return min(WINDOW_MAX, max(WINDOW_MIN, AHEAD * slots))

    async def _wait(self) -> None:
        """For news, or a while: the pool may have room again without any of ours having ended."""
        try:
            async with asyncio.timeout(PAUSE_S):
                await self._news.wait()
        except TimeoutError:
            pass
        self._news.clear()

    async def _submit(self, number: int, line: bytes) -> None:
        whole = self.parts.whole(self.batch.job)
        assert whole is not None, "there is room in it"
        try:
            _, submission = await self.understand(self.batch, self.member, self.key, line)
            self.parts.submit(whole.job, number, submission)
        except LineRefused as refused:  # a model, a limit or a key is not what it was when it was checked
            await self._fail(Failure(number, refused.status, refused.code, refused.message))
        except Refusal as refusal:
            await self._fail(Failure(number, refusal.status, refusal.code, refusal.message))
        except NoRoom:
            if self.parts.whole(self.batch.job) is not None:  # the price rose since the quote
                message = "This line costs more now than was set aside for the batch."
                await self._fail(Failure(number, 402, "insufficient_credits", message))

    async def _fail(self, failure: Failure) -> None:
        await self.insist(lambda: self.store.put_failure(self.batch.id, failure))
        self.tally.failed += 1

    def _outcome(self) -> BatchState:
        whole = self.tally.completed + self.tally.failed >= self.batch.total
        return BatchState.COMPLETED if whole and not self.tally.expired else BatchState.EXPIRED

    def _why(self) -> str:
        return "" if self._outcome() is BatchState.COMPLETED else "its completion window is over"

    def _code(self) -> str:
        return "" if self._outcome() is BatchState.COMPLETED else "batch_expired"

    # -- what is left ----------------------------------------------------------------------------

    async def _write_down(self) -> None:
        """Both files, then the end, then the texts are forgotten. After a crash it is simply done again."""
        assert self._ended is not None, "the whole ends before its files are written"
        state = self._ended.state
        await self._move(BatchState.CANCELLING if state is JobState.CANCELLED else BatchState.FINALIZING)
        output = await self._file("output", self._answers)
        errors = await self._file("errors", lambda: self._errors(state))
        await self._move(_STATES[state], output_file=output, error_file=errors)
        await self.insist(lambda: self.store.forget_texts(self.batch.job))

    async def _file(self, name: str, lines: Callable[[], AsyncIterator[bytes]]) -> str | None:
        """None if it would be empty."""

        async def make() -> str | None:
            stored = await self.files.put(outputs.in_pieces(lines()), bytes_max=OUTPUT_BYTES_MAX)
            if not stored.size_bytes:
                return None
            filename = f"{self.batch.id}_{name}.jsonl"
            file_id = FileId(f"file-{self.batch.id.removeprefix('batch_')}-{name}")
            file = await self.files.add(
                self.member.id, Purpose.BATCH_OUTPUT, filename, stored, file_id=file_id
            )
            return str(file.id)

        return await self.insist(make)

    async def _answers(self) -> AsyncIterator[bytes]:
        async for _, custom_id, part, result, _ in self._results():
            if part is not None and result is not None:
                yield outputs.answered(part, custom_id, result)

    async def _errors(self, state: JobState) -> AsyncIterator[bytes]:
        async for number, custom_id, part, result, failure in self._results():
            if result is not None:
                continue
            line_id = part_id(self.batch.job, number)
            if failure is not None:
                yield outputs.failed(line_id, custom_id, failure)
            elif part is not None and part.state is JobState.FAILED:
                yield outputs.failed(line_id, custom_id, outputs.failure_of(part))
            else:
                ended = part.state if part is not None else state
                yield outputs.not_done(line_id, custom_id, ended, alone=ended is not state)

    async def _results(
        self,
    ) -> AsyncIterator[tuple[int, str, Job | None, bytes | None, Failure | None]]:
        """Each line of the input: number, custom id, the job that it became, its answer, its failure."""
        failures = await self.store.failures(self.batch.id)
        parts: dict[int, Job] = {}
        results: dict[JobId, bytes] = {}
        read = 0
        async for number, line in self._lines():
            if number > read:
                page = await self.store.parts(self.batch.job, after=read, limit=RESULTS_AT_ONCE)
                parts = {part.part: part for part in page}
                results = await self.store.results(part.id for part in page)
                read = page[-1].part if page else sys.maxsize
            part = parts.get(number)
            succeeded = part is not None and part.state is JobState.SUCCEEDED
            result = results.get(part.id) if part is not None and succeeded else None
            yield number, custom_id_of(line), part, result, failures.get(number)

    # -- on the disk -----------------------------------------------------------------------------

    async def _move(self, state: BatchState, **changes: Any) -> None:
        if self.cancel_why and state in (BatchState.IN_PROGRESS, BatchState.FINALIZING):
            changes["moments"] = {**self.batch.moments, state.value: self.parts.pool.now()}
            state = BatchState.CANCELLING
        moments = {**changes.pop("moments", self.batch.moments), state.value: self.parts.pool.now()}
        self.batch = replace(
            self.batch,
            state=state,
            moments=moments,
            completed=self.tally.completed,
            failed=self.tally.failed,
            input_tokens=self.tally.input_tokens,
            output_tokens=self.tally.output_tokens,
            **changes,
        )
        await self.insist(lambda: self.store.put_batch(self.batch))
        log.info("batch", action="batch_moved", batch=self.batch.id, state=state.value)

    async def insist(self, act: Callable[[], Awaitable[Result]]) -> Result:
        """Until the disk takes it: a batch waits for room, and loses nothing."""
        while True:
            try:
                return await act()
            except (StoreUnavailable, Refusal) as error:
                if isinstance(error, Refusal) and error.status < 500:
                    raise
                log.error(  # noqa: TRY400 -- a full disk is no mistake of ours: no traceback
                    "a batch waits for the disk", action="batch_waits", batch=self.batch.id, why=str(error)
                )
                await self.sleep(PAUSE_S)
