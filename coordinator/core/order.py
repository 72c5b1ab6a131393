"""Whose job is the next of one kind and model, during one tick."""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field

from coordinator.core.fairness import CLASSES, JobClass, Lane, Shares
from coordinator.core.jobs import AccountId, JobId, MemberId
from coordinator.core.line import Line, Room
from coordinator.core.turns import Asked, Group, Turns, Want

Aged = tuple[float, int, float, JobId, AccountId]


@dataclass(slots=True)
class Order:
    line: Line
    want: Want
    room: Room
    shares: Shares
    running: dict[MemberId, int]  # shared by all orders of a tick, and counted on
    now: float
    turns: Turns = field(init=False)
    lanes: list[Lane] = field(init=False)  # by JobClass
    ranks: list[int] = field(init=False)  # by JobClass
    ranked: list[JobClass] = field(init=False)
    aged: list[Aged] = field(default_factory=list)

    def __post_init__(self) -> None:
        line = self.line
        self.lanes = [line.clock.lane((self.want[1], class_)) for class_ in CLASSES]
        self.ranks = [self._rank(class_) for class_ in CLASSES]
        self.ranked = sorted(CLASSES, key=self.ranks.__getitem__)
        self.turns = line.turns.setdefault(self.want, Turns(line.wants[self.want]))
        self.turns.catch_up(self.lanes, self._next, line.rule, self.now)
        for group in self.turns.old.values():
            self._age(group)
        heapq.heapify(self.aged)

    def _next(self, group: Group) -> Asked | None:
        return self.line.head(group, self.running)

    def _rank(self, class_: JobClass) -> int:
        """A class short of its reserved room, then the classes."""
        return class_ - len(CLASSES) if self.room.short(class_, self.line.rule) else int(class_)

    def _age(self, group: Group) -> None:
        """It has waited long; whether too long depends on when its flow was served, and on its debts."""
        if (head := self._next(group)) is None:
            return
        since = max(head.since, self.lanes[group.class_].served_at.get(group.flow, head.since))
        aged_s = self.line.rule.aged_s[group.class_]
        if self.now - since >= aged_s and self.now - since >= aged_s / self.line.patience(group.flow):
            self.aged.append((since, int(group.class_), head.since, head.id, group.flow))

    def peek(self) -> tuple[Asked, bool] | None:
        """The next job and whether it is in its turn; not in turn: it has waited too long. None: no more."""
        rule, clock, room = self.line.rule, self.line.clock, self.room
        while self.aged and clock.aged_due.get(self.want[1], 0.0) >= 1.0:
            since, class_, _, _, flow = self.aged[0]
            job_class = CLASSES[class_]
            group = self.turns.groups.get((flow, job_class))
            served = self.lanes[job_class].served_at.get(flow, since)
            head = self._next(group) if group and served <= since else None
            if head is not None and room.open(job_class, rule):
                return head, False
            heapq.heappop(self.aged)
        for job_class in self.ranked:
            if room.open(job_class, rule):
                head = self.turns.first(job_class, self.lanes[job_class], self._next, rule)
                if head is not None:
                    return head, True
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
            weight=self.shares.of(asked.flow),
            in_turn=in_turn,
            now=self.now,
        )
        line.served += 1
        line.wants[self.want][asked.flow, asked.class_].last[asked.member] = line.served
        self._take(asked)

    def gave_own(self, asked: Asked) -> None:
        """The job went to a worker of who asked: it costs nothing, and uses up nobody's turn."""
        self._take(asked)

    def _take(self, asked: Asked) -> None:
        self.running[asked.member] = self.running.get(asked.member, 0) + 1
        self.room.used[asked.class_] += 1
        if (rank := self._rank(asked.class_)) != self.ranks[asked.class_]:
            self.ranks[asked.class_] = rank
            self.ranked.sort(key=self.ranks.__getitem__)
        self.line.remove(asked.id)
