"""What the ledger says of recent work: from it a starting coordinator knows whose turn it is."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from coordinator import tables
from coordinator.clock import rfc3339
from coordinator.core.contribution import WORK, Contributions
from coordinator.core.fairness import Clock, Fairness
from coordinator.core.jobs import AccountId
from coordinator.core.ledger import MONEY
from coordinator.core.line import Line
from coordinator.database import Database
from coordinator.settings import Settings
from coordinator.tables import table_of

_ACCOUNTS = table_of(tables.Account)
_ENTRIES = table_of(tables.Entry)
_JOBS = table_of(tables.Job)
_POSTINGS = table_of(tables.Posting)
_DAY = 10  # characters of the day in an RFC 3339 time
_NOON = timedelta(hours=12)
_HALF_LIVES = 10  # of which a thousandth is left


@dataclass(frozen=True, slots=True)
class Worked:
    """What `account` got in one day out of charges that `payer` paid; of the payer itself, what left it."""

    payer: AccountId
    account: AccountId
    amount: int  # microcredits
    at: float  # noon of that day


@dataclass(frozen=True, slots=True)
class Lent:
    lender: AccountId
    to: AccountId
    amount: int


class Lately(Database):
    async def worked(self, since: float) -> list[Worked]:
        """Closes and settlements since then, by day; reads only the end of the ledger."""
        day = func.substr(_ENTRIES.c.at, 1, _DAY)
        async with self.reading() as connection:
            first = await first_since(connection, rfc3339(since))
            statement = (
                select(day, _JOBS.c.account_id, _POSTINGS.c.account_id, func.sum(_POSTINGS.c.amount))
                .join(_POSTINGS, _POSTINGS.c.entry_number == _ENTRIES.c.number)
                .join(_JOBS, _JOBS.c.id == _ENTRIES.c.job_id)
                .where(
                    _ENTRIES.c.number >= first,
                    _ENTRIES.c.code.in_([code.value for code in WORK]),
                    _POSTINGS.c.bucket.in_([bucket.value for bucket in MONEY]),
                )
                .group_by(day, _JOBS.c.account_id, _POSTINGS.c.account_id)
                .order_by(day, _JOBS.c.account_id, _POSTINGS.c.account_id)
            )
            rows = (await connection.execute(statement)).all()
        return [
            Worked(AccountId(payer), AccountId(account), int(amount), _noon(when))
            for when, payer, account, amount in rows
        ]

    async def lent(self) -> list[Lent]:
        """Which members' accounts answer for a part of which others' lines."""
        statement = select(_ACCOUNTS.c.lender_id, _ACCOUNTS.c.id, _ACCOUNTS.c.lent)
        statement = statement.where(_ACCOUNTS.c.lender_id.is_not(None), _ACCOUNTS.c.lent > 0)
        async with self.reading() as connection:
            rows = (await connection.execute(statement.order_by(_ACCOUNTS.c.id))).all()
        return [Lent(AccountId(lender), AccountId(to), amount) for lender, to, amount in rows]


async def first_since(connection: AsyncConnection, at: str) -> int:
    """The number of the first entry not before `at`. Times rise with numbers, so halving finds it."""
    numbers = _ENTRIES.c.number
    low, high = 1, (await connection.execute(select(func.max(numbers)))).scalar_one() or 0
    while low <= high:
        middle = (low + high) // 2
        found = (await connection.execute(select(_ENTRIES.c.at).where(numbers == middle))).scalar_one()
        if found < at:
            low = middle + 1
        else:
            high = middle - 1
    return int(low)


def _noon(day: str) -> float:
    return (datetime.fromisoformat(day).replace(tzinfo=UTC) + _NOON).timestamp()


def line_of(settings: Settings) -> Line:
    """An empty line by the pool's own numbers."""
    s = settings
    rule = Fairness(
        guaranteed_permille=s.fairness_guaranteed_permille,
        debt_full=max(1, s.default_credit_line),
        reserved_permille=(
            s.fairness_interactive_permille,
            s.fairness_batch_permille,
            s.fairness_finetune_permille,
        ),
        aged_s=(s.fairness_aged_s, s.fairness_batch_aged_s, s.fairness_batch_aged_s),
    )
    return Line(Contributions(s.fairness_half_life_s, s.fairness_proven), Clock(rule))


async def recall(line: Line, store: Lately, now: float) -> None:
    """Who lent to whom, and what was given and taken as far as it still counts."""
    line.given.now = now
    for lent in await store.lent():
        line.given.lend(lent.lender, lent.to, lent.amount)
    for work in await store.worked(now - _HALF_LIVES * line.given.half_life_s):
        line.given.worked(work.payer, work.account, work.amount, min(work.at, now))
