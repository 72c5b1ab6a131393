"""Routes whose endpoints take the request and give a response, with nothing solved or validated in between.

FastAPI's own request handler reads the body without a limit and walks a dependency graph for every request;
here bodies are read by `body`, checked by `schema`, and the schema still appears in /docs.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from coordinator.api.schema import Schema

Endpoint = Callable[[Request], Awaitable[Response]]


class DirectRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Any]:
        endpoint: Endpoint = self.endpoint
        return endpoint


def new_router(tag: str) -> APIRouter:
    return APIRouter(route_class=DirectRoute, tags=[tag])


def add(
    router: APIRouter,
    method: str,
    path: str,
    endpoint: Endpoint,
    *,
    body: type[Schema] | None = None,
    status: int = 200,
) -> None:
    """Add the endpoint; its docstring is what /docs says about it."""
    extra: dict[str, Any] = {}
    if body is not None:
        schema = {"$ref": f"#/components/schemas/{body.__name__}"}
        extra["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    router.add_api_route(
        path, endpoint, methods=[method], status_code=status, openapi_extra=extra or None, response_model=None
    )
