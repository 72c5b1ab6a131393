"""The jobs that wait, in the order in which they are to be served.

Kept up as jobs come and go, so that a tick costs what it gives away and not what waits. A group is what one
flow waits for of one kind, model and class; inside it members take turns by what they have running, and each
member's jobs go by age.
"""

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from coordinator.core.contribution import Contributions
from coordinator.core.fairness import (
    Clock,
    Fairness,
    JobClass,
    Shares,
    class_of,
    equal_part,
)
from coordinator.core.jobs import AccountId, Job, JobId, Kind, MemberId
from coordinator.core.turns import Asked, Group, Turns, Want

KINDS = tuple(Kind)


@dataclass(slots=True)
class Line:
    given: Contributions = field(default_factory=Contributions)
    clock: Clock = field(default_factory=Clock)
    jobs: dict[JobId, Asked] = field(default_factory=dict)
    wants: dict[Want, dict[tuple[AccountId, JobClass], Group]] = field(default_factory=dict)
    waiting: dict[AccountId, int] = field(default_factory=dict)  # jobs of each flow
    by_account: dict[AccountId, dict[Want, dict[JobId, None]]] = field(default_factory=dict)  # of who asked
    turns: dict[Want, Turns] = field(default_factory=dict)  # of wants that were planned for
    served: int = 0  # jobs given away

    @property
    def rule(self) -> Fairness:
        return self.clock.rule

    def enter(self, job: Job) -> None:
        """The job waits, for the first time or again; what an attempt was counted for is given back."""
        self._correct(job.id, 0)
        flow, want = self.given.flow_of(job.account), (job.kind, job.model)
        asked = Asked(job.id, want, flow, job.member, class_of(job), job.created_at, job.hold, job.account)
        groups = self.wants.setdefault(want, {})
        if (group := groups.get((flow, asked.class_))) is None:
            group = groups[flow, asked.class_] = Group(want, flow, asked.class_)
            self.clock.lane((job.model, asked.class_)).arrive(flow)
        heapq.heappush(group.members.setdefault(asked.member, []), (asked.since, asked.id))
        group.count += 1
        self._changed(group)
        self.jobs[asked.id] = asked
        self.waiting[flow] = self.waiting.get(flow, 0) + 1
        self.by_account.setdefault(job.account, {}).setdefault(want, {})[asked.id] = None

    def leave(self, job: JobId, charge: int | None) -> None:
        """It ended, and cost so much."""
        self.remove(job)
        self._correct(job, charge or 0)

    def remove(self, job: JobId) -> None:
        """It waits no more: given away, or ended."""
        if (asked := self.jobs.pop(job, None)) is None:
            return
        groups = self.wants[asked.want]
        group = groups[asked.flow, asked.class_]
        jobs = group.members.get(asked.member)
        if jobs and jobs[0][1] == job:  # or it would stand there twice when it comes back
            heapq.heappop(jobs)
        group.count -= 1
        self._changed(group)
        if not group.count:
            del groups[asked.flow, asked.class_]
            if not groups:
                del self.wants[asked.want]
                self.turns.pop(asked.want, None)
        mine = self.by_account[asked.account]
        del mine[asked.want][job]
        if not mine[asked.want]:
            del mine[asked.want]
            if not mine:
                del self.by_account[asked.account]
        self.waiting[asked.flow] -= 1
        if not self.waiting[asked.flow]:
            del self.waiting[asked.flow]

    def head(self, group: Group, running: Mapping[MemberId, int]) -> Asked | None:
        """The group's next job: the oldest of who has least running, or else was served least lately."""
        if group.first is not None:
            return group.first
        if len(group.members) == 1:
            (jobs,) = group.members.values()
            while jobs and jobs[0][1] not in self.jobs:
                heapq.heappop(jobs)
            group.first = self.jobs[jobs[0][1]] if jobs else None
            return group.first
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
        group = self.wants[asked.want][asked.flow, asked.class_]
        heapq.heappop(group.members[asked.member])
        self._changed(group)

    def restore(self, skipped: Iterable[Asked]) -> None:
        for asked in skipped:
            if asked.id in self.jobs:
                group = self.wants[asked.want][asked.flow, asked.class_]
                heapq.heappush(group.members.setdefault(asked.member, []), (asked.since, asked.id))
                self._changed(group)

    def _changed(self, group: Group) -> None:
        """Its next job may be another, or go sooner, than when its turn was looked at."""
        group.first = None
        if (turns := self.turns.get(group.want)) is not None:
            turns.changed[group.flow, group.class_] = group

    def _correct(self, job: JobId, cost: int) -> None:
        """What it cost is known now: its flow's turns may come sooner."""
        if (taken := self.clock.correct(job, cost)) is None:
            return
        for model, class_ in taken.lanes:
            for kind in KINDS:
                group = self.wants.get((kind, model), {}).get((taken.flow, class_))
                if group is not None:
                    self._changed(group)

    def shares(self) -> Shares:
        """What each waiting flow is due."""
        return Shares(self.given.of_flows(self.waiting), self.rule)

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
        kept = sum([self.slots * permille // 1_000 for permille in rule.reserved_permille[:class_]])
        return not kept or sum(self.used[class_:]) < self.slots - kept
