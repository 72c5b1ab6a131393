"""A job that is done in parts: one hold, each part paid once out of it, the rest returned at its end."""

from typing import Any

import pytest
from fixtures_core import RICH, Pool, account, demand, job_of, words

from coordinator.core.jobs import Job, JobEvent, JobId, JobState, Kind, part_id
from coordinator.core.ledger import Code, Overdrawn
from coordinator.core.wholes import NoRoom, Whole

WHOLE = JobId("job_w")


def open_whole(pool: Pool, hold: int, **fields: Any) -> Job:
    whole = job_of(demand(), WHOLE, kind=Kind.BATCH, stored=True, quote=hold, hold=hold, **fields)
    pool.engine.open_whole(whole)
    return whole


def ask_part(pool: Pool, number: int, **fields: Any) -> Job:
    if not pool.engine.fleet.workers:
        pool.enrol("w9", "b")
    return pool.ask(part_id(WHOLE, number), whole=WHOLE, part=number, stored=True, **fields)


def whole_of(pool: Pool) -> Whole:
    return pool.engine.wholes[WHOLE]


def money(pool: Pool, member: str = "a") -> tuple[int, int]:
    of = pool.engine.book.accounts[account(member)]
    return of.main, of.reserved


def serve(pool: Pool, part: Job) -> int:
    """A worker does all of it; what the part was charged."""
    pool.join(f"w{part.part}", "b")
    pool.tick()
    pool.write("one two three four five ", part.id, finish="length", worker=f"w{part.part}")
    effects = pool.tick()
    (closed,) = [job for job in effects.closed if job.id == part.id]
    assert closed.state is JobState.SUCCEEDED
    assert closed.charge
    return closed.charge


def test_the_hold_is_the_whole_s_alone() -> None:
    pool, one = Pool(), job_of(demand()).hold
    open_whole(pool, 3 * one)
    ask_part(pool, 1)
    ask_part(pool, 2)
    assert money(pool) == (-3 * one, 3 * one)
    assert whole_of(pool).left == one
    effects = pool.tick()
    assert [entry.id for entry in effects.entries] == ["job_w/hold"]
    assert set(effects.jobs) == {WHOLE, "job_w.1", "job_w.2"}


def test_each_part_is_settled_once_and_the_close_returns_the_rest() -> None:
    pool, one = Pool(), job_of(demand()).hold
    open_whole(pool, 3 * one)
    pool.engine.change_whole(WHOLE, JobEvent.ASSIGNED, pool.now)
    charges = [serve(pool, ask_part(pool, number)) for number in (2, 1)]
    assert whole_of(pool).job.settled == sum(charges)
    assert whole_of(pool).job.settlements == 2
    assert money(pool) == (-3 * one, 3 * one - sum(charges))
    closed = pool.engine.close_whole(WHOLE, JobEvent.SUCCEEDED, pool.now)
    assert (closed.state, closed.charge) == (JobState.SUCCEEDED, sum(charges))
    assert money(pool) == (-sum(charges), 0)
    assert pool.engine.book.total() == 0
    made = [entry for entry in pool.engine.book.entries.values() if entry.job == WHOLE]
    assert [entry.id for entry in made] == ["job_w/hold", "job_w/settle/2", "job_w/settle/1", "job_w/close"]
    assert [entry.code for entry in made] == [Code.HOLD, Code.SETTLE, Code.SETTLE, Code.CLOSE]


