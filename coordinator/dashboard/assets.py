"""Styles and scripts: files of this package, and nothing from elsewhere.

Each is asked for under a name with its digest, so that a browser may keep it for ever.
"""

import hashlib
from pathlib import Path
from typing import Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from coordinator.api.errors import ApiError
from coordinator.dashboard.page import Site

FOLDER: Final = Path(__file__).parent / "assets"
KEPT: Final = {"cache-control": "public, max-age=31536000, immutable"}
_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".webmanifest": "application/manifest+json",
}


def add_assets(site: Site, router: APIRouter) -> None:
    """Read once, at the start. Templates name them by the global `asset`."""
    found: dict[str, tuple[bytes, str]] = {}
    names: dict[str, str] = {}
    for path in sorted(FOLDER.rglob("*")):
        if path.suffix in _TYPES:
            body = path.read_bytes()
            digest = hashlib.sha256(body).hexdigest()[:16]
            name = path.relative_to(FOLDER).as_posix()
            stem, _, suffix = name.rpartition(".")
            names[name] = f"/assets/{stem}.{digest}.{suffix}"
            found[f"{stem}.{digest}.{suffix}"] = (body, _TYPES[path.suffix])
    site.templates.globals["asset"] = names.__getitem__

    async def asset(request: Request) -> Response:
        known = found.get(request.path_params["name"])
        if known is None:
            raise ApiError(404, "unknown_asset", "There is no such file. Load the page again.")
        body, kind = known
        return Response(body, media_type=kind, headers=KEPT)

    router.add_api_route(
        "/assets/{name:path}", asset, methods=["GET"], include_in_schema=False, response_model=None
    )
