"""Turns through the engine: what it tells the line of jobs that come, run, fail and end."""

import pytest
from fixtures_core import MODEL, Pool, account, assigned, demand

from coordinator.core.fairness import JobClass
from coordinator.core.jobs import WorkerId


@pytest.fixture
def pool() -> Pool:
    """One worker of b's with two slots."""
    made = Pool()
    made.join("w1", "b", slots=2)
    return made


def tag(pool: Pool, member: str) -> float:
    """Where the member's flow stands in virtual time."""
    line = pool.engine.line
    lane = line.clock.lane((MODEL, JobClass.INTERACTIVE))
    return lane.start(account(member), line.rule)


def test_a_close_is_counted_as_given_and_taken(pool: Pool) -> None:
    pool.ask()
    pool.tick()
    pool.write("one two three ", finish="stop")
    given = pool.engine.line.given
    assert (given.of(account("a")), given.of(account("b"))) == (-462, 453)


def test_a_job_counts_with_its_quote_while_it_runs_and_with_its_charge_afterwards(pool: Pool) -> None:
    job = pool.ask()
    pool.tick()
    assert tag(pool, "a") == job.hold
    pool.write("one two three ", finish="stop")
    assert tag(pool, "a") == pool.closed().charge == 462


def test_an_attempt_that_was_lost_counts_for_nothing(pool: Pool) -> None:
    """Its job waits again; nobody is sent behind for a worker that vanished."""
    pool.ask()
    pool.tick()
    pool.engine.disconnect(WorkerId("w1"), pool.now)
    pool.tick(1.0)
    assert "job_1" in pool.engine.line.jobs
    assert tag(pool, "a") == 0


def test_a_job_of_ones_own_on_ones_own_worker_counts_for_nothing(pool: Pool) -> None:
    pool.ask(member="b")
    pool.tick()
    pool.write("one ", finish="stop")
    assert tag(pool, "b") == 0
    assert pool.engine.line.given.of(account("b")) == 0


def test_who_served_goes_before_who_did_not() -> None:
    """B answered one job for d; then a and b ask for three things each, and one slot is free at a time."""
    pool = Pool()
    pool.join("w1", "b")
    pool.ask("before", "d", demand(prompts=(240_000,)))
    pool.tick()
    pool.write("one ", "before", finish="stop")
    for n in range(3):
        pool.ask(f"a{n}", "a")
        pool.ask(f"b{n}", "b")
    got = []
    for _ in range(4):
        [(job, _, _)] = assigned(pool.tick(1.0))
        got.append(job[0])
        pool.write("one two three four five ", job, finish="stop")
    assert got.count("b") > got.count("a")


def test_what_a_worker_runs_is_counted_by_class(pool: Pool) -> None:
    """And no more when it ends, in whatever way: reserved room hangs on it."""
    worker = pool.engine.fleet.workers[WorkerId("w1")]
    pool.ask("job_1")
    pool.ask("job_2", stored=True)
    pool.tick()
    assert worker.classes == [1, 1, 0]
    pool.write("one ", finish="stop")
    assert worker.classes == [0, 1, 0]
    pool.engine.failed(WorkerId("w1"), pool.live("job_2").job.id, 1, "worker", "broken", "broke", pool.now)
    assert worker.classes == [0, 0, 0]


def test_a_cancelled_job_leaves_the_line(pool: Pool) -> None:
    pool.ask("job_1")
    pool.engine.cancel(pool.live().job.id, pool.now, "not wanted")
    assert not pool.engine.line.jobs
