"""Whether one more interactive job is let in, or its member told at once when to come back.

Somebody waits for it, so that a place at the end of a long line is worth nothing: it would expire there, and
every job before it would be late. What counts is how long this job would wait, by what waits now, by whose
turn it would be and by how long jobs take. A member with few jobs is let in while another's thousands are
refused, since its turn comes first.

The wait is that of a fluid: while the flow's own `n` jobs are served, each other flow gets its share, and no
more than it asks for. What comes meanwhile and goes before is not in it; how much longer than expected jobs
did wait lately tells that.

Who is refused is told a moment of its own, and then finds a part of the line kept for those who come back:
else at each free place somebody new would be there first, and no moment would be true.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from coordinator.core.fairness import Shares, class_of
from coordinator.core.fleet import Fleet, Served, Worker
from coordinator.core.jobs import AccountId, Job, JobId, WorkerId
from coordinator.core.line import Line
from coordinator.core.offers import Offers, slots_of, used_of
from coordinator.core.pace import Pace
from coordinator.core.schedule import Planner
from coordinator.core.turns import Group

RETRY_S_MIN = 1.0
RETRY_S_MAX = 600.0
TOLD_MAX = 10_000  # flows
BACK = 1.5  # as long a wait as else is allowed, for those who come back
LEARNT = 64  # jobs over which it is looked how long they waited
LONGER_MAX = 4.0


class Wait(NamedTuple):
    """Of one more job, in seconds: as things are, if its flow had nothing else waiting, and what each job of
    its flow adds.
    """

    seconds: float
    alone_s: float
    step_s: float


class Crowded(NamedTuple):
    """The job is not let in. `own`: because of what its own flow has waiting already."""

    expected_s: float
    retry_after_s: float
    own: bool


class Seats(NamedTuple):
    """Slots that serve the job, of them free, and of them those that its kind and model may count on."""

    slots: int
    free: int
    usable: int


@dataclass(slots=True)
class Admission:
    """`told`: until when those who were refused are told to come back, one after another, by flow."""

    told: dict[AccountId, float] = field(default_factory=dict)
    _let_in: dict[JobId, tuple[float, float]] = field(default_factory=dict)  # when, and the wait expected
    _expected_s: float = 0.0  # means of the last jobs
    _waited_s: float = 0.0

    def verdict(
        self,
        line: Line,
        planner: Planner,
        pace: Pace,
        job: Job,
        bound_s: float,
        now: float,
        *,
        ends_s: float = math.inf,
        back: bool = False,
    ) -> Crowded | None:
        """None: it may come in. Also where nothing is known of how long jobs take, or nobody is there.

        `back`: it says that it was refused before. `ends_s`: after which it is given up, back or not.
        """
        longer = self.longer
        wait = expected(line, planner, pace, job, bound_s / longer)
        if wait is None:
            return None
        flow, seconds = line.given.flow_of(job.account), wait.seconds * longer
        if seconds <= min(bound_s * (BACK if back else 1.0), ends_s):
            if 2 * seconds < bound_s:
                self.told.pop(flow, None)  # whoever was told a moment far off need not wait for it
            if wait.seconds > 0:
                self._let_in[job.id] = now, wait.seconds
            return None
        after_s = self.come_back(flow, seconds - bound_s, wait.step_s * longer, now)
        return Crowded(seconds, after_s, own=wait.alone_s * longer <= bound_s)

    @property
    def longer(self) -> float:
        """How many times as long as expected jobs waited lately; at least once."""
        if not self._expected_s:
            return 1.0
        return min(LONGER_MAX, max(1.0, self._waited_s / self._expected_s))

    def left(self, job: JobId, now: float, *, served: bool) -> None:
        """It waits no more: it has a worker, or it ended."""
        if (known := self._let_in.pop(job, None)) is None or not served:
            return
        at, expected_s = known
        self._expected_s += (expected_s - self._expected_s) / LEARNT
        self._waited_s += (now - at - self._waited_s) / LEARNT

    def come_back(self, flow: AccountId, excess_s: float, step_s: float, now: float) -> float:
        """Seconds until there may be room. A crowd that is refused together does not come back together."""
        at = max(now + excess_s, self.told.pop(flow, 0.0) + step_s)
        at = min(max(at, now + RETRY_S_MIN), now + RETRY_S_MAX)
        self.told[flow] = at
        if len(self.told) > TOLD_MAX:
            del self.told[next(iter(self.told))]
        return at - now


def expected(line: Line, planner: Planner, pace: Pace, job: Job, enough_s: float = 0.0) -> Wait | None:
    """None: not to be known. Not computed further than to see that it is at most `enough_s`."""
    want, class_ = (job.kind, job.model), class_of(job)
    offers = planner.offered(want)
    if offers is None:
        return None
    held_s = pace.held_s(job, _serving(offers), planner.policy)
    if held_s is None:
        return None
    flow, groups = line.given.flow_of(job.account), line.wants.get(want, {})
    others = [group for group in groups.values() if group.class_ is class_ and group.flow != flow]
    group = groups.get((flow, class_))
    own = group.count if group is not None else 0
    found = [_seated(line, flow, own, others, held_s, enough_s, seats) for seats in _seats(offers, pace, job)]
    return min(found, default=None)


def _seated(
    line: Line,
    flow: AccountId,
    own: int,
    others: list[Group],
    held_s: float,
    enough_s: float,
    seats: tuple[Seats, bool],
) -> Wait:
    """The wait for one of these seats. On own workers nobody else's jobs go before."""
    (_, free, usable), alone = seats
    step_s = held_s / max(1, usable)

    def wait_s(ahead: float) -> float:
        return max(0.0, ahead + 1 - free) * step_s

    if alone:
        return Wait(wait_s(own), wait_s(0), step_s)
    total = sum([group.count for group in others])
    if wait_s(own + total) <= enough_s:
        return Wait(wait_s(own + total), wait_s(total), step_s)
    shares = Shares(line.given.of_flows({**line.waiting, flow: 0}), line.rule)
    weight = shares.of(flow)
    parts = [(group.count, shares.of(group.flow) / weight) for group in others]

    def ahead(mine: int) -> float:
        return mine + sum([min(count, part * (mine + 1)) for count, part in parts])

    seconds = wait_s(ahead(own))
    return Wait(seconds, wait_s(ahead(0)), seconds / (own + 1))


