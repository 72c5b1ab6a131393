"""Who is let in: the pool's limits on what is open, and on how long somebody would wait, as refusals.

A 429 says that it is the caller's own doing, a 503 that it is everybody's; both say when to come back, by how
fast jobs go through now.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from coordinator.core.admission import expected
from coordinator.core.crowd import Crowd
from coordinator.core.engine import Engine, Impossible
from coordinator.core.jobs import Job
from coordinator.refusal import Refusal
from coordinator.submission import Submission

STEP_S: Final = 5.0  # between jobs that end, where nothing was measured


@dataclass(slots=True)
class Door:
    engine: Engine
    jobs_max: int
    bytes_max: int
    now: Callable[[], float]
    crowd: Crowd = field(init=False)

    def __post_init__(self) -> None:
        self.crowd = Crowd(self.jobs_max, self.bytes_max)

    @contextmanager
    def open_to(self, job: Job, s: Submission) -> Iterator[None]:
        """`check`, and whoever is turned away for another reason behind the door does not wait."""
        self.check(job, s)
        try:
            yield
        except Refusal:
            self.engine.admission.left(job.id, self.now(), served=False)
            raise

    def check(self, job: Job, s: Submission) -> None:
        """Raises Refusal if there is no room for it, or if somebody would wait for it in vain."""
        if full := self.crowd.full(job.member, s.work.ByteSize(), stored=job.stored):
            self._refuse_full(job, own=full == "own")
        if job.stored:
            return
        crowded = self.engine.crowded(job, self.now(), s.wait_s or math.inf, back=s.back)
        if crowded is None:
            return
        after_s = crowded.retry_after_s
        if crowded.own:
            message = (
                f"Your own jobs for {s.name} that wait already would keep this one waiting for about "
                f"{crowded.expected_s:.0f} s. Try again in {after_s:.0f} s, or use stored jobs or a batch."
            )
            raise Refusal(429, "too_many_waiting", message, type="rate_limit_error", retry_after_s=after_s)
        message = (
            f"So many wait for {s.name} that an answer would begin in about {crowded.expected_s:.0f} s. "
            f"Try again in {after_s:.0f} s, or use stored jobs or a batch, which wait longer."
        )
        raise Refusal(503, "pool_busy", message, type="server_error", retry_after_s=after_s)

    def _refuse_full(self, job: Job, *, own: bool) -> None:
        engine, now = self.engine, self.now()
        wait = expected(engine.line, engine.planner, engine.pace, job)
        step_s = STEP_S if wait is None else wait.step_s
        after_s = engine.admission.come_back(engine.line.given.flow_of(job.account), 0.0, step_s, now)
        hint = f"Try again in {after_s:.0f} s."
        if own:
            message = (
                f"You have as many stored jobs open as there is room left for all others. {hint} A batch"
                " waits outside, however long it is."
            )
            raise Refusal(429, "too_many_open_jobs", message, type="rate_limit_error", retry_after_s=after_s)
        message = f"The pool has {len(self.crowd)} jobs open and no room for more. {hint}"
        raise Refusal(503, "pool_busy", message, type="server_error", retry_after_s=after_s)


def impossible(reason: Impossible) -> Refusal:
    message = f"No worker of this pool could ever run this: {reason}."
    return Refusal(400, "no_worker_could_serve", message, param="model")
