"""Routes for whoever operates the pool: is it alive, is it ready, what is its API, how does it do."""

from typing import Any, Final

from fastapi import APIRouter, FastAPI
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from coordinator.api import contract
from coordinator.api.desk import Desk
from coordinator.api.docs import PAGE_POLICY, page
from coordinator.api.errors import ApiError, Json
from coordinator.api.routing import add, new_router
from coordinator.records import Role
from coordinator.store_errors import StoreError

ALIVE: Final = contract.object_of({"status": {"const": "ok"}})
READINESS: Final = contract.object_of(
    {"status": {"enum": ["ready", "not ready"]}, "why": {"type": "string"}}, ("status",)
)


def operations_router(desk: Desk, app: FastAPI) -> APIRouter:
    routes, router = Operations(desk, app), new_router("Operations")
    add(router, "GET", "/healthz", routes.healthz, answer=ALIVE, open_to_all=True)
    add(router, "GET", "/readyz", routes.readyz, answer=READINESS, open_to_all=True, others={503: READINESS})
    add(router, "GET", "/metrics", routes.metrics, media=(contract.TEXT,))
    add(router, "GET", "/openapi.json", routes.openapi, open_to_all=True)
    add(router, "GET", "/docs", routes.docs, open_to_all=True, media=("text/html",))
    return router


class Operations:
    def __init__(self, desk: Desk, app: FastAPI) -> None:
        self._auth, self._context, self._app = desk.auth, desk.context, app

    async def healthz(self, _request: Request) -> Response:
        """Alive: the process answers."""
        return Json({"status": "ok"})

    async def readyz(self, _request: Request) -> Response:
        """Ready: it can take work: 200, or 503 with the reason."""
        why = await self._why_not_ready()
        return Json({"status": "not ready", "why": why}, 503) if why else Json({"status": "ready"})

    async def _why_not_ready(self) -> str | None:
        if self._context.closing.is_set():
            return "it is shutting down"
        if self._context.pool.ticker.trouble:
            return "it cannot write its books"  # the details name paths: they are in the log
        try:
            await self._context.store.setting("created_at")
        except StoreError:
            return "its database does not answer"
        return None

    async def metrics(self, request: Request) -> Response:
        """Metrics for Prometheus, in its text format. An admin's key with the scope `read` is enough."""
        caller = await self._auth.look(request)
        if caller.member.role is not Role.ADMIN:
            message = "The pool's metrics are for its admins: `potluck keys create prometheus --scope read`."
            raise ApiError(403, "admin_needed", message)
        write, kind = choose_encoder(request.headers.get("accept", ""))
        return Response(write(self._context.metrics.registry), headers={"content-type": kind})

    async def openapi(self, _request: Request) -> Response:
        """The whole API as OpenAPI 3.1."""
        return Json(self._app.openapi())

    async def docs(self, _request: Request) -> Response:
        """The whole API as a page for people: no script, nothing fetched from elsewhere."""
        described: dict[str, Any] = self._app.openapi()
        return HTMLResponse(page(described), headers={"content-security-policy": PAGE_POLICY})
