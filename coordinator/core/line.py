"""The jobs that wait, in the order in which they are to be served.

Kept up as jobs come and go, so that a tick costs what it gives away and not what waits. A group is what one
flow waits for of one kind, model and class; inside it members take turns by what they have running, and each
member's jobs go by age.
"""

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from coordinator.core.contribution import Contributions
from coordinator.core.fairness import (
    CLASSES,
    Clock,
    Fairness,
    JobClass,
    Lane,
    class_of,
    equal_part,
    weights_of,
)
from coordinator.core.jobs import AccountId, Job, JobId, Kind, MemberId

Want = tuple[Kind, str]  # kind and model


class Asked(NamedTuple):
    """A job in the line. `cost` is its hold in microcredits, `since` when it was asked for."""

    id: JobId
    want: Want
    flow: AccountId
    member: MemberId
    class_: JobClass
    since: float
    cost: int


@dataclass(slots=True)
class Group:
    want: Want
    flow: AccountId
    class_: JobClass
    members: dict[MemberId, list[tuple[float, JobId]]] = field(default_factory=dict)
    count: int = 0
    last: dict[MemberId, int] = field(default_factory=dict)  # when each was served, by `Line.served`


@dataclass(slots=True)
class Line:
    given: Contributions = field(default_factory=Contributions)
    clock: Clock = field(default_factory=Clock)
    jobs: dict[JobId, Asked] = field(default_factory=dict)
    wants: dict[Want, dict[tuple[AccountId, JobClass], Group]] = field(default_factory=dict)
    waiting: dict[AccountId, int] = field(default_factory=dict)  # jobs of each flow
    served: int = 0  # jobs given away

    @property
    def rule(self) -> Fairness:
        return self.clock.rule

    def enter(self, job: Job) -> None:
        """The job waits, for the first time or again; what an attempt was counted for is given back."""
        self.clock.correct(job.id, 0)
        flow, want = self.given.flow_of(job.account), (job.kind, job.model)
        asked = Asked(job.id, want, flow, job.member, class_of(job), job.created_at, job.hold)
        groups = self.wants.setdefault(want, {})
        if (group := groups.get((flow, asked.class_))) is None:
            group = groups[flow, asked.class_] = Group(want, flow, asked.class_)
            self.clock.lane((job.model, asked.class_)).arrive(flow)
        heapq.heappush(group.members.setdefault(asked.member, []), (asked.since, asked.id))
        group.count += 1
        self.jobs[asked.id] = asked
        self.waiting[flow] = self.waiting.get(flow, 0) + 1

    def leave(self, job: JobId, charge: int | None) -> None:
        """It ended, and cost so much."""
        self.remove(job)
        self.clock.correct(job, charge or 0)

    def remove(self, job: JobId) -> None:
        """It waits no more: given away, or ended."""
        if (asked := self.jobs.pop(job, None)) is None:
            return
        groups = self.wants[asked.want]
        group = groups[asked.flow, asked.class_]
        group.count -= 1
        if not group.count:
            del groups[asked.flow, asked.class_]
            if not groups:
                del self.wants[asked.want]
        self.waiting[asked.flow] -= 1
        if not self.waiting[asked.flow]:
            del self.waiting[asked.flow]

    def head(self, group: Group, running: Mapping[MemberId, int]) -> Asked | None:
        """The group's next job: the oldest of who has least running, or else was served least lately."""
        if len(group.members) == 1:
            (jobs,) = group.members.values()
            while jobs and jobs[0][1] not in self.jobs:
                heapq.heappop(jobs)
            return self.jobs[jobs[0][1]] if jobs else None
        best: tuple[int, int, float, JobId] | None = None
        for member, jobs in list(group.members.items()):
            while jobs and jobs[0][1] not in self.jobs:
                heapq.heappop(jobs)
            if not jobs:
                del group.members[member]
                continue
            key = (running.get(member, 0), group.last.get(member, 0), *jobs[0])
            best = key if best is None or key < best else best
        return None if best is None else self.jobs[best[3]]

    def skip(self, asked: Asked) -> None:
        """Look past the head for now; `restore` brings it back."""
        heapq.heappop(self.wants[asked.want][asked.flow, asked.class_].members[asked.member])

    def restore(self, skipped: Iterable[Asked]) -> None:
        for asked in skipped:
            if asked.id in self.jobs:
                group = self.wants[asked.want][asked.flow, asked.class_]
                heapq.heappush(group.members.setdefault(asked.member, []), (asked.since, asked.id))

    def weights(self) -> dict[AccountId, float]:
        """The share that each waiting flow is due."""
        return weights_of(self.waiting, self.given, self.rule)

    def patience(self, flow: AccountId) -> float:
        """1, or the part of it by which those deep in debt wait longer before they count as forgotten."""
        return equal_part(self.given.of_flow(flow), self.rule)

    def tidy(self) -> None:
        """Forget the tags of flows that are gone, now and then."""
        if sum(len(lane.tags) for lane in self.clock.lanes.values()) > 256 + 4 * len(self.waiting):
            self.clock.forget(self.waiting)


