"""How long a slot is taken by one job, and how many are taken now: by kind, model and class.

A mean of the last few dozen attempts that came to something. Where nothing was measured, the workers' own
measurements say what a job like the one that asks takes, at most a typical one; where they have none either,
nobody knows.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from coordinator.core.fairness import JobClass, class_of
from coordinator.core.fleet import Served
from coordinator.core.jobs import Job
from coordinator.core.offers import Policy
from coordinator.core.turns import Want

REMEMBERED = 32  # attempts over which the mean goes
KNOWN_MIN = 3  # before so many nothing is concluded from them
WANTS_MAX = 10_000  # kinds, models and classes; beyond it the oldest go

Lane = tuple[Want, JobClass]


@dataclass(slots=True)
class Pace:
    """Times in seconds."""

    _means: dict[Lane, tuple[int, float]] = field(default_factory=dict)  # how many were seen, and the mean
    _running: dict[Lane, int] = field(default_factory=dict)

    def began(self, lane: Lane) -> None:
        self._running[lane] = self._running.get(lane, 0) + 1

    def ended(self, lane: Lane, held_s: float | None) -> None:
        """`held_s`: how long the slot was taken; None if that says nothing of other jobs."""
        self._running[lane] -= 1
        if not self._running[lane]:
            del self._running[lane]
        if held_s is None:
            return
        count, mean = self._means.pop(lane, (0, 0.0))
        count = min(count + 1, REMEMBERED)
        self._means[lane] = count, mean + (max(0.0, held_s) - mean) / count
        if len(self._means) > WANTS_MAX:
            del self._means[next(iter(self._means))]

    def running(self, lane: Lane) -> int:
        return self._running.get(lane, 0)

    def held_s(self, job: Job, serving: Iterable[Served], policy: Policy) -> float | None:
        """Of a job like this one. None: nobody knows."""
        count, mean = self._means.get(((job.kind, job.model), class_of(job)), (0, 0.0))
        if count >= KNOWN_MIN:
            return mean
        guesses = [guessed_s(job, served, policy) for served in serving if served.decode]
        return sum(guesses) / len(guesses) if guesses else None


def guessed_s(job: Job, served: Served, policy: Policy) -> float:
    """What it takes by the worker's own measurements; of what it asks for, no more than is typical."""
    prompt = min(job.prompt_tokens, policy.typical_prompt_tokens)
    prefill_s = prompt / served.prefill if served.prefill else 0.0
    return prefill_s + min(job.max_tokens, policy.typical_output_tokens) / served.decode
