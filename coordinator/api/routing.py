"""Routes whose endpoints take the request and give a response, with nothing solved or validated in between.

FastAPI's own request handler reads the body without a limit and walks a dependency graph for every request;
here bodies are read by `body`, checked by `schema`, and what is said of a route in /docs is `contract`'s.
"""

import inspect
import re
from collections.abc import Awaitable, Callable
from typing import Any, Final, Unpack

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from coordinator.api import contract

Endpoint = Callable[[Request], Awaitable[Response]]

TITLE_END: Final = re.compile(r"[.:;](?:\s|$)|[:,] `")


class DirectRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Any]:
        endpoint: Endpoint = self.endpoint
        return endpoint


def new_router(tag: str) -> APIRouter:
    """`tag`: the noun that all its routes are about."""
    return APIRouter(route_class=DirectRoute, tags=[tag])


def add(
    router: APIRouter, method: str, path: str, endpoint: Endpoint, **facts: Unpack[contract.Facts]
) -> None:
    """Add the endpoint; its docstring is what /docs says about it, the beginning is its title."""
    title = TITLE_END.split(inspect.getdoc(endpoint) or path, maxsplit=1)[0]
    router.add_api_route(
        path,
        endpoint,
        methods=[method],
        status_code=facts.get("status", 200),
        summary=" ".join(title.split()),
        response_class=Response,  # what it answers is said by the facts alone
        openapi_extra=contract.operation(path, facts),
        response_model=None,
    )
