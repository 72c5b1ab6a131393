"""Pool routes about workers: list, show, vouch for, revoke."""

from typing import Any, Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from coordinator import worker_views
from coordinator.api import contract
from coordinator.api.answers import work
from coordinator.api.audited import audited
from coordinator.api.auth import Caller
from coordinator.api.desk import Desk
from coordinator.api.errors import ApiError, Json
from coordinator.api.routing import add, new_router
from coordinator.api.shapes import when
from coordinator.audit_log.event import Action
from coordinator.core.jobs import WorkerId
from coordinator.records import EnrolledWorker
from coordinator.worker_history import DAY_S, Tried

DAYS_SHOWN: Final = 30
TRIED_SHOWN: Final = 20


def workers_router(desk: Desk) -> APIRouter:
    routes, router = Workers(desk), new_router("Workers")
    add(router, "GET", "/pool/v1/workers", routes.list, answer=contract.many(work.WorkerBody))
    add(router, "GET", "/pool/v1/workers/{worker_id}", routes.show, answer=work.OneWorker)
    add(router, "DELETE", "/pool/v1/workers/{worker_id}", routes.revoke, answer=work.RevokedWorker)
    add(router, "POST", "/pool/v1/workers/{worker_id}/vouch", routes.vouch, answer=work.Vouched)
    return router


class Workers:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def list(self, request: Request) -> Response:
        """All workers: `[{id, name, member, state, why, models, engines, hardware, load, speed, ...}]`.

        `earned` is all that it ever earned; `reliability` the share of attempts without a fault of its own.
        """
        await self._desk.auth.look(request)
        return Json(worker_views.workers(self._desk.context.pool))

    async def show(self, request: Request) -> Response:
        """One worker, as in the list, with `enrolled_at`, `revoked_at`, `certificate_until`, and `days`: what
        it earned on each of the last 30. Its owner and admins also see `attempts`, the newest first.
        """
        caller = await self._desk.auth.look(request)
        row = await enrolled(self._desk, request.path_params["worker_id"])
        body = about(self._desk, row) | {"days": await days_of(self._desk, row.id)}
        if manages(caller, row):
            body["attempts"] = await attempts_of(self._desk, row.id)
        return Json(body)

    @audited(Action.WORKER_TRUSTED, "id", "released")
    async def vouch(self, request: Request) -> Response:
        """Trust a worker without further proof; its held earnings are free: `{id, released}`. For admins.

        Also one that has left, for what it earned until then.
        """
        context = self._desk.context
        caller = await self._desk.auth.admin(request)
        fleet = context.pool.engine.fleet
        worker_id = WorkerId(request.path_params["worker_id"][:64])
        worker = fleet.workers.get(worker_id) or fleet.departed.get(worker_id)
        if worker is None:
            raise ApiError(404, "worker_not_found", f"There is no worker {worker_id} that could be trusted.")
        context.pool.accounts.check_open()
        released = worker.standing.held
        context.pool.engine.prove(worker_id, context.clock.now(), f"{caller.member.name} vouches for it")
        await context.pool.ticker.committed()
        return Json({"id": worker_id, "released": released})

    @audited(Action.WORKER_REVOKED, "id", "name")
    async def revoke(self, request: Request) -> Response:
        """Shut a worker out for good, as its owner or an admin: its stream closes, its jobs go elsewhere."""
        context = self._desk.context
        caller = await self._desk.auth.look(request)
        worker = await managed(self._desk, caller, request.path_params["worker_id"])
        request.state.unchanged = worker.revoked_at is not None
        revoked = await context.store.revoke_worker(worker.id, context.clock.now())
        context.pool.expel(worker.id)
        return Json({"id": revoked.id, "name": revoked.name, "revoked_at": when(revoked.revoked_at)})


async def enrolled(desk: Desk, worker_id: str) -> EnrolledWorker:
    """A worker of this pool, also one that was revoked. Raises ApiError 404."""
    worker = await desk.context.store.worker(WorkerId(worker_id[:64]))
    if worker is None:
        raise ApiError(404, "worker_not_found", f"This pool has no worker {worker_id[:64]}.")
    return worker


async def managed(desk: Desk, caller: Caller, worker_id: str) -> EnrolledWorker:
    """A worker that the caller may manage. Raises ApiError 403 or 404."""
    worker = await enrolled(desk, worker_id)
    if not manages(caller, worker):
        message = f"{worker.name} belongs to another member; this is for its owner or an admin."
        raise ApiError(403, "not_your_worker", message)
    return worker


def manages(caller: Caller, row: EnrolledWorker) -> bool:
    """Its owner, or an admin."""
    return row.member == caller.member.id or caller.admin


def about(desk: Desk, row: EnrolledWorker) -> dict[str, Any]:
    """A worker as in the list, and what only its enrolment says."""
    return worker_views.enrolled(desk.context.pool, row) | {
        "enrolled_at": when(row.created_at),
        "revoked_at": when(row.revoked_at),
        "certificate_until": when(row.certificate_until),
    }


async def days_of(desk: Desk, worker: WorkerId) -> list[dict[str, Any]]:
    """What it earned on each of the last days (UTC), the oldest first."""
    today = int(desk.context.clock.now()) // DAY_S
    first = today - DAYS_SHOWN + 1
    earned = await desk.context.store.earned_by_day(worker, first * DAY_S)
    return [
        {"day": (when(day * DAY_S) or "")[:10], "earned": earned.get(day, 0)}
        for day in range(first, today + 1)
    ]


async def attempts_of(desk: Desk, worker: WorkerId) -> list[dict[str, Any]]:
    """What it tried lately, the newest first; for whom is its owner's and the admins' to know."""
    return [_tried_body(one) for one in await desk.context.store.tried(worker, TRIED_SHOWN)]


def _tried_body(tried: Tried) -> dict[str, Any]:
    attempt = tried.attempt
    return {
        "job": tried.job,
        "number": attempt.number,
        "kind": tried.kind.value,
        "model": tried.model,
        "member": tried.member,
        "state": attempt.state.value,
        "why": attempt.why,
        "assigned_at": when(attempt.assigned_at),
        "ended_at": when(attempt.ended_at),
        "tokens": attempt.tokens,
        "paid": attempt.paid,
        "held": attempt.held,
    }
