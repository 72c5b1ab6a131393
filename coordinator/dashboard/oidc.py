"""Sign in at the pool's OpenID provider; link an account there to oneself, or join with it.

An account there stands for a key whose text nobody knows, so that all rules for keys and browsers hold. A
member links one while signed in otherwise; nobody is found by a name or an e-mail address. Somebody unknown
becomes a member by an invitation, or where the operator lets a domain or a group in.
"""

import asyncio
import re
from dataclasses import dataclass, field
from typing import Final

import structlog
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from coordinator.api.address import http_address
from coordinator.api.audited import note
from coordinator.api.auth import Caller
from coordinator.api.browser import encrypted
from coordinator.api.desk import Desk
from coordinator.api.errors import ApiError
from coordinator.api.frozen import refuse_frozen
from coordinator.api.pool_invites import AcceptRequest, accept
from coordinator.api.pool_keys import KeyRequest, make_key
from coordinator.api.pool_members import FIRST_KEY_NAME
from coordinator.api.running import refused
from coordinator.api.schema import validated
from coordinator.audit_log.event import Action
from coordinator.dashboard.form import read_form
from coordinator.dashboard.page import SIGN_IN, Site, local_path
from coordinator.dashboard.signing import signed_in_as
from coordinator.keys import digest_of
from coordinator.oidc.identity import Identity, may_join, names_for
from coordinator.oidc.pending import PENDING_S, Pending, SignIns, new_secret
from coordinator.oidc.provider import Provider, ProviderDown, ProviderRefused
from coordinator.oidc.rows import Linked
from coordinator.records import Authenticated, Member, Role, Scope
from coordinator.refusal import Refusal
from coordinator.store_errors import NameTaken, StoreError, StoreUnavailable

START: Final = SIGN_IN + "/oidc"
CALLBACK: Final = START + "/callback"  # what is registered at the provider
COOKIE: Final = "potluck_oidc"
_COOKIE: Final = re.compile(r"[A-Za-z0-9_-]{43}")
# What a provider may say of a sign-in that did not happen (RFC 6749, 4.1.2.1; Core 1.0, 3.1.2.6).
_SAID_NO: Final = {
    "access_denied": "you or it said no",
    "login_required": "you are not signed in there",
    "temporarily_unavailable": "it is busy",
    "server_error": "it broke",
}

log = structlog.get_logger(__name__)


def add_oidc(site: Site, router: APIRouter) -> None:
    pages = OidcPages(site, Provider(site.desk.context.settings, site.desk.context.clock.now))
    for method, path, endpoint in (
        ("GET", START, pages.start),
        ("GET", CALLBACK, pages.callback),
        ("POST", "/invite/oidc", pages.join),
    ):
        router.add_api_route(path, endpoint, methods=[method], include_in_schema=False, response_model=None)
    site.add(router, "POST", "/account/oidc", pages.link)


