"""The coordinator's HTTP application, put together."""

from collections.abc import Callable
from typing import Any

import structlog
from fastapi import APIRouter
from fastapi.middleware import Middleware
from fastapi.telemetry import TelemetryConfig
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from coordinator.api.auth import Auth
from coordinator.api.batches import BatchRequest, batches_router
from coordinator.api.body import Bodies
from coordinator.api.border import Border
from coordinator.api.chat import chat_router
from coordinator.api.completions import completions_router
from coordinator.api.context import Context
from coordinator.api.desk import Desk
from coordinator.api.docs import describe
from coordinator.api.embeddings import embeddings_router
from coordinator.api.errors import ApiError
from coordinator.api.files import files_router
from coordinator.api.finetune_request import FineTuningRequest
from coordinator.api.finetunes import finetunes_router
from coordinator.api.limits import Gauge
from coordinator.api.openai_models import openai_models_router
from coordinator.api.operations import operations_router
from coordinator.api.pool_account import JobRequest, account_router
from coordinator.api.pool_audit import audit_router
from coordinator.api.pool_community import ProfileRequest, TeamRequest, community_router
from coordinator.api.pool_enrolment import (
    EnrolRequest,
    JoinTokenRequest,
    LeaveRequest,
    RenewRequest,
    enrolment_router,
)
from coordinator.api.pool_gifts import GrantRequest, TransferRequest, gifts_router
from coordinator.api.pool_invites import AcceptRequest, InviteRequest, invites_router
from coordinator.api.pool_jobs import jobs_router
from coordinator.api.pool_keys import KeyRequest, keys_router
from coordinator.api.pool_ledger import ledger_router
from coordinator.api.pool_limits import LimitsRequest, limits_router
from coordinator.api.pool_members import MemberRequest, members_router
from coordinator.api.pool_models import ShareRequest, tuned_router
from coordinator.api.pool_notices import AcceptTermsRequest, AnnouncementRequest, TermsRequest, notices_router
from coordinator.api.pool_owners import PauseRequest, RenameRequest, owners_router
from coordinator.api.pool_standing import ChangeRequest, CloseRequest, ReasonRequest, standing_router
from coordinator.api.pool_statement import statement_router
from coordinator.api.pool_workers import workers_router
from coordinator.api.requests import ChatRequest, CompletionRequest, EmbeddingRequest
from coordinator.api.running import refused
from coordinator.api.schema import Schema
from coordinator.api.serving import Api
from coordinator.api.traced import Traced
from coordinator.api.uploads import CompleteRequest, UploadRequest, uploads_router
from coordinator.api.webhooks import (
    EndpointChange,
    EndpointRequest,
    RotateRequest,
    TestRequest,
    webhooks_router,
)
from coordinator.dashboard.routes import dashboard_router
from coordinator.refusal import Refusal
from coordinator.store_errors import StoreUnavailable, Unwritable
from coordinator.traces import Spans
from potluck.version import version

STORAGE_RETRY_S = 10.0
BODIES_BYTES_MIN = 64 * 1024 * 1024  # of all that are read at once; and room for so many of the largest:
BODIES_MIN = 8
OVERLOADED = (408, 429, 503)  # refusals that the metrics count by their codes
# FastAPI's own would tell paths, queries and the words of errors; `traced` tells what may be told.
NO_TELEMETRY = TelemetryConfig(tracing=False, metrics=False, logs=False, auto_configure=False)

_log = structlog.get_logger("coordinator.api")

SCHEMAS: tuple[type[Schema], ...] = (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    JobRequest,
    BatchRequest,
    UploadRequest,
    CompleteRequest,
    EndpointRequest,
    EndpointChange,
    RotateRequest,
    TestRequest,
    FineTuningRequest,
    ShareRequest,
    MemberRequest,
    KeyRequest,
    LimitsRequest,
    PauseRequest,
    RenameRequest,
    JoinTokenRequest,
    EnrolRequest,
    LeaveRequest,
    RenewRequest,
    TransferRequest,
    GrantRequest,
    ChangeRequest,
    ReasonRequest,
    CloseRequest,
    InviteRequest,
    AcceptRequest,
    TermsRequest,
    AcceptTermsRequest,
    AnnouncementRequest,
    ProfileRequest,
    TeamRequest,
)

