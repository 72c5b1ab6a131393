"""What an account gave and took in each day or month, computed from the ledger alone.

Work and money are kept apart: `given` and `taken` come from jobs, the rest was moved by hand. The payer's
postings are the first of a job's entry (`core.entries`), so that an account on both sides of one is counted
on both. Fees and tokens stand in the entries' details; where those are too old to say them, what was earned
is what arrived.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from sqlalchemy import ColumnElement, Select, Subquery, and_, case, func, literal, or_, select
from sqlalchemy.engine import Dialect

from coordinator import dialect, tables
from coordinator.core.jobs import AccountId, Kind
from coordinator.core.ledger import COMMONS, MONEY, Code
from coordinator.database import Database
from coordinator.movements import Wanted, within
from coordinator.tables import table_of

Period = Literal["day", "month"]
_PERIOD_CHARS: Final = {"day": 10, "month": 7}  # of an RFC 3339 time

_ENTRIES = table_of(tables.Entry)
_POSTINGS = table_of(tables.Posting)
_OF_JOBS = _ENTRIES.c.code.in_([Code.CLOSE.value, Code.SETTLE.value])
# Holds, releases and lines bring nothing in and take nothing out.
_MOVING: Final = [c.value for c in (Code.CLOSE, Code.SETTLE, Code.GRANT, Code.TRANSFER, Code.RETIRE)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """Of one period (`2026-11` or `2026-11-26`), in microcredits.

    `given` is what others' jobs were charged for the work of own workers, `given_net` what of it arrived or
    is held, `fee` the difference. `taken` is what own jobs were charged. Tokens are those that were charged:
    output, of an embedding its input. `fees` come to the commons alone.
    """

    period: str
    given: int = 0
    given_net: int = 0
    fee: int = 0
    taken: int = 0
    received: int = 0
    sent: int = 0
    granted: int = 0
    fees: int = 0
    tokens_served: int = 0
    tokens_asked: int = 0

    @property
    def contribution(self) -> int:
        return self.given - self.taken

    @property
    def change(self) -> int:
        """Of balance and held together."""
        return self.given_net - self.taken + self.received - self.sent + self.granted + self.fees


class Totals(Database):
    async def totals(
        self, account: AccountId, by: Period, *, since: str | None = None, until: str | None = None
    ) -> list[Total]:
        """The newest period first; periods in which nothing moved are left out."""
        found: dict[str, Total] = {}
        async with self.reading() as connection:
            sums = _sums(connection.dialect, account, Wanted(since=since, until=until), _PERIOD_CHARS[by])
            for row in (await connection.execute(sums)).all():
                found[row.period] = _added(found.get(row.period) or Total(period=row.period), row, account)
        moved = (total for total in found.values() if total != Total(period=total.period))
        return sorted(moved, key=lambda total: total.period, reverse=True)


def _added(total: Total, row: Any, account: AccountId) -> Total:
    """With the sums of the entries of one code."""
    code, came, went = Code(row.code), int(row.came), int(row.went)
    if code in {Code.CLOSE, Code.SETTLE}:
        paid, earned, fee = int(row.paid), int(row.earned), int(row.fee or 0)
        total = replace(
            total,
            taken=total.taken - paid,
            tokens_served=total.tokens_served + int(row.served or 0),
            tokens_asked=total.tokens_asked + int(row.asked or 0),
        )
        if account == COMMONS:
            return replace(total, fees=total.fees + earned)
        return replace(
            total,
            given=total.given + earned + fee,
            given_net=total.given_net + earned,
            fee=total.fee + fee,
        )
    if code is Code.GRANT and account != COMMONS:
        return replace(total, granted=total.granted + came)
    return replace(total, received=total.received + came, sent=total.sent - went)


def _sums(spoken: Dialect, account: AccountId, span: Wanted, length: int) -> Select[Any]:
    """By period and code, in one pass."""
    moved = _of_entries(spoken, account, span, length)
    sums = ("paid", "earned", "came", "went", "fee", "served", "asked")
    return select(
        moved.c.period, moved.c.code, *(func.sum(moved.c[name]).label(name) for name in sums)
    ).group_by(moved.c.period, moved.c.code)


def _of_entries(spoken: Dialect, account: AccountId, span: Wanted, length: int) -> Subquery:
    """What each entry did, along the index of the account's postings; details are read where they count."""
    amount, position, details = _POSTINGS.c.amount, _POSTINGS.c.position, _ENTRIES.c.details
    close = _ENTRIES.c.code == Code.CLOSE.value
    paid = _sum(or_(position == 0, and_(position == 1, close)), amount)
    earned = _sum(or_(position > 1, and_(position == 1, ~close)), amount)

    def tokens(whose: AccountId | None) -> ColumnElement[Any]:
        """Output; an embedding has none, and counts what went in."""
        embedding = dialect.text_at(spoken, details, "kind") == Kind.EMBEDDING.value
        prompts = case((embedding, dialect.sum_at(spoken, details, "prompts")), else_=0)
        return func.coalesce(
            func.nullif(dialect.sum_in(spoken, details, "paid", "tokens", whose), 0), prompts
        )

    serves = and_(_OF_JOBS, earned != 0, literal(account != COMMONS))
    return (
        select(
            func.substr(_ENTRIES.c.at, 1, length).label("period"),
            _ENTRIES.c.code.label("code"),
            paid.label("paid"),
            earned.label("earned"),
            _sum(amount > 0, amount).label("came"),
            _sum(amount < 0, amount).label("went"),
            case((serves, dialect.sum_in(spoken, details, "paid", "fee", account)), else_=0).label("fee"),
            case((serves, tokens(account)), else_=0).label("served"),
            case((and_(_OF_JOBS, paid != 0), tokens(None)), else_=0).label("asked"),
        )
        .join(_ENTRIES, _ENTRIES.c.number == _POSTINGS.c.entry_number)
        .where(
            _POSTINGS.c.account_id == account,
            _POSTINGS.c.bucket.in_([bucket.value for bucket in MONEY]),
            _ENTRIES.c.code.in_(_MOVING),
            *within(span),
        )
        .group_by(*_by_entry(spoken))
        .subquery()
    )


def _by_entry(spoken: Dialect) -> Sequence[ColumnElement[Any]]:
    """One group for each entry. PostgreSQL must be told that its columns depend on its number; SQLite knows
    the order of the index by the first column alone, and would sort by both.
    """
    both = [_POSTINGS.c.entry_number, _ENTRIES.c.number]
    return both[:1] if spoken.name == "sqlite" else both


def _sum(condition: ColumnElement[bool], amount: ColumnElement[int]) -> ColumnElement[Any]:
    return func.sum(case((condition, amount), else_=0))
