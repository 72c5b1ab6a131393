"""The two transition tables against a list written down a second time, and what a move records."""

from dataclasses import replace
from itertools import product

import pytest
from fixtures_core import demand, job_of

from coordinator.core.jobs import (
    ATTEMPT_ENDED,
    ATTEMPT_TRANSITIONS,
    JOB_ENDED,
    JOB_TRANSITIONS,
    REFUSALS_KEPT,
    AccountId,
    Attempt,
    AttemptEvent,
    AttemptState,
    IllegalTransition,
    Job,
    JobEvent,
    JobState,
    WorkerId,
    assign,
    move,
    move_attempt,
    next_number,
    with_attempt,
)

JOB_MOVES = {
    ("queued", "assigned"): "running",
    ("queued", "paused"): "paused",
    ("queued", "gave_up"): "failed",
    ("queued", "cancelled"): "cancelled",
    ("queued", "expired"): "expired",
    ("running", "requeued"): "queued",
    ("running", "paused"): "paused",
    ("running", "succeeded"): "succeeded",
    ("running", "gave_up"): "failed",
    ("running", "cancelled"): "cancelled",
    ("running", "expired"): "expired",
    ("paused", "resumed"): "queued",
    ("paused", "cancelled"): "cancelled",
    ("paused", "expired"): "expired",
}
ATTEMPT_MOVES = {
    ("assigned", "accepted"): "running",
    ("assigned", "succeeded"): "succeeded",
    ("assigned", "refused"): "refused",
    ("assigned", "failed"): "failed",
    ("assigned", "lost"): "lost",
    ("assigned", "cancelled"): "cancelled",
    ("running", "accepted"): "running",
    ("running", "succeeded"): "succeeded",
    ("running", "failed"): "failed",
    ("running", "lost"): "lost",
    ("running", "cancelled"): "cancelled",
}


def a_job(state: JobState = JobState.QUEUED) -> Job:
    return job_of(demand(), state=state)


def an_attempt(number: int = 1, state: AttemptState = AttemptState.ASSIGNED) -> Attempt:
    return Attempt(
        number=number,
        worker=WorkerId("w1"),
        owner=AccountId("acc_b"),
        assigned_at=5.0,
        why="first",
        state=state,
    )


def test_the_tables_name_every_state() -> None:
    assert set(JOB_TRANSITIONS) == set(JobState)
    assert set(ATTEMPT_TRANSITIONS) == set(AttemptState)


@pytest.mark.parametrize(("state", "event"), list(product(JobState, JobEvent)))
def test_every_pair_of_job_state_and_event_moves_as_written_or_raises(
    state: JobState, event: JobEvent
) -> None:
    job = a_job(state)
    before = replace(job)
    wanted = JOB_MOVES.get((state.value, event.value))
    if wanted is None:
        with pytest.raises(IllegalTransition, match=f"job job_1: {event} while {state}"):
            move(job, event, now=9.0)
    else:
        assert move(job, event, now=9.0).state.value == wanted
    assert job == before, "a move makes a new job and leaves the old one alone"


@pytest.mark.parametrize(("state", "event"), list(product(AttemptState, AttemptEvent)))
def test_every_pair_of_attempt_state_and_event_moves_as_written_or_raises(
    state: AttemptState, event: AttemptEvent
) -> None:
    attempt = an_attempt(state=state)
    before = replace(attempt)
    wanted = ATTEMPT_MOVES.get((state.value, event.value))
    if wanted is None:
        with pytest.raises(IllegalTransition, match=f"attempt 1: {event} while {state}"):
            move_attempt(attempt, event, now=9.0)
    else:
        assert move_attempt(attempt, event, now=9.0).state.value == wanted
    assert attempt == before


def test_ended_states_are_those_that_nothing_leaves() -> None:
    assert {s.value for s in JOB_ENDED} == {"succeeded", "failed", "cancelled", "expired"}
    assert {s.value for s in ATTEMPT_ENDED} == {"succeeded", "refused", "failed", "lost", "cancelled"}
    assert all(a_job(state).ended == (state in JOB_ENDED) for state in JobState)


def test_an_end_records_when_and_why() -> None:
    job = move(a_job(JobState.RUNNING), JobEvent.GAVE_UP, now=9.0, why="no worker", code="worker_lost")
    assert (job.ended_at, job.why, job.code) == (9.0, "no worker", "worker_lost")


def test_the_first_assignment_starts_the_job_and_later_ones_do_not() -> None:
    first = move(a_job(), JobEvent.ASSIGNED, now=3.0)
    assert first.started_at == 3.0
    again = move(move(first, JobEvent.REQUEUED, now=4.0), JobEvent.ASSIGNED, now=5.0)
    assert (again.started_at, again.ended_at) == (3.0, None)


def test_an_attempt_keeps_its_reason_unless_its_end_gives_another() -> None:
    accepted = move_attempt(an_attempt(), AttemptEvent.ACCEPTED, now=6.0)
    assert (accepted.why, accepted.ended_at) == ("first", None)
    lost = move_attempt(accepted, AttemptEvent.LOST, now=7.0, why="silent")
    assert (lost.why, lost.ended_at) == ("silent", 7.0)


def test_attempts_are_numbered_without_gaps() -> None:
    job = with_attempt(a_job(), an_attempt(1))
    accepted = move_attempt(an_attempt(1), AttemptEvent.ACCEPTED, now=6.0)
    assert with_attempt(job, accepted).attempts == (accepted,), "the newest is replaced"
    two = with_attempt(job, an_attempt(2))
    assert [a.number for a in two.attempts] == [1, 2]
    assert two.attempt == an_attempt(2)
    assert a_job().attempt is None
    with pytest.raises(AssertionError, match="without gaps"):
        with_attempt(job, an_attempt(3))
    with pytest.raises(AssertionError, match="without gaps"):
        with_attempt(two, an_attempt(1))


def test_of_refused_attempts_the_last_few_are_kept() -> None:
    """All others stay, and the numbers go on."""
    job = with_attempt(a_job(), replace(an_attempt(1), state=AttemptState.LOST))
    for number in range(2, 2 * REFUSALS_KEPT):
        assert next_number(job) == number
        job = with_attempt(job, replace(an_attempt(number), state=AttemptState.REFUSED))
    job = with_attempt(job, an_attempt(2 * REFUSALS_KEPT))
    assert [a.number for a in job.attempts] == [1, *range(REFUSALS_KEPT, 2 * REFUSALS_KEPT + 1)]


@pytest.mark.parametrize("state", list(JobState))
def test_giving_a_job_away_in_one_step_is_the_same_as_in_two(state: JobState) -> None:
    """Also in what it refuses, and in a second attempt, which keeps the time of the first."""
    attempt = Attempt(number=1, worker=WorkerId("w"), owner=AccountId("o"), assigned_at=5.0)
    job = a_job(state)
    if JobEvent.ASSIGNED not in JOB_TRANSITIONS[state]:
        with pytest.raises(IllegalTransition):
            assign(job, attempt, now=7.0)
        return
    once = assign(job, attempt, now=7.0)
    assert once == move(with_attempt(job, attempt), JobEvent.ASSIGNED, now=7.0)
    again, second = move(once, JobEvent.REQUEUED, now=8.0), replace(attempt, number=2)
    assert assign(again, second, now=9.0) == move(with_attempt(again, second), JobEvent.ASSIGNED, now=9.0)
