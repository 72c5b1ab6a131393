"""The statement in the SDK: what moved in an account, line by line or summed up by day or month."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import date, datetime
from typing import Final, Literal

from potluck.errors import UnexpectedAnswer
from potluck.results import read, read_all
from potluck.transport import Transport

PAGE_LINES: Final = 100
ROUTE: Final = "/pool/v1/statement"

When = str | date | datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class StatementLine:
    """One movement. `amount` is the change of the balance; `balance` is what it was after it, whatever a
    filter left out; `held`, `reserved` and `credit_line` are the changes of those.
    """

    number: int
    at: str
    code: str
    words: str
    amount: int
    held: int = 0
    reserved: int = 0
    credit_line: int = 0
    balance: int
    job: str | None = None
    counterparties: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StatementPage:
    data: tuple[StatementLine, ...]
    has_more: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """One day or month. Work: `given` (what others' jobs were charged for your workers' part; `given_net` of
    it arrived, `fee` went to the commons), `taken`, and `contribution`, their difference. The rest is money.
    """

    period: str
    given: int
    given_net: int
    fee: int
    taken: int
    contribution: int
    received: int = 0
    sent: int = 0
    granted: int = 0
    fees: int = 0  # of the commons alone
    tokens_served: int = 0
    tokens_asked: int = 0
    change: int = 0


class StatementRoutes:
    """A part of `potluck.Pool`. Days and times are UTC; a day as `until` is included."""

    _transport: Transport

    def statement(
        self,
        *,
        since: When | None = None,
        until: When | None = None,
        code: str | None = None,
        job: str | None = None,
        model: str | None = None,
        holds: bool = False,
        account: str | None = None,
        before: int | None = None,
    ) -> Iterator[StatementLine]:
        """Every movement, the newest first; pages are fetched as they are needed.

        `holds`: also what was set aside, returned or lent. `account="commons"` is for admins.
        """
        filters = _params(since=since, until=until, code=code, job=job, model=model, account=account)
        if holds:
            filters["holds"] = "true"
        while True:
            page = self.statement_page(filters, limit=PAGE_LINES, before=before)
            yield from page.data
            if not page.has_more:
                return
            if not page.data:
                raise UnexpectedAnswer("The coordinator says that there is more, but sends nothing.")
            before = page.data[-1].number

    def statement_page(
        self, filters: dict[str, str], *, limit: int, before: int | None = None
    ) -> StatementPage:
        """One page of at most 500; `filters` are the route's: code, from, to, job, model, holds, account."""
        paging = {"limit": limit} | ({} if before is None else {"before": before})
        return read(StatementPage, self._transport.get(ROUTE, {**filters, **paging}))

    def statement_csv(self, filters: dict[str, str]) -> AbstractContextManager[Iterator[bytes]]:
        """All lines as CSV (RFC 4180) in microcredits: a context manager that gives its bytes in pieces."""
        return self._transport.download(ROUTE, {**filters, "format": "csv"})

    def totals(
        self,
        by: Literal["day", "month"] = "month",
        *,
        since: When | None = None,
        until: When | None = None,
        account: str | None = None,
    ) -> list[Total]:
        """Sums by day or month, the newest first; those in which nothing moved are left out."""
        params = _params(since=since, until=until, account=account)
        answer = self._transport.get(f"{ROUTE}/totals", {"by": by, **params})
        return read_all(Total, answer.get("data") if isinstance(answer, dict) else None)


def _params(*, since: When | None, until: When | None, **others: str | None) -> dict[str, str]:
    """A time without a zone is UTC; one with another zone says so itself."""
    times = {
        name: when.isoformat() if isinstance(when, date) else when
        for name, when in (("from", since), ("to", until))
        if when is not None
    }
    return times | {name: value for name, value in others.items() if value is not None}
