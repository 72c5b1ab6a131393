"""Whose turn it is: weighted fair queueing over recent net contribution.

Start-time fair queueing (Goyal, Vin, Cheng 1996): each flow has a tag in virtual time, the flow with the
lowest tag goes next, and a job given away moves its flow's tag on by cost / weight. A flow that had nothing
to ask for starts at the present, so that idling saves up nothing. The cost is the job's quote until it closes
and its charge from then on, so that a large `max_tokens` is not punished.

Weights are shares of one. `guaranteed_permille` is divided equally among all flows with work waiting (less
for those deep in debt, but never nothing); the rest goes to contributors by what they gave.

Each model and class has a lane of its own, because flows compete for workers and not for the pool. A worker
that serves several models is taken from all their lanes at once.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from coordinator.core.jobs import AccountId, Job, JobId, Kind

WEIGHT_MIN = 1e-9


class JobClass(IntEnum):
    """The lower goes first."""

    __hash__ = int.__hash__  # quick: see Kind
    INTERACTIVE = 0
    BATCH = 1
    FINETUNE = 2


CLASSES = tuple(JobClass)


def class_of(job: Job) -> JobClass:
    if job.kind is Kind.FINETUNE:
        return JobClass.FINETUNE
    return JobClass.BATCH if job.stored else JobClass.INTERACTIVE


@dataclass(frozen=True, slots=True)
class Fairness:
    """The rule's numbers. Amounts are microcredits, times seconds; where there are three, by JobClass."""

    guaranteed_permille: int = 200
    contributed_full: int = 10_000_000  # given in all before the contributors' part is divided wholly by it
    debt_full: int = 1_000_000_000  # taken more than given: from here on the least part
    debt_permille: int = 250  # of a newcomer's guaranteed part, then
    reserved_permille: tuple[int, int, int] = (100, 100, 100)  # of the slots that serve a model
    aged_s: tuple[float, float, float] = (20.0, 1_800.0, 1_800.0)
    behind_max: int = 8  # widest steps that a waiting flow's tag may stay behind the present


class Shares:
    """The part of the work that each flow is due, from what each gave minus took; they add up to 1.

    Never nothing, and never less for having given more. Of many flows few are served in a tick: what is
    common to all is computed once, each one's part when it is asked for.
    """

    __slots__ = ("_all_equal", "_earned", "_full", "_nets", "_rest", "_rule")

    def __init__(self, nets: Mapping[AccountId, float], rule: Fairness) -> None:
        self._nets, self._rule = nets, rule
        given = sum([net for net in nets.values() if net > 0])
        self._all_equal = sum([equal_part(net, rule) if net < 0 else 1.0 for net in nets.values()])
        self._full = max(given, float(rule.contributed_full), 1.0)
        self._earned = (1_000 - rule.guaranteed_permille) / 1_000
        self._rest = 1.0 - self._earned * given / self._full

    def of(self, flow: AccountId) -> float:
        net = self._nets[flow]
        equal = self._rest * equal_part(net, self._rule) / self._all_equal
        return max(WEIGHT_MIN, equal + self._earned * max(0.0, net) / self._full)


def shares(nets: Mapping[AccountId, float], rule: Fairness) -> dict[AccountId, float]:
    """Those of all flows."""
    whole = Shares(nets, rule)
    return {flow: whole.of(flow) for flow in nets}


def equal_part(net: float, rule: Fairness) -> float:
    """1, or less for those who took much more than they gave."""
    if net >= 0:
        return 1.0
    depth = min(1.0, -net / max(1, rule.debt_full))
    return 1.0 - depth * (1_000 - rule.debt_permille) / 1_000


@dataclass(slots=True)
class Lane:
    """The virtual time of one model and class, and where its flows stand in it."""

    present: float = 0.0
    widest: float = 0.0  # the longest step of late
    tags: dict[AccountId, float] = field(default_factory=dict)
    served_at: dict[AccountId, float] = field(default_factory=dict)  # seconds

    def start(self, flow: AccountId, rule: Fairness) -> float:
        """Where the flow's next job begins."""
        return max(self.tags.get(flow, self.present), self.present - rule.behind_max * self.widest)

    def behind(self, rule: Fairness) -> float:
        """No flow begins before this, however long it has waited."""
        return self.present - rule.behind_max * self.widest

    def arrive(self, flow: AccountId) -> None:
        """It had nothing waiting here: whatever it did not use is gone."""
        self.tags[flow] = max(self.tags.get(flow, self.present), self.present)

    def step(self, flow: AccountId, start: float, by: float) -> None:
        self.tags[flow] = start + by
        self.widest = max(by, self.widest * 0.999)


LaneKey = tuple[str, JobClass]


class Taken(NamedTuple):
    """A job that was given away: what it was counted as, and where."""

    flow: AccountId
    lanes: tuple[LaneKey, ...]
    cost: int
    weight: float


@dataclass(slots=True)
class Clock:
    """All lanes, and what was counted for jobs that run."""

    rule: Fairness = field(default_factory=Fairness)
    lanes: dict[LaneKey, Lane] = field(default_factory=dict)
    taken: dict[JobId, Taken] = field(default_factory=dict)
    aged_due: dict[str, float] = field(default_factory=dict)  # placements that long waits may claim, by model

    def lane(self, key: LaneKey) -> Lane:
        if (lane := self.lanes.get(key)) is None:
            lane = self.lanes[key] = Lane()
        return lane

    def give(
        self,
        job: JobId,
        flow: AccountId,
        key: LaneKey,
        models: Iterable[str],
        *,
        cost: int,
        weight: float,
        in_turn: bool,
        now: float,
    ) -> None:
        """The job goes to a worker that serves `models`: the flow's tag moves on in all of their lanes.

        Present moves on only by jobs `in_turn`: who was served ahead for having waited moves nobody else.
        """
        by = cost / weight
        keys = tuple([(model, key[1]) for model in models])
        for one in keys:
            lane = self.lane(one)
            start = lane.start(flow, self.rule)
            if in_turn and start > lane.present:
                lane.present = start
            lane.step(flow, start, by)
        self.lanes[key].served_at[flow] = now
        self.taken[job] = Taken(flow, keys, cost, weight)

    def correct(self, job: JobId, cost: int) -> Taken | None:
        """What the job did cost: 0 for an attempt that came to nothing. Returns what it was counted as."""
        if (taken := self.taken.pop(job, None)) is None:
            return None
        for key in taken.lanes:
            lane = self.lanes.get(key)
            if lane is not None and taken.flow in lane.tags:
                lane.tags[taken.flow] += (cost - taken.cost) / taken.weight
        return taken

    def forget(self, waiting: Mapping[AccountId, object]) -> None:
        """Tags that say nothing: of flows that ask for nothing and are not ahead of the present."""
        for lane in self.lanes.values():
            for flow in [f for f, tag in lane.tags.items() if tag <= lane.present and f not in waiting]:
                del lane.tags[flow]
                lane.served_at.pop(flow, None)