def _seats(offers: Offers, pace: Pace, job: Job) -> Iterable[tuple[Seats, bool]]:
    """Where it may be served: by whoever serves its model, and by its member's own workers before others."""
    fleet, class_ = offers.fleet, class_of(job)
    if not job.only and not job.own_only and offers.slots:
        used = sum(offers.used)
        elsewhere = max(0, offers.used[class_] - pace.running(((job.kind, job.model), class_)))
        usable = offers.slots - min(offers.slots, elsewhere)
        yield Seats(offers.slots, max(0, offers.slots - used), usable), False
    own = fleet.by_account.get(job.account, {})
    if job.only:
        named = _among(fleet, offers, job.only)
        if named.slots:
            yield named, False
    elif own and (mine := _among(fleet, offers, own)).slots:
        yield mine, True


def _among(fleet: Fleet, offers: Offers, workers: Iterable[WorkerId]) -> Seats:
    slots = free = 0
    for worker_id in workers:
        worker = fleet.workers.get(worker_id)
        if worker is not None and (served := worker.takes(offers.kind, offers.model)) is not None:
            has = slots_of(worker, served, offers.kind)
            slots += has
            free += max(0, has - used_of(worker, offers.kind))
    return Seats(slots, free, slots)


def _serving(offers: Offers) -> Iterable[Served]:
    """A few of those that serve it: enough for a guess."""
    for worker_id in list(offers.fleet.by_model.get(offers.model, ()))[:16]:
        worker: Worker = offers.fleet.workers[worker_id]
        if (served := worker.takes(offers.kind, offers.model)) is not None:
            yield served
