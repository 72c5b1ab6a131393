"""An account's movements, newest first, each with the balance after it: what a statement is made of.

The balance after a movement counts everything up to it, whatever a filter leaves out. It is the cached
balance less all that moved later, so that the newest page reads only itself; a reader who goes on from page
to page carries it along (`Seam`), so that a whole statement costs one pass over the account's postings.
"""

from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import ColumnElement, Row, Select, and_, case, func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from coordinator import tables
from coordinator.core.entries import worked
from coordinator.core.jobs import AccountId, JobId
from coordinator.core.ledger import Bucket, Code, Recorded
from coordinator.database import Database
from coordinator.rows import postings_of, recorded_of
from coordinator.tables import table_of

MOVEMENTS_MAX: Final = 500  # on one page; ids in one IN list, too
BITE: Final = 200  # of a whole statement at a time: between bites the coordinator serves others

_ACCOUNTS = table_of(tables.Account)
_ATTEMPTS = table_of(tables.Attempt)
_ENTRIES = table_of(tables.Entry)
_JOBS = table_of(tables.Job)
_MEMBERS = table_of(tables.Member)
_POSTINGS = table_of(tables.Posting)
_WORKERS = table_of(tables.Worker)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which movements. `since` is the first moment and `until` the first after, both as `clock.rfc3339`
    writes them. What moves neither balance nor held (holds, refunds, credit lines) comes with `holds`, or
    when its code is asked for.
    """

    code: Code | None = None
    since: str | None = None
    until: str | None = None
    job: JobId | None = None
    model: str | None = None
    holds: bool = False

    @property
    def unmoved(self) -> bool:
        return self.holds or self.code in {Code.HOLD, Code.LINE}


@dataclass(frozen=True, slots=True)
class Seam:
    """Between two pages: lower numbers come next, and after the highest of them this was the balance."""

    before: int
    balance: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Movement:
    """What one entry changed in one account, in microcredits; `balance` (main + reserved) is as of after it.

    `job_why` is the reason of a job that ended without success.
    """

    recorded: Recorded
    amount: int
    held: int
    reserved: int
    credit_line: int
    balance: int
    job_why: str = ""

    @property
    def seam(self) -> Seam:
        return Seam(self.recorded.number, self.balance - self.amount)


@dataclass(frozen=True, slots=True)
class Known:
    """Names for the ids in some movements. `tries`: (job, attempt) -> (its worker's owner, its worker)."""

    members: Mapping[str, str] = field(default_factory=dict)  # by account
    workers: Mapping[str, str] = field(default_factory=dict)
    tries: Mapping[tuple[str, int], tuple[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Page:
    movements: list[Movement]
    known: Known
    has_more: bool


class Movements(Database):
    async def movements(
        self,
        account: AccountId,
        wanted: Wanted,
        *,
        limit: int,
        before: int | None = None,
        seam: Seam | None = None,
    ) -> Page:
        """The newest first, at most MOVEMENTS_MAX; `before` is the number of the last one on the page before,
        or `seam` the place where it ended.
        """
        limit = max(1, min(limit, MOVEMENTS_MAX))
        below = seam.before if seam is not None else before
        async with self.reading() as connection:
            found = (await connection.execute(_matching(account, wanted, below).limit(limit + 1))).all()
            rows, has_more = found[:limit], len(found) > limit
            if not rows:
                return Page([], Known(), has_more=False)
            balances = await _balances(connection, account, rows, seam)
            records, whys = await _records(connection, [row.number for row in rows])
            known = await _known(connection, records.values())
        movements = [
            Movement(
                recorded=records[row.number],
                amount=int(row.amount),
                held=int(row.held),
                reserved=int(row.reserved),
                credit_line=int(row.credit_line),
                balance=balances[row.number],
                job_why=whys[row.number],
            )
            for row in rows
        ]
        return Page(movements, known, has_more)

    async def every_movement(
        self, account: AccountId, wanted: Wanted, *, before: int | None = None, bite: int = BITE
    ) -> AsyncGenerator[Page, None]:
        """All of them, `bite` by bite. Between pages nothing is held: a slow reader keeps no connection."""
        page = await self.movements(account, wanted, limit=bite, before=before)
        yield page
        while page.has_more:
            seam = page.movements[-1].seam
            page = await self.movements(account, wanted, limit=bite, seam=seam)
            yield page


def summed(*buckets: Bucket) -> ColumnElement[Any]:
    """What moved in these buckets."""
    inside = _POSTINGS.c.bucket.in_([bucket.value for bucket in buckets])
    return func.sum(case((inside, _POSTINGS.c.amount), else_=0))


def within(wanted: Wanted) -> list[ColumnElement[bool]]:
    """The conditions on the time of an entry and its postings. RFC 3339 in UTC sorts as text.

    The bounds on the number follow from those on the time, also where a clock was set back; by them the
    index on an account's postings is entered at the right place.
    """
    at, number = _ENTRIES.c.at, _POSTINGS.c.entry_number
    every = _ENTRIES.alias("every")  # of all accounts; + 0, or SQLite would look along the numbers
    bounds: list[ColumnElement[bool]] = []
    if wanted.since is not None:
        first = select(func.min(every.c.number + 0)).where(every.c.at >= wanted.since)
        bounds += [at >= wanted.since, number >= first.scalar_subquery()]
    if wanted.until is not None:
        last = select(func.max(every.c.number + 0)).where(every.c.at < wanted.until)
        bounds += [at < wanted.until, number <= last.scalar_subquery()]
    return bounds


def _matching(account: AccountId, wanted: Wanted, below: int | None) -> Select[Any]:
    """The wanted entries' numbers and what they changed, along the index (account_id, entry_number)."""
    number, amount = _POSTINGS.c.entry_number, summed(Bucket.MAIN, Bucket.RESERVED)
    held, credit_line = summed(Bucket.HELD), summed(Bucket.CREDIT_LINE)
    statement = select(
        number.label("number"),
        amount.label("amount"),
        held.label("held"),
        summed(Bucket.RESERVED).label("reserved"),
        credit_line.label("credit_line"),
    )
    conditions = within(wanted)
    if wanted.code is not None:
        conditions.append(_ENTRIES.c.code == wanted.code.value)
    if wanted.job is not None:
        conditions.append(_ENTRIES.c.job_id == wanted.job)
    if wanted.model is not None:
        conditions.append(_JOBS.c.model == wanted.model)
    source: Any = _POSTINGS
    if conditions:
        source = source.join(_ENTRIES, _ENTRIES.c.number == number)
    if wanted.model is not None:
        source = source.join(_JOBS, _JOBS.c.id == _ENTRIES.c.job_id)
    statement = statement.select_from(source).where(_POSTINGS.c.account_id == account, *conditions)
    if below is not None:
        statement = statement.where(number < below)
    if not wanted.unmoved:
        statement = statement.having(or_(amount != 0, held != 0))
    return statement.group_by(number).order_by(number.desc())


async def _balances(
    connection: AsyncConnection, account: AccountId, rows: list[Row[Any]], seam: Seam | None
) -> dict[int, int]:
    """The balance after each of these entries, by its number."""
    number, amount = _POSTINGS.c.entry_number, summed(Bucket.MAIN, Bucket.RESERVED)
    later = select(
        number.label("number"),
        amount.label("amount"),
        func.sum(amount).over(order_by=number.desc()).label("since"),  # its own, too
    ).where(_POSTINGS.c.account_id == account, number >= rows[-1].number)
    if seam is None:
        held = select(_ACCOUNTS.c.main + _ACCOUNTS.c.reserved).where(_ACCOUNTS.c.id == account)
        now = int((await connection.execute(held)).scalar_one())
    else:
        later, now = later.where(number < seam.before), seam.balance
    moved = later.group_by(number).subquery()
    chosen = select(moved).where(moved.c.number.in_([row.number for row in rows]))
    found = (await connection.execute(chosen)).all()
    return {row.number: now - int(row.since) + int(row.amount) for row in found}


async def _records(
    connection: AsyncConnection, numbers: list[int]
) -> tuple[dict[int, Recorded], dict[int, str]]:
    """The entries by their numbers, and why their jobs ended."""
    chosen = _POSTINGS.c.entry_number.in_(numbers)
    statement = select(_POSTINGS).where(chosen).order_by(_POSTINGS.c.entry_number, _POSTINGS.c.position)
    postings = postings_of((await connection.execute(statement)).all())
    entries = (
        select(_ENTRIES, _JOBS.c.why.label("job_why"))
        .outerjoin(_JOBS, _JOBS.c.id == _ENTRIES.c.job_id)
        .where(_ENTRIES.c.number.in_(numbers))
    )
    rows = (await connection.execute(entries)).all()
    return (
        {row.number: recorded_of(row, postings[row.number]) for row in rows},
        {row.number: row.job_why or "" for row in rows},
    )


async def _known(connection: AsyncConnection, records: Iterable[Recorded]) -> Known:
    entries = [recorded.entry for recorded in records]
    jobs = {job for entry in entries if (job := worked(entry)) is not None}
    tries = (
        select(_ATTEMPTS.c.job_id, _ATTEMPTS.c.number, _ATTEMPTS.c.owner_id, _WORKERS.c.name)
        .join(_WORKERS, _WORKERS.c.id == _ATTEMPTS.c.worker_id)
        .where(_ATTEMPTS.c.job_id.in_(jobs))
    )
    freed = {entry.id.partition("/")[0] for entry in entries if entry.code is Code.RELEASE}
    workers = select(_WORKERS.c.id, _WORKERS.c.name).where(_WORKERS.c.id.in_(freed))
    parties = sorted({posting.account for entry in entries for posting in entry.postings})
    members: dict[str, str] = {}
    for start in range(0, len(parties), MOVEMENTS_MAX):
        chosen = _ACCOUNTS.c.id.in_(parties[start : start + MOVEMENTS_MAX])
        named = select(_ACCOUNTS.c.id, _MEMBERS.c.name).where(
            and_(chosen, _MEMBERS.c.id == _ACCOUNTS.c.member_id)
        )
        members |= {row.id: row.name for row in (await connection.execute(named)).all()}
    return Known(
        members,
        {row.id: row.name for row in (await connection.execute(workers)).all()} if freed else {},
        {
            (row.job_id, row.number): (row.owner_id, row.name)
            for row in ((await connection.execute(tries)).all() if jobs else ())
        },
    )
