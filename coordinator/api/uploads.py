"""`/v1/uploads` as the OpenAI API has it: large files in parts, which a cut connection does not lose."""

import base64
import hashlib
from typing import Annotated, Any, Final

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from coordinator.api import contract
from coordinator.api.answers import files
from coordinator.api.auth import Caller
from coordinator.api.desk import Desk, idempotency_key
from coordinator.api.errors import ApiError, Json
from coordinator.api.files import (
    ASKER,
    EXPIRES_S_MAX,
    EXPIRES_S_MIN,
    PURPOSES,
    expires_after,
    file_body,
    filename_of,
    purpose_of,
)
from coordinator.api.multipart import OVERHEAD_BYTES_MAX, Form
from coordinator.api.routing import add, new_router
from coordinator.api.running import refused
from coordinator.api.schema import Schema
from coordinator.files import Description
from coordinator.records import File, Scope
from coordinator.refusal import Refusal
from coordinator.store import Store
from coordinator.uploads.service import part_too_large
from coordinator.uploads.upload import PART_BYTES_MAX, PARTS_MAX, Part, Upload

DATA: Final = "data"
PART: Final = contract.form_of(DATA, {})


class ExpiresAfter(Schema):
    anchor: Annotated[str, Field(json_schema_extra={"enum": ["created_at"]})]
    seconds: Annotated[int, Field(json_schema_extra={"minimum": EXPIRES_S_MIN, "maximum": EXPIRES_S_MAX})]


class UploadRequest(Schema):
    """`bytes`: of the whole file. `expires_after` is of the file, not of the upload."""

    filename: str
    purpose: Annotated[str, Field(json_schema_extra={"enum": [purpose.value for purpose in PURPOSES]})]
    bytes: Annotated[int, Field(ge=1)]
    mime_type: Annotated[str, Field(min_length=1, max_length=255)]
    expires_after: ExpiresAfter | None = None


class CompleteRequest(Schema):
    """`part_ids` in the order of their bytes."""

    part_ids: Annotated[list[str], Field(min_length=1, max_length=PARTS_MAX)]
    md5: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{32}$")] | None = None


def uploads_router(desk: Desk) -> APIRouter:
    routes, router = UploadRoutes(desk), new_router("Uploads")
    add(
        router,
        "POST",
        "/v1/uploads",
        routes.create,
        answer=files.UploadBody,
        body=UploadRequest,
        repeatable=True,
        errors=(409,),
    )
    add(router, "GET", "/v1/uploads/{upload_id}", routes.show, answer=files.UploadBody)
    add(
        router,
        "POST",
        "/v1/uploads/{upload_id}/parts",
        routes.add_part,
        answer=files.PartBody,
        body=PART,
        errors=(409, 507),
    )
    add(
        router,
        "POST",
        "/v1/uploads/{upload_id}/complete",
        routes.complete,
        answer=files.UploadBody,
        body=CompleteRequest,
        errors=(409, 507),
    )
    add(
        router,
        "POST",
        "/v1/uploads/{upload_id}/cancel",
        routes.cancel,
        answer=files.UploadBody,
        errors=(409,),
    )
    return router


class UploadRoutes:
    def __init__(self, desk: Desk) -> None:
        self._desk, self._uploads = desk, desk.context.uploads

    async def create(self, request: Request) -> Response:
        """Begin a file that comes in parts; its bytes are set aside of the member's quota.

        It expires when no part came for `upload_s`, a setting of the pool. The same `Idempotency-Key` finds
        the same upload.
        """
        caller = await self._desk.auth.work(request)
        key = idempotency_key(request)
        wanted = await self._desk.read(request, UploadRequest)
        expires = wanted.expires_after
        said = Description(
            purpose_of(wanted.purpose),
            filename_of(wanted.filename, param="filename"),
            None if expires is None else expires_after(expires.anchor, expires.seconds),
        )
        upload_id = None if key is None else _id_from(caller, key)
        upload = await self._uploads.create(caller.member.id, said, wanted.bytes, upload_id=upload_id)
        return Json(upload_body(upload))

    async def show(self, request: Request) -> Response:
        """An upload of the caller; `potluck.parts` are those that are here, for who goes on with it."""
        caller = await self._desk.auth.look(request, *ASKER)
        upload = await self._find(caller, request)
        parts = await self._desk.context.store.upload_parts(upload.id)
        return Json({**upload_body(upload, await self._file_of(upload)), "potluck": _parts_body(parts)})

    async def add_part(self, request: Request) -> Response:
        """Send a part: a form with `data`, up to 64 MiB. The same bytes again are the same part."""
        caller = await self._desk.auth.work(request)
        form = Form(request, DATA)
        try:
            upload = await self._find(caller, request)
            if (form.declared_bytes or 0) > PART_BYTES_MAX + OVERHEAD_BYTES_MAX:
                raise part_too_large()
            await form.begin()
            part = await self._uploads.add(upload, form.alone())
        except (ApiError, Refusal) as error:
            await form.drop()
            said = refused(error) if isinstance(error, Refusal) else error
            said.close = True
            raise said from None
        return Json(part_body(part))

    async def complete(self, request: Request) -> Response:
        """Make the file out of the parts; it is checked as any file is. Again, it finds the same file."""
        caller = await self._desk.auth.work(request)
        wanted = await self._desk.read(request, CompleteRequest)
        upload = await self._find(caller, request)
        upload, file = await self._uploads.complete(upload, wanted.part_ids, wanted.md5)
        return Json(upload_body(upload, file))

    async def cancel(self, request: Request) -> Response:
        """Give an upload up: its parts are deleted."""
        caller = await self._desk.auth.look(request, Scope.INFERENCE)
        upload = await self._uploads.cancel(await self._find(caller, request))
        return Json(upload_body(upload))

    async def _find(self, caller: Caller, request: Request) -> Upload:
        return await self._uploads.get(caller.member.id, request.path_params["upload_id"])

    async def _file_of(self, upload: Upload) -> File | None:
        """None also for one that was deleted since."""
        store: Store = self._desk.context.store
        return None if upload.file is None else await store.file(upload.file, member=upload.member)


def upload_body(upload: Upload, file: File | None = None) -> dict[str, Any]:
    return {
        "id": upload.id,
        "object": "upload",
        "bytes": upload.bytes,
        "created_at": int(upload.created_at),
        "expires_at": int(upload.expires_at),
        "filename": upload.filename,
        "purpose": upload.purpose.value,
        "status": upload.state.value,
        "file": None if file is None else file_body(file),
    }


def part_body(part: Part) -> dict[str, Any]:
    return {
        "id": part.id,
        "object": "upload.part",
        "created_at": int(part.created_at),
        "upload_id": part.upload,
        "potluck": {"bytes": part.bytes, "sha256": part.sha256},
    }


def _parts_body(parts: list[Part]) -> dict[str, Any]:
    return {
        "bytes": sum(part.bytes for part in parts),
        "parts": [{"id": part.id, "bytes": part.bytes, "sha256": part.sha256} for part in parts],
    }


def _id_from(caller: Caller, key: str) -> str:
    digest = hashlib.sha256(f"{caller.member.id}\nupload\n{key}".encode()).digest()[:15]
    return f"upload_{base64.b32hexencode(digest).decode().lower()}"
