"""Whether a worker's earnings can be spent at once, or are held until it has proven itself.

In a pool of friends they can. In a pool of strangers a new worker proves itself by a number of jobs in a row
without a dispute, and by time; the first alone would be done in minutes, the second alone by waiting. A
dispute (ids that do not decode, a receipt for more than arrived) starts the count again. What is held is
always shown with what is still missing (`missing`): never a number that cannot be explained.
"""

from dataclasses import dataclass

from coordinator.core.ledger import Bucket

HOUR_S = 3_600.0
DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Proof:
    """What a worker has to show. `needed` is false in a pool of friends."""

    needed: bool = False
    jobs: int = 10  # in a row without a dispute
    age_s: float = DAY_S  # since its first paid job


@dataclass(slots=True)
class Standing:
    """Of one worker. `held` is what it earned until now and its owner cannot spend yet, in microcredits."""

    good_jobs: int = 0
    first_job_at: float | None = None
    proven_at: float | None = None
    held: int = 0

    def bucket(self, proof: Proof) -> Bucket:
        """Where its next earnings go."""
        return Bucket.HELD if proof.needed and self.proven_at is None else Bucket.MAIN

    def served(self, now: float) -> None:
        """A job of somebody else ended well and was paid."""
        self.good_jobs += 1
        if self.first_job_at is None:
            self.first_job_at = now

    def disputed(self) -> None:
        self.good_jobs = 0

    def passes(self, proof: Proof, now: float) -> bool:
        """Whether nothing is missing any more."""
        if not proof.needed:
            return True
        old = self.first_job_at is not None and now >= self.first_job_at + proof.age_s
        return old and self.good_jobs >= proof.jobs


def missing(standing: Standing, proof: Proof, now: float) -> str:
    """In words, as "6 more of 10 jobs without a dispute, and 14 more hours"; empty if nothing is."""
    if standing.passes(proof, now):
        return ""
    parts = []
    if jobs := max(0, proof.jobs - standing.good_jobs):
        parts.append(f"{jobs} more of {proof.jobs} jobs without a dispute")
    if standing.first_job_at is None:
        parts.append(f"{_spelled(proof.age_s)} after its first job")
    elif (left_s := standing.first_job_at + proof.age_s - now) > 0:
        parts.append(_spelled(left_s, "more "))
    return ", and ".join(parts)


def _spelled(seconds: float, more: str = "") -> str:
    """Rounded up, so that it never says zero while something is missing."""
    unit_s, unit = (HOUR_S, "hour") if seconds > HOUR_S else (60.0, "minute")
    count = int(-(-seconds // unit_s))
    return f"{count} {more}{unit}{'s' if count != 1 else ''}"
