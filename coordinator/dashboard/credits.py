"""What a member has, gave and took, to the token; and sending."""

from collections.abc import Hashable, Mapping
from typing import Any, Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from coordinator.api.auth import Caller
from coordinator.api.errors import Json
from coordinator.api.pool_gifts import TransferRequest
from coordinator.api.pool_statement import ENTRIES_MAX, WORD_CHARS_MAX, line_body
from coordinator.api.query import integer, span, word
from coordinator.api.schema import validated
from coordinator.clock import rfc3339
from coordinator.core.jobs import AccountId, JobId
from coordinator.core.ledger import Code
from coordinator.dashboard.form import credits_in, read_form, without_blanks
from coordinator.dashboard.live import Fragment
from coordinator.dashboard.page import Site
from coordinator.movements import Wanted
from potluck.credits import rounded

LINES: Final = 25
CHART_DAYS: Final = 30
STATEMENT_S: Final = 3.0  # between two looks at what moved
_DAY_S: Final = 86_400
_FILTERS: Final = ("code", "from", "to", "job", "model", "holds")


def add_credits(site: Site, router: APIRouter) -> None:
    pages = Credits(site)
    site.live.add(Fragment("credits", pages.version, pages.show_balance))
    site.live.add(Fragment("statement", pages.version, pages.show_statement, every_s=STATEMENT_S))
    site.add(router, "GET", "/credits", pages.page)
    site.add(router, "GET", "/charts/credits", pages.chart)
    site.add(router, "POST", "/credits/send", pages.send)


class Credits:
    def __init__(self, site: Site) -> None:
        self._site, self._context = site, site.desk.context

    def version(self, caller: Caller, _argument: str) -> Hashable:
        return tuple(self._context.pool.accounts.balance(caller.member.account).values())

    async def show_balance(self, caller: Caller, _argument: str) -> str:
        balance = self._context.pool.accounts.balance(caller.member.account)
        return self._site.text("fragments/credits.html", balance=balance)

    async def show_statement(self, caller: Caller, _argument: str) -> str:
        return await self._statement(caller.member.account, Wanted(), {}, 0)

    async def page(self, request: Request, caller: Caller) -> Response:
        """Filtered, it shows what was asked for; else the newest lines, kept fresh."""
        if (tidied := without_blanks(request)) is not None:
            return tidied
        asked = {name: text for name in _FILTERS if (text := request.query_params.get(name))}
        before = integer(request, "before", 0, ENTRIES_MAX)
        filtered = ""
        if asked or before:
            filtered = await self._statement(caller.member.account, _wanted(request), asked, before)
        return await self._site.page(
            request,
            caller,
            "credits.html",
            see=("credits", *(() if filtered else ("statement",))),
            filtered=filtered,
            asked=asked,
            codes=[code.value for code in Code],
        )

    async def chart(self, request: Request, caller: Caller) -> Response:
        """What the caller gave and took by work, a column a day (UTC)."""
        del request
        now = self._context.clock.now()
        days = [rfc3339(now - _DAY_S * n)[:10] for n in range(CHART_DAYS - 1, -1, -1)]
        since = f"{days[0]}T00:00:00.000Z"
        totals = await self._context.store.totals(caller.member.account, "day", since=since, until=None)
        by_day = {total.period: total for total in totals}
        given = [total.given / 1e6 if (total := by_day.get(day)) else 0.0 for day in days]
        taken = [total.taken / 1e6 if (total := by_day.get(day)) else 0.0 for day in days]
        start = (int(now) // _DAY_S - CHART_DAYS + 1) * _DAY_S
        return Json(
            {
                "series": [{"label": "gave", "values": given}, {"label": "took", "values": taken}],
                "at": [start + _DAY_S * n for n in range(CHART_DAYS)],
            }
        )

    async def send(self, request: Request, caller: Caller) -> Response:
        """Credits to another member; the page's own key keeps a second click from sending twice."""
        desk = self._site.desk
        caller = await desk.auth.act(request)
        caller.may_give()
        fields = await read_form(request)
        amount = credits_in(fields, "amount")
        values = {"to": fields.get("to", ""), "amount": amount, "note": fields.get("note", "")}
        wanted = validated(TransferRequest, values)
        to = await desk.member_named(wanted.to, "to")
        key, now = fields.get("once") or None, self._context.clock.now()
        giving = self._context.pool.giving
        await giving.send(caller.member, to, wanted.amount, wanted.note, key=key, now=now)
        return self._site.html(
            "notice.html", {"good": f"{rounded(wanted.amount)} credits were sent to {to.name}."}
        )

    async def _statement(
        self, account: AccountId, wanted: Wanted, asked: Mapping[str, Any], before: int
    ) -> str:
        page = await self._context.store.movements(account, wanted, limit=LINES, before=before or None)
        lines = [line_body(movement, account, page.known) for movement in page.movements]
        return self._site.text("fragments/statement.html", lines=lines, more=page.has_more, asked=asked)


def _wanted(request: Request) -> Wanted:
    given = request.query_params
    code = word(request, "code", [code.value for code in Code])
    since, until = span(request)
    return Wanted(
        code=Code(code) if code else None,
        since=since,
        until=until,
        job=JobId(given["job"][:WORD_CHARS_MAX]) if "job" in given else None,
        model=given["model"][:WORD_CHARS_MAX] if "model" in given else None,
        holds="holds" in given,
    )