@pytest.mark.parametrize("hold", [1, 0], ids=["paid", "own workers"])
def test_a_whole_wrote_what_its_parts_wrote(hold: int) -> None:
    """Also where nothing is charged; what it has so far is on the disk with each part, for a restart."""
    pool, one = Pool(), job_of(demand()).hold * hold
    own = {} if hold else {"own_only": True}
    open_whole(pool, 2 * one, **own)
    pool.engine.change_whole(WHOLE, JobEvent.ASSIGNED, pool.now)
    written = 0
    for number in (1, 2):
        pool.join(f"w{number}", "b" if hold else "a")
        part = ask_part(pool, number, hold=one, **own)
        pool.tick()
        pool.write("one two three four five ", part.id, finish="length", worker=f"w{number}")
        effects = pool.tick()
        written += effects.jobs[part.id].output_tokens
        assert effects.jobs[WHOLE].output_tokens == written
    closed = pool.engine.close_whole(WHOLE, JobEvent.SUCCEEDED, pool.now)
    assert closed.output_tokens == written == 10


def test_a_part_that_fails_costs_nothing_and_its_promise_is_free_again() -> None:
    pool, one = Pool(), job_of(demand()).hold
    open_whole(pool, one)
    part = ask_part(pool, 1)
    assert whole_of(pool).left == 0
    pool.engine.give_up(part.id, pool.now, "it cannot be", "test")
    assert whole_of(pool).left == one
    assert money(pool) == (-one, one)
    assert [entry.code for entry in pool.tick().entries] == [Code.HOLD]


def test_no_part_is_begun_that_the_whole_could_not_pay() -> None:
    pool, one = Pool(), job_of(demand()).hold
    open_whole(pool, 2 * one - 1)
    ask_part(pool, 1)
    with pytest.raises(NoRoom, match=f"may cost {one} microcredits, {one - 1} are left of job_w"):
        ask_part(pool, 2)
    assert part_id(WHOLE, 2) not in pool.engine.lives


def test_no_part_is_begun_of_a_whole_that_ended() -> None:
    pool = Pool()
    open_whole(pool, 1_000)
    pool.engine.close_whole(WHOLE, JobEvent.CANCELLED, pool.now, why="enough", code="cancelled")
    assert money(pool) == (0, 0)
    with pytest.raises(NoRoom, match="job_w has ended"):
        ask_part(pool, 1)


def test_a_whole_is_not_closed_above_its_open_parts() -> None:
    pool = Pool()
    open_whole(pool, job_of(demand()).hold)
    ask_part(pool, 1)
    with pytest.raises(AssertionError, match="closed before its parts"):
        pool.engine.close_whole(WHOLE, JobEvent.CANCELLED, pool.now)


def test_who_is_too_poor_opens_nothing() -> None:
    pool = Pool()
    with pytest.raises(Overdrawn):
        open_whole(pool, RICH + 1)
    assert not pool.engine.wholes
    assert not pool.tick().jobs


def test_on_own_workers_alone_nothing_moves() -> None:
    """Neither a hold, nor settlements, nor a close."""
    pool = Pool()
    open_whole(pool, 0, own_only=True)
    pool.join("w1", "a")
    part = ask_part(pool, 1, hold=0, own_only=True)
    pool.tick()
    pool.write("one two three four five ", part.id, finish="length", worker="w1")
    pool.tick()
    pool.engine.change_whole(WHOLE, JobEvent.ASSIGNED, pool.now)
    closed = pool.engine.close_whole(WHOLE, JobEvent.SUCCEEDED, pool.now)
    assert closed.charge == 0
    assert not [entry for entry in pool.engine.book.entries.values() if entry.job is not None]


def test_after_a_restart_the_promises_are_those_of_the_open_parts() -> None:
    before = Pool()
    one = job_of(demand()).hold
    open_whole(before, 2 * one)
    part = ask_part(before, 1)
    after = Pool()
    after.engine.book.accounts = before.engine.book.accounts
    after.engine.restore_whole(before.engine.wholes[WHOLE].job)
    after.engine.restore(part, demand(), count=words, memory_bytes=0, now=after.now)
    assert whole_of(after).parts == {part.id: one}
    after.engine.abandon(
        ask_part(before, 2), after.now
    )  # its text is gone: it costs nothing, and holds nothing
    assert whole_of(after).left == one
    assert not list(after.engine.book.entries.values())
