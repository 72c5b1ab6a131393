"""The first page: how the pool is, what needs attention, what it did lately."""

from typing import Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from coordinator.api.address import http_address
from coordinator.api.auth import Caller
from coordinator.api.errors import Json
from coordinator.api.query import word
from coordinator.dashboard.page import Site

# Length and number of the points, by what is chosen.
SPANS: Final = {"hour": (60.0, 60), "day": (600.0, 144)}


def add_home(site: Site, router: APIRouter) -> None:
    context = site.desk.context

    async def home(request: Request, caller: Caller) -> Response:
        return await site.page(
            request, caller, "home.html", see=("attention",), address=http_address(request, context.settings)
        )

    async def throughput(request: Request, _caller: Caller) -> Response:
        """Tokens per second and jobs over time, as columns: what a chart takes."""
        length_s, count = SPANS[word(request, "span", list(SPANS)) or "hour"]
        spans = context.pulse.spans(length_s, count)
        return Json(
            {
                "series": [
                    {"label": "tokens/s", "values": [round(span.tokens_per_s, 2) for span in spans]},
                    {"label": "jobs running", "values": [round(span.running, 2) for span in spans]},
                    {"label": "jobs waiting", "values": [round(span.waiting, 2) for span in spans]},
                ],
                "at": [span.at for span in spans],
            }
        )

    site.add(router, "GET", "/", home)
    site.add(router, "GET", "/charts/throughput", throughput)
