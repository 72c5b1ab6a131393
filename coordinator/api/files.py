"""`/v1/files` as the OpenAI API has it: what members upload, and what the pool makes for them."""

from typing import Any, Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from coordinator.api import contract
from coordinator.api.answers import files, models
from coordinator.api.desk import Desk
from coordinator.api.errors import ApiError, Json
from coordinator.api.multipart import OVERHEAD_BYTES_MAX, Form
from coordinator.api.query import integer, only, word
from coordinator.api.routing import add, new_router
from coordinator.api.running import refused
from coordinator.files import DAY_S, Description, too_large
from coordinator.records import MADE_BY_POOL, File, Purpose, Scope
from coordinator.refusal import Refusal

LISTED_MAX: Final = 10_000
FILENAME_CHARS_MAX: Final = 255
EXPIRES_S_MIN: Final = 3_600
EXPIRES_S_MAX: Final = 2_592_000  # both as OpenAI has them
ASKER: Final = (Scope.INFERENCE, Scope.READ)
PURPOSES: Final = [purpose for purpose in Purpose if purpose not in MADE_BY_POOL]
ANCHOR, SECONDS = "expires_after[anchor]", "expires_after[seconds]"
FIELDS: Final = ("purpose", ANCHOR, SECONDS)
UPLOAD: Final = contract.form_of(
    "file",
    {
        "purpose": {"type": "string", "enum": [purpose.value for purpose in PURPOSES]},
        ANCHOR: {"type": "string", "enum": ["created_at"]},
        SECONDS: {"type": "integer", "minimum": EXPIRES_S_MIN, "maximum": EXPIRES_S_MAX},
    },
    ("purpose",),
)


def files_router(desk: Desk) -> APIRouter:
    routes, router = FileRoutes(desk), new_router("Files")
    add(router, "POST", "/v1/files", routes.create, answer=files.FileBody, body=UPLOAD, errors=(507,))
    add(
        router,
        "GET",
        "/v1/files",
        routes.list,
        answer=contract.page_of(files.FileBody),
        query=(
            contract.choice("purpose", Purpose, "Only those."),
            contract.limit(LISTED_MAX, LISTED_MAX),
            contract.choice("order", ["asc", "desc"], "By when they were made."),
            contract.text("after", "The last file of the page before."),
        ),
    )
    add(router, "GET", "/v1/files/{file_id}", routes.show, answer=files.FileBody)
    add(router, "GET", "/v1/files/{file_id}/content", routes.content, media=(contract.BYTES,), ranges=True)
    add(router, "DELETE", "/v1/files/{file_id}", routes.delete, answer=models.Deleted, errors=(409,))
    return router


class FileRoutes:
    def __init__(self, desk: Desk) -> None:
        self._desk, self._files = desk, desk.context.files

    async def create(self, request: Request) -> Response:
        """Upload a file: a form with `file`, `purpose` (fine-tune or batch) and maybe `expires_after`.

        A file that its purpose could not use is refused, with the lines that are wrong.
        """
        caller = await self._desk.auth.work(request)
        form = Form(request)
        most = self._desk.context.settings.file_bytes_max
        try:
            if (form.declared_bytes or 0) > most + OVERHEAD_BYTES_MAX:
                raise too_large(most)
            await form.begin()
            if "purpose" in form.fields:
                purpose_of(form.fields["purpose"])  # said now, and not after a gigabyte
            file = await self._files.upload(caller.member.id, form.file(), lambda: described(form))
        except (ApiError, Refusal) as error:
            await form.drop()
            said = refused(error) if isinstance(error, Refusal) else error
            said.close = True
            raise said from None
        return Json(file_body(file))

    async def list(self, request: Request) -> Response:
        """The caller's files, newest first: `?purpose&limit&order&after`; `{data, has_more, ...}`."""
        caller = await self._desk.auth.look(request, *ASKER)
        only(request, ("purpose", "limit", "order", "after"))
        purpose = word(request, "purpose", [purpose.value for purpose in Purpose])
        limit = integer(request, "limit", LISTED_MAX, LISTED_MAX)
        after = request.query_params.get("after")
        last = None
        if after is not None:
            try:
                last = await self._files.get(caller.member.id, after)
            except Refusal as refusal:
                raise ApiError(400, "invalid_value", f"after: {refusal.message}", param="after") from None
        found = await self._desk.context.store.files(
            caller.member.id,
            now=self._desk.context.clock.now(),
            limit=limit + 1,
            purpose=None if purpose is None else Purpose(purpose),
            after=last,
            oldest_first=word(request, "order", ["asc", "desc"]) == "asc",
        )
        return Json(page([file_body(file) for file in found[:limit]], has_more=len(found) > limit))

    async def show(self, request: Request) -> Response:
        """One file of the caller."""
        caller = await self._desk.auth.look(request, *ASKER)
        return Json(file_body(await self._files.get(caller.member.id, request.path_params["file_id"])))

    async def content(self, request: Request) -> Response:
        """The file's bytes; a part of them by `Range` (RFC 9110)."""
        caller = await self._desk.auth.look(request, *ASKER)
        file = await self._files.get(caller.member.id, request.path_params["file_id"])
        return FileResponse(
            self._files.path(file),
            media_type="application/octet-stream",
            filename=file.filename,
            headers={"etag": f'"{file.sha256}"'},
        )

    async def delete(self, request: Request) -> Response:
        """Delete a file, unless something open uses it: `{id, object, deleted}`."""
        caller = await self._desk.auth.look(request, Scope.INFERENCE)
        file = await self._files.get(caller.member.id, request.path_params["file_id"])
        await self._files.delete(file)
        return Json({"id": file.id, "object": "file", "deleted": True})


