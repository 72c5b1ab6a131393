"""Every answer that a test gets from the API is held against what the API says of itself: status, content type, shape.

Objects are read more strictly than clients should: what an answer has and the description does not is a fault.
"""

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import jsonschema_rs
from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY_BYTES_MAX = 1 << 20  # of an answer that is looked into


def closed(schema: Any) -> Any:
    """The schema without room for what it does not name."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    tight = {name: closed(value) for name, value in schema.items()}
    if tight.get("type") == "object" and "properties" in tight:
        tight.setdefault("additionalProperties", False)
    return tight


class Contract:
    """What one application says of itself."""

    def __init__(self, described: dict[str, Any]) -> None:
        self._described = described
        self._definitions = closed(described["components"]["schemas"])
        self._validator = cache(self._new_validator)

    def _new_validator(self, path: str, method: str, status: str, kind: str) -> jsonschema_rs.Validator:
        content = self._described["paths"][path][method]["responses"][status]["content"]
        return jsonschema_rs.validator_for(
            {**closed(content[kind]["schema"]), "components": {"schemas": self._definitions}}
        )

    def faults(self, path: str, method: str, status: int, kind: str, body: bytes) -> Iterator[str]:
        """What the description does not allow, in words; nothing of a path that it does not have."""
        operation = self._described["paths"].get(path, {}).get(method.lower())
        if operation is None:
            return
        where = f"{method} {path} answers {status}"
        allowed = operation["responses"].get(str(status))
        if allowed is None:
            yield f"{where}, which is not described: {body[:200]!r}"
            return
        kind = kind.partition(";")[0].strip()
        if body and kind not in allowed["content"]:
            yield f"{where} as {kind!r}, which is not described"
        elif kind == "application/json" and len(body) <= BODY_BYTES_MAX:
            validator = self._validator(path, method.lower(), str(status), kind)
            for error in validator.iter_errors(json.loads(body)):
                yield f"{where} in another shape: {error.message[:300]} at {list(error.instance_path)}"


class Watched:
    """The application, whose answers are looked at on their way; `faults` is what was wrong."""

    def __init__(self, app: FastAPI) -> None:
        self._app: ASGIApp = app
        self._contract = Contract(app.openapi())
        self.faults: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status, kind, body = 0, "", bytearray()

        async def look(message: Message) -> None:
            nonlocal status, kind
            if message["type"] == "http.response.start":
                status = message["status"]
                kind = dict(message["headers"]).get(b"content-type", b"").decode()
            elif len(body) <= BODY_BYTES_MAX:
                body.extend(message.get("body", b""))
            await send(message)

        await self._app(scope, receive, look)
        route = scope.get("route")
        if route is not None and b'"internal_error"' not in body:  # which some tests want to see
            self.faults |= {
                *self._contract.faults(route.path_format, scope["method"], status, kind, bytes(body))
            }
