"""Who waits for one kind and model, flow by flow, in the order of their tags; kept between ticks.

The tag of a flow that waits only rises, except where `Line` says that it changed; so the heaps hold lower
bounds, and what stands first is looked at again before it is believed. Where a flow was so far behind that
its tag did not count, it began at `Lane.behind`, which may fall: the order is made anew in the next tick.
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from coordinator.core.fairness import CLASSES, Fairness, JobClass, Lane
from coordinator.core.jobs import AccountId, JobId, Kind, MemberId

Want = tuple[Kind, str]  # kind and model
GroupKey = tuple[AccountId, JobClass]
Entry = tuple[float, float, JobId, AccountId]  # where its turn begins, since when it waits, job, flow
Wait = tuple[float, JobId, AccountId]
STALE_MAX = 64  # entries of a heap, beside twice as many as there are groups


class Asked(NamedTuple):
    """A job in the line. `cost` is its hold in microcredits, `since` when it was asked for."""

    id: JobId
    want: Want
    flow: AccountId
    member: MemberId
    class_: JobClass
    since: float
    cost: int
    account: AccountId  # whose flow may be that of whoever answers for it


@dataclass(slots=True)
class Group:
    """What one flow waits for of one want and class."""

    want: Want
    flow: AccountId
    class_: JobClass
    members: dict[MemberId, list[tuple[float, JobId]]] = field(default_factory=dict)
    first: Asked | None = None  # its next job, where that is known and not a matter of turns
    count: int = 0
    last: dict[MemberId, int] = field(default_factory=dict)  # when each was served, by `Line.served`
    entry: Entry | None = None  # the one of its entries that counts
    wait: Wait | None = None


def _three() -> list[list[Any]]:
    return [[] for _ in CLASSES]


@dataclass(slots=True)
class Turns:
    """`fair` and `young` by JobClass. What is not its group's `entry` or `wait` is stale."""

    groups: dict[GroupKey, Group]
    fair: list[list[Entry]] = field(default_factory=_three)
    young: list[list[Wait]] = field(default_factory=_three)
    old: dict[GroupKey, Group] = field(default_factory=dict)  # whose next job has waited for `aged_s`
    changed: dict[GroupKey, Group] = field(default_factory=dict)  # since they were looked at
    anew: bool = True

    def catch_up(
        self, lanes: Sequence[Lane], head: Callable[[Group], Asked | None], rule: Fairness, now: float
    ) -> None:
        """Look again at what changed, and at groups of several members, whose turns depend on what runs."""
        if self.anew or self._too_long():
            self._forget()
        changed, self.changed = self.changed, {}
        for key, group in changed.items():
            asked = head(group) if self.groups.get(key) is group else None
            if asked is None:
                self.old.pop(key, None)
                group.entry = group.wait = None
                continue
            entry = self._entry(group, asked, lanes[group.class_], rule)
            if entry != group.entry:
                group.entry = entry
                heapq.heappush(self.fair[group.class_], entry)
            if (wait := (asked.since, asked.id, asked.flow)) != group.wait:
                group.wait = wait
                self.old.pop(key, None)
                heapq.heappush(self.young[group.class_], wait)
            if len(group.members) > 1:
                self.changed[key] = group
        for class_, young in zip(CLASSES, self.young, strict=True):
            while young and now - young[0][0] >= rule.aged_s[class_]:
                wait = heapq.heappop(young)
                waits = self.groups.get((wait[2], class_))
                if waits is not None and waits.wait is wait:
                    self.old[wait[2], class_] = waits

    def first(
        self, class_: JobClass, lane: Lane, head: Callable[[Group], Asked | None], rule: Fairness
    ) -> Asked | None:
        """The next job of the class."""
        fair = self.fair[class_]
        while fair:
            entry = fair[0]
            group = self.groups.get((entry[3], class_))
            if group is None or group.entry is not entry:
                heapq.heappop(fair)
            elif (asked := group.first or head(group)) is None:
                heapq.heappop(fair)
                group.entry = None
            elif (fresh := self._entry(group, asked, lane, rule)) == entry:
                return asked
            else:
                heapq.heapreplace(fair, fresh)
                group.entry = fresh
        return None

    def _entry(self, group: Group, asked: Asked, lane: Lane, rule: Fairness) -> Entry:
        start = lane.start(group.flow, rule)
        if start != lane.tags.get(group.flow, start):
            self.anew = True  # in the next tick: such a start may fall, as no tag does
        return start, asked.since, asked.id, group.flow

    def _too_long(self) -> bool:
        """Whether most of a heap is stale."""
        most = STALE_MAX + 2 * len(self.groups)
        return any(len(fair) > most for fair in self.fair) or any(len(young) > most for young in self.young)

    def _forget(self) -> None:
        """Everything is to be looked at again."""
        self.fair, self.young, self.anew = _three(), _three(), False
        self.old.clear()
        self.changed = dict(self.groups)
        for group in self.groups.values():
            group.entry = group.wait = None
