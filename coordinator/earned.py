"""What each worker has earned since it was enrolled, in microcredits: a cached sum over its attempts."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from coordinator.core.jobs import Job, WorkerId


@dataclass(slots=True)
class Earned:
    """What is held counts as well; own jobs earn nothing. Read from the disk once, then told of each end."""

    sums: dict[WorkerId, int] = field(default_factory=dict)

    def recall(self, sums: Mapping[WorkerId, int]) -> None:
        self.sums = dict(sums)

    def ended(self, job: Job) -> None:
        for attempt in job.attempts:
            if attempt.paid:
                self.sums[attempt.worker] = self.sums.get(attempt.worker, 0) + attempt.paid

    def of(self, worker: WorkerId) -> int:
        return self.sums.get(worker, 0)
