"""The simplest scheduler that there is: who came first gets the worker that has been free for longest."""

from collections import defaultdict, deque
from dataclasses import dataclass, field

from coordinator.core.jobs import JobId, WorkerId


@dataclass(slots=True)
class FirstCome:
    """For each model a queue of free places, and one queue of jobs. `most` are placed at once."""

    most: int
    jobs: deque[tuple[JobId, str]] = field(default_factory=deque)
    places: dict[str, deque[WorkerId]] = field(default_factory=lambda: defaultdict(deque))

    def free(self, model: str, worker: WorkerId, slots: int = 1) -> None:
        self.places[model].extend([worker] * slots)

    def ask(self, job: JobId, model: str) -> None:
        self.jobs.append((job, model))

    def plan(self) -> list[tuple[JobId, WorkerId]]:
        """Who does what. Jobs whose model nobody has room for keep their place in the queue."""
        jobs, places, most = self.jobs, self.places, self.most
        placed: list[tuple[JobId, WorkerId]] = []
        passed: list[tuple[JobId, str]] = []
        while jobs and len(placed) < most:
            asked = jobs.popleft()
            if free := places[asked[1]]:
                placed.append((asked[0], free.popleft()))
            else:
                passed.append(asked)
        jobs.extendleft(reversed(passed))
        return placed
