"""One fine-tune from its files to its model.

Everything that it needs to go on after a restart is on the disk: the examples' lengths, the state machine's
snapshot, and what each part that was paid has left.

`run` is the main flow: check, pay, train, keep the model.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog

from coordinator.core.jobs import Job, JobEvent, Kind
from coordinator.files import Files
from coordinator.finetunes.base import Bases
from coordinator.finetunes.check import Checked, Checks
from coordinator.finetunes.finetune import Fault, Finetune, FinetuneState
from coordinator.finetunes.journal import Journal
from coordinator.finetunes.progress import Progress
from coordinator.parts import Order, Parts
from coordinator.records import ApiKey, Member, MemberState
from coordinator.refusal import Refusal
from coordinator.store import Store
from coordinator.store_errors import StoreUnavailable

PAUSE_S: Final = 1.0  # before what a full pool or a full disk refused is tried again

Result = TypeVar("Result")
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
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    cancel_why: str = ""
    journal: Journal = field(init=False)
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _ended: Job | None = None  # the whole, once it has

    def __post_init__(self) -> None:
        self.journal = Journal(self.finetune.id, self.store, self.parts.pool.now)

    # -- what others tell it ---------------------------------------------------------------------

    def part_ended(self, part: Job) -> None:
        log.info("a part ended", action="part_ended", finetune=self.finetune.id, part=part.part)
        self._news.set()

    def whole_ended(self, whole: Job) -> None:
        self._ended = whole
        self._news.set()

    async def cancel(self, why: str) -> bool:
        """What is under way ends now; what was trained until the last checkpoint stays paid. False: it has
        ended already.
        """
        if self.finetune.ended or self._ended is not None:
            return False
        self.cancel_why = self.cancel_why or why
        self.parts.pool.cancel(self.finetune.job, why)
        self._news.set()
        await self.parts.pool.ticker.committed()
        return True

    async def pause(self) -> None:
        """What is under way ends now, and nothing new begins. Raises Refusal 409."""
        if self.finetune.state not in (FinetuneState.QUEUED, FinetuneState.RUNNING) or self._over:
            raise self._refused("be paused", "it is not queued or running")
        self.parts.pool.engine.change_whole(self.finetune.job, JobEvent.PAUSED, self.parts.pool.now())
        self.journal.say("Paused.")
        await self._move(FinetuneState.PAUSED)

    async def go_on(self) -> None:
        """Raises Refusal 409."""
        if self.finetune.state is not FinetuneState.PAUSED or self._over:
            raise self._refused("be resumed", "it is not paused")
        for event in (JobEvent.RESUMED, JobEvent.ASSIGNED):
            self.parts.pool.engine.change_whole(self.finetune.job, event, self.parts.pool.now())
        self.journal.say("Resumed.")
        await self._move(FinetuneState.QUEUED)

    @property
    def _over(self) -> bool:
        """Whether its whole is closed, though the rest may still be written down."""
        return self._ended is not None or self.parts.whole(self.finetune.job) is None

    def _refused(self, what: str, why: str) -> Refusal:
        state = self.finetune.state.value
        message = f"{self.finetune.id} cannot {what}: {why} ({state})."
        return Refusal(409, "wrong_state", message, type="conflict_error")

    def progress(self) -> Progress:
        whole = self.parts.whole(self.finetune.job)
        charge = self.finetune.charge if whole is None else whole.job.settled
        del charge
        return Progress(steps_done=self.finetune.steps_done, stage=self.finetune.state.value)

    # -- the main flow ---------------------------------------------------------------------------

    async def run(self) -> None:
        self.parts.watch(self.finetune.job, self)
        try:
            await self._insist(self.journal.open)
            if FinetuneState.QUEUED.value not in self.finetune.moments and not await self._begin():
                return
            await self._train()
        finally:
            self.parts.forget(self.finetune.job)
            self.journal.close()

    async def _begin(self) -> bool:
        """Read both files, then set the worst case aside. False: it has ended, and nothing was done."""
        try:
            found = await self._checked()
            await self._insist(lambda: self._keep_lengths(found))
            known = await self._insist(lambda: self.store.job(self.finetune.job))
            await self._refuse_frozen()
            if known is None and not self.cancel_why:  # no wait from here to its opening
                self.parts.open(self._order(found))
                await self.parts.pool.ticker.committed()
        except Refusal as refusal:
            fault = Fault(refusal.code, refusal.message, refusal.param)
            self.journal.say(fault.message, level="error")
            await self._move(FinetuneState.FAILED, fault=fault)
            return False
        if self.parts.whole(self.finetune.job) is None:
            await self._move(FinetuneState.CANCELLED)
            return False
        await self._move(FinetuneState.QUEUED, plan=found.plan, quote=found.worst)
        return True

    async def _checked(self) -> Checked:
        """Raises Refusal."""
        finetune = self.finetune
        validation = None
        if finetune.validation is not None and self.validation is not None:
            validation = finetune.validation, self.validation
        base = await self.bases.get(finetune.model)
        return await self.checks.check(base, finetune.wanted, (finetune.training, self.training), validation)

    async def _keep_lengths(self, found: Checked) -> None:
        validation = None if found.validation is None else found.validation.to_bytes()
        await self.store.put_finetune_lengths(self.finetune.id, found.training.to_bytes(), validation)

    async def _refuse_frozen(self) -> None:
        """Raises Refusal 403."""
        member = await self._insist(lambda: self.store.member(self.finetune.member))
        if member is None or member.state is not MemberState.ACTIVE:
            message = "The account is frozen or closed: nothing new begins."
            raise Refusal(403, "account_frozen", message, type="permission_error")

    def _order(self, found: Checked) -> Order:
        return Order(
            id=self.finetune.job,
            kind=Kind.FINETUNE,
            model=self.finetune.model,
            member=self.member,
            key=self.key,
            worst=found.worst,
            prompt_tokens=found.plan.tokens * found.plan.epochs,
            max_tokens=0,
            expires_at=self.finetune.expires_at,
        )

    async def _train(self) -> None:
        while self._ended is None:
            await self._wait()
        await self._move(FinetuneState.CANCELLED)

    async def _wait(self) -> None:
        """For news, or a while."""
        try:
            async with asyncio.timeout(PAUSE_S):
                await self._news.wait()
        except TimeoutError:
            pass
        self._news.clear()

    # -- on the disk -----------------------------------------------------------------------------

    async def _move(self, state: FinetuneState, **changes: Any) -> None:
        moments = {**self.finetune.moments, state.value: self.parts.pool.now()}
        self.finetune = replace(self.finetune, state=state, moments=moments, **changes)
        await self._insist(self.journal.write)
        await self._insist(lambda: self.store.put_finetune(self.finetune))
        log.info("fine-tune", action="finetune_moved", finetune=self.finetune.id, state=state.value)

    async def _insist(self, act: Callable[[], Awaitable[Result]]) -> Result:
        """Until the disk takes it: a fine-tune waits for room, and loses nothing."""
        while True:
            try:
                return await act()
            except (StoreUnavailable, Refusal) as error:
                if isinstance(error, Refusal) and error.status < 500:
                    raise
                log.error(  # noqa: TRY400 -- a full disk is no mistake of ours: no traceback
                    "a fine-tune waits for the disk",
                    action="finetune_waits",
                    finetune=self.finetune.id,
                    why=str(error),
                )
                await self.sleep(PAUSE_S)
