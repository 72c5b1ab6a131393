"""`/v1/fine_tuning/jobs`: adapters that the pool trains, as the OpenAI API has them."""

import base64
import hashlib
from typing import Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from coordinator.api import contract
from coordinator.api.answers import finetunes
from coordinator.api.auth import Caller
from coordinator.api.desk import Desk, idempotency_key
from coordinator.api.errors import ApiError, Json
from coordinator.api.files import page
from coordinator.api.finetune_bodies import (
    checkpoint_body,
    checkpoint_id,
    event_body,
    event_number,
    job_body,
    quote_body,
)
from coordinator.api.finetune_request import FineTuningRequest
from coordinator.api.finetune_stream import EventsStream
from coordinator.api.pool_jobs import ASKER
from coordinator.api.prepare import unknown_model
from coordinator.api.query import boolean, integer, only
from coordinator.api.routing import add, new_router
from coordinator.finetunes.finetune import Finetune
from coordinator.finetunes.service import Order
from coordinator.records import Scope

LISTED, LISTED_MAX = 20, 100
EVENTS_MAX: Final = 1_000
CHECKPOINTS, CHECKPOINTS_MAX = 10, 100


def finetunes_router(desk: Desk) -> APIRouter:
    routes, router = FinetuneRoutes(desk), new_router("Fine-tuning")
    jobs, one = "/v1/fine_tuning/jobs", "/v1/fine_tuning/jobs/{finetune_id}"
    add(
        router,
        "POST",
        jobs,
        routes.create,
        answer=contract.one_of(finetunes.FinetuneBody, finetunes.FinetuneQuote),
        body=FineTuningRequest,
        repeatable=True,
        errors=(402, 404, 409),
    )
    add(
        router,
        "GET",
        jobs,
        routes.list,
        answer=contract.page_of(finetunes.FinetuneBody),
        query=(
            contract.limit(LISTED, LISTED_MAX),
            contract.text("after", "The last one of the page before."),
        ),
        errors=(404,),
    )
    add(router, "GET", one, routes.show, answer=finetunes.FinetuneBody)
    add(router, "POST", f"{one}/cancel", routes.cancel, answer=finetunes.FinetuneBody, errors=(409,))
    add(router, "POST", f"{one}/pause", routes.pause, answer=finetunes.FinetuneBody, errors=(409,))
    add(router, "POST", f"{one}/resume", routes.resume, answer=finetunes.FinetuneBody, errors=(409,))
    add(
        router,
        "GET",
        f"{one}/events",
        routes.events,
        answer=contract.page_of(finetunes.FinetuneEvent),
        media=(contract.JSON, contract.EVENTS),
        query=(
            contract.limit(LISTED, EVENTS_MAX),
            contract.text("after", "The last event of the page before; of a stream, the last one seen."),
            contract.flag("stream", "Go on until the fine-tune ends."),
        ),
    )
    add(
        router,
        "GET",
        f"{one}/checkpoints",
        routes.checkpoints,
        answer=contract.page_of(finetunes.FinetuneCheckpoint),
        query=(
            contract.limit(CHECKPOINTS, CHECKPOINTS_MAX),
            contract.text("after", "The last one of the page before."),
        ),
    )
    return router


