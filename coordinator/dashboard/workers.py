"""All workers, and the caller's own."""

from collections.abc import Hashable
from typing import Any, Final
from urllib.parse import quote, unquote

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from coordinator import worker_views
from coordinator.api.auth import Caller
from coordinator.core.fleet import Worker
from coordinator.dashboard.form import without_blanks
from coordinator.dashboard.live import Fragment, everybody
from coordinator.dashboard.machines import add_words
from coordinator.dashboard.page import Site

LISTED_MAX: Final = 100
FIND_CHARS_MAX: Final = 40
_ORDER: Final = ("sharing", "draining", "paused")  # then whoever is away


def add_workers(site: Site, router: APIRouter) -> None:
    pages = Workers(site)
    add_words(site.templates)
    site.live.add(Fragment("my-workers", pages.version_of_mine, pages.show_mine))
    site.live.add(Fragment("workers", pages.version_of_all, pages.show_all, whose=everybody))
    site.add(router, "GET", "/workers", pages.page)


class Workers:
    def __init__(self, site: Site) -> None:
        self._site, self._pool = site, site.desk.context.pool
        self._at, self._found = 0, dict[str, tuple[list[Worker], Hashable]]()

    async def page(self, request: Request, caller: Caller) -> Response:
        """`?find=WORD` shows those whose name, member or model holds it."""
        if (tidied := without_blanks(request)) is not None:
            return tidied
        find = request.query_params.get("find", "").strip()[:FIND_CHARS_MAX]
        word = quote(find, safe="")
        argument = f"workers:{word}" if word else "workers"
        return await self._site.page(request, caller, "workers.html", see=("my-workers", argument), find=find)

    def version_of_mine(self, caller: Caller, _argument: str) -> Hashable:
        return tuple((_version(w), self._pool.pauses.of(w.id)) for w in self._mine(caller))

    async def show_mine(self, caller: Caller, _argument: str) -> str:
        mine = [worker_views.worker(self._pool, w) for w in self._mine(caller)]
        return self._site.text("fragments/my-workers.html", workers=mine)

    def version_of_all(self, _caller: Caller, argument: str) -> Hashable:
        return self._matching(argument)[1]

    async def show_all(self, _caller: Caller, argument: str) -> str:
        found = self._matching(argument)[0]
        shown: list[dict[str, Any]] = [worker_views.worker(self._pool, w) for w in found[:LISTED_MAX]]
        return self._site.text(
            "fragments/workers.html", workers=shown, more=len(found) - len(shown), find=unquote(argument)
        )

    def _mine(self, caller: Caller) -> list[Worker]:
        own = self._pool.engine.fleet.by_account.get(caller.member.account, {})
        return sorted(map(self._pool.engine.fleet.workers.__getitem__, own), key=lambda w: w.name)

    def _matching(self, argument: str) -> tuple[list[Worker], Hashable]:
        """Read once a second, however many pages are open."""
        if (second := int(self._pool.now())) != self._at:
            self._at, self._found = second, {}
        known = self._found.get(argument)
        if known is None:
            word = unquote(argument).casefold()
            found = [w for w in self._pool.engine.fleet.workers.values() if not word or self._fits(w, word)]
            found.sort(key=_place)
            known = (found, (len(found), tuple(_version(w) for w in found[:LISTED_MAX])))
            self._found[argument] = known
        return known

    def _fits(self, worker: Worker, word: str) -> bool:
        words = (worker.name, self._pool.names.get(worker.member, ""), *worker.models)
        return any(word in text.casefold() for text in words)


def _place(worker: Worker) -> tuple[int, str, str]:
    state = worker.state if worker.connected else "away"
    return (_ORDER.index(state) if state in _ORDER else len(_ORDER), worker.name.casefold(), worker.id)


def _version(worker: Worker) -> Hashable:
    """Of what the lists show."""
    return (
        worker.id,
        worker.name,
        worker.connected,
        worker.draining,
        worker.state,
        worker.why,
        worker.next_change,
        len(worker.running),
        round(worker.reliability, 3),
        worker.successes,
        tuple(
            (s.name, s.state, s.why, round(s.decode), s.bytes_done * 100 // (s.bytes_total or 1))
            for s in worker.models.values()
        ),
    )