@dataclass(slots=True)
class OidcPages:
    site: Site
    provider: Provider
    sign_ins: SignIns = field(default_factory=SignIns)
    joining: asyncio.Lock = field(default_factory=asyncio.Lock)  # one account becomes one member

    @property
    def _desk(self) -> Desk:
        return self.site.desk

    async def start(self, request: Request) -> Response:
        """To the provider; afterwards on to the page that was asked for."""
        try:
            address, cookie = await self._begin(
                request, next=local_path(request.query_params.get("next", "/"))
            )
        except ApiError as error:
            return self._failed(error)
        return self._remembered(RedirectResponse(address, 303), cookie)

    async def join(self, request: Request) -> Response:
        """To the provider with an invitation, which is accepted when the browser comes back."""
        try:
            self._desk.auth.refuse_guessers(request)
            fields = await read_form(request)
            wanted = validated(AcceptRequest, {name: fields.get(name, "") for name in ("token", "name")})
            address, cookie = await self._begin(request, invitation=wanted.token, name=wanted.name)
        except ApiError as error:
            return self.site.refused(request, error)
        return self._remembered(Response(headers={"hx-redirect": address}), cookie)

    async def link(self, request: Request, caller: Caller) -> Response:
        """To the provider, to sign in there with what shall sign this member in from now on."""
        await refuse_frozen(self._desk.context.store, caller.member)
        address, cookie = await self._begin(request, key_id=caller.key.id, next="/account")
        return self._remembered(Response(headers={"hx-redirect": address}), cookie)

    async def callback(self, request: Request) -> Response:
        """Back from the provider, with a code or with the reason why there is none."""
        try:
            self._desk.auth.refuse_guessers(request)
            pending = self._taken(request)
            identity = await self._identity(request, pending)
            async with self.joining:
                response = await self._come(request, pending, identity)
        except Refusal as refusal:
            response = self._failed(refused(refusal))
        except ApiError as error:
            response = self._failed(error)
        response.delete_cookie(COOKIE, path=START)
        return response

    # -- what comes back -------------------------------------------------------------------------

    def _taken(self, request: Request) -> Pending:
        """The sign-in that this answers, once. Raises ApiError 400."""
        given, cookie = request.query_params, request.cookies.get(COOKIE, "")
        now = self._desk.context.clock.now()
        known = _COOKIE.fullmatch(cookie) is not None
        pending = self.sign_ins.take(given.get("state", ""), cookie, now) if known else None
        if pending is None:
            self._desk.auth.count_failure(request, "oidc")
            message = (
                "This answers no sign-in that began in this browser within the last"
                f" {PENDING_S / 60:.0f} minutes. Begin again."
            )
            raise ApiError(400, "sign_in_unknown", message)
        return pending

    async def _identity(self, request: Request, pending: Pending) -> Identity:
        given, settings = request.query_params, self._desk.context.settings
        label = settings.oidc_label
        if given.get("iss", settings.oidc_issuer) != settings.oidc_issuer:  # RFC 9207
            raise ApiError(403, "sign_in_refused", "Another provider than this pool's answered. Begin again.")
        if "error" in given or not given.get("code"):
            why = _SAID_NO.get(given.get("error", ""), "it did not say why in words that are known here")
            raise ApiError(403, "sign_in_refused", f"The sign-in with {label} was not finished: {why}.")
        try:
            return await self.provider.identity(given["code"], pending)
        except ProviderDown as trouble:
            raise self._down(trouble) from None
        except ProviderRefused as trouble:
            log.warning("sign-in refused", action="oidc_refused", why=str(trouble))
            self._desk.auth.count_failure(request, "oidc")
            message = f"What {label} said of you could not be verified, so nobody was signed in. Begin again."
            raise ApiError(403, "sign_in_refused", message) from None

    async def _come(self, request: Request, pending: Pending, identity: Identity) -> Response:
        linked = await self._desk.context.store.linked(identity)
        holder = await self._holder(linked)
        if pending.key_id:
            return await self._link(request, pending, identity, holder)
        if pending.invitation:
            return await self._accept(request, pending, identity, holder)
        if holder is not None:
            return await self._sign_in(request, self._desk.auth.caller_of(holder), pending.next)
        return await self._let_in(request, identity, linked)

    async def _holder(self, linked: Linked | None) -> Authenticated | None:
        """The member and the key that the account stands for, while the key holds."""
        context = self._desk.context
        if linked is None:
            return None
        return await context.store.authenticate(linked.key_digest, context.clock.now())

    async def _sign_in(
        self, request: Request, caller: Caller, where: str, response: Response | None = None
    ) -> Response:
        await refuse_frozen(self._desk.context.store, caller.member)
        request.state.by = caller
        told = {"issuer": self._desk.context.settings.oidc_issuer}
        await note(self._desk, request, Action.SIGNED_IN, caller.member.id, told)
        return await signed_in_as(self._desk, caller, where, response)

    async def _link(
        self, request: Request, pending: Pending, identity: Identity, holder: Authenticated | None
    ) -> Response:
        """The member is the one who began it: the same browser, signed in by the same key."""
        desk, label = self._desk, self._desk.context.settings.oidc_label
        caller = await desk.auth.look(request, Scope.ACCOUNT)
        await refuse_frozen(desk.context.store, caller.member)
        if caller.key.id != pending.key_id:
            raise ApiError(
                403, "sign_in_changed", "You signed in otherwise meanwhile. Link the account again."
            )
        if holder is not None:
            whom = "you" if holder.member.id == caller.member.id else "another member"
            message = f"This account of {label} signs {whom} in already. To change that, unlink it first."
            raise ApiError(409, "identity_linked", message, retry=False)
        await self._bind(request, caller, identity)
        return RedirectResponse(pending.next, 303)

    async def _accept(
        self, request: Request, pending: Pending, identity: Identity, holder: Authenticated | None
    ) -> Response:
        if holder is not None:
            message = (
                f"You are a member already, {holder.member.name}: sign in, the invitation is not needed."
            )
            raise ApiError(409, "identity_linked", message, retry=False)
        wanted = AcceptRequest(token=pending.invitation, name=pending.name)
        member, key = await accept(self._desk, request, wanted, None)
        return await self._welcome(request, member, key, identity)

    async def _let_in(self, request: Request, identity: Identity, linked: Linked | None) -> Response:
        """Somebody unknown. Whose link was ended or whose account is closed does not come in by this door."""
        desk, settings = self._desk, self._desk.context.settings
        if linked is not None or not may_join(identity, settings):
            message = (
                f"You signed in with {settings.oidc_label}, and no member of this pool is linked to that"
                " account. If you are a member, sign in with your key and link it on your account's page; if"
                " you were invited, open the invitation's link."
            )
            raise ApiError(403, "identity_unknown", message)
        line, now = settings.default_credit_line, desk.context.clock.now()
        for name in names_for(identity):
            try:
                member, key = await desk.context.store.create_member(
                    name, Role.MEMBER, line, FIRST_KEY_NAME, now
                )
            except NameTaken:
                continue
            except StoreUnavailable:
                raise
            except StoreError:
                break
            await desk.context.pool.accounts.open(member.account, line)
            told = {"name": member.name, "issuer": identity.issuer, "email": identity.email or None}
            await note(desk, request, Action.MEMBER_JOINED, member.id, told, by=member.id)
            return await self._welcome(request, member, key, identity)
        message = (
            "Nobody can be called here as you are called there. Ask an admin of this pool for an invitation."
        )
        raise ApiError(409, "name_taken", message, retry=False)

    async def _welcome(self, request: Request, member: Member, key: str, identity: Identity) -> Response:
        """A new member has a key, as everybody has, which programs use; the account signs in beside it."""
        desk = self._desk
        found = await desk.context.store.authenticate(digest_of(key), desk.context.clock.now())
        if found is None:
            raise ApiError(
                409, "key_revoked", "Your first key was revoked at once. Ask an admin.", retry=False
            )
        caller = await self._bind(request, desk.auth.caller_of(found), identity)
        response = self.site.html("welcome.html", {"member": member, "key": key})
        return await self._sign_in(request, caller, "/", response)

    async def _bind(self, request: Request, caller: Caller, identity: Identity) -> Caller:
        """The account stands for a new key, which may at most what the caller's may. As whom it signs in."""
        desk, member = self._desk, caller.member
        name = desk.context.settings.oidc_label
        made, text = await make_key(desk.context, caller, member, KeyRequest(name=name))
        await desk.context.store.link_identity(identity, made.id, desk.context.clock.now())
        request.state.by = caller
        told = {"issuer": identity.issuer, "key": made.id, "email": identity.email or None}
        await note(desk, request, Action.IDENTITY_LINKED, member.id, told)
        found = await desk.context.store.authenticate(digest_of(text), desk.context.clock.now())
        assert found is not None, "the key was made just now"
        return desk.auth.caller_of(found)

    # -- going there -----------------------------------------------------------------------------

    async def _begin(self, request: Request, **what: str) -> tuple[str, str]:
        """The provider's address, and the cookie's value. Raises ApiError 503."""
        context, cookie = self._desk.context, new_secret()
        pending = Pending(
            browser=digest_of(cookie),
            nonce=new_secret(),
            verifier=new_secret(),
            redirect_uri=http_address(request, context.settings) + CALLBACK,
            expires_at=context.clock.now() + PENDING_S,
            **what,
        )
        state = self.sign_ins.begin(pending)
        try:
            return await self.provider.address(pending, state), cookie
        except ProviderDown as trouble:
            raise self._down(trouble) from None

    def _remembered(self, response: Response, cookie: str) -> Response:
        """Lax: the browser sends it along when the provider sends it back."""
        secure = encrypted(self._desk.context.settings)
        response.set_cookie(
            COOKIE, cookie, max_age=int(PENDING_S), path=START, httponly=True, samesite="lax", secure=secure
        )
        return response

    def _down(self, trouble: ProviderDown) -> ApiError:
        log.warning("the OpenID provider does not answer", action="oidc_down", why=str(trouble))
        label = self._desk.context.settings.oidc_label
        message = f"{label} does not answer as it should just now. Try again later, or sign in with your key."
        return ApiError(503, "provider_unavailable", message)

    def _failed(self, error: ApiError) -> Response:
        response = self.site.html("oidc_failed.html", {"message": error.message}, status=error.status)
        response.headers.update(error.headers)
        return response