def file_body(file: File) -> dict[str, Any]:
    """As the OpenAI API shows it. What is here is processed: the rest was refused."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": int(file.created_at),
        "expires_at": int(file.expires_at),
        "filename": file.filename,
        "purpose": file.purpose.value,
        "status": "processed",
        "status_details": None,
        "potluck": {"sha256": file.sha256},
    }


def page(data: list[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """A list as the OpenAI API's cursor pages have it."""
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": has_more}


def described(form: Form) -> Description:
    """What the form says, read to its end. Raises ApiError 400."""
    for name in form.fields:
        if name not in FIELDS:
            shown = name[:64]
            message = f"{shown}: there is no such parameter; these are known: file, {', '.join(FIELDS)}."
            raise ApiError(400, "unknown_parameter", message, param=shown)
    if "purpose" not in form.fields:
        raise ApiError(400, "missing_required_parameter", "purpose: it is needed.", param="purpose")
    purpose = purpose_of(form.fields["purpose"])
    expires_s = None
    if ANCHOR in form.fields or SECONDS in form.fields:
        text = form.fields.get(SECONDS, "")
        seconds = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0
        expires_s = expires_after(form.fields.get(ANCHOR), seconds)
    return Description(purpose, filename_of(form.filename or ""), expires_s)


def purpose_of(text: str) -> Purpose:
    """One that members may upload for. Raises ApiError 400."""
    if text not in PURPOSES:
        message = f"purpose: one of {', '.join(PURPOSES)} is needed."
        raise ApiError(400, "invalid_value", message, param="purpose")
    return Purpose(text)


def expires_after(anchor: str | None, seconds: int) -> float:
    """Raises ApiError 400."""
    if anchor != "created_at":
        message = "expires_after: the anchor `created_at` is needed."
        raise ApiError(400, "invalid_value", message, param="expires_after.anchor")
    if not EXPIRES_S_MIN <= seconds <= EXPIRES_S_MAX:
        message = (
            f"expires_after: seconds from {EXPIRES_S_MIN} to {EXPIRES_S_MAX}"
            f" ({EXPIRES_S_MAX / DAY_S:.0f} days) are needed."
        )
        raise ApiError(400, "invalid_value", message, param="expires_after.seconds")
    return float(seconds)


def filename_of(text: str, param: str = "file") -> str:
    """The last part of a path: what else an upload calls its file is nobody's affair. Raises ApiError 400."""
    name = text.replace("\\", "/").rpartition("/")[2].strip()
    if not name or not name.isprintable() or len(name) > FILENAME_CHARS_MAX or name in {".", ".."}:
        message = f"{param}: a name of 1 to {FILENAME_CHARS_MAX} characters that can be printed is needed."
        raise ApiError(400, "invalid_value", message, param=param)
    return name
