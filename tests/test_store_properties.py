"""Whatever is held, closed, repeated and reloaded, in any order: the books add up, on a real database."""

import asyncio
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from fixtures_postgres import Postgres
from fixtures_store import ELSEWHERE, NOW, World, url_in, world
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from coordinator.core import entries, ledger
from coordinator.core.jobs import Job
from coordinator.core.ledger import Overdrawn
from coordinator.records import Batch, Loaded
from coordinator.store import Store
from coordinator.store_errors import StoreConflict

LINE = 2_000
Step = tuple[str, int, int, int]
steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["hold", "hold", "close", "close", "refund", "repeat", "grant", "overdraw", "reopen"]
        ),
        st.integers(0, 2),  # which member
        st.integers(1, 900),  # how much is held, or granted
        st.integers(0, 100),  # how much of it is charged, in percent
    ),
    max_size=25,
)


async def cached_and_posted(store: Store) -> tuple[dict[str, int], dict[str, int]]:
    """Each bucket's cached sum, and the sum of its postings, both as SQL adds them up."""
    cached: dict[str, int] = {}
    posted: dict[str, int] = {}
    async with store.reading() as connection:
        for row in (
            await connection.execute(text("SELECT id, main, reserved, held, credit_line FROM accounts"))
        ).all():
            cached |= {
                f"{row.id} main": row.main,
                f"{row.id} reserved": row.reserved,
                f"{row.id} held": row.held,
                f"{row.id} credit_line": row.credit_line,
            }
        sums = "SELECT account_id, bucket, SUM(amount) AS total FROM postings GROUP BY account_id, bucket"
        for row in (await connection.execute(text(sums))).all():
            posted[f"{row.account_id} {row.bucket}"] = row.total
    return cached, posted


async def check(pool: World, open_jobs: list[Job]) -> Loaded:
    cached, posted = await cached_and_posted(pool.store)
    assert sum(cached.values()) == 0
    assert {k: v for k, v in cached.items() if v} == {k: v for k, v in posted.items() if v}
    loaded = await pool.store.load()
    assert {a.id: a for a in loaded.accounts} == pool.book.accounts
    assert (loaded.last_number, loaded.last_hash) == (pool.number, pool.hash)
    assert sorted(j.id for j in loaded.open_jobs) == sorted(j.id for j in open_jobs)
    assert await pool.store.verify() == []
    return loaded


async def overdraw(pool: World, member: int) -> None:
    """What the book refuses is refused by SQL too, if a bug got past the book."""
    account = pool.book.accounts[pool.members[member].account]
    job = pool.job(member, hold=account.available + 1)
    with pytest.raises(Overdrawn):
        pool.book.post(entries.hold(job))
    forced = replace(account)
    forced.main -= job.hold
    forced.reserved += job.hold
    entry = ledger.record(pool.number + 1, "2027-01-15T08:00:00.000Z", entries.hold(job), pool.hash)
    with pytest.raises(StoreConflict, match="floor"):
        await pool.store.commit(Batch(records=[entry], accounts=[forced], jobs=[job]))


async def play(folder: Path, moves: list[Step]) -> None:
    async with world(folder, line=LINE) as pool:
        running: list[Job] = []
        batches: list[Batch] = []
        for what, member, amount, percent in moves:
            match what:
                case "hold":
                    job = pool.job(member, amount)
                    if pool.book.accounts[job.account].available < amount:
                        continue
                    job = pool.assigned(job, worker=amount % 2)
                    batches.append(pool.held(job))
                    running.append(job)
                case "close" | "refund" if running:
                    job = running.pop(amount % len(running))
                    charge = 0 if what == "refund" else job.hold * percent // 100
                    batches.append(pool.closed(job, charge)[1])
                case "grant":
                    if pool.book.accounts[ledger.COMMONS].available < amount:
                        continue
                    to = pool.members[member].account
                    recorded = pool.record(entries.grant(f"gift-{pool.number}", to, amount))
                    batches.append(pool.batch([recorded], []))
                case "repeat" if batches:
                    with pytest.raises(StoreConflict):
                        await pool.store.commit(batches[amount % len(batches)])
                    continue
                case "overdraw":
                    await overdraw(pool, member)
                    continue
                case "reopen":
                    await pool.store.close()
                    pool.store = await Store.open(url_in(folder), NOW)
                    continue
                case _:
                    continue
            await pool.store.commit(batches[-1])
        await check(pool, running)
        await pool.store.close()
        pool.store = await Store.open(url_in(folder), NOW)
        await check(pool, running)


QUIET = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@settings(QUIET, max_examples=20)
@given(steps)
def test_any_order_of_movements_keeps_the_books(moves: list[Step]) -> None:
    """Sum zero, cached sums are the postings' sums, nothing overdrawn, nothing twice, same after reopening."""
    with tempfile.TemporaryDirectory(prefix="potluck-books-") as folder:
        asyncio.run(play(Path(folder), moves))


@settings(QUIET, max_examples=5)  # a database for each costs more than what happens in it
@given(steps)
def test_and_in_postgresql(postgres: Postgres, postgres_template: str, moves: list[Step]) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="potluck-books-") as folder,
        postgres.database(postgres_template) as name,
    ):
        (Path(folder) / ELSEWHERE).write_text(postgres.url(name))
        asyncio.run(play(Path(folder), moves))
