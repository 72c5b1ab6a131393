"""What a statement costs: pages, a whole CSV file and totals of one account with 100,000 entries.

Also the sums of the page *Community*, which are made once a minute while somebody looks.

The account is one member's: half of its entries are holds, half closes of jobs that others' workers served.
The books are real, on a real disk; what is timed is the store and the words, without HTTP.

    python benchmarks/statement.py [--folder DIR] [--entries 100000] [--runs 5]
"""

import argparse
import asyncio
import os
import platform
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from settling import MODEL, WORKERS, Founded, founded

from coordinator.api.pool_statement import line_body
from coordinator.clock import rfc3339
from coordinator.core import details, entries, ledger
from coordinator.core.jobs import (
    AccountId,
    Attempt,
    AttemptEvent,
    Job,
    JobEvent,
    JobId,
    Kind,
    move,
    move_attempt,
    with_attempt,
)
from coordinator.core.pricing import Demand, Segment, Shape, Tariff, charge_units, payments
from coordinator.ids import new_id
from coordinator.movements import MOVEMENTS_MAX, Seam, Wanted
from coordinator.records import Batch
from coordinator.totals import Period
from potluck.chain import GENESIS

SHAPE = Shape(134_515_008, 28_311_552, 138_240)
TARIFF = Tariff()
GROUP = 500
DAYS = 90
PAGE = 50
PERIODS: tuple[Period, ...] = ("month", "day")
HOLD = 2_000_000


@dataclass(slots=True)
class Pool:
    """Books, and where their chain ends."""

    books: Founded
    number: int = 0
    hash: str = GENESIS

    def record(self, entry: ledger.Entry, at: float) -> ledger.Recorded:
        self.books.book.post(entry)
        made = ledger.record(self.number + 1, rfc3339(at), entry, self.hash)
        self.number, self.hash = made.number, made.hash
        return made

    async def commit(self, records: list[ledger.Recorded], jobs: list[Job]) -> None:
        book = self.books.book
        touched = {posting.account for made in records for posting in made.entry.postings}
        accounts = [book.accounts[each] for each in touched]
        await self.books.store.commit(Batch(records=records, accounts=accounts, jobs=jobs))
        book.entries.clear()  # as the coordinator forgets closed jobs


def start(pool: Pool, number: int) -> Job:
    """A job of the first member's on another's worker."""
    member, worker = pool.books.members[0], pool.books.workers[1 + number % (WORKERS - 1)]
    now = time.time()
    job = Job(
        id=JobId(new_id("job")),
        kind=Kind.CHAT,
        model=MODEL,
        member=member.id,
        account=member.account,
        created_at=now,
        quote=HOLD,
        hold=HOLD,
        prompt_tokens=40,
        max_tokens=256,
    )
    attempt = Attempt(number=1, worker=worker.id, owner=worker.account, assigned_at=now, why="least busy")
    return with_attempt(move(job, JobEvent.ASSIGNED, now=now), attempt)


def close(job: Job, tokens: int) -> tuple[Job, ledger.Entry]:
    """The job's end with the details that the coordinator would write."""
    segments = [Segment(1, 0, 0, tokens)]
    demand = Demand(Kind.CHAT, SHAPE, (job.prompt_tokens,), job.max_tokens)
    attempt = replace(move_attempt(job.attempts[-1], AttemptEvent.SUCCEEDED, now=time.time()), tokens=tokens)
    job = replace(job, attempts=(attempt,))
    paid = payments(charge_units(demand, TARIFF, segments, 1), job.attempts, job.account, TARIFF)
    entry = entries.close(job, paid, details.of_work(job, demand, TARIFF, segments, 1, paid))
    return replace(move(job, JobEvent.SUCCEEDED, now=time.time()), charge=paid[0].amount), entry


