"""Of whose jobs something changed: counted, so that open pages know cheaply when to look again."""

from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

from coordinator.core.engine import Engine
from coordinator.core.jobs import Job, JobId, JobState, MemberId


@dataclass(slots=True)
class JobChanges:
    """`waiting`: each member's jobs that wait, whose places move when others' jobs do."""

    engine: Engine
    count: int = 0
    by_member: Counter[MemberId] = field(default_factory=Counter)
    waiting: dict[MemberId, set[JobId]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.take(live.job for live in self.engine.lives.values())

    def take(self, jobs: Iterable[Job]) -> None:
        """These are other than they were, and on the disk."""
        for job in jobs:
            if job.whole is not None:
                continue  # a list shows its whole
            self.count += 1
            self.by_member[job.member] += 1
            waiting = self.waiting.setdefault(job.member, set())
            (waiting.add if job.state is JobState.QUEUED else waiting.discard)(job.id)
            if not waiting:
                del self.waiting[job.member]

    def version(self, member: MemberId | None) -> Hashable:
        """Of the list of this member's jobs, or of everybody's."""
        waits = member in self.waiting if member is not None else bool(self.waiting)
        count = self.count if member is None else self.by_member[member]
        return count, len(self.engine.queue) if waits else 0
