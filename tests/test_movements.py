"""Whatever was posted: a statement's amounts add up to the balance, and each balance in it is right, on every page
and under every filter; totals are the same movements added up. On a real database."""

import asyncio
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from fixtures_store import NOW, World, world
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.clock import rfc3339
from coordinator.core import details, entries, ledger
from coordinator.core.jobs import AccountId, AttemptEvent, Job, JobEvent, JobId, Kind, move, move_attempt
from coordinator.core.ledger import COMMONS, Bucket, Code, Recorded
from coordinator.core.pricing import Demand, Segment, Shape, Tariff, charge_units, payments, quote
from coordinator.movements import Movement, Wanted

pytestmark = pytest.mark.usefixtures("on_both")

LINE = 10_000_000
SHAPE = Shape(1_000_000, 100_000, 1_000)
TARIFF = Tariff()
DAY_S = 86_400.0
Step = tuple[str, int, int, int]
steps = st.lists(
    st.tuples(
        st.sampled_from(["job", "job", "embed", "two", "held", "refund", "open", "grant", "send", "lend"]),
        st.integers(0, 2),  # which member
        st.integers(0, 2),  # with whom
        st.integers(1, 900),  # how much
    ),
    max_size=14,
)
filters = st.builds(
    Wanted,
    code=st.sampled_from([None, None, *Code]),
    since=st.sampled_from([None, None, *(rfc3339(NOW + n * DAY_S) for n in (-1, 0, 1, 3))]),
    until=st.sampled_from([None, None, *(rfc3339(NOW + n * DAY_S) for n in (0, 2, 4))]),
    model=st.sampled_from([None, None, "emulator-small", "another"]),
    holds=st.booleans(),
)


@dataclass
class Books:
    """A world whose time goes on by half a day with each entry, and back now and then."""

    pool: World
    records: list[Recorded] = field(default_factory=list)
    jobs: dict[JobId, Job] = field(default_factory=dict)

    def account(self, member: int) -> AccountId:
        return self.pool.members[member].account

    async def post(self, entry: ledger.Entry, *jobs: Job) -> None:
        n = len(self.records)
        at = rfc3339(NOW + (n - 5 * (n % 4 == 3)) * DAY_S / 2)
        self.pool.book.post(entry)
        recorded = ledger.record(self.pool.number + 1, at, entry, self.pool.hash)
        self.pool.number, self.pool.hash = recorded.number, recorded.hash
        self.records.append(recorded)
        self.jobs |= {job.id: job for job in jobs}
        await self.pool.store.commit(self.pool.batch([recorded], jobs))

    async def job(self, member: int, worker: int, amount: int, what: str) -> None:
        """Asked by one, served on one worker or on two, refunded, or still open."""
        kind = Kind.EMBEDDING if what == "embed" else Kind.CHAT
        demand = (
            Demand(kind, SHAPE, (amount, 7), 0) if what == "embed" else Demand(kind, SHAPE, (amount,), 50)
        )
        job = replace(
            self.pool.job(member, quote(demand, TARIFF)), kind=kind, prompt_tokens=demand.prompt_tokens
        )
        job = self.pool.assigned(job, worker % 2)
        await self.post(entries.hold(job, details.of_hold(job)), job)
        if what == "open":
            return
        job, segments = self.tried(job, [] if what == "embed" else [amount % 20 + 1], 0)
        if what == "two":
            job = self.pool.assigned(move(job, JobEvent.REQUEUED, now=NOW), 1 - worker % 2)
            job, more = self.tried(job, [9], segments[0].tokens)
            segments += more
        finisher = job.attempts[-1].number
        paid = (
            []
            if what == "refund"
            else payments(charge_units(demand, TARIFF, segments, finisher), job.attempts, job.account, TARIFF)
        )
        if what == "held":
            paid = [replace(payment, bucket=Bucket.HELD) for payment in paid]
        said = details.of_work(job, demand, TARIFF, segments, finisher, paid)
        said = details.of_refund(job, "nobody came") if what == "refund" else said
        ended = move(job, JobEvent.SUCCEEDED, now=NOW)
        await self.post(
            entries.close(job, paid, said), replace(ended, charge=sum(payment.amount for payment in paid))
        )

    def tried(self, job: Job, tokens: Sequence[int], start: int) -> tuple[Job, list[Segment]]:
        """The job with its newest attempt ended."""
        attempt = job.attempts[-1]
        event = AttemptEvent.SUCCEEDED
        attempt = replace(move_attempt(attempt, event, now=NOW), tokens=sum(tokens))
        segments = [Segment(attempt.number, 0, start, count) for count in tokens]
        return replace(job, attempts=(*job.attempts[:-1], attempt)), segments

    async def step(self, what: str, member: int, other: int, amount: int) -> None:
        cause, mine, theirs = f"cause-{len(self.records)}", self.account(member), self.account(other)
        match what:
            case "grant":
                await self.post(entries.grant(cause, mine, amount))
            case "send":
                await self.post(entries.transfer(cause, mine, theirs, amount))
            case "lend":
                await self.post(entries.line(cause, mine, theirs, amount))
            case _:
                await self.job(member, other, amount, what)


