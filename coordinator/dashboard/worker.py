"""All about one worker."""

from collections.abc import Hashable
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from coordinator.api.auth import Caller
from coordinator.api.errors import Json
from coordinator.api.pool_workers import about, attempts_of, days_of, enrolled, manages
from coordinator.core.jobs import WorkerId
from coordinator.dashboard.live import Fragment, everybody
from coordinator.dashboard.page import Site
from coordinator.worker_history import DAY_S

ATTEMPTS_S = 3.0  # between two looks at what it did


def add_worker(site: Site, router: APIRouter) -> None:
    pages = WorkerPage(site)
    site.live.add(Fragment("worker", pages.version, pages.show, whose=everybody))
    site.live.add(Fragment("worker-attempts", pages.version_of_attempts, pages.attempts, every_s=ATTEMPTS_S))
    site.add(router, "GET", "/workers/{worker_id}", pages.page)
    site.add(router, "GET", "/charts/workers/{worker_id}", pages.chart)


class WorkerPage:
    def __init__(self, site: Site) -> None:
        self._site, self._desk = site, site.desk
        self._pool = site.desk.context.pool

    async def page(self, request: Request, caller: Caller) -> Response:
        row = await enrolled(self._desk, request.path_params["worker_id"])
        mine = manages(caller, row)
        more = (f"worker-actions:{row.id}", f"worker-attempts:{row.id}") if mine else ()
        see = (f"worker:{row.id}", *more)
        return await self._site.page(request, caller, "worker.html", see=see, row=row, manages=mine)

    def version(self, _caller: Caller, worker_id: str) -> Hashable:
        worker = self._pool.engine.fleet.workers.get(WorkerId(worker_id))
        if worker is None:
            return None
        load = self._pool.loads.get(worker.id)
        return (
            (worker.name, worker.connected, worker.draining, worker.state, worker.why, worker.next_change),
            (len(worker.running), worker.successes, worker.faults, worker.standing.good_jobs),
            (worker.standing.proven_at, worker.standing.held),
            tuple(worker.models.values()),
            b"" if load is None else load.SerializeToString(deterministic=True),
        )

    async def show(self, _caller: Caller, worker_id: str) -> str:
        body = about(self._desk, await enrolled(self._desk, worker_id))
        return self._site.text("fragments/worker.html", worker=body, cards=_cards(body))

    def version_of_attempts(self, _caller: Caller, worker_id: str) -> Hashable:
        worker = self._pool.engine.fleet.workers.get(WorkerId(worker_id))
        return None if worker is None else (worker.successes, worker.faults, frozenset(worker.running))

    async def attempts(self, caller: Caller, worker_id: str) -> str:
        """What it tried lately, for its owner and admins; nothing for others, who may ask for it by hand."""
        row = await enrolled(self._desk, worker_id)
        tried = await attempts_of(self._desk, row.id) if manages(caller, row) else []
        return self._site.text("fragments/worker-attempts.html", attempts=tried, caller=caller)

    async def chart(self, request: Request, _caller: Caller) -> Response:
        """What it earned, a column a day (UTC)."""
        row = await enrolled(self._desk, request.path_params["worker_id"])
        days = await days_of(self._desk, row.id)
        first = int(self._desk.context.clock.now()) // DAY_S - len(days) + 1
        return Json(
            {
                "series": [{"label": "earned", "values": [day["earned"] / 1e6 for day in days]}],
                "at": [(first + n) * DAY_S for n in range(len(days))],
            }
        )


def _cards(body: dict[str, Any]) -> list[dict[str, Any]]:
    """Each card with its load, where the worker tells it; they stand in one order."""
    cards = body["hardware"]["gpus"] if body["hardware"] else []
    loads = body["load"]["gpus"] if body["load"] else []
    return [card | {"load": loads[n] if n < len(loads) else None} for n, card in enumerate(cards)]
