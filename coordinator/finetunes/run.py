"""One fine-tune from its files to its model.

Everything that it needs to go on after a restart is on the disk: the examples' lengths, the state machine's
snapshot, and what each part that was paid has left.

`run` is the main flow: check, pay, train, keep what it came to.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import structlog

from coordinator.core.course import Fail, Finish, Paused, Resumed
from coordinator.core.jobs import Job, JobEvent, JobState
from coordinator.core.pricing import Training
from coordinator.files import Files
from coordinator.finetunes import beginning, ending, receiving
from coordinator.finetunes.base import Bases
from coordinator.finetunes.check import Checked, Checks
from coordinator.finetunes.disk import PAUSE_S, Disk
from coordinator.finetunes.driver import Driver, Release, driver_of
from coordinator.finetunes.finetune import Checkpoint, Fault, Finetune, FinetuneState
from coordinator.finetunes.journal import Journal
from coordinator.finetunes.progress import Progress, progress_of
from coordinator.finetunes.works import adapter_kept
from coordinator.parts import Parts
from coordinator.records import ApiKey, Member, MemberState
from coordinator.refusal import Refusal
from coordinator.store import Store
from coordinator.tuned.registry import TunedModels
from potluck.v1 import work_pb2

LOOK_S: Final = 5.0  # how old may be what is known of its member
WRITTEN_S_MAX: Final = 10.0  # that who cancels waits for the end of it
EXPIRED: Final = "finetune_expired"

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Run:
    finetune: Finetune
    member: Member
    key: ApiKey
    training: Path
    validation: Path | None
    parts: Parts
    store: Store
    files: Files
    bases: Bases
    checks: Checks
    tuned: TunedModels
    release: Release  # artifacts that it needs no more, and others may
    cancel_why: str = ""
    driver: Driver | None = None
    done: asyncio.Event = field(default_factory=asyncio.Event)
    disk: Disk = field(init=False)
    journal: Journal = field(init=False)
    _looked_at: float = 0.0
    _active: bool = True
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)  # of the state machine
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _ended: Job | None = None  # the whole, once it has

    def __post_init__(self) -> None:
        self.disk = Disk(self.finetune.id)
        self.journal = Journal(self.finetune.id, self.store, self.parts.pool.now)

    # -- what others tell it ---------------------------------------------------------------------

    def part_ended(self, part: Job) -> None:
        if self.driver is not None:
            self.driver.part_ended(part)

    def whole_ended(self, whole: Job) -> None:
        self._ended = whole
        self._news.set()

    def steps(self, job: Job, said: Sequence[work_pb2.TrainingStep]) -> str:
        assert self.driver is not None, "it has opened the part"
        return receiving.steps(self.driver, job, said)

    async def trained(self, job: Job, said: work_pb2.Trained) -> Training | str:
        assert self.driver is not None, "it has opened the part"
        return await receiving.trained(self.driver, job, said)

    async def cancel(self, why: str) -> bool:
        """What is under way ends now; what was trained until the last checkpoint stays paid. False: it has
        ended already.
        """
        if self.finetune.ended or self._ended is not None:
            return False
        begun = FinetuneState.QUEUED.value in self.finetune.moments
        if begun and self.parts.whole(self.finetune.job) is None:
            return False
        self.cancel_why = self.cancel_why or why
        self.parts.pool.cancel(self.finetune.job, why)
        self._news.set()
        await self.parts.pool.ticker.committed()
        with contextlib.suppress(TimeoutError):  # it is cancelled; the rest is writing down
            await asyncio.wait_for(self.done.wait(), WRITTEN_S_MAX)
        return True

    async def pause(self) -> None:
        """What is under way ends now, and nothing new begins. Raises Refusal 409."""
        async with self._turn:
            driver = self.driver
            if self._over or self.finetune.state not in (FinetuneState.QUEUED, FinetuneState.RUNNING):
                raise self._refused("be paused", "it is not queued or running")
            if driver is None:
                raise self._refused("be paused", "it only just begins; ask again in a moment")
            if driver.verdict is not None:
                raise self._refused("be paused", "all of it is trained")
            self._change_whole(JobEvent.PAUSED)
            self.journal.say("Paused.")
            await self._move(FinetuneState.PAUSED)
            await driver.handle(Paused())

    async def go_on(self) -> None:
        """Raises Refusal 409."""
        async with self._turn:
            driver = self.driver
            if driver is None or self._over or self.finetune.state is not FinetuneState.PAUSED:
                raise self._refused("be resumed", "it is not paused")
            self._change_whole(JobEvent.RESUMED, JobEvent.ASSIGNED)
            self.journal.say("Resumed.")
            await self._move(FinetuneState.QUEUED)
            await driver.handle(Resumed())
            self._news.set()

    def _change_whole(self, *events: JobEvent) -> None:
        for event in events:
            self.parts.pool.engine.change_whole(self.finetune.job, event, self.parts.pool.now())
        self.parts.pool.ticker.wake()

    @property
    def _over(self) -> bool:
        """Whether its whole is closed, though the rest may still be written down."""
        return self._ended is not None or self.parts.whole(self.finetune.job) is None

    def _refused(self, what: str, why: str) -> Refusal:
        state = self.finetune.state.value
        message = f"{self.finetune.id} cannot {what}: {why} ({state})."
        return Refusal(409, "wrong_state", message, type="conflict_error")

    def progress(self) -> Progress:
        return progress_of(self.finetune, self.driver, self.parts, active=self._active)

    @property
    def now(self) -> Finetune:
        """As it is at the moment."""
        whole, driver = self.parts.whole(self.finetune.job), self.driver
        charge = self.finetune.charge if whole is None else whole.job.settled
        if driver is None or driver.tuning is None or self.finetune.ended:
            return replace(self.finetune, charge=charge)
        done, tokens = driver.tuning.step, driver.trained_tokens
        return replace(self.finetune, charge=charge, steps_done=done, trained_tokens=tokens)

    @property
    def settled(self) -> bool:
        """Whether it knows what it goes on from: it was taken up, or has not begun."""
        begun = FinetuneState.QUEUED.value in self.finetune.moments
        return not begun or (self.driver is not None and self.driver.tuning is not None)

    @property
    def artifacts(self) -> set[str]:
        """What must stay for it to go on."""
        return set() if self.driver is None else self.driver.artifacts

    # -- the main flow ---------------------------------------------------------------------------

    async def run(self) -> None:
        self.parts.watch(self.finetune.job, self)
        try:
            await self.disk.insist(self.journal.open)
            if FinetuneState.QUEUED.value not in self.finetune.moments and not await self._begin():
                return
            if self.parts.pool.catalogue().get(self.finetune.model) is None:
                await self._give_up(f"the model {self.finetune.model} is no longer in the pool's catalogue")
                return
            await self._take_up()
            await self._train()
            await self._close()
            await self._write_down()
        finally:
            self.parts.forget(self.finetune.job)

    def over(self) -> None:
        """It has ended, or the coordinator stops."""
        (self.journal.close if self.finetune.ended else self.journal.stop)()
        self.done.set()

    async def _begin(self) -> bool:
        """Read both files, then set the worst case aside. False: it has ended, and nothing was done."""
        try:
            found = await self._checked()
            await self.disk.insist(lambda: beginning.keep_lengths(self.store, self.finetune.id, found))
            known = await self.disk.insist(lambda: self.store.job(self.finetune.job))
            beginning.refuse_frozen(await self.disk.insist(lambda: self.store.member(self.finetune.member)))
            if known is None:
                await self.disk.insist(lambda: self._open(found))  # a pool that stops opens nothing
        except Refusal as refusal:
            await self._end_whole(refusal.message, refusal.code)  # a crash came after it had been opened
            await self._fail(Fault(refusal.code, refusal.message, refusal.param))
            return False
        if known is None and self.parts.whole(self.finetune.job) is None and self._ended is None:
            await self._move(FinetuneState.CANCELLED)
            return False
        beginning.tell(self.journal, found)
        await self._move(FinetuneState.QUEUED, plan=found.plan, quote=found.worst)
        return True

    async def _open(self, found: Checked) -> None:
        """Unless it was cancelled. Raises Refusal."""
        if not self.cancel_why:
            self.parts.open(beginning.order_of(self.finetune, self.member, self.key, found))
            await self.parts.pool.ticker.committed()

    async def _checked(self) -> Checked:
        """Raises Refusal."""
        finetune, validation = self.finetune, None
        if finetune.validation is not None and self.validation is not None:
            validation = finetune.validation, self.validation
        base = await self.bases.get(finetune.model)
        return await self.checks.check(base, finetune.wanted, (finetune.training, self.training), validation)

    # -- training --------------------------------------------------------------------------------

    async def _take_up(self) -> None:
        """What drives it, from the beginning or from where it was."""
        base = await self.bases.get(self.finetune.model)
        driver = await driver_of(
            self.finetune,
            base,
            self.parts,
            self.store,
            self.files.artifacts,
            self.disk,
            self.journal,
            self._news.set,
            self.release,
            self.show_checkpoints,
        )
        async with self._turn:
            self.driver = driver
            await driver.take_up()
            await self._agree(driver)

    async def show_checkpoints(self, listed: list[Checkpoint]) -> None:
        """These may be asked from now on, and no others of it."""
        entry = (await self.bases.get(self.finetune.model)).entry
        pool, finetune = self.parts.pool, self.finetune
        models = await ending.checkpoint_models(pool, self.disk, finetune, entry, listed)
        self.tuned.list_checkpoints(finetune.id, models)

    async def _agree(self, driver: Driver) -> None:
        """What a crash came between: pausing has three steps, and the first one counts."""
        paused = self.finetune.state is FinetuneState.PAUSED
        if driver.tuning is not None and driver.tuning.paused != paused:
            await driver.handle(Paused() if paused else Resumed())
        whole = self.parts.whole(self.finetune.job)
        if whole is not None and (whole.job.state is JobState.PAUSED) != paused:
            self._change_whole(*((JobEvent.PAUSED,) if paused else (JobEvent.RESUMED, JobEvent.ASSIGNED)))

    async def _train(self) -> None:
        """Until it has come to something, or its whole has ended."""
        driver = self.driver
        assert driver is not None, "it was taken up"
        while self._goes_on(driver):
            async with self._turn:
                await driver.turn()
            if await self._may():
                driver.open_waiting()
            await self._say_running(driver)
            if self.parts.pool.now() >= self.finetune.expires_at and not self._over:
                why = "its time is over"
                self.parts.end(self.finetune.job, JobEvent.EXPIRED, why=why, code=EXPIRED)
            elif self._goes_on(driver):
                await self._wait()

    def _goes_on(self, driver: Driver) -> bool:
        return driver.verdict is None and not self._over

    async def _may(self) -> bool:
        """Whether its member may spend; a frozen account's parts wait. Looked at now and then."""
        if self.parts.pool.now() >= self._looked_at + LOOK_S:
            self._looked_at = self.parts.pool.now()
            member = await self.disk.insist(lambda: self.store.member(self.finetune.member))
            self._active = member is not None and member.state is MemberState.ACTIVE
        return self._active

    async def _say_running(self, driver: Driver) -> None:
        """From when a worker begins."""
        if self.finetune.state is not FinetuneState.QUEUED or not driver.begun:
            return
        async with self._turn:
            if self.finetune.state is FinetuneState.QUEUED:
                await self._move(FinetuneState.RUNNING)

    async def _wait(self) -> None:
        """For news, or a while."""
        try:
            async with asyncio.timeout(PAUSE_S):
                await self._news.wait()
        except TimeoutError:
            pass
        self._news.clear()

    def break_off(self) -> None:
        """After a bug in here: what was paid stays paid, and nothing more is done."""
        fault = Fault("server_error", "The pool failed to go on with this fine-tune; its log says why.")
        now = self.now
        if (whole := self.parts.whole(now.job)) is not None:
            paused = whole.job.state is JobState.PAUSED
            event = JobEvent.CANCELLED if paused else JobEvent.GAVE_UP
            self.parts.end(now.job, event, fault.message, fault.code)
        moments = {**now.moments, FinetuneState.FAILED.value: self.parts.pool.now()}
        self.finetune = replace(now, state=FinetuneState.FAILED, fault=fault, moments=moments)

    # -- what it came to -------------------------------------------------------------------------

    async def _close(self) -> None:
        """The whole has ended, or ends now as its training did; on the disk when this returns."""
        verdict = None if self.driver is None else self.driver.verdict
        if self.parts.whole(self.finetune.job) is not None:
            if isinstance(verdict, Fail):
                paused = self.finetune.state is FinetuneState.PAUSED
                event = JobEvent.CANCELLED if paused else JobEvent.GAVE_UP
                self.parts.end(self.finetune.job, event, why=verdict.why, code=verdict.code)
            else:
                self.parts.end(self.finetune.job, JobEvent.SUCCEEDED)
        while self._ended is None:  # until that is on the disk; after a restart it may be already
            job = await self.disk.insist(lambda: self.store.job(self.finetune.job))
            if job is not None and job.ended:
                self._ended = job
            else:
                await self._wait()

    async def _give_up(self, why: str) -> None:
        """After a restart: nobody could train it any more."""
        await self._end_whole(why, "model_gone")
        job = await self.disk.insist(lambda: self.store.job(self.finetune.job))
        self.finetune = replace(self.finetune, charge=0 if job is None else job.charge or 0)
        await self._fail(Fault("model_gone", f"It cannot go on: {why}.", "model"))

    async def _end_whole(self, why: str, code: str) -> None:
        """If it is open; what is left of its hold goes back."""
        if self.parts.whole(self.finetune.job) is not None:
            self.parts.end(self.finetune.job, JobEvent.CANCELLED, why=why, code=code)
            await self.parts.pool.ticker.committed()

    async def _write_down(self) -> None:
        """The results, then the model, then the end. After a crash it is simply done again."""
        ended, driver = self._ended, self.driver
        assert ended is not None, "the whole ends before its results are written"
        assert driver is not None, "it was taken up"
        changes: dict[str, Any] = {
            "charge": ended.charge or 0,
            "steps_done": 0 if driver.tuning is None else driver.tuning.step,
            "trained_tokens": driver.trained_tokens,
        }
        self.finetune = replace(self.finetune, **changes)
        made = await self.disk.insist(driver.ended)
        events = await self.disk.insist(lambda: ending.all_events(self.store, self.finetune.id))
        curve = ending.curve_of(made, ending.validations(events))
        results = await ending.put_curve(self.files, self.disk, self.finetune, curve)
        self.finetune = replace(self.finetune, result_files=results)
        verdict = driver.verdict
        if ended.state is JobState.SUCCEEDED and isinstance(verdict, Finish):
            entry = (await self.bases.get(self.finetune.model)).entry
            adapter = adapter_kept(verdict.adapter)
            model = await ending.model_of(
                self.parts.pool, self.disk, self.finetune, entry, adapter, curve, made
            )
            await self.disk.insist(lambda: self.tuned.add(model))
            self.journal.say(f"New fine-tuned model created: {model.name}")
            self.journal.say("The job has successfully completed")
            await self._move(FinetuneState.SUCCEEDED)
        elif ended.state is JobState.CANCELLED and not isinstance(verdict, Fail):
            self.journal.say(f"Cancelled: {ended.why or 'by its member'}.")
            await self._move(FinetuneState.CANCELLED)
        else:
            await self._fail(Fault(ended.code or "server_error", ended.why or "It came to nothing."))
        await self.disk.insist(lambda: self.store.forget_finetune(self.finetune.id, self.finetune.job))

    async def _fail(self, fault: Fault) -> None:
        self.journal.say(fault.message, level="error")
        await self._move(FinetuneState.FAILED, fault=fault)

    async def _move(self, state: FinetuneState, **changes: Any) -> None:
        moments = {**self.finetune.moments, state.value: self.parts.pool.now()}
        self.finetune = replace(self.finetune, state=state, moments=moments, **changes)
        await self.disk.insist(self.journal.write)
        await self.disk.insist(lambda: self.store.put_finetune(self.finetune))
        log.info("fine-tune", action="finetune_moved", finetune=self.finetune.id, state=state.value)
