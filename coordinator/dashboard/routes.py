"""All pages, put together."""

from typing import Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from coordinator.api.auth import Caller
from coordinator.api.desk import Desk
from coordinator.dashboard.account import add_account
from coordinator.dashboard.acting import add_acting
from coordinator.dashboard.assets import add_assets
from coordinator.dashboard.attention import add_attention
from coordinator.dashboard.community import add_community
from coordinator.dashboard.credits import add_credits
from coordinator.dashboard.enrolling import add_enrolling
from coordinator.dashboard.home import add_home
from coordinator.dashboard.jobs import add_jobs
from coordinator.dashboard.ledger import add_ledger
from coordinator.dashboard.live import Live
from coordinator.dashboard.members import add_members
from coordinator.dashboard.models import add_models
from coordinator.dashboard.page import Site
from coordinator.dashboard.playground import add_playground
from coordinator.dashboard.pool import add_pool
from coordinator.dashboard.shown import environment
from coordinator.dashboard.signing import add_signing
from coordinator.dashboard.webhooks import add_webhooks
from coordinator.dashboard.worker import add_worker
from coordinator.dashboard.workers import add_workers

STREAM_HEADERS: Final = {"cache-control": "no-store", "x-accel-buffering": "no"}


def dashboard_router(desk: Desk) -> APIRouter:
    router = APIRouter()
    site = Site(desk, environment(), Live(desk.context.closing))
    for add in (
        add_assets,
        add_signing,
        add_attention,
        add_home,
        add_credits,
        add_account,
        add_webhooks,
        add_community,
        add_ledger,
        add_members,
        add_models,
        add_playground,
        add_pool,
        add_workers,
        add_enrolling,
        add_worker,
        add_jobs,
        add_acting,
    ):
        add(site, router)
    if desk.context.settings.oidc_issuer is not None:
        from coordinator.dashboard.oidc import add_oidc  # an extra, which only those install who use it

        add_oidc(site, router)

    async def live(request: Request, caller: Caller) -> Response:
        """What changes on a page, for as long as it is open."""
        seen = site.live.seen(request.query_params.get("see", "").split(), caller)
        return StreamingResponse(
            site.live.stream(caller, seen), media_type="text/event-stream", headers=STREAM_HEADERS
        )

    site.add(router, "GET", "/live", live)
    return router
