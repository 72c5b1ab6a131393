"""An open job with what only memory knows of it: its output, who holds it, whom it avoids."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from coordinator.core import jobs
from coordinator.core.fleet import LOADING, Fleet, LoadMark, load_of
from coordinator.core.jobs import AttemptEvent, Job, JobState, Loading, WorkerId
from coordinator.core.output import Output
from coordinator.core.pricing import Demand, Training
from coordinator.core.rules import Rules
from coordinator.core.schedule import Waiting

FOREVER = math.inf
NOBODY: frozenset[WorkerId] = frozenset()


@dataclass(slots=True)
class Live:
    """Times are seconds since the epoch."""

    job: Job
    demand: Demand
    memory_bytes: int
    output: Output
    waiting_since: float  # without anybody who works on it
    heard_at: float = 0.0  # of the running attempt
    progressed_at: float = 0.0
    delivered_at: float = 0.0  # the last output of the running attempt, or its begin
    first_output_at: float | None = None  # whoever it came from
    acknowledged: int = 0
    stage: str = ""
    load_began: LoadMark | None = None  # of the model on the running attempt's worker
    prompt: Any = None  # as the first attempt rendered it; opaque
    numerics: str = ""  # of the worker that had it last
    avoid: dict[WorkerId, float] = field(default_factory=dict)
    refusals: dict[WorkerId, int] = field(default_factory=dict)  # that were nobody's fault
    failures: int = 0  # attempts that count towards the limit
    job_faults: int = 0
    asker: str = ""  # its member's name: owners of workers name members
    _waiting: Waiting | None = None  # while nobody had it: asked for when it comes, and when it is given away

    def waiting(self, now: float) -> Waiting:
        if self._waiting is not None and not self.avoid and not self.output.begun:
            return self._waiting
        job = self.job
        longest = max(self.demand.prompts, default=0)
        self._waiting = Waiting(
            id=job.id,
            kind=job.kind,
            model=job.model,
            account=job.account,
            asker=self.asker,
            context_tokens=longest + job.max_tokens,
            own_only=job.own_only,
            only=job.only,
            needs=job.needs,
            refused_by=frozenset(w for w, t in self.avoid.items() if t > now) if self.avoid else NOBODY,
            numerics=self.numerics if self.output.begun else "",
        )
        return self._waiting

    @property
    def holder(self) -> tuple[WorkerId, int] | None:
        """The worker that has it now, and the number of its attempt."""
        attempt = self.job.attempt
        if self.job.state is not JobState.RUNNING or attempt is None:
            return None
        return attempt.worker, attempt.number

    def begin(self, now: float) -> bool:
        """Whether it had not begun before."""
        attempt = self.job.attempt
        if attempt is None or attempt.state is not jobs.AttemptState.ASSIGNED:
            return False
        moved = jobs.move_attempt(attempt, AttemptEvent.ACCEPTED, now=now)
        self.job = jobs.with_attempt(self.job, moved)  # not worth a commit of its own
        return True

    def delivered(self, stage: str, now: float) -> None:
        self.stage, self.progressed_at, self.delivered_at = stage, now, now

    def train(self, done: Training) -> None:
        """What the running attempt came to, by its worker's count and at most what was quoted.

        No sequence is longer than the longest that was asked for, which bounds what its square adds.
        """
        most, longest, attempt = self.demand.training, max(self.demand.prompts, default=0), self.job.attempt
        assert most is not None, f"{self.job.id} is no training"
        assert attempt is not None, f"nobody has {self.job.id}"
        tokens, valid_tokens = min(done.tokens, most.tokens), min(done.valid_tokens, most.valid_tokens)
        training = replace(
            most,
            tokens=tokens,
            square_tokens=min(done.square_tokens, most.square_tokens, tokens * longest),
            valid_tokens=valid_tokens,
            valid_square_tokens=min(
                done.valid_square_tokens, most.valid_square_tokens, valid_tokens * longest
            ),
        )
        self.demand = replace(self.demand, training=training)
        self.output.trained(attempt.number, tokens)

    def believe(self, counts: Sequence[int]) -> None:
        """Where our own count is only a bound, the worker's is believed up to it: it lowers, never raises."""
        bounds = self.demand.prompts
        if self.demand.exact or len(counts) != len(bounds):
            return
        prompts = tuple(min(bound, said or bound) for bound, said in zip(bounds, counts, strict=True))
        self.demand, self._waiting = replace(self.demand, prompts=prompts), None
        self.job = replace(self.job, prompt_tokens=sum(prompts))

    def pause(self, worker_id: WorkerId, now: float, rules: Rules) -> None:
        """Not this worker for this job, each time twice as long as before."""
        times = self.refusals[worker_id] = self.refusals.get(worker_id, 0) + 1
        longest = rules.refused_pause_s_max
        self.avoid[worker_id] = now + min(rules.refused_pause_s * 2.0 ** min(times - 1, 30), longest)

    def loading(self, fleet: Fleet, now: float) -> Loading | None:
        """How far the model is on the worker that holds the job, if that is what the job waits for."""
        holder = self.holder
        if holder is None or self.stage not in LOADING:
            return None
        served = fleet.workers[holder[0]].models.get(self.job.model)
        if served is None:
            return Loading(self.stage)
        if self.load_began is None or self.load_began.state != self.stage:
            self.load_began = LoadMark(self.stage, now, served.bytes_done)
        return load_of(self.stage, served, self.load_began, now)
