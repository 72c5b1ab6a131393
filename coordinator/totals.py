"""What an account gave and took in each day or month, computed from the ledger alone.

Work and money are kept apart: `given` and `taken` come from jobs, the rest was moved by hand. The payer's
postings are the first of a job's entry (`core.entries`), so that an account on both sides of one is counted
on both. Fees and tokens stand in the entries' details; where those are too old to say them, what was earned
is what arrived.
"""

from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from sqlalchemy import ColumnElement, Select, and_, case, func, or_, select
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
_JOBS = table_of(tables.Job)
_POSTINGS = table_of(tables.Posting)
_OF_JOBS = _ENTRIES.c.code.in_([Code.CLOSE.value, Code.SETTLE.value])
_PAYERS = or_(  # the payer's postings among those of a job's entry
    _POSTINGS.c.position == 0, and_(_POSTINGS.c.position == 1, _ENTRIES.c.code == Code.CLOSE.value)
)


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
        span, length = Wanted(since=since, until=until), _PERIOD_CHARS[by]
        found: dict[str, Total] = {}
        async with self.reading() as connection:
            for row in (await connection.execute(_moved(account, span, length))).all():
                total = found.get(row.period) or Total(period=row.period)
                found[row.period] = _with_money(total, row, account)
            spoken = connection.dialect
            for row in (await connection.execute(_served(spoken, account, span, length))).all():
                total, fee = found[row.period], int(row.fee)
                found[row.period] = replace(
                    total, fee=fee, given=total.given_net + fee, tokens_served=int(row.tokens)
                )
            for row in (await connection.execute(_asked(spoken, account, span, length))).all():
                found[row.period] = replace(found[row.period], tokens_asked=int(row.tokens))
        moved = (total for total in found.values() if total != Total(period=total.period))
        return sorted(moved, key=lambda total: total.period, reverse=True)


def _with_money(total: Total, row: Any, account: AccountId) -> Total:
    code, paid, earned = Code(row.code), int(row.paid), int(row.earned)
    if code in {Code.CLOSE, Code.SETTLE}:
        total = replace(total, taken=total.taken - paid)
        if account == COMMONS:
            return replace(total, fees=total.fees + earned)
        return replace(total, given=total.given + earned, given_net=total.given_net + earned)
    if code is Code.GRANT and account != COMMONS:
        return replace(total, granted=total.granted + int(row.came))
    if code in {Code.GRANT, Code.TRANSFER, Code.RETIRE}:
        return replace(total, received=total.received + int(row.came), sent=total.sent - int(row.went))
    return total  # holds, releases and lines move nothing in or out


def _moved(account: AccountId, span: Wanted, length: int) -> Select[Any]:
    """Money by period and code: the payer's part, the earner's, and what came and went in all."""
    period, amount = _period(length), _POSTINGS.c.amount
    return (
        select(
            period.label("period"),
            _ENTRIES.c.code.label("code"),
            _sum(_PAYERS, amount).label("paid"),
            _sum(~_PAYERS, amount).label("earned"),
            _sum(amount > 0, amount).label("came"),
            _sum(amount < 0, amount).label("went"),
        )
        .join(_ENTRIES, _ENTRIES.c.number == _POSTINGS.c.entry_number)
        .where(
            _POSTINGS.c.account_id == account,
            _POSTINGS.c.bucket.in_([bucket.value for bucket in MONEY]),
            *within(span),
        )
        .group_by(period, _ENTRIES.c.code)
    )


def _served(spoken: Dialect, account: AccountId, span: Wanted, length: int) -> Select[Any, Any, Any]:
    """What the fee took from own earnings, and the tokens behind them."""
    mine = (
        select(_POSTINGS.c.entry_number.label("number"))
        .join(_ENTRIES, _ENTRIES.c.number == _POSTINGS.c.entry_number)
        .where(_POSTINGS.c.account_id == account, _OF_JOBS, ~_PAYERS, *within(span))
        .group_by(_POSTINGS.c.entry_number)
        .subquery()
    )
    paid = dialect.items_of(spoken, _ENTRIES.c.details, "paid")
    period, fee = _period(length), dialect.integer_in(spoken, paid, "fee")
    return (
        select(
            period.label("period"),
            func.sum(fee).label("fee"),
            func.sum(_tokens(dialect.integer_in(spoken, paid, "tokens"))).label("tokens"),
        )
        .select_from(mine.join(_ENTRIES, _ENTRIES.c.number == mine.c.number))
        .join(_JOBS, _JOBS.c.id == _ENTRIES.c.job_id)
        .join(paid, dialect.text_in(spoken, paid, "account") == account)
        .group_by(period)
    )


def _asked(spoken: Dialect, account: AccountId, span: Wanted, length: int) -> Select[Any, Any]:
    """The tokens that own jobs were charged for."""
    paid, period = dialect.items_of(spoken, _ENTRIES.c.details, "paid"), _period(length)
    tokens = _tokens(dialect.integer_in(spoken, paid, "tokens"))
    return (
        select(period.label("period"), func.sum(tokens).label("tokens"))
        .select_from(_POSTINGS)
        .join(_ENTRIES, _ENTRIES.c.number == _POSTINGS.c.entry_number)
        .join(_JOBS, _JOBS.c.id == _ENTRIES.c.job_id)
        .join(paid, dialect.text_in(spoken, paid, "account") != account)
        .where(_POSTINGS.c.account_id == account, _POSTINGS.c.position == 0, _OF_JOBS, *within(span))
        .group_by(period)
    )


def _tokens(delivered: ColumnElement[Any]) -> ColumnElement[Any]:
    return case((_JOBS.c.kind == Kind.EMBEDDING.value, _JOBS.c.prompt_tokens), else_=delivered)


def _period(length: int) -> ColumnElement[str]:
    return func.substr(_ENTRIES.c.at, 1, length)


def _sum(condition: ColumnElement[bool], amount: ColumnElement[int]) -> ColumnElement[Any]:
    return func.sum(case((condition, amount), else_=0))
