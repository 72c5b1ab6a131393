"""Wholes and their parts as the shell sees them: what a batch or a fine-tune asks of the pool.

Whoever keeps a whole registers with `watch`, and is told when one of its parts has ended and is on the disk.
"""

from dataclasses import dataclass, field, replace
from typing import Protocol

from coordinator.bounds import bounds_of
from coordinator.core.engine import Impossible
from coordinator.core.jobs import Job, JobEvent, JobId, JobState, Kind, part_id
from coordinator.core.ledger import Overdrawn
from coordinator.core.pricing import Demand, Training, quote
from coordinator.core.wholes import Whole
from coordinator.door import impossible
from coordinator.pool import Pool
from coordinator.records import ApiKey, Member
from coordinator.refusal import Refusal
from coordinator.submission import Submission, Wanted
from potluck.v1 import work_pb2


class Keeper(Protocol):
    def part_ended(self, part: Job) -> None: ...

    def whole_ended(self, whole: Job) -> None:
        """Its parts ended before; perhaps somebody else cancelled it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A whole that is to be opened. `worst`: the most that all of its parts can cost, in microcredits."""

    id: JobId
    kind: Kind
    model: str
    member: Member
    key: ApiKey | None
    worst: int
    prompt_tokens: int
    max_tokens: int
    expires_at: float | None
    workers: Wanted = None  # that may see it


@dataclass(slots=True)
class Parts:
    pool: Pool
    keepers: dict[JobId, Keeper] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pool.followers.append(self._ended)

    def watch(self, whole: JobId, keeper: Keeper) -> None:
        self.keepers[whole] = keeper

    def forget(self, whole: JobId) -> None:
        self.keepers.pop(whole, None)

    def open(self, order: Order) -> Job:
        """Set the worst case of all parts aside; who is too poor for others' workers may use the own ones.

        Raises Refusal; nothing is held then.
        """
        pool = self.pool
        pool.accounts.check_open()
        pool.names[order.member.id] = order.member.name
        pool.accounts.know(order.member.account)
        now, bounds = pool.now(), bounds_of(order.member, order.key, pool.settings)
        job = Job(
            id=order.id,
            kind=order.kind,
            model=order.model,
            member=order.member.id,
            account=order.member.account,
            created_at=now,
            quote=order.worst,
            hold=0 if order.workers == "mine" else order.worst,
            prompt_tokens=order.prompt_tokens,
            max_tokens=order.max_tokens,
            key="" if order.key is None else order.key.id,
            stored=True,
            own_only=order.workers == "mine",
            only=pool.only(order.workers, order.member),
            expires_at=order.expires_at,
        )
        try:
            if over := pool.budgets.refuse_credits(bounds, job.hold, now):
                raise pool.over(over, order.member, order.key)
            pool.engine.open_whole(job)
        except (Overdrawn, Refusal) as short:
            if not self._has_workers(order):
                raise short if isinstance(short, Refusal) else pool.too_poor(job, short) from None
            job = replace(job, hold=0, own_only=True)
            pool.engine.open_whole(job)
        pool.budgets.reserve(job.id, [bound.subject for bound in bounds], 0, job.hold, now)
        pool.engine.change_whole(job.id, JobEvent.ASSIGNED, now)
        pool.ticker.wake()
        return pool.engine.wholes[job.id].job

    def _has_workers(self, order: Order) -> bool:
        fleet = self.pool.engine.fleet
        return any(
            order.model in fleet.workers[worker].models
            for worker in fleet.by_account.get(order.member.account, ())
        )

    def submit(self, whole: Job, number: int, s: Submission) -> Job:
        """Queue a part. Raises Refusal 400 if nobody could ever run it, NoRoom if it was not quoted."""
        pool = self.pool
        job = pool.job_of(s, part_id(whole.id, number))
        part = replace(
            job,
            whole=whole.id,
            part=number,
            stored=True,
            hold=0 if whole.own_only else job.hold,
            own_only=whole.own_only or job.own_only,
            expires_at=min((at for at in (whole.expires_at, job.expires_at) if at is not None), default=None),
        )
        try:
            pool.queue(part, replace(s, stored=True))
        except Impossible as reason:
            raise impossible(reason) from None
        return part

    def submit_training(
        self,
        whole: Job,
        number: int,
        work: work_pb2.Work,
        bound: Training,
        sequence_tokens: int,
    ) -> Job:
        """Queue a part of a fine-tune, which may cost what `bound` does: training at its most.

        Raises Refusal 400 if nobody could ever run it, NoRoom if it was not quoted.
        """
        pool = self.pool
        demand = Demand(Kind.FINETUNE, pool.shape(whole.model), (sequence_tokens,), training=bound)
        worst = quote(demand, pool.tariff)
        part = replace(
            whole,
            id=part_id(whole.id, number),
            whole=whole.id,
            part=number,
            created_at=pool.now(),
            quote=worst,
            hold=0 if whole.own_only else worst,
            prompt_tokens=bound.tokens,
            max_tokens=0,
            state=JobState.QUEUED,
            settled=0,
            settlements=0,
            output_tokens=0,
            started_at=None,
        )
        try:
            pool.enter(part, demand)
        except Impossible as reason:
            raise impossible(reason) from None
        pool.works[part.id] = work
        pool.door.crowd.enter(part.id, part.member, work.ByteSize())
        pool.ticker.wake()
        return part

    def worst(self, s: Submission) -> int:
        """The most that a part can cost: nothing if it may run on own workers alone. Raises Refusal."""
        quoted = self.pool.quote(s)
        return 0 if s.workers == "mine" else quoted

    def busy(self) -> bool:
        """Whether half as many jobs are open as the pool takes: parts wait outside then, so that there is
        room for those who wait for their answers.
        """
        return self.pool.door.crowd.half

    def end(self, whole_id: JobId, event: JobEvent, why: str = "", code: str = "") -> None:
        """Close the whole, and before it whatever of it is still open."""
        self.pool.engine.end_whole(whole_id, event, self.pool.now(), why=why, code=code)
        self.pool.ticker.wake()

    def whole(self, whole_id: JobId) -> Whole | None:
        """None: it has ended, or is none."""
        return self.pool.engine.wholes.get(whole_id)

    def _ended(self, job: Job) -> None:
        if job.whole is not None and (keeper := self.keepers.get(job.whole)) is not None:
            keeper.part_ended(job)
        elif (keeper := self.keepers.get(job.id)) is not None:
            keeper.whole_ended(job)
