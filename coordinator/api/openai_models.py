"""`GET /v1/models` and `GET /v1/models/{model}`."""

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from coordinator.api.answers import models
from coordinator.api.auth import ANY_SCOPE, Caller
from coordinator.api.context import Context
from coordinator.api.desk import Desk
from coordinator.api.errors import Json
from coordinator.api.pool_models import tuned_body
from coordinator.api.prepare import unknown_model
from coordinator.api.routing import add, new_router
from coordinator.api.running import refused
from coordinator.bounds import check_model
from coordinator.refusal import Refusal
from coordinator.tuned.model import TunedModel
from potluck.catalogue import ModelEntry

OWNER = "potluck"


def openai_models_router(desk: Desk) -> APIRouter:
    routes, router = OpenAiModels(desk), new_router("Models")
    add(router, "GET", "/v1/models", routes.list, answer=models.ModelList)
    add(router, "GET", "/v1/models/{model:path}", routes.show, answer=models.ModelBody)
    return router


class OpenAiModels:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def list(self, request: Request) -> Response:
        """Every model that the key may ask, also those that were tuned for the caller or are shared; whether
        a worker serves it now is at /pool/v1/models.
        """
        caller = await self._desk.auth.look(request, *ANY_SCOPE)
        return Json({"object": "list", "data": asked_by(self._desk.context, caller)})

    async def show(self, request: Request) -> Response:
        """One model, by its name or an alias."""
        caller = await self._desk.auth.look(request, *ANY_SCOPE)
        catalogue = self._desk.context.catalogue()
        name = request.path_params["model"]
        tuned = self._desk.context.tuned.get(name, caller.member.id)
        entry = catalogue.get(name if tuned is None else tuned.base)
        if entry is None:
            raise unknown_model(catalogue, name)
        try:
            check_model(caller.key, entry.name if tuned is None else tuned.name, entry.name)
        except Refusal as refusal:
            raise refused(refusal) from None
        return Json(_body(entry) if tuned is None else _tuned(self._desk.context, tuned))


def asked_by(context: Context, caller: Caller) -> list[dict[str, Any]]:
    """Every model that the caller's key may ask: the catalogue's, then those that were tuned."""
    allowed = caller.key.models
    entries = [e for e in context.catalogue().entries if not allowed or e.name in allowed]
    tuned = context.tuned.seen_by(caller.member.id)
    own = [m for m in tuned if not allowed or m.name in allowed or m.base in allowed]
    return [*map(_body, entries), *(body for m in own if (body := _tuned(context, m)) is not None)]


def _tuned(context: Context, model: TunedModel) -> dict[str, Any] | None:
    """None if its base is no longer in the catalogue: nobody can serve it."""
    if (entry := context.catalogue().get(model.base)) is None:
        return None
    owner = context.pool.names.get(model.member, model.member)
    return tuned_body(model, owner, list(entry.kinds), entry.context_tokens)


def _body(entry: ModelEntry) -> dict[str, Any]:
    """`created` is unknown: a catalogue names files by their digests, not by their age."""
    return {
        "id": entry.name,
        "object": "model",
        "created": 0,
        "owned_by": OWNER,
        "potluck": {
            "aliases": list(entry.aliases),
            "kinds": list(entry.kinds),
            "context_tokens": entry.context_tokens,
            "licence": entry.licence,
        },
    }
