"""Each verdict on a worker's receipt, and whom it blames."""

from dataclasses import replace

import pytest
from fixtures_core import account, demand, job_of

from coordinator.core.jobs import Attempt, AttemptState, JobState, WorkerId
from coordinator.core.receipts import ReceiptState, judge

W1, W2 = WorkerId("w1"), WorkerId("w2")


def attempt(state: AttemptState = AttemptState.SUCCEEDED, tokens: int = 100, number: int = 1) -> Attempt:
    return Attempt(
        number=number,
        worker=W1,
        owner=account("b"),
        assigned_at=0.0,
        state=state,
        tokens=tokens,
        ended_at=1.0,
    )


JOB = job_of(demand(), state=JobState.SUCCEEDED, attempts=(attempt(),))


@pytest.mark.parametrize("claimed", [0, 99, 100])
def test_a_claim_up_to_the_count_matches(claimed: int) -> None:
    verdict = judge(JOB, W1, 1, claimed, exact=True)
    assert (verdict.state, verdict.blame) == (ReceiptState.MATCHED, False)


def test_a_claim_above_the_count_is_refused_and_blamed() -> None:
    verdict = judge(JOB, W1, 1, 101, exact=True)
    assert (verdict.state, verdict.blame) == (ReceiptState.REFUSED, True)
    assert verdict.why == "claims 101 tokens, 100 arrived"


def test_an_engine_without_ids_has_a_quarter_and_eight_tokens_of_slack() -> None:
    assert judge(JOB, W1, 1, 133, exact=False).state is ReceiptState.MATCHED
    assert judge(JOB, W1, 1, 134, exact=False).blame


def test_a_job_that_is_not_known_makes_it_void() -> None:
    assert judge(None, W1, 1, 5, exact=True).state is ReceiptState.VOID


@pytest.mark.parametrize(("worker", "number"), [(W2, 1), (W1, 2), (W1, 0)])
def test_speaking_for_another_attempt_is_refused_and_blamed(worker: WorkerId, number: int) -> None:
    verdict = judge(JOB, worker, number, 5, exact=True)
    assert (verdict.state, verdict.blame) == (ReceiptState.REFUSED, True)


@pytest.mark.parametrize("state", [AttemptState.ASSIGNED, AttemptState.RUNNING])
def test_a_receipt_before_the_end_is_refused_without_blame(state: AttemptState) -> None:
    job = replace(JOB, state=JobState.RUNNING, attempts=(attempt(state),))
    verdict = judge(job, W1, 1, 100, exact=True)
    assert (verdict.state, verdict.blame) == (ReceiptState.REFUSED, False)


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.EXPIRED])
def test_nothing_was_charged_for_a_job_that_failed(state: JobState) -> None:
    verdict = judge(replace(JOB, state=state, why="nobody there"), W1, 1, 10_000, exact=True)
    assert (verdict.state, verdict.blame) == (ReceiptState.VOID, False)
    assert verdict.why == f"the job {state}: nobody there"


@pytest.mark.parametrize("state", [AttemptState.LOST, AttemptState.CANCELLED])
def test_a_fenced_attempt_may_claim_more_than_arrived(state: AttemptState) -> None:
    """It went on after it was taken away and could not know: late, and no blame."""
    job = replace(JOB, attempts=(attempt(state, tokens=7), attempt(number=2)))
    verdict = judge(job, W1, 1, 10_000, exact=True)
    assert (verdict.state, verdict.blame) == (ReceiptState.LATE, False)
    assert "7 tokens had arrived" in verdict.why


@pytest.mark.parametrize("state", [AttemptState.REFUSED, AttemptState.FAILED])
def test_an_attempt_that_failed_is_judged_by_its_count(state: AttemptState) -> None:
    job = replace(JOB, attempts=(attempt(state, tokens=3), attempt(number=2)))
    assert judge(job, W1, 1, 3, exact=True).state is ReceiptState.MATCHED
    assert judge(job, W1, 1, 4, exact=True).blame
