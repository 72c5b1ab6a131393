"""Pool routes about the ledger as a whole: its signed head, and all of it for whoever wants to check it."""

from collections.abc import AsyncIterator, Callable
from typing import Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from coordinator.api.desk import Desk
from coordinator.api.errors import ApiError, Json
from coordinator.api.limits import Gauge
from coordinator.api.routing import add, new_router
from coordinator.exports import exported, head_line
from coordinator.heads import Heads
from coordinator.store_errors import StoreError

EXPORTS_MAX: Final = 2  # at once, of one member
RETRY_AFTER_S: Final = 5.0


def ledger_router(desk: Desk) -> APIRouter:
    routes, router = Ledger(desk), new_router("pool")
    add(router, "GET", "/pool/v1/ledger/head", routes.head)
    add(router, "GET", "/pool/v1/ledger/export", routes.export)
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
