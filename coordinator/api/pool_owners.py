"""Pool routes by which a worker is paused, drained and renamed from afar.

Its owner's word on the machine goes first. A frozen account keeps nobody out: a machine stays its owner's,
whatever the pool thinks of the owner.
"""

from typing import Annotated, Any, Final

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from coordinator import worker_views
from coordinator.api.answers import work
from coordinator.api.audited import audited
from coordinator.api.auth import Caller
from coordinator.api.desk import Desk
from coordinator.api.errors import ApiError, Json
from coordinator.api.pool_members import sentence
from coordinator.api.pool_workers import enrolled, managed
from coordinator.api.routing import add, new_router
from coordinator.api.schema import Schema
from coordinator.audit_log.event import Action
from coordinator.records import EnrolledWorker
from coordinator.store_errors import StoreError, StoreUnavailable, WorkerRevoked

PAUSE_S_MAX: Final = 365 * 86_400
WHY_CHARS_MAX: Final = 200


class PauseRequest(Schema):
    """For how long, in seconds (until it is taken back if left out), and why, in words."""

    for_s: Annotated[int, Field(ge=1, le=PAUSE_S_MAX)] | None = None
    why: Annotated[str, Field(max_length=WHY_CHARS_MAX)] = ""


class RenameRequest(Schema):
    name: Annotated[str, Field(min_length=1, max_length=64)]


def owners_router(desk: Desk) -> APIRouter:
    routes, router = Owners(desk), new_router("Workers")
    worker = "/pool/v1/workers/{worker_id}"
    add(router, "PATCH", worker, routes.rename, answer=work.WorkerBody, body=RenameRequest, errors=(409,))
    add(
        router,
        "POST",
        f"{worker}/pause",
        routes.pause,
        answer=work.WorkerBody,
        body=PauseRequest,
        errors=(409,),
    )
    add(router, "POST", f"{worker}/resume", routes.resume, answer=work.WorkerBody, errors=(409,))
    add(router, "POST", f"{worker}/drain", routes.drain, answer=work.WorkerBody, errors=(409,))
    return router


class Owners:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    @audited(Action.WORKER_PAUSED, "id", "name", "for_s", "why")
    async def pause(self, request: Request) -> Response:
        """Pause a worker, as its owner or an admin: what runs goes on elsewhere, the memory is free soon.

        It holds over restarts of both, until it is taken back, here or on the machine. The answer is the
        worker as in the list; one that is away hears of it when it comes.
        """
        caller, row = await self._managed(request)
        wanted = await self._desk.read(request, PauseRequest)
        pool = self._desk.context.pool
        until = None if wanted.for_s is None else pool.now() + wanted.for_s
        why = "".join(c if c.isprintable() else " " for c in wanted.why).strip()
        owner = row.member == caller.member.id
        pool.names[caller.member.id] = caller.member.name
        await pool.pauses.pause(row.id, caller.member.id, owner=owner, until=until, why=why)
        return self._shown(row)

    @audited(Action.WORKER_RESUMED, "id", "name")
    async def resume(self, request: Request) -> Response:
        """Take a pause from afar back: its owner any, an admin an admin's.

        What its owner paused on the machine stays paused until `potluck worker resume` there.
        """
        caller, row = await self._managed(request)
        await self._desk.context.pool.pauses.resume(row.id, owner=row.member == caller.member.id)
        return self._shown(row)

    @audited(Action.WORKER_DRAINED, "id", "name")
    async def drain(self, request: Request) -> Response:
        """Finish the running answers, take no new ones, then end the daemon, as its owner or an admin.

        Somebody must start it again on the machine.
        """
        caller, row = await self._managed(request)
        own = row.member == caller.member.id
        why = "its owner drains it from afar" if own else f"the admin {caller.member.name} drains it"
        if not self._desk.context.pool.pauses.drain(row.id, why):
            message = (
                f"{row.name} is not here: there is nothing to drain. A pause it would hear of when it comes."
            )
            raise ApiError(409, "worker_away", message, retry=False)
        return self._shown(row)

    @audited(Action.WORKER_RENAMED, "id", "name")
    async def rename(self, request: Request) -> Response:
        """Another name for one's own worker; a number is added where one has another of that name."""
        caller = await self._desk.auth.look(request)
        row = await enrolled(self._desk, request.path_params["worker_id"])
        if row.member != caller.member.id:
            raise ApiError(403, "not_your_worker", f"{row.name} belongs to another member, who names it.")
        wanted = await self._desk.read(request, RenameRequest)
        try:
            renamed = await self._desk.context.store.rename_worker(row.id, wanted.name)
        except WorkerRevoked as error:
            raise ApiError(409, "worker_revoked", sentence(error), retry=False) from None
        except StoreUnavailable:
            raise
        except StoreError as error:
            raise ApiError(400, "invalid_value", sentence(error), param="name") from None
        if (here := self._desk.context.pool.engine.fleet.workers.get(row.id)) is not None:
            here.name = renamed.name
        return self._shown(renamed)

    async def _managed(self, request: Request) -> tuple[Caller, EnrolledWorker]:
        """Who asks, and a worker that they may manage and that is still here. Raises ApiError."""
        caller = await self._desk.auth.look(request)
        row = await managed(self._desk, caller, request.path_params["worker_id"])
        if row.revoked_at is not None:
            raise ApiError(409, "worker_revoked", f"{row.name} was shut out of this pool.", retry=False)
        return caller, row

    def _shown(self, row: EnrolledWorker) -> Response:
        body: dict[str, Any] = worker_views.enrolled(self._desk.context.pool, row)
        return Json(body)
