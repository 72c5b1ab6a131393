"""Enrol a worker: a token, the commands to paste, and what is seen of the machine that runs them."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from coordinator import worker_views
from coordinator.api.auth import Caller
from coordinator.api.pool_enrolment import EnrolmentRoutes, join_token
from coordinator.dashboard.asking import Fields, add_form
from coordinator.dashboard.form import filled, whole_in
from coordinator.dashboard.live import Fragment
from coordinator.dashboard.page import Site
from coordinator.records import EnrolledWorker

GOOD_FOR: Final = {3_600: "an hour", 86_400: "a day", 7 * 86_400: "a week", 30 * 86_400: "30 days"}
USES_SHOWN_MAX: Final = 100


def add_enrolling(site: Site, router: APIRouter) -> None:
    pages = Enrolling(site)
    site.live.add(Fragment("enrolment", pages.version, pages.show))
    site.add(router, "GET", "/workers/enrol", pages.page)
    routes = EnrolmentRoutes(site.desk)
    add_form(site, router, "/workers/enrol", routes.create_join_token, pages.made, wanted)


class Enrolling:
    def __init__(self, site: Site) -> None:
        self._site, self._desk = site, site.desk
        self._pool = site.desk.context.pool

    async def page(self, request: Request, caller: Caller) -> Response:
        return await self._site.page(
            request, caller, "enrol.html", good_for=GOOD_FOR, uses_max=USES_SHOWN_MAX
        )

    def made(self, _request: Request, answer: Any) -> Response:
        """The token is in this answer only: a page that is loaded again makes another."""
        now = self._now([], left=answer["uses"], expires_at=answer["expires_at"])
        return self._site.html("fragments/commands.html", {"made": answer, "now": now})

    def version(self, caller: Caller, _token: str) -> Hashable:
        """The hour is part of it: a token that nobody used is over at some time."""
        fleet = self._pool.engine.fleet
        mine = [fleet.workers[worker] for worker in fleet.by_account.get(caller.member.account, {})]
        models = tuple(
            (
                w.id,
                w.connected,
                w.state,
                w.why,
                tuple((s.name, s.state, s.bytes_done) for s in w.models.values()),
            )
            for w in mine
        )
        return (int(self._desk.context.clock.now()) // 5, models)

    async def show(self, caller: Caller, token: str) -> str:
        row, enrolled = await join_token(self._desk, caller, token)
        return self._now(enrolled, left=row.uses_max - row.uses, expires_at=row.expires_at)

    def _now(self, enrolled: Sequence[EnrolledWorker], *, left: int, expires_at: float | str) -> str:
        now = self._desk.context.clock.now()
        return self._site.text(
            "fragments/enrolment.html",
            workers=[worker_views.enrolled(self._pool, worker) for worker in enrolled],
            left=left,
            expired=not isinstance(expires_at, str) and expires_at <= now,
            expires_at=expires_at,
        )


def wanted(fields: Fields) -> Mapping[str, Any]:
    return filled(fields, uses=whole_in, expires_s=whole_in)