class FinetuneRoutes:
    def __init__(self, desk: Desk) -> None:
        self._desk, self._finetunes = desk, desk.context.finetunes

    async def create(self, request: Request) -> Response:
        """Have an adapter trained on a file of examples; it becomes a model of the caller's own.

        The worst case is set aside once the files have been read. With `potluck: {"dry_run": true}` nothing
        is made: the answer says what is in the files and what it would cost.
        """
        caller = await self._desk.auth.work(request)
        key = idempotency_key(request)
        wanted = await self._desk.read(request, FineTuningRequest)
        order = self._order(wanted, caller, key)
        headers = self._desk.rates(caller)
        if wanted.options.dry_run:
            found = await self._finetunes.quote(caller.member, caller.key, order)
            return Json(quote_body(found, order.model), headers=headers)
        finetune_id = None if key is None else _id_from(caller, key)
        finetune = await self._finetunes.create(caller.member, caller.key, order, finetune_id=finetune_id)
        return self._answer(finetune, headers)

    def _order(self, wanted: FineTuningRequest, caller: Caller, key: str | None) -> Order:
        """Raises ApiError 400, 404."""
        context = self._desk.context
        entry = context.catalogue().get(wanted.model)
        if (tuned := context.tuned.get(wanted.model, caller.member.id)) is not None:
            message = f"{tuned.name} is tuned already; a fine-tune begins with a base, here {tuned.base}."
            raise ApiError(400, "model_not_trainable", message, param="model")
        if entry is None:
            raise unknown_model(context.catalogue(), wanted.model)

        def draw_seed() -> int:
            """Under an Idempotency-Key it follows from the key: a repeated request is the same request."""
            return context.draw_seed() if key is None else _seed_from(caller, key)

        try:
            return wanted.order(entry, draw_seed)
        except ValueError as error:
            message = f"potluck.sequence_tokens: {error}."
            raise ApiError(400, "invalid_value", message, param="potluck.sequence_tokens") from None

    async def list(self, request: Request) -> Response:
        """The caller's fine-tunes, newest first: `?limit&after`; `{data, has_more, ...}`."""
        caller = await self._desk.auth.look(request, *ASKER)
        only(request, ("limit", "after"))
        limit = integer(request, "limit", LISTED, LISTED_MAX)
        after = request.query_params.get("after")
        if after is not None:
            after = (await self.find(caller, after, param="after")).id
        found = await self._desk.context.store.finetunes(caller.member.id, limit=limit + 1, after=after)
        data = [self._body(self._finetunes.now(finetune)) for finetune in found[:limit]]
        return Json(page(data, has_more=len(found) > limit))

    async def show(self, request: Request) -> Response:
        """One fine-tune, as far as it is now."""
        caller = await self._desk.auth.look(request, *ASKER)
        finetune = await self.find(caller, request.path_params["finetune_id"])
        return self._answer(self._finetunes.now(finetune))

    async def cancel(self, request: Request) -> Response:
        """Cancel a fine-tune. What was trained until its last checkpoint stays paid; there is no model."""
        caller = await self._desk.auth.look(request, Scope.INFERENCE)
        finetune = await self.find(caller, request.path_params["finetune_id"])
        return self._answer(await self._finetunes.cancel(finetune, f"{caller.member.name} cancelled it"))

    async def pause(self, request: Request) -> Response:
        """Pause a fine-tune; what was trained since its last checkpoint will be trained again."""
        caller = await self._desk.auth.look(request, Scope.INFERENCE)
        finetune = await self.find(caller, request.path_params["finetune_id"])
        return self._answer(await self._finetunes.pause(finetune))

    async def resume(self, request: Request) -> Response:
        """Go on with a fine-tune that was paused."""
        caller = await self._desk.auth.look(request, Scope.INFERENCE)
        finetune = await self.find(caller, request.path_params["finetune_id"])
        return self._answer(await self._finetunes.go_on(finetune))

    async def events(self, request: Request) -> Response:
        """What happened to it, newest first: `?limit&after`. With `?stream=true` in its order, as it happens,
        from behind `after` until the fine-tune ends: server-sent events, the last one `[DONE]`.
        """
        caller = await self._desk.auth.look(request, *ASKER)
        only(request, ("limit", "after", "stream"))
        finetune = await self.find(caller, request.path_params["finetune_id"])
        limit = integer(request, "limit", LISTED, EVENTS_MAX)
        after = request.query_params.get("after")
        number = None if after is None else event_number(finetune.id, after)
        if after is not None and number is None:
            message = f"after: {finetune.id} has no event {after[:64]}."
            raise ApiError(400, "invalid_value", message, param="after")
        if boolean(request, "stream"):
            return EventsStream(finetune.id, self._finetunes.journal(finetune), number or 0)
        store = self._desk.context.store
        found = await store.finetune_events(finetune.id, limit=limit + 1, before=number)
        data = [event_body(finetune.id, event) for event in found[:limit]]
        return Json(page(data, has_more=len(found) > limit))

    async def checkpoints(self, request: Request) -> Response:
        """The adapters that are kept along the way, newest first: `?limit&after`."""
        caller = await self._desk.auth.look(request, *ASKER)
        only(request, ("limit", "after"))
        finetune = await self.find(caller, request.path_params["finetune_id"])
        limit = integer(request, "limit", CHECKPOINTS, CHECKPOINTS_MAX)
        found = list(reversed(await self._desk.context.store.finetune_checkpoints(finetune.id)))
        after = request.query_params.get("after")
        if after is not None:
            ids = [checkpoint_id(finetune.id, checkpoint.number) for checkpoint in found]
            if after not in ids:
                message = f"after: {finetune.id} has no checkpoint {after[:64]}."
                raise ApiError(400, "invalid_value", message, param="after")
            found = found[ids.index(after) + 1 :]
        data = [checkpoint_body(finetune, checkpoint) for checkpoint in found[:limit]]
        return Json(page(data, has_more=len(found) > limit))

    async def find(self, caller: Caller, finetune_id: str, param: str | None = None) -> Finetune:
        """Others' fine-tunes look as if they were not there."""
        finetune = await self._desk.context.store.finetune(finetune_id[:64])
        if finetune is None or (finetune.member != caller.member.id and not caller.admin):
            message = f"You have no fine-tune {finetune_id[:64]}."
            raise ApiError(404, "finetune_not_found", message, param=param)
        return finetune

    def _body(self, finetune: Finetune) -> dict[str, object]:
        organization = self._desk.context.settings.pool_name
        return job_body(finetune, self._finetunes.progress(finetune), organization)

    def _answer(self, finetune: Finetune, headers: dict[str, str] | None = None) -> Response:
        return Json(self._body(finetune), headers=headers)


def _id_from(caller: Caller, key: str) -> str:
    return f"ftjob-{base64.b32hexencode(_digest(caller, key)[:15]).decode().lower()}"


def _seed_from(caller: Caller, key: str) -> int:
    return int.from_bytes(_digest(caller, key)[15:22])


def _digest(caller: Caller, key: str) -> bytes:
    return hashlib.sha256(f"{caller.member.id}\nfinetune\n{key}".encode()).digest()
