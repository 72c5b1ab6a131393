"""`/v1/batches`: many requests in one file, as the OpenAI API has them."""

import base64
import hashlib
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from coordinator.api import contract, prepare
from coordinator.api.answers import batches
from coordinator.api.auth import Caller
from coordinator.api.body import parse_object
from coordinator.api.context import Context
from coordinator.api.desk import Desk, idempotency_key
from coordinator.api.errors import ApiError, Json
from coordinator.api.pool_jobs import ASKER, refuse_unkept
from coordinator.api.query import integer, only
from coordinator.api.routing import add, new_router
from coordinator.api.running import refused
from coordinator.api.schema import Schema, validated
from coordinator.api.shapes import batch_body
from coordinator.batches.batch import HOUR_S, Batch
from coordinator.batches.lines import LineRefused
from coordinator.batches.service import Batches
from coordinator.files import Files
from coordinator.parts import Parts
from coordinator.pool import Pool
from coordinator.records import ApiKey, Member, Scope
from coordinator.refusal import Refusal
from coordinator.store import Store
from coordinator.submission import Submission

LISTED, LISTED_MAX = 20, 100
WINDOW_HOURS_MAX: Final = 24 * 7
METADATA_MAX: Final = 16
Endpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings"]
Name = Annotated[str, Field(max_length=64)]
Short = Annotated[str, Field(max_length=512)]


class BatchRequest(Schema):
    """`completion_window`: hours as in `24h`, at most a week; what is not done by then is not done."""

    input_file_id: Annotated[str, Field(min_length=1, max_length=64)]
    endpoint: Endpoint
    completion_window: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,2}h$")] = "24h"
    metadata: Annotated[dict[Name, Short], Field(max_length=METADATA_MAX)] | None = None


class BatchLine(Schema):
    """One line of the input file."""

    custom_id: Annotated[str, Field(min_length=1, max_length=512)]
    method: Literal["POST"]
    url: str
    body: dict[str, Any]


def batches_router(desk: Desk) -> APIRouter:
    routes, router = BatchRoutes(desk), new_router("Batches")
    add(
        router,
        "POST",
        "/v1/batches",
        routes.create,
        answer=batches.BatchBody,
        body=BatchRequest,
        repeatable=True,
        errors=(402, 404, 409),
    )
    add(
        router,
        "GET",
        "/v1/batches",
        routes.list,
        answer=contract.page_of(batches.BatchBody),
        query=(
            contract.limit(LISTED, LISTED_MAX),
            contract.text("after", "The last batch of the page before."),
        ),
        errors=(404,),
    )
    add(router, "GET", "/v1/batches/{batch_id}", routes.show, answer=batches.BatchBody)
    add(
        router,
        "POST",
        "/v1/batches/{batch_id}/cancel",
        routes.cancel,
        answer=batches.BatchBody,
        errors=(409,),
    )
    return router


class BatchRoutes:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def create(self, request: Request) -> Response:
        """Have every line of a file answered behind interactive work; the answers come as a file.

        The lines are checked first: with one that cannot be taken, nothing is done and `errors` says why.
        """
        context = self._desk.context
        caller = await self._desk.auth.work(request)
        key = idempotency_key(request)
        wanted = await self._desk.read(request, BatchRequest)
        hours = int(wanted.completion_window[:-1])
        if hours > WINDOW_HOURS_MAX:
            message = f"completion_window: at most {WINDOW_HOURS_MAX}h."
            raise ApiError(400, "invalid_value", message, param="completion_window")
        try:
            batch = await context.batches.create(
                caller.member,
                caller.key,
                wanted.input_file_id,
                wanted.endpoint,
                hours * HOUR_S,
                wanted.metadata or {},
                batch_id=None if key is None else _id_from(caller, key),
            )
        except Refusal as refusal:
            raise refused(refusal) from None
        return Json(batch_body(batch), headers=self._desk.rates(caller))

    async def list(self, request: Request) -> Response:
        """The caller's batches, newest first: `?limit&after`."""
        caller = await self._desk.auth.look(request, *ASKER)
        only(request, ("limit", "after"))
        limit = integer(request, "limit", LISTED, LISTED_MAX)
        after = request.query_params.get("after")
        if after is not None:
            after = (await self.find(caller, after, param="after")).id
        found = await self._desk.context.store.batches(caller.member.id, limit=limit + 1, after=after)
        data = [batch_body(self._desk.context.batches.now(batch)) for batch in found[:limit]]
        ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
        return Json({"object": "list", "data": data, **ends, "has_more": len(found) > limit})

    async def show(self, request: Request) -> Response:
        """How far a batch is: `status`, `request_counts`, and the files once they are there."""
        caller = await self._desk.auth.look(request, *ASKER)
        batch = await self.find(caller, request.path_params["batch_id"])
        return Json(batch_body(self._desk.context.batches.now(batch)))

    async def cancel(self, request: Request) -> Response:
        """Cancel a batch: answers that are there stay, and what is under way is charged as far as it came."""
        caller = await self._desk.auth.look(request, Scope.INFERENCE)
        batch = await self.find(caller, request.path_params["batch_id"])
        try:
            batch = await self._desk.context.batches.cancel(batch, f"{caller.member.name} cancelled it")
        except Refusal as refusal:
            raise refused(refusal) from None
        return Json(batch_body(batch))

    async def find(self, caller: Caller, batch_id: str, param: str | None = None) -> Batch:
        """Others' batches look as if they were not there."""
        batch = await self._desk.context.store.batch(batch_id[:64])
        if batch is None or (batch.member != caller.member.id and not caller.admin):
            raise ApiError(404, "batch_not_found", f"You have no batch {batch_id[:64]}.", param=param)
        return batch


async def understand(
    context: Context, batch: Batch, member: Member, key: ApiKey, line: bytes
) -> tuple[str, Submission]:
    """A line as the route that it names would take it. Raises LineRefused."""
    try:
        if len(line) > (limit := context.settings.body_bytes_max):
            message = f"The line is larger than {limit:,} bytes, this pool's limit."
            raise ApiError(413, "line_too_large", message)
        wanted = validated(BatchLine, parse_object(line.strip()))
        if wanted.url != batch.endpoint:
            message = f"url: the batch is for {batch.endpoint}, the line for {wanted.url[:64]}."
            raise ApiError(400, "mismatched_endpoint", message, param="url")
        refuse_unkept(wanted.body, within="body")
        asker = Caller(member, key, (), frozenset())
        seed = f"{batch.id} {wanted.custom_id}"
        found = await prepare.submissions_of(context, asker, batch.kind, wanted.body, key=seed, within="body")
        if len(found) > 1:
            message = "body.prompt: a line has one prompt; write one line for each."
            raise ApiError(400, "unsupported_parameter", message, param="body.prompt")
    except ApiError as error:
        raise LineRefused(error.status, error.code, error.message, error.param) from None
    return wanted.custom_id, found[0]


def keeper(pool: Pool, store: Store, files: Files, context: Callable[[], Context]) -> Batches:
    """All batches of the pool; `context` is asked when the first line is read."""

    async def read(batch: Batch, member: Member, key: ApiKey, line: bytes) -> tuple[str, Submission]:
        return await understand(context(), batch, member, key, line)

    return Batches(Parts(pool), store, files, read)


def _id_from(caller: Caller, key: str) -> str:
    digest = hashlib.sha256(f"{caller.member.id}\nbatch\n{key}".encode()).digest()[:15]
    return f"batch_{base64.b32hexencode(digest).decode().lower()}"