ROUTERS: tuple[Callable[[Desk], APIRouter], ...] = (
    chat_router,
    completions_router,
    embeddings_router,
    openai_models_router,
    tuned_router,
    files_router,
    uploads_router,
    webhooks_router,
    account_router,
    statement_router,
    jobs_router,
    batches_router,
    finetunes_router,
    ledger_router,
    workers_router,
    owners_router,
    enrolment_router,
    members_router,
    keys_router,
    limits_router,
    standing_router,
    gifts_router,
    invites_router,
    notices_router,
    audit_router,
    community_router,
)


def create_api(context: Context) -> Api:
    """All routes over these collaborators. Nothing is kept outside the returned application."""
    settings = context.settings
    title = f"Potluck: {settings.pool_name}"
    border = Middleware(
        Border,
        clock=context.clock,
        metrics=context.metrics,
        bound_host=settings.http.rpartition(":")[0],
        public_host=settings.public_host,
        of_address_max=settings.address_connections_max if settings.behind_proxy else 0,
    )
    traced = [Middleware(Traced, traces=traces)] if isinstance(traces := context.pool.traces, Spans) else []
    around = [border, *traced]
    app = Api(title=title, version=version(), middleware=around, telemetry=NO_TELEMETRY)
    auth = Auth(context.store, context.clock, settings, context.board, context.presence, context.lateness)
    desk = Desk(context, auth, Gauge())
    app.include([*(make(desk) for make in ROUTERS), operations_router(desk, app), dashboard_router(desk)])
    app.state.methods = app.methods()
    app.state.bodies = Bodies(max(BODIES_BYTES_MIN, BODIES_MIN * settings.body_bytes_max))

    async def api_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        if error.status in OVERLOADED:
            context.metrics.refused(error.code)
        response = error.response()
        if error.status == 429 and (caller := getattr(request.state, "caller", None)) is not None:
            response.headers.update(desk.rates(caller))
        return response

    async def refusal(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refusal)
        return await api_error(request, refused(error))

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(Refusal, refusal)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(StoreUnavailable, _store_error)
    app.add_exception_handler(Unwritable, _unwritable)

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = describe(title, version(), app.routes, SCHEMAS)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend it
    return app


async def _store_error(request: Request, error: Exception) -> Response:
    """A full disk, a database that is gone: nobody's mistake who asks, and over at some time."""
    _log.error("no books: %s", error, action="storage_failed", request=request.state.request_id)
    message = (
        "The pool cannot read or write its books just now. Try again shortly; the operator's log says why."
    )
    return ApiError(503, "storage_unavailable", message, retry_after_s=STORAGE_RETRY_S).response()


async def _unwritable(_request: Request, _error: Exception) -> Response:
    message = (
        "A text of the request has a NUL character: there is nothing of that name, and it cannot be kept."
    )
    return ApiError(400, "invalid_value", message).response()


async def _http_error(request: Request, error: Exception) -> Response:
    """What the router itself refuses: no such path, no such method."""
    assert isinstance(error, HTTPException)
    path = request.url.path[:256]
    if error.status_code == 404:
        message = f"There is nothing at {path}. The routes are listed at /docs."
        return ApiError(404, "unknown_url", message).response()
    if error.status_code == 405:
        message = f"{path} does not answer to {request.method[:16]}. The routes are listed at /docs."
        response = ApiError(405, "method_not_allowed", message).response()
        methods = request.app.state.methods[request.scope["route"].path]
        response.headers["allow"] = ", ".join(sorted(methods))
        return response
    return ApiError(error.status_code, "http_error", str(error.detail)).response()
