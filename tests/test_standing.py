"""A new worker of a pool of strangers: what it earns is held, explained, and freed by proof, once."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fixtures_core import START, Pool, account, demand
from fixtures_store import NOW, world

from coordinator.core.jobs import JobId, WorkerId
from coordinator.core.ledger import Bucket, Code
from coordinator.core.rules import Rules
from coordinator.core.standing import DAY_S, HOUR_S, Proof, Standing, missing
from coordinator.records import Batch

pytestmark = pytest.mark.usefixtures("on_both")

PROOF = Proof(needed=True, jobs=3, age_s=2 * HOUR_S)


@pytest.fixture
def pool() -> Pool:
    made = Pool(Rules(proof=PROOF))
    made.join("w1", "b")
    return made


def serve(pool: Pool, name: str, member: str = "a") -> None:
    """One job, asked by a member and served well by whoever gets it."""
    pool.ask(name, member, demand(tokens=2))
    pool.tick()
    pool.write("one two ", name, finish="length")
    pool.tick()


def owned(pool: Pool, member: str = "b") -> tuple[int, int]:
    owner = pool.engine.book.accounts[account(member)]
    return owner.main, owner.held


def test_among_friends_earnings_are_free_at_once() -> None:
    friends = Pool()
    friends.join("w1", "b")
    serve(friends, "job_1")
    main, held = owned(friends)
    assert main > 0
    assert held == 0


def test_earnings_of_an_unproven_worker_are_held_until_jobs_and_hours_are_there(pool: Pool) -> None:
    """Neither ten jobs in a minute nor a day of waiting is enough alone."""
    for number in range(4):
        serve(pool, f"job_{number}")
    main, held = owned(pool)
    assert main == 0
    assert held > 0
    closed = pool.engine.recent[JobId("job_0")]
    assert closed.attempts[0].held
    pool.beat("w1")
    pool.tick(2 * HOUR_S - 1)
    assert owned(pool) == (0, held), "the hours are not there yet"
    effects = pool.tick(61.0)
    assert [entry.code for entry in effects.entries] == [Code.RELEASE]
    assert owned(pool) == (held, 0)
    assert effects.standings[WorkerId("w1")].proven_at == pool.now
    pool.beat("w1")
    serve(pool, "job_after")
    assert owned(pool)[1] == 0, "from then on nothing is held"
    pool.check()


def test_hours_without_jobs_prove_nothing(pool: Pool) -> None:
    serve(pool, "job_1")
    pool.beat("w1")
    pool.tick(10 * DAY_S)
    assert owned(pool)[0] == 0
    pool.beat("w1")
    serve(pool, "job_2")
    assert owned(pool)[0] == 0
    serve(pool, "job_3")
    assert owned(pool)[1] == 0, "the third job makes it complete"


def test_a_dispute_starts_the_count_again(pool: Pool) -> None:
    for number in range(2):
        serve(pool, f"job_{number}")
    standing = pool.engine.fleet.workers[WorkerId("w1")].standing
    assert standing.good_jobs == 2
    pool.engine.dispute(WorkerId("w1"))
    assert (standing.good_jobs, standing.first_job_at) == (0, START)
    assert pool.tick().standings[WorkerId("w1")].good_jobs == 0
    serve(pool, "job_a")
    pool.ask("job_b")
    pool.tick()
    pool.write("x ", "job_b", offset=7)  # text that does not continue: the protocol is broken
    assert standing.good_jobs == 0


def test_own_jobs_prove_nothing(pool: Pool) -> None:
    """Or a liar would prove itself to itself."""
    for number in range(5):
        serve(pool, f"job_{number}", "b")
    assert pool.engine.fleet.workers[WorkerId("w1")].standing == Standing()


def test_who_vouches_frees_what_was_held_once(pool: Pool) -> None:
    serve(pool, "job_1")
    held = owned(pool)[1]
    assert pool.engine.prove(WorkerId("w1"), pool.now, "alice vouches")
    assert not pool.engine.prove(WorkerId("w1"), pool.now, "alice vouches")
    assert owned(pool) == (held, 0)
    [entry] = pool.tick().entries
    assert "alice vouches" in entry.details


def test_earnings_of_a_worker_that_left_wait_for_somebody_who_vouches(pool: Pool) -> None:
    serve(pool, "job_1")
    held = owned(pool)[1]
    pool.engine.remove(WorkerId("w1"), pool.now)
    pool.tick(10 * DAY_S)
    assert owned(pool) == (0, held)
    assert pool.engine.prove(WorkerId("w1"), pool.now)
    assert owned(pool) == (held, 0)
    assert not pool.engine.fleet.departed


@pytest.mark.parametrize(
    ("standing", "words"),
    [
        (Standing(), "10 more of 10 jobs without a dispute, and 24 hours after its first job"),
        (Standing(4, NOW - 10 * HOUR_S), "6 more of 10 jobs without a dispute, and 14 more hours"),
        (Standing(10, NOW - 23 * HOUR_S - 1), "60 more minutes"),
        (Standing(12, NOW - DAY_S + 1), "1 more minute"),
        (Standing(9, NOW - 2 * DAY_S), "1 more of 10 jobs without a dispute"),
        (Standing(10, NOW - DAY_S), ""),
    ],
)
def test_what_is_missing_is_said_in_words(standing: Standing, words: str) -> None:
    assert missing(standing, Proof(needed=True), NOW) == words


def test_where_nothing_is_needed_nothing_is_missing() -> None:
    assert missing(Standing(), Proof(), NOW) == ""
    assert Standing().bucket(Proof()) is Bucket.MAIN


async def test_standings_survive_a_restart(tmp_path: Path) -> None:
    """What is held of each worker's earnings is what its attempts were paid that way, until it is proven."""
    async with world(tmp_path) as books:
        first, second = (worker.id for worker in books.workers)
        job = books.assigned(books.job(2))
        await books.store.commit(books.held(job))
        ended, batch = books.closed(job, 500)
        attempts: Any = (replace(ended.attempts[0], held=True, paid=490),)
        standings = {first: Standing(1, NOW), second: Standing(10, NOW, NOW + DAY_S)}
        await books.store.commit(
            replace(batch, jobs=[replace(ended, attempts=attempts)], standings=standings)
        )
        loaded = (await books.store.load()).standings
        assert loaded == {first: Standing(1, NOW, None, 490), second: Standing(10, NOW, NOW + DAY_S)}
        await books.store.commit(Batch(standings={first: Standing(1, NOW, NOW + DAY_S)}))
        assert (await books.store.load()).standings[first].held == 0, "all of it was released"