@dataclass(slots=True)
class Room:
    """Slots of the workers that serve one want now, and how many of them each class has."""

    slots: int = 0
    used: list[int] = field(default_factory=lambda: [0, 0, 0])

    def short(self, class_: JobClass, rule: Fairness) -> bool:
        """Whether a class that others go before has less than what is reserved for it."""
        if class_ is JobClass.INTERACTIVE:
            return False
        return self.used[class_] < self.slots * rule.reserved_permille[class_] // 1_000

    def open(self, class_: JobClass, rule: Fairness) -> bool:
        """Whether the class may take one more slot without taking room that is kept for those before it."""
        if class_ is JobClass.INTERACTIVE:
            return True
        used, kept = 0, 0
        for other in JobClass:
            if other < class_:
                kept += self.slots * rule.reserved_permille[other] // 1_000
            else:
                used += self.used[other]
        return not kept or used < self.slots - kept


Key = tuple[float, float, float, JobId, AccountId]


@dataclass(slots=True)
class Order:
    """One want's groups during one tick, the next first."""

    line: Line
    want: Want
    room: Room
    weights: Mapping[AccountId, float]
    running: dict[MemberId, int]  # shared by all orders of a tick, and counted on
    now: float
    fair: list[Key] = field(default_factory=list)
    aged: list[Key] = field(default_factory=list)
    lanes: list[Lane] = field(default_factory=list)  # by JobClass

    def fill(self) -> None:
        line, running, aged_s = self.line, self.running, self.line.rule.aged_s
        self.lanes = [line.clock.lane((self.want[1], class_)) for class_ in JobClass]
        for group in line.wants.get(self.want, {}).values():
            head = line.head(group, running)
            if head is None:
                continue
            self.fair.append(self._key(group, head))
            since = head.since
            if self.now - since >= aged_s[group.class_]:
                since = max(since, self.lanes[group.class_].served_at.get(group.flow, since))
            if self.now - since >= aged_s[group.class_] / line.patience(group.flow):
                self.aged.append((since, int(group.class_), head.since, head.id, group.flow))
        heapq.heapify(self.fair)
        heapq.heapify(self.aged)

    def _key(self, group: Group, head: Asked) -> Key:
        rule = self.line.rule
        # Ranks: a class short of its reserved room, then the classes. The two never share a rank.
        rank = group.class_ - 3 if self.room.short(group.class_, rule) else int(group.class_)
        start = self.lanes[group.class_].start(group.flow, rule)
        return rank, start, head.since, head.id, group.flow

    def peek(self) -> tuple[Asked, bool] | None:
        """The next job and whether it is in its turn; not in turn: it has waited too long. None: no more."""
        groups = self.line.wants.get(self.want, {})
        while self.aged:
            since, class_, _, _, flow = self.aged[0]
            if self.line.clock.aged_due.get(self.want[1], 0.0) < 1.0 and self.fair:
                break
            job_class = CLASSES[int(class_)]
            group = groups.get((flow, job_class))
            served = self.lanes[job_class].served_at.get(flow, since)
            head = self.line.head(group, self.running) if group and served <= since else None
            if head is not None and self.room.open(head.class_, self.line.rule):
                return head, False
            heapq.heappop(self.aged)
        while self.fair:
            key = self.fair[0]
            class_, flow = CLASSES[int(key[0]) % 3], key[4]
            group = groups.get((flow, class_))
            head = self.line.head(group, self.running) if group else None
            if group is None or head is None or not self.room.open(class_, self.line.rule):
                heapq.heappop(self.fair)
                continue
            fresh = self._key(group, head)
            if fresh == key:
                return head, True
            heapq.heapreplace(self.fair, fresh)
        return None

    def lag(self, asked: Asked) -> float:
        """How far the job's flow is ahead of its lane's present."""
        lane = self.lanes[asked.class_]
        return lane.start(asked.flow, self.line.rule) - lane.present

    def gave(self, asked: Asked, models: Iterable[str], *, in_turn: bool) -> None:
        """The job went to a worker that serves these models."""
        line, model = self.line, self.want[1]
        due = line.clock.aged_due.get(model, 0.0) + line.rule.guaranteed_permille / 1_000
        line.clock.aged_due[model] = min(2.0, due) if in_turn else max(0.0, due - 1.0)
        line.clock.give(
            asked.id,
            asked.flow,
            (model, asked.class_),
            models,
            cost=asked.cost,
            weight=self.weights[asked.flow],
            in_turn=in_turn,
            now=self.now,
        )
        self.running[asked.member] = self.running.get(asked.member, 0) + 1
        self.room.used[asked.class_] += 1
        line.served += 1
        line.wants[self.want][asked.flow, asked.class_].last[asked.member] = line.served
        line.remove(asked.id)
