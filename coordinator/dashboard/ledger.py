"""The ledger as anybody may look at it: entries in their chain, signed heads, and how to check all of it."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Final

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from coordinator.api.address import http_address
from coordinator.api.auth import Caller
from coordinator.api.pool_ledger import ENTRIES_MAX, Ledger, newest_entries
from coordinator.api.query import integer
from coordinator.core.jobs import AccountId
from coordinator.core.ledger import COMMONS, LINES
from coordinator.dashboard.asking import add_form
from coordinator.dashboard.live import Fragment
from coordinator.dashboard.page import Site
from potluck.chain import GENESIS

SHOWN: Final = 25
EVERY_S: Final = 3.0
HEADS_SHOWN: Final = 8
_NAMES: Final = {COMMONS: "the commons", LINES: "the pool's lines"}


def add_ledger(site: Site, router: APIRouter) -> None:
    pages = LedgerPages(site)
    site.live.add(Fragment("ledger", pages.version, pages.show, every_s=EVERY_S))
    site.live.add(Fragment("entries", pages.version, pages.show_entries, every_s=EVERY_S))
    site.add(router, "GET", "/ledger", pages.page)
    add_form(site, router, "/ledger/head", Ledger(site.desk).head, pages.signed)


class LedgerPages:
    def __init__(self, site: Site) -> None:
        self._site, self._context = site, site.desk.context
        self._signed = 0  # heads, since the coordinator started

    def version(self, _caller: Caller, _argument: str) -> Hashable:
        pool = self._context.pool
        return pool.ticker.chain.number, pool.ticker.receipts.number, self._signed

    async def page(self, request: Request, caller: Caller) -> Response:
        before = integer(request, "before", 0, ENTRIES_MAX) or None
        older = "" if before is None else await self._entries(caller.member.account, before)
        return await self._site.page(
            request,
            caller,
            "ledger.html",
            see=("ledger", *(() if older else ("entries",))),
            older=older,
            address=http_address(request, self._context.settings),
            public_key=self._context.ca.public_key.hex(),
        )

    async def show(self, _caller: Caller, _argument: str) -> str:
        return self._site.text(
            "fragments/ledger.html",
            total=self._context.pool.engine.book.total(),
            ends=await self._context.store.ends(),
            heads=await self._context.store.newest_heads(HEADS_SHOWN),
        )

    async def show_entries(self, caller: Caller, _argument: str) -> str:
        return await self._entries(caller.member.account, None)

    async def _entries(self, account: AccountId, before: int | None) -> str:
        """One more than is shown, so that the last one's link to the one before can be looked at, too."""
        found = await newest_entries(self._context.store, account, SHOWN + 1, before)
        links = followed(found)
        for entry in found:
            entry["linked"] = entry["number"] in links
            entry["said"] = orjson.loads(entry.get("details", "{}"))
        names = {**_NAMES, account: "you"}
        return self._site.text(
            "fragments/entries.html", entries=found[:SHOWN], names=names, more=len(found) > SHOWN
        )

    def signed(self, _request: Request, head: Any) -> str:
        self._signed += 1
        return f"The head at entry {head['number']} is signed: {head['hash'][:16]}…"


def followed(entries: Sequence[Mapping[str, Any]]) -> set[int]:
    """The numbers of those that carry the hash of the one before, or of nothing where they are the first."""
    hashes = {0: GENESIS, **{entry["number"]: entry["hash"] for entry in entries}}
    return {entry["number"] for entry in entries if hashes.get(entry["number"] - 1) == entry["previous"]}
