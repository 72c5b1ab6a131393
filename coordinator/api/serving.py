"""How a request comes to its endpoint: past the border to Starlette's router, and nothing else on the way.

FastAPI describes the routes (`docs`). Around each request it would put exit stacks, body limits, telemetry
and a second table of routes, which nothing here uses: a tenth of what a short answer costs the coordinator.
"""

import inspect
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from coordinator.api.routing import Endpoint


class Served:
    """An endpoint as an ASGI application. What it raises is `ExceptionMiddleware`'s."""

    def __init__(self, endpoint: Endpoint) -> None:
        assert inspect.iscoroutinefunction(endpoint) or inspect.iscoroutinefunction(
            getattr(endpoint, "__call__", None)  # noqa: B004 -- whether it is async, not whether it is there
        ), endpoint
        self.endpoint: Final = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self.endpoint(Request(scope, receive, send))
        await response(scope, receive, send)


class Api(FastAPI):
    """The application. Its routes are those of `routers`, which it was given by `include`."""

    def __init__(self, **told: Any) -> None:
        super().__init__(docs_url=None, redoc_url=None, openapi_url=None, **told)
        self._served: list[Route] = []

    def include(self, routers: Sequence[APIRouter]) -> None:
        """Their routes are asked in this order."""
        for router in routers:
            self.include_router(router)
            self._served += map(_served, router.routes)

    def methods(self) -> dict[str, set[str]]:
        """Of each path all methods (RFC 9110); the one route that refuses a request knows but its own."""
        methods = defaultdict[str, set[str]](set)
        for route in self._served:
            methods[route.path] |= route.methods or set()
        return methods

    def build_middleware_stack(self) -> ASGIApp:
        """Starlette's documented place for it: called once, before the first request."""
        app: ASGIApp = ExceptionMiddleware(Router(self._served), handlers=self.exception_handlers)
        for around, args, kwargs in reversed(self.user_middleware):
            app = around(app, *args, **kwargs)
        return app


def _served(route: Any) -> Route:
    """HEAD is answered only where a route says so."""
    assert isinstance(route, Route | APIRoute)
    served = Route(route.path, Served(route.endpoint), name=route.name)
    served.methods = set(route.methods or ())
    return served
