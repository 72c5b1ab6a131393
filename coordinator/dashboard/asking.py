"""Forms of pages: what one asks for is asked of a route of the API, by whoever is signed in.

So a page can do no more and no less than the API, refusals and the audit log included.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from coordinator.api.auth import Caller
from coordinator.dashboard.form import read_form
from coordinator.dashboard.page import Site

Endpoint = Callable[[Request], Awaitable[Response]]
Fields = Mapping[str, str]
_REPLACED: Final = {b"content-type", b"content-length", b"idempotency-key"}


def nothing(_fields: Fields) -> None:
    """Of a form whose route takes no body."""


def add_form(
    site: Site,
    router: APIRouter,
    path: str,
    endpoint: Endpoint,
    said: Callable[[Request, Any], str | Response],
    body: Callable[[Fields], Mapping[str, Any] | None] = nothing,
    *,
    admin: bool = False,
) -> None:
    """`body`: what the route is asked with; `said`: what the page says of the answer, in words or as HTML."""

    async def send(request: Request, _caller: Caller) -> Response:
        fields = await read_form(request)
        answer = await ask(endpoint, request, body(fields), key=fields.get("once") or None)
        words = said(request, answer)
        return words if isinstance(words, Response) else site.html("notice.html", {"good": words})

    site.add(router, "POST", path, send, admin=admin)


async def ask(
    endpoint: Endpoint, request: Request, body: Mapping[str, Any] | None = None, *, key: str | None = None
) -> Any:
    """The answer of a route to this body, asked with the browser's own cookie. Raises ApiError or Refusal."""
    headers = [pair for pair in request.scope["headers"] if pair[0].lower() not in _REPLACED]
    headers.append((b"content-type", b"application/json"))
    if key is not None:
        headers.append((b"idempotency-key", key.encode("latin-1", "replace")))
    raw = json.dumps(body or {}).encode()  # orjson refuses to write what the route is to refuse

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": raw, "more_body": False}

    response = await endpoint(Request({**request.scope, "headers": headers}, receive))
    return orjson.loads(response.body)
