"""Pool routes about what moved in an account: the statement, as pages or as a file, and its totals."""

import csv
import io
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from coordinator.api import contract
from coordinator.api.answers import people
from coordinator.api.desk import Desk
from coordinator.api.errors import ApiError, Json
from coordinator.api.query import boolean, integer, only, span, word
from coordinator.api.routing import add, new_router
from coordinator.core.jobs import AccountId, JobId
from coordinator.core.ledger import COMMONS, Code
from coordinator.movements import MOVEMENTS_MAX, Known, Movement, Page, Wanted
from coordinator.totals import Period, Total
from coordinator.wording import Telling

LISTED = 50
ENTRIES_MAX: Final = 10**9 - 1  # the largest number that a query may name
WORD_CHARS_MAX: Final = 128
COLUMNS: Final = (
    "number",
    "at",
    "code",
    "words",
    "amount",
    "held",
    "reserved",
    "credit_line",
    "balance",
    "job",
    "counterparties",
)
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")  # what makes a spreadsheet compute (OWASP, CSV injection)
_SPAN: Final = ("account", "from", "to")
SPAN: Final = (
    contract.text("account", "`commons`: the pool's own, for admins."),
    contract.moment("from", "From then on"),
    contract.moment("to", "Until then"),
)

Pages = AsyncGenerator[Page, None]


def statement_router(desk: Desk) -> APIRouter:
    routes, router = Statement(desk), new_router("Statement")
    add(
        router,
        "GET",
        "/pool/v1/statement",
        routes.statement,
        answer=contract.list_of(people.Line, has_more=contract.YES_NO),
        media=(contract.JSON, "text/csv"),
        query=(
            contract.limit(LISTED, MOVEMENTS_MAX),
            contract.number("before", ENTRIES_MAX, "The last number of the page before."),
            contract.choice("code", Code, "Only such entries."),
            *SPAN,
            contract.text("job", "Only what it moved."),
            contract.text("model", "Only its jobs."),
            contract.flag("holds", "Also what moves neither balance nor held."),
            contract.choice("format", ["json", "csv"], "A file has all lines."),
        ),
    )
    add(
        router,
        "GET",
        "/pool/v1/statement/totals",
        routes.totals,
        answer=contract.list_of(people.Totals),
        query=(contract.choice("by", ["day", "month"], "How long a period is."), *SPAN),
    )
    return router


class Statement:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def statement(self, request: Request) -> Response:
        """What moved in the account, newest first: `{data: [{number, at, code, words, amount, held, reserved,
        credit_line, balance, job, counterparties}], has_more}`. `amount` is the change of the balance (main
        and reserved together), `held`, `reserved` and `credit_line` are the changes of those, `balance` is
        the balance after it, whatever a filter leaves out. `?limit&before&code&from&to&job&model`, times in
        UTC; a day as `to` is included. `holds=true`: also what moves neither balance nor held. `format=csv`:
        all lines as a file. `account=commons` is for admins.
        """
        account = await self._account(request)
        only(request, ("limit", "before", "code", "job", "model", "holds", "format", *_SPAN))
        code = word(request, "code", [code.value for code in Code])
        job, model = (request.query_params.get(name) for name in ("job", "model"))
        since, until = span(request)
        wanted = Wanted(
            code=None if code is None else Code(code),
            since=since,
            until=until,
            job=None if job is None else JobId(job[:WORD_CHARS_MAX]),
            model=None if model is None else model[:WORD_CHARS_MAX],
            holds=boolean(request, "holds"),
        )
        limit = integer(request, "limit", LISTED, MOVEMENTS_MAX)
        before = integer(request, "before", 0, ENTRIES_MAX) or None
        store = self._desk.context.store
        if word(request, "format", ["json", "csv"]) == "csv":
            if "limit" in request.query_params:
                message = "limit: a CSV file has all lines; bound it with from and to."
                raise ApiError(400, "unsupported_parameter", message, param="limit")
            pages = store.every_movement(account, wanted, before=before)
            return _file(account, await anext(pages), pages)  # until now whatever goes wrong is a plain error
        page = await store.movements(account, wanted, limit=limit, before=before)
        data = [line_body(movement, account, page.known) for movement in page.movements]
        return Json({"data": data, "has_more": page.has_more})

    async def totals(self, request: Request) -> Response:
        """Sums by period, newest first: `{data: [{period, given, given_net, fee, taken, contribution,
        received, sent, granted, fees, tokens_served, tokens_asked, change}]}`, in microcredits.
        `?by=day|month&from&to`, in UTC; a day as `to` is included. `contribution` is given - taken: work; the
        rest is money. `fees` come to the commons alone. `account=commons` is for admins.
        """
        account = await self._account(request)
        only(request, ("by", *_SPAN))
        by: Period = "day" if word(request, "by", ["day", "month"]) == "day" else "month"
        since, until = span(request)
        totals = await self._desk.context.store.totals(account, by, since=since, until=until)
        return Json({"data": [total_body(total) for total in totals]})

    async def _account(self, request: Request) -> AccountId:
        """The caller's own; to others' there is no way."""
        caller = await self._desk.auth.look(request)
        if word(request, "account", [caller.member.account, COMMONS]) != COMMONS:
            return caller.member.account
        if not caller.admin:
            message = "Only an admin may look into the commons."
            raise ApiError(403, "admin_needed", message, param="account")
        return COMMONS


def line_body(movement: Movement, account: AccountId, known: Known) -> dict[str, Any]:
    recorded = movement.recorded
    telling = Telling(recorded.entry, account, known, movement.job_why)
    return {
        "number": recorded.number,
        "at": recorded.at,
        "code": recorded.entry.code.value,
        "words": telling.words(),
        "amount": movement.amount,
        "held": movement.held,
        "reserved": movement.reserved,
        "credit_line": movement.credit_line,
        "balance": movement.balance,
        "job": recorded.entry.job,
        "counterparties": telling.counterparties(),
    }


def total_body(total: Total) -> dict[str, Any]:
    return {
        "period": total.period,
        "given": total.given,
        "given_net": total.given_net,
        "fee": total.fee,
        "taken": total.taken,
        "contribution": total.contribution,
        "received": total.received,
        "sent": total.sent,
        "granted": total.granted,
        "fees": total.fees,
        "tokens_served": total.tokens_served,
        "tokens_asked": total.tokens_asked,
        "change": total.change,
    }


def _file(account: AccountId, first: Page, rest: Pages) -> Response:
    headers = {"content-disposition": 'attachment; filename="potluck-statement.csv"'}
    rows = _rows(account, first, rest)
    return StreamingResponse(rows, media_type="text/csv; charset=utf-8", headers=headers)


async def _rows(account: AccountId, first: Page, rest: Pages) -> AsyncGenerator[str, None]:
    """CSV (RFC 4180) with a header, a page in memory at a time; several counterparties stand in one cell."""
    yield _csv([COLUMNS]) + _lines(account, first)
    async with aclosing(rest):
        async for page in rest:
            yield _lines(account, page)


def _lines(account: AccountId, page: Page) -> str:
    bodies = (line_body(movement, account, page.known) for movement in page.movements)
    return _csv([[_cell(body[column]) for column in COLUMNS] for body in bodies])


def _csv(rows: Any) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\r\n").writerows(rows)
    return out.getvalue()


def _cell(value: Any) -> Any:
    """Numbers as they are. A text that a spreadsheet would take for a formula begins with an apostrophe."""
    if isinstance(value, list):
        value = "; ".join(value)
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return value
