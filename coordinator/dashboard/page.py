"""How a page is made: who may see it, what stands around it, and what is shown when something is refused."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, urlsplit

from fastapi import APIRouter
from jinja2 import Environment
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from coordinator.api.auth import Caller
from coordinator.api.browser import csrf_of, session_of, take_cookie
from coordinator.api.desk import Desk
from coordinator.api.errors import ApiError
from coordinator.api.running import refused
from coordinator.dashboard.live import Live
from coordinator.records import Scope
from coordinator.refusal import Refusal
from potluck.version import version

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "manifest-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
# Without any referrer a browser sends the origin of a form as null, which is nobody's.
HEADERS: Final = {"content-security-policy": POLICY, "referrer-policy": "same-origin"}
EVERYWHERE: Final = ("pulse", "balance", "announcement")  # fragments of every page
SIGN_IN: Final = "/sign-in"

PageEndpoint = Callable[[Request, Caller], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Link:
    path: str
    words: str


MEMBERS_LINKS: Final = (
    Link("/", "Home"),
    Link("/credits", "Credits"),
    Link("/playground", "Playground"),
    Link("/jobs", "Jobs"),
    Link("/workers", "Workers"),
    Link("/models", "Models"),
    Link("/community", "Community"),
    Link("/ledger", "Ledger"),
)
ADMINS_LINKS: Final = (Link("/members", "Members"), Link("/pool", "Pool"))


@dataclass(frozen=True, slots=True)
class Site:
    """What all pages share."""

    desk: Desk
    templates: Environment
    live: Live

    async def page(
        self,
        request: Request,
        caller: Caller,
        template: str,
        *,
        see: Sequence[str] = (),
        status: int = 200,
        **values: Any,
    ) -> Response:
        """`see`: fragments that the page keeps fresh; in the template, `live.NAME` is what is in them now."""
        seen = self.live.seen([*EVERYWHERE, *see], caller)
        live = {s.fragment.name: Markup(await self.live.html(caller, s)) for s in seen}  # noqa: S704 -- a template made it
        session = session_of(request)
        around = {
            "caller": caller,
            "csrf": csrf_of(session) if session else "",
            "links": MEMBERS_LINKS,
            "admins_links": ADMINS_LINKS if caller.admin else (),
            "path": request.url.path,
            "live": live,
            "see": "+".join(quote(word) for word in (*EVERYWHERE, *see)),
        }
        return self.html(template, around | values, status=status)

    def html(self, template: str, values: Mapping[str, Any] = {}, *, status: int = 200) -> Response:
        return HTMLResponse(self.text(template, **values), status, headers=HEADERS)

    def text(self, template: str, **values: Any) -> str:
        settings = self.desk.context.settings
        provider = settings.oidc_label if settings.oidc_issuer else ""
        return self.templates.get_template(template).render(
            pool_name=settings.pool_name, version=version(), provider=provider, **values
        )

    def add(
        self,
        router: APIRouter,
        method: str,
        path: str,
        endpoint: PageEndpoint,
        *,
        admin: bool = False,
        scopes: tuple[Scope, ...] = (),
    ) -> None:
        """A page, or what a page sends: the endpoint is called with whoever is signed in.

        `scopes`: one of them is needed; without any, `read` to see and `account` to change something.
        """

        async def answer(request: Request) -> Response:
            try:
                auth = self.desk.auth
                return await endpoint(
                    request, await (auth.admin(request) if admin else auth.look(request, *scopes))
                )
            except Refusal as refusal:
                return self.refused(request, refused(refusal))
            except ApiError as error:
                return self.refused(request, error)

        router.add_api_route(path, answer, methods=[method], include_in_schema=False, response_model=None)

    def refused(self, request: Request, error: ApiError) -> Response:
        """To the sign-in if nobody is signed in; else the reason, as a page or among a page's notices."""
        within = "hx-request" in request.headers
        if error.status == 401:
            back = request.url.path if request.method == "GET" and not within else "/"
            where = f"{SIGN_IN}?next={quote(back)}"
            response = Response(status_code=401) if within else RedirectResponse(where, 303)
            if within:
                response.headers["hx-redirect"] = SIGN_IN
            take_cookie(response, self.desk.context.settings)
            return response
        if not within:
            return self.html("error.html", {"error": error}, status=error.status)
        response = self.html("notice.html", {"bad": error.message}, status=error.status)
        response.headers.update({"hx-retarget": "#notice", "hx-reswap": "innerHTML"})
        return response


def local_path(text: str) -> str:
    """A path of this pool, or `/`: a link must not lead to another site after the sign-in."""
    parts = urlsplit(text)
    plain = text.startswith("/") and not text.startswith(("//", "/\\")) and text.isprintable()
    return text if plain and not parts.scheme and not parts.netloc else "/"
