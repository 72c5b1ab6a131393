"""A browser that is signed in: a cookie that stands for a key, and the token by which pages of ours ask.

The cookie's value is 256 random bits; the database keeps its digest. The token is derived from it (OWASP,
CSRF Prevention: HMAC-based token pattern) and travels in a header, which no page of another site can set.
"""

import hmac
import re
import secrets
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from coordinator.api.errors import ApiError
from coordinator.settings import Settings

COOKIE: Final = "potluck_session"
CSRF_HEADER: Final = "x-potluck-csrf"
SESSION_S: Final = 14 * 86_400
READING: Final = frozenset({"GET", "HEAD"})
_PREFIX: Final = "pls_"
_RANDOM_BYTES: Final = 32
_SESSION: Final = re.compile(r"pls_[A-Za-z0-9_-]{43}")


def new_session() -> str:
    return _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def session_of(request: Request) -> str | None:
    """The cookie's value, if it can be one."""
    value = request.cookies.get(COOKIE, "")
    return value if _SESSION.fullmatch(value) else None


def csrf_of(session: str) -> str:
    return hmac.digest(session.encode(), b"csrf", "sha256").hex()


def check_csrf(request: Request, session: str) -> None:
    """Raises ApiError 403 for a change that no page of ours asked for."""
    sent = request.headers.get(CSRF_HEADER, "")
    if request.method not in READING and not hmac.compare_digest(sent.encode(), csrf_of(session).encode()):
        message = "This page is older than your sign-in. Load it again."
        raise ApiError(403, "csrf_failed", message)


def give_cookie(response: Response, session: str, settings: Settings) -> None:
    response.set_cookie(
        COOKIE, session, max_age=SESSION_S, httponly=True, samesite="lax", secure=encrypted(settings)
    )


def take_cookie(response: Response, settings: Settings) -> None:
    response.delete_cookie(COOKIE, httponly=True, samesite="lax", secure=encrypted(settings))


def encrypted(settings: Settings) -> bool:
    """Whether browsers reach this pool by HTTPS only."""
    return settings.behind_proxy or settings.tls_cert is not None
