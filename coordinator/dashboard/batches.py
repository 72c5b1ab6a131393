"""A batch as it runs: how many lines are done, what failed and why, its files."""

from collections.abc import Hashable
from typing import Any, Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from coordinator.api.auth import Caller
from coordinator.api.batches import BatchRoutes
from coordinator.api.errors import ApiError
from coordinator.api.shapes import batch_body
from coordinator.dashboard.asking import ask
from coordinator.dashboard.live import Fragment
from coordinator.dashboard.page import Site
from coordinator.dashboard.parts import Parts
from coordinator.records import Scope

LOG_S: Final = 3.0


def add_batches(site: Site, router: APIRouter) -> "BatchPages":
    pages = BatchPages(site)
    site.live.add(Fragment("batch", pages.version, pages.show))
    site.live.add(Fragment("batch-log", pages.version, pages.show_log, every_s=LOG_S))
    site.add(router, "POST", "/batches/{batch_id}/cancel", pages.cancel, scopes=(Scope.INFERENCE,))
    return pages


class BatchPages:
    def __init__(self, site: Site) -> None:
        self._site, self._context = site, site.desk.context
        self._batches, self._routes, self._parts = (
            self._context.batches,
            BatchRoutes(site.desk),
            Parts(site),
        )

    async def page(self, request: Request, caller: Caller, batch_id: str) -> Response:
        batch = await self._routes.find(caller, batch_id)
        see = (f"batch:{batch.id}", f"batch-log:{batch.id}")
        return await self._site.page(request, caller, "batch.html", see=see, batch=batch)

    def version(self, caller: Caller, batch_id: str) -> Hashable:
        """Of one that is open; of others nothing moves."""
        run = self._batches.runs.get(batch_id)
        if run is None or not (caller.admin or run.batch.member == caller.member.id):
            return None
        return run.batch.state, run.tally.completed, run.tally.failed

    async def show(self, caller: Caller, batch_id: str) -> str:
        try:
            batch = self._batches.now(await self._routes.find(caller, batch_id))
        except ApiError:
            return ""
        body = batch_body(batch)
        whole = self._context.pool.engine.wholes.get(batch.job)
        job = whole.job if whole is not None else await self._context.store.job(batch.job)
        counts = body["request_counts"]
        values: dict[str, Any] = {
            "done": counts["completed"] + counts["failed"],
            "cost": 0 if job is None else job.charge if job.charge is not None else job.settled,
            "quote": 0 if job is None else job.quote,
            "own": batch.member == caller.member.id,
            "open": not batch.ended,
        }
        return self._site.text("fragments/batch.html", batch=body, **values)

    async def show_log(self, caller: Caller, batch_id: str) -> str:
        try:
            batch = await self._routes.find(caller, batch_id)
        except ApiError:
            return ""
        return self._site.text("fragments/whole-log.html", **await self._parts.of(caller, batch.job))

    async def cancel(self, request: Request, _caller: Caller) -> Response:
        await ask(self._routes.cancel, request)
        said = "It was cancelled. Answers that are there stay; what was under way is paid as far as it came."
        return self._site.html("notice.html", {"good": said})