def expected(
    books: Books, first: list[Recorded], account: AccountId, wanted: Wanted
) -> list[tuple[int, ...]]:
    """(number, amount, held, reserved, credit line, balance) of each wanted movement, added up one by one."""
    found: list[tuple[int, ...]] = []
    balance = 0
    for recorded in [*first, *books.records]:
        sums = dict.fromkeys(Bucket, 0)
        mine = [p for p in recorded.entry.postings if p.account == account]
        for posting in mine:
            sums[posting.bucket] += posting.amount
        amount = sums[Bucket.MAIN] + sums[Bucket.RESERVED]
        balance += amount
        entry = recorded.entry
        model = books.jobs[entry.job].model if entry.job else None
        shown = wanted.holds or wanted.code in {Code.HOLD, Code.LINE} or amount or sums[Bucket.HELD]
        if (
            mine
            and shown
            and wanted.code in {None, entry.code}
            and (wanted.since is None or recorded.at >= wanted.since)
            and (wanted.until is None or recorded.at < wanted.until)
            and wanted.model in {None, model}
        ):
            held, reserved, line = sums[Bucket.HELD], sums[Bucket.RESERVED], sums[Bucket.CREDIT_LINE]
            found.append((recorded.number, amount, held, reserved, line, balance))
    return found[::-1]


def told(movement: Movement) -> tuple[int, ...]:
    m = movement
    return m.recorded.number, m.amount, m.held, m.reserved, m.credit_line, m.balance


async def check(books: Books, first: list[Recorded], wanted: Wanted, size: int) -> None:
    store = books.pool.store
    for account in (*(member.account for member in books.pool.members), COMMONS):
        right = expected(books, first, account, wanted)
        pages, before = [], None
        while True:
            page = await store.movements(account, wanted, limit=size, before=before)
            pages += [told(movement) for movement in page.movements]
            if not page.has_more:
                break
            assert len(page.movements) == size
            before = page.movements[-1].recorded.number
        assert pages == right
        bites = [page async for page in store.every_movement(account, wanted, bite=size)]
        streamed = [told(movement) for page in bites for movement in page.movements]
        assert streamed == right
        own = books.pool.book.accounts[account]
        everything = expected(books, first, account, Wanted(holds=True))
        assert sum(line[1] for line in everything) == own.balance


async def check_totals(books: Books) -> None:
    """They add up to balance and held; what was given is what was taken, in money and in tokens."""
    pool, given, asked = books.pool, 0, 0
    for account in (*(member.account for member in pool.members), COMMONS):
        days, months = await pool.store.totals(account, "day"), await pool.store.totals(account, "month")
        own = pool.book.accounts[account]
        for totals in (days, months):
            assert sum(total.change for total in totals) == own.balance + own.held
            assert all(total.given == total.given_net + total.fee for total in totals)
        assert sum(day.contribution for day in days) == sum(month.contribution for month in months)
        given += sum(day.contribution for day in days)
        asked += sum(day.tokens_served - day.tokens_asked for day in days)
    assert (given, asked) == (0, 0)


async def play(folder: Path, moves: list[Step], wanted: Wanted, size: int) -> None:
    async with world(folder, line=LINE) as pool:
        books, first = Books(pool), await pool.store.recorded()
        for move_ in moves:
            await books.step(*move_)
        await check(books, first, wanted, size)
        await check_totals(books)


def run(moves: list[Step], wanted: Wanted, size: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="potluck-books-"))
    try:
        asyncio.run(play(folder, moves, wanted, size))
    finally:
        shutil.rmtree(folder)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps, filters, st.integers(1, 7))
def test_a_statement_adds_up_on_every_page_and_under_every_filter(
    moves: list[Step], wanted: Wanted, size: int
) -> None:
    run(moves, wanted, size)


def test_a_long_statement_is_right_across_its_pages() -> None:
    """Some of each kind of entry, read a few at a time."""
    kinds = ["job", "embed", "two", "held", "refund", "open", "grant", "send", "lend"]
    moves: list[Step] = [(kind, n % 3, (n + 1) % 3, 100 + n) for n, kind in enumerate(kinds * 6)]
    run(moves, Wanted(holds=True), 7)


async def test_the_account_that_asked_may_be_the_one_that_served(tmp_path: Path) -> None:
    """An entry in which one account pays and earns: both sides count, and the change is what is left."""
    async with world(tmp_path, line=LINE) as pool:
        books = Books(pool)
        job = pool.assigned(pool.job(0, 1_000), 0)
        await books.post(entries.hold(job), job)
        payment = entries.Payment(1, job.account, 600, 12)
        said = {"attempt": 1, "worker": "w", "account": job.account, "tokens": 5, "amount": 600, "fee": 12}
        job, _ = books.tried(job, [5], 0)
        ended = replace(move(job, JobEvent.SUCCEEDED, now=NOW), charge=600)
        await books.post(entries.close(job, [payment], details.written(kind="chat", paid=[said])), ended)
        [movement] = (await pool.store.movements(job.account, Wanted(), limit=5)).movements
        assert told(movement)[1:] == (-12, 0, -1_000, 0, -12)
        [total] = await pool.store.totals(job.account, "day")
        assert (total.given, total.given_net, total.fee, total.taken) == (600, 588, 12, 600)
        assert (total.contribution, total.change, total.tokens_served) == (0, -12, 5)


async def test_entries_without_details_are_counted_too(tmp_path: Path) -> None:
    """Older books say nothing of fees and tokens: what was earned is then what arrived."""
    async with world(tmp_path, line=LINE) as pool:
        job = pool.assigned(pool.job(2, 1_000), 0)
        await pool.store.commit(pool.held(job))
        _, batch = pool.closed(job, 500)
        await pool.store.commit(batch)
        [total] = await pool.store.totals(pool.members[0].account, "month")
        assert (total.given, total.given_net, total.fee, total.tokens_served) == (490, 490, 0, 0)
        [movement] = (await pool.store.movements(pool.members[0].account, Wanted(), limit=5)).movements
        assert told(movement)[1:] == (490, 0, 0, 0, 490)
