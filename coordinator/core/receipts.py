"""What a worker's signed statement is worth: evidence beside the coordinator's own count, never a payment."""

from dataclasses import dataclass
from enum import StrEnum

from coordinator.core.jobs import ATTEMPT_ENDED, AttemptState, Job, JobState, WorkerId

SLACK_PERMILLE = 250  # between an engine's own count and the count of its text, where it sends no ids
SLACK_TOKENS = 8


class ReceiptState(StrEnum):
    MATCHED = "matched"
    LATE = "late"  # of an attempt that had been taken away
    REFUSED = "refused"  # not believed
    VOID = "void"  # nothing was charged for the job it speaks of


@dataclass(frozen=True, slots=True)
class Verdict:
    state: ReceiptState
    why: str
    blame: bool = False


def judge(job: Job | None, worker: WorkerId, number: int, claimed: int, *, exact: bool) -> Verdict:
    """Compare a claim of output tokens with the record. `exact`: the count came from token ids.

    Only a claim above the count on an attempt that was not fenced is blamed.
    """
    if job is None:
        return Verdict(ReceiptState.VOID, "the pool has no such job")
    attempt = next((a for a in job.attempts if a.number == number), None)
    if attempt is None or attempt.worker != worker:
        return Verdict(ReceiptState.REFUSED, "the attempt is another worker's", blame=True)
    if attempt.state not in ATTEMPT_ENDED:
        return Verdict(ReceiptState.REFUSED, "the attempt has not ended")
    if job.state in (JobState.FAILED, JobState.EXPIRED):
        return Verdict(ReceiptState.VOID, f"the job {job.state}: {job.why}")
    if attempt.state in (AttemptState.LOST, AttemptState.CANCELLED):
        return Verdict(ReceiptState.LATE, f"{attempt.tokens} tokens had arrived when it was {attempt.state}")
    most = attempt.tokens
    if not exact:
        most += attempt.tokens * SLACK_PERMILLE // 1_000 + SLACK_TOKENS
    if claimed > most:
        return Verdict(ReceiptState.REFUSED, f"claims {claimed} tokens, {attempt.tokens} arrived", blame=True)
    return Verdict(ReceiptState.MATCHED, f"{attempt.tokens} tokens")
