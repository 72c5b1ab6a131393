"""Sign in with a key or an invitation, and out."""

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from coordinator.api.audited import note
from coordinator.api.auth import Caller
from coordinator.api.browser import SESSION_S, give_cookie, new_session, session_of, take_cookie
from coordinator.api.desk import Desk
from coordinator.api.errors import ApiError
from coordinator.api.pool_invites import AcceptRequest, accept
from coordinator.api.schema import validated
from coordinator.audit_log.event import Action
from coordinator.dashboard.form import read_form
from coordinator.dashboard.page import SIGN_IN, Site, local_path
from coordinator.keys import digest_of


def add_signing(site: Site, router: APIRouter) -> None:
    pages = Signing(site)
    for method, path, endpoint in (
        ("GET", SIGN_IN, pages.form),
        ("POST", SIGN_IN, pages.sign_in),
        ("GET", "/invite", pages.invitation),
        ("POST", "/invite", pages.accept),
    ):
        router.add_api_route(path, endpoint, methods=[method], include_in_schema=False, response_model=None)
    site.add(router, "POST", "/sign-out", pages.sign_out)


class Signing:
    def __init__(self, site: Site) -> None:
        self._site, self._desk = site, site.desk

    async def form(self, request: Request) -> Response:
        return self._site.html("sign_in.html", {"next": local_path(request.query_params.get("next", "/"))})

    async def sign_in(self, request: Request) -> Response:
        """By a key; on to the page that was asked for."""

        async def signed_in() -> Response:
            fields.update(await read_form(request))
            caller = request.state.by = await self._desk.auth.sign_in(request, fields.get("key", ""))
            await note(self._desk, request, Action.SIGNED_IN, caller.member.id)
            return await signed_in_as(self._desk, caller, local_path(fields.get("next", "/")))

        fields: dict[str, str] = {}
        return await self._or_again(
            signed_in, "sign_in.html", lambda: {"next": local_path(fields.get("next", "/"))}
        )

    async def invitation(self, _request: Request) -> Response:
        """The token stands behind the #, which a browser sends to nobody; the page's script reads it."""
        return self._site.html("invite.html", {"name": "", "token": ""})

    async def accept(self, request: Request) -> Response:
        """Become a member: the key is shown this once, and the browser is signed in with it."""

        async def joined() -> Response:
            self._desk.auth.refuse_guessers(request)
            fields.update(await read_form(request))
            wanted = validated(AcceptRequest, {name: fields.get(name, "") for name in ("token", "name")})
            member, key = await accept(self._desk, request, wanted, None)
            caller = await self._desk.auth.sign_in(request, key)
            response = self._site.html("welcome.html", {"member": member, "key": key})
            return await signed_in_as(self._desk, caller, "/", response)

        fields: dict[str, str] = {}
        return await self._or_again(
            joined, "invite.html", lambda: {name: fields.get(name, "") for name in ("token", "name")}
        )

    async def sign_out(self, request: Request, _caller: Caller) -> Response:
        """This browser only; the key stays what it is."""
        settings = self._desk.context.settings
        if (session := session_of(request)) is not None:
            await self._desk.context.store.end_session(digest_of(session))
            self._desk.auth.forget()
        response = Response(headers={"hx-redirect": SIGN_IN})
        take_cookie(response, settings)
        return response

    async def _or_again(
        self,
        attempt: Callable[[], Awaitable[Response]],
        template: str,
        values: Callable[[], dict[str, Any]],
    ) -> Response:
        """What was refused is said above the form, which keeps what was typed except secrets."""
        try:
            return await attempt()
        except ApiError as error:
            response = self._site.html(template, {"bad": error.message, **values()}, status=error.status)
            response.headers.update(error.headers)
            return response


async def signed_in_as(desk: Desk, caller: Caller, where: str, response: Response | None = None) -> Response:
    """The browser stands for the caller's key from now on, and goes on to `where`, or shows the response."""
    context, session = desk.context, new_session()
    now = context.clock.now()
    await context.store.open_session(digest_of(session), caller.key.id, now, now + SESSION_S)
    response = response or RedirectResponse(where, 303)
    give_cookie(response, session, context.settings)
    return response