async def fill(pool: Pool, count: int) -> None:
    """`count` entries of the first member, over DAYS days."""
    began, step_s = time.time(), DAYS * 86_400 / count
    waiting = await pool.books.store.unopened()
    await pool.commit([pool.record(entries.opening(*line), began) for line in waiting], [])

    def record(entry: ledger.Entry) -> ledger.Recorded:
        return pool.record(entry, began + pool.number * step_s)

    for first in range(0, count // 2, GROUP):
        jobs, records = [], []
        for n in range(first, min(first + GROUP, count // 2)):
            job = start(pool, n)
            records.append(record(entries.hold(job, details.of_hold(job))))
            ended, entry = close(job, 20 + n % 200)
            records.append(record(entry))
            jobs.append(ended)
        await pool.commit(records, jobs)
    assert pool.books.book.accounts[pool.books.members[0].account].reserved == 0


async def timed(name: str, runs: int, work: Callable[[], Awaitable[object]]) -> None:
    took, cpu = [], []
    for _ in range(runs):
        began, cpu_s = time.perf_counter(), time.process_time()
        said = await work()
        took.append((time.perf_counter() - began) * 1e3)
        cpu.append((time.process_time() - cpu_s) * 1e3)
    spread, cpu_ms = f"({min(took):,.1f} to {max(took):,.1f})", f"{statistics.median(cpu):,.1f} ms of CPU"
    print(f"{name:<42} {statistics.median(took):>9,.1f} ms {spread:<24} {cpu_ms:>20}   {said}")


async def measure(folder: Path, count: int, runs: int) -> None:
    with tempfile.TemporaryDirectory(dir=folder, prefix="statement-") as name:
        async with founded(f"sqlite:///{Path(name) / 'potluck.db'}") as books:
            pool = Pool(books)
            await fill(pool, count)
            await ask(pool, runs)


async def ask(pool: Pool, runs: int) -> None:
    store, members = pool.books.store, pool.books.members
    payer, earner = members[0].account, members[1].account
    middle = pool.number // 2

    async def page(wanted: Wanted, *, limit: int = PAGE, before: int | None = None) -> str:
        found = await store.movements(payer, wanted, limit=limit, before=before)
        lines = [line_body(movement, payer, found.known) for movement in found.movements]
        return f"{len(lines)} lines"

    async def everything() -> str:
        lines, last = 0, Seam(0, 0)
        async for found in store.every_movement(payer, Wanted(holds=True)):
            lines += len([line_body(movement, payer, found.known) for movement in found.movements])
            last = found.movements[-1].seam
        assert last.balance == 0, "all that moved is all there is"
        return f"{lines:,} lines"

    async def month() -> str:
        found = await store.month(0.0)
        return f"{sum(found.jobs.values()):,} jobs"

    await timed("what the whole pool did since", runs, month)
    await timed(f"newest page of {PAGE}", runs, lambda: page(Wanted()))
    await timed(f"newest page of {MOVEMENTS_MAX}", runs, lambda: page(Wanted(), limit=MOVEMENTS_MAX))
    await timed(f"page of {PAGE} in the middle", runs, lambda: page(Wanted(), before=middle))
    await timed(f"oldest page of {PAGE}", runs, lambda: page(Wanted(), before=2 * PAGE))
    await timed("a filter that fits nothing", runs, lambda: page(Wanted(code=ledger.Code.GRANT)))
    await timed("a model that fits nothing", runs, lambda: page(Wanted(model="another")))
    await timed("every line with its words, as for CSV", 1, everything)
    for by in PERIODS:
        for name, account in (("who asked", payer), ("one who served", earner)):
            await timed(f"totals by {by} of {name}", runs, partial(sum_up, pool, account, by))
    day = rfc3339(time.time() + (DAYS - 1) * 86_400)
    await timed("totals of the last day of who asked", runs, partial(sum_up, pool, payer, "day", day))


async def sum_up(pool: Pool, account: AccountId, by: Period, since: str | None = None) -> str:
    found = await pool.books.store.totals(account, by, since=since)
    if since is None:
        own = pool.books.book.accounts[account]
        assert sum(total.change for total in found) == own.balance + own.held
    return f"{len(found)} periods"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="on a real disk, not tmpfs")
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    print(f"{platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}")
    print(f"{options.entries:,} entries of one account over {DAYS} days; median of {options.runs} runs")
    asyncio.run(measure(options.folder, options.entries, options.runs))


if __name__ == "__main__":
    main()
