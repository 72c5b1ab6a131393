"""`POST /v1/embeddings`."""

import base64
from typing import Any

import numpy as np
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from coordinator.api import prepare
from coordinator.api.answer import collect_vectors
from coordinator.api.answers import generation
from coordinator.api.desk import Desk
from coordinator.api.errors import Json
from coordinator.api.requests import EmbeddingRequest
from coordinator.api.routing import add, new_router
from coordinator.api.usage import Usage


def embeddings_router(desk: Desk) -> APIRouter:
    router = new_router("Embeddings")
    add(
        router,
        "POST",
        "/v1/embeddings",
        Embeddings(desk).create,
        answer=generation.EmbeddingList,
        body=EmbeddingRequest,
        repeatable=True,
        errors=(402, 404, 409, 500),
    )
    return router


class Embeddings:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def create(self, request: Request) -> Response:
        """Vectors of texts (or lists of token ids), as floats or as base64 of little-endian float32."""
        context = self._desk.context
        caller = await self._desk.auth.work(request)
        embedding = await self._desk.read(request, EmbeddingRequest)
        submission = await prepare.embedding(context, caller, embedding)
        running = await self._desk.run(request, caller, [submission])
        async with running:
            running.watch(request.receive)
            vectors = await collect_vectors(running.events())
            heard_at = context.clock.now()
        body = body_of(submission.name, vectors, running.usage, encoded=embedding.encoding_format == "base64")
        headers = {**running.headers, "x-potluck-overhead-ms": running.overhead_ms(heard_at)}
        return Json(body, headers=headers)


def body_of(model: str, vectors: list[list[float]], usage: Usage, *, encoded: bool) -> dict[str, Any]:
    """The list of embeddings. A float32 is written with its own digits, not a double's."""
    data = []
    for index, vector in enumerate(vectors):
        array = np.asarray(vector, dtype="<f4")
        value = base64.b64encode(array.tobytes()).decode() if encoded else array
        data.append({"object": "embedding", "index": index, "embedding": value})
    return {"object": "list", "data": data, "model": model, "usage": usage.embedding_body}
