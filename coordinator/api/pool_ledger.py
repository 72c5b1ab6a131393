"""Pool routes about the ledger as a whole: its signed head, and all of it for whoever wants to check it."""

from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from coordinator.api import contract
from coordinator.api.answers import work
from coordinator.api.desk import Desk
from coordinator.api.errors import ApiError, Json
from coordinator.api.limits import Gauge
from coordinator.api.query import integer, only
from coordinator.api.routing import add, new_router
from coordinator.core.jobs import AccountId
from coordinator.exports import entry_line, exported, head_line
from coordinator.heads import Heads
from coordinator.proofs import PAGE_RECORDS
from coordinator.store import Store
from coordinator.store_errors import StoreError

LISTED: Final = 50
ENTRIES_MAX: Final = 2**29
EXPORTS_MAX: Final = 2  # at once, of one member
RETRY_AFTER_S: Final = 5.0


def ledger_router(desk: Desk) -> APIRouter:
    routes, router = Ledger(desk), new_router("Ledger")
    add(router, "GET", "/pool/v1/ledger/head", routes.head, answer=work.NewestHead)
    add(
        router,
        "GET",
        "/pool/v1/ledger/heads",
        routes.heads,
        answer=contract.list_of(work.HeadLine),
        query=(contract.limit(LISTED, PAGE_RECORDS),),
    )
    add(
        router,
        "GET",
        "/pool/v1/ledger/entries",
        routes.entries,
        answer=contract.list_of(work.EntryLine, has_more=contract.YES_NO),
        query=(
            contract.limit(LISTED, PAGE_RECORDS),
            contract.number("before", ENTRIES_MAX, "The last number of the page before."),
        ),
    )
    add(router, "GET", "/pool/v1/ledger/export", routes.export, media=("application/jsonl",))
    return router


class Ledger:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._open = Gauge()

    @property
    def _heads(self) -> Heads:
        return self._desk.context.heads

    async def head(self, request: Request) -> Response:
        """The signed ends of the ledger and of the receipts as they are now, to be kept and compared."""
        await self._desk.auth.look(request)
        try:
            head = await self._heads.newest()
        except StoreError as error:
            message = f"The pool cannot sign its books just now: {error}"
            raise ApiError(503, "storage_unavailable", message, retry_after_s=RETRY_AFTER_S) from None
        context = self._desk.context
        named = {"pool": context.settings.pool_name, "public_key": context.ca.public_key.hex()}
        return Json(named | head_line(head))

    async def heads(self, request: Request) -> Response:
        """The heads that were signed so far, newest first: `{data: [{number, hash, at, reason, ...}]}`."""
        await self._desk.auth.look(request)
        only(request, ("limit",))
        limit = integer(request, "limit", LISTED, PAGE_RECORDS)
        found = await self._desk.context.store.newest_heads(limit)
        return Json({"data": [head_line(head) for head in found]})

    async def entries(self, request: Request) -> Response:
        """Entries, newest first: `{data: [{number, at, id, code, postings, previous, hash, ...}], has_more}`.

        As in the export: others' accounts are pseudonyms, and `details` stand where they concern the caller.
        `?limit&before`: a number.
        """
        caller = await self._desk.auth.look(request)
        only(request, ("limit", "before"))
        limit = integer(request, "limit", LISTED, PAGE_RECORDS)
        before = integer(request, "before", 0, ENTRIES_MAX) or None
        data = await newest_entries(self._desk.context.store, caller.member.account, limit, before)
        return Json({"data": data, "has_more": bool(data) and data[-1]["number"] > 1})

    async def export(self, request: Request) -> Response:
        """The whole ledger as JSON lines: workers' receipt keys, entries, receipts, signed heads.

        Others' accounts are pseudonyms and their details digests. `potluck ledger verify` checks it offline.
        """
        caller = await self._desk.auth.look(request)
        member, context = caller.member.id, self._desk.context
        if not self._open.fits(member, EXPORTS_MAX):
            message = f"{caller.member.name} has {EXPORTS_MAX} exports under way. Wait for one to end."
            raise ApiError(429, "too_many_exports", message, retry_after_s=RETRY_AFTER_S)
        self._open.take(member)
        pages = exported(
            context.store,
            self._heads,
            pool=context.settings.pool_name,
            public_key=context.ca.public_key,
            account=caller.member.account,
        )
        return _Download(pages, lambda: self._open.give(member))


async def newest_entries(
    store: Store, account: AccountId, limit: int, before: int | None
) -> list[dict[str, Any]]:
    """As this account may see them, newest first."""
    until = (await store.ends()).number
    until = until if before is None else min(until, before - 1)
    page = await store.entries_page(max(0, until - limit), until) if until > 0 else []
    return [entry_line(row, postings, account) for row, postings in reversed(page)]


class _Download(StreamingResponse):
    """Calls `ended` once, however it ends."""

    def __init__(self, pages: AsyncIterator[bytes], ended: Callable[[], None]) -> None:
        super().__init__(pages, media_type="application/jsonl")
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ended()
