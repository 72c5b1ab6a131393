"""Tuned models' own routes: their files to be taken along, and who may ask them."""

from typing import Any, Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from coordinator.api import contract
from coordinator.api.answers import models, work
from coordinator.api.audited import audited
from coordinator.api.auth import ANY_SCOPE, Caller
from coordinator.api.desk import Desk
from coordinator.api.errors import ApiError, Json
from coordinator.api.prepare import unknown_model
from coordinator.api.routing import add, new_router
from coordinator.api.schema import Schema
from coordinator.artifacts import NoSuchArtifact
from coordinator.audit_log.event import Action
from coordinator.records import Scope
from coordinator.tuned.model import CARD_NAME, Kept, TunedModel

MARKDOWN: Final = "text/markdown"


class ShareRequest(Schema):
    """Whether every member of the pool may ask it, and see its files."""

    shared: bool


def tuned_router(desk: Desk) -> APIRouter:
    routes, router = TunedRoutes(desk), new_router("Models")
    add(
        router,
        "GET",
        "/pool/v1/models/{model}/files",
        routes.files,
        answer=contract.many(work.KeptFile),
        errors=(400,),
    )
    add(
        router,
        "GET",
        "/pool/v1/models/{model}/files/{file}",
        routes.file,
        media=(contract.BYTES, MARKDOWN),
        ranges=True,
    )
    add(router, "POST", "/pool/v1/models/{model}/share", routes.share, answer=work.Shared, body=ShareRequest)
    add(router, "DELETE", "/v1/models/{model:path}", routes.delete, answer=models.Deleted, errors=(400, 409))
    return router


class TunedRoutes:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def files(self, request: Request) -> Response:
        """What a tuned model consists of, as peft reads it: `[{name, bytes, sha256}]`."""
        caller = await self._desk.auth.look(request, *ANY_SCOPE)
        model = self._find(request, caller)
        return Json([{"name": one.name, "bytes": one.bytes, "sha256": one.sha256} for one in model.files])

    async def file(self, request: Request) -> Response:
        """One of these files; a part of it by `Range` (RFC 9110)."""
        caller = await self._desk.auth.look(request, *ANY_SCOPE)
        model, name = self._find(request, caller), request.path_params["file"]
        kept = next((one for one in model.files if one.name == name), None)
        if kept is None:
            names = ", ".join(one.name for one in model.files)
            raise ApiError(404, "file_not_found", f"{model.name} has no file {name[:64]}; it has {names}.")
        return self._content(kept)

    def _content(self, kept: Kept) -> Response:
        try:
            path = self._desk.context.pool.training_store.path(kept.sha256)
        except NoSuchArtifact:
            raise ApiError(404, "file_not_found", f"The file {kept.name} was deleted.") from None
        kind = f"{MARKDOWN}; charset=utf-8" if kept.name == CARD_NAME else contract.BYTES
        headers = {"etag": f'"{kept.sha256}"'}
        return FileResponse(path, media_type=kind, filename=kept.name, headers=headers)

    @audited(Action.MODEL_SHARED, "name", "shared")
    async def share(self, request: Request) -> Response:
        """Let the whole pool ask a tuned model of the caller's, or nobody else any more: `{name, shared}`."""
        caller = await self._desk.auth.look(request, Scope.ACCOUNT)
        wanted = await self._desk.read(request, ShareRequest)
        model = self._own(request, caller)
        model = await self._desk.context.tuned.share(model, shared=wanted.shared)
        return Json({"name": model.name, "shared": model.shared})

    @audited(Action.MODEL_DELETED, "id")
    async def delete(self, request: Request) -> Response:
        """Delete a tuned model of the caller's, unless something open asks it: `{id, object, deleted}`."""
        caller = await self._desk.auth.look(request, Scope.INFERENCE)
        model = self._own(request, caller)
        await self._desk.context.tuned.delete(model)
        return Json({"id": model.name, "object": "model", "deleted": True})

    def _find(self, request: Request, caller: Caller) -> TunedModel:
        """Others' private ones look as if they were not there."""
        name = request.path_params["model"]
        model = self._desk.context.tuned.get(name, caller.member.id)
        if model is not None:
            return model
        catalogue = self._desk.context.catalogue()
        if catalogue.get(name) is not None:
            message = f"{name[:160]} is a base of the pool, not a tuned model."
            raise ApiError(400, "no_tuned_model", message, param="model")
        raise unknown_model(catalogue, name)

    def _own(self, request: Request, caller: Caller) -> TunedModel:
        model = self._find(request, caller)
        if model.name in self._desk.context.tuned.checkpoints:
            message = f"{model.name} is a checkpoint: it goes with its fine-tune {model.finetune}."
            raise ApiError(400, "no_tuned_model", message, param="model")
        if model.member != caller.member.id:
            message = f"{model.name} is another member's."
            raise ApiError(403, "not_your_model", message, param="model")
        return model


def tuned_body(model: TunedModel, owner: str, kinds: list[str], context_tokens: int) -> dict[str, Any]:
    """As the OpenAI API lists a model."""
    return {
        "id": model.name,
        "object": "model",
        "created": int(model.created_at),
        "owned_by": owner,
        "parent": model.base,
        "potluck": {
            "aliases": [],
            "kinds": kinds,
            "context_tokens": context_tokens,
            "base": model.base,
            "shared": model.shared,
            "finetune": model.finetune,
            "bytes": sum(one.bytes for one in model.files),
        },
    }
