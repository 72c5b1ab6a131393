"""What is a member's own: keys, invitations, and the end of the account."""

from collections.abc import Hashable, Mapping
from typing import Any, Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from coordinator.api.address import http_address
from coordinator.api.auth import Caller
from coordinator.api.pool_invites import Invites, invites_of
from coordinator.api.pool_keys import Keys
from coordinator.api.pool_standing import Standing
from coordinator.api.shapes import key_body
from coordinator.core.budgets import Limit
from coordinator.dashboard.asking import Fields, add_form
from coordinator.dashboard.form import credits_in, filled, text_in, whole_in
from coordinator.dashboard.live import Fragment, everybody
from coordinator.dashboard.page import Site
from coordinator.records import Scope
from coordinator.webhooks.endpoint import EventType

EVERY_S: Final = 2.0
_SCOPE: Final = "scope_"  # what the names of their boxes begin with
DAY_S: Final = 86_400


def add_account(site: Site, router: APIRouter) -> None:
    pages, desk = AccountPages(site), site.desk
    site.live.add(Fragment("keys", pages.version, pages.show_keys, every_s=EVERY_S))
    site.live.add(Fragment("identities", pages.version, pages.show_identities, every_s=EVERY_S))
    site.live.add(Fragment("invitations", pages.version, pages.show_invitations, every_s=EVERY_S))
    site.live.add(
        Fragment(
            "all-invitations",
            pages.version,
            pages.show_all_invitations,
            whose=everybody,
            every_s=EVERY_S,
            admin=True,
        )
    )
    site.add(router, "GET", "/account", pages.page)
    keys, invites = Keys(desk), Invites(desk)
    add_form(site, router, "/account/keys", keys.create, pages.key_made, new_key)
    add_form(site, router, "/account/keys/{key_id}/revoke", keys.revoke, key_revoked)
    add_form(site, router, "/account/invitations", invites.create, pages.invitation_made, invitation)
    add_form(site, router, "/account/invitations/{invite_id}/revoke", invites.revoke, invitation_revoked)
    add_form(site, router, "/account/{member}/close", Standing(desk).close, closed, confirmation)


class AccountPages:
    def __init__(self, site: Site) -> None:
        self._site, self._context = site, site.desk.context

    def version(self, _caller: Caller, _argument: str) -> Hashable:
        """Whatever changes one of these is told in the audit log, except that time ends invitations."""
        return self._context.audit_log.last, int(self._context.clock.now() // 60)

    async def page(self, request: Request, caller: Caller) -> Response:
        return await self._site.page(
            request,
            caller,
            "account.html",
            see=(
                "keys",
                "invitations",
                "webhooks",
                *(("identities",) if self._context.settings.oidc_issuer else ()),
            ),
            scopes=[scope.value for scope in Scope if scope in caller.scopes],
            models=[entry.name for entry in self._context.catalogue().entries],
            event_types=[event.value for event in EventType],
            invite_line=self._context.settings.invite_credit_line,
        )

    async def show_keys(self, caller: Caller, _argument: str) -> str:
        keys = await self._context.store.list_keys(caller.member.id)
        return self._site.text("fragments/keys.html", keys=[key_body(key, caller.member) for key in keys])

    async def show_identities(self, caller: Caller, _argument: str) -> str:
        found = await self._context.store.identities(caller.member.id)
        return self._site.text("fragments/identities.html", identities=found)

    async def show_invitations(self, caller: Caller, _argument: str) -> str:
        found = await invites_of(self._context, caller.member.id)
        return self._site.text("fragments/invitations.html", invitations=found, all=False)

    async def show_all_invitations(self, _caller: Caller, _argument: str) -> str:
        found = await invites_of(self._context, None)
        return self._site.text("fragments/invitations.html", invitations=found, all=True)

    def key_made(self, _request: Request, made: Any) -> Response:
        return self._site.html("fragments/new_key.html", {"name": made["name"], "key": made["key"]})

    def invitation_made(self, request: Request, made: Any) -> Response:
        """The token stands behind the #, which no browser sends to anybody."""
        link = f"{http_address(request, self._context.settings)}/invite#{made['token']}"
        return self._site.html("fragments/new_invitation.html", {"invite": made, "link": link})


def new_key(fields: Fields) -> Mapping[str, Any]:
    scopes = [name.removeprefix(_SCOPE) for name in fields if name.startswith(_SCOPE)]
    day = Limit.DAY.value
    return {
        **filled(fields, name=text_in, expires_s=_days),
        **({"scopes": scopes} if scopes else {}),
        **({"models": [fields["model"]]} if fields.get("model") else {}),
        **({"limits": {day: credits_in(fields, day)}} if fields.get(day) else {}),
    }


def _days(fields: Fields, name: str) -> int:
    return whole_in(fields, name) * DAY_S


def invitation(fields: Fields) -> Mapping[str, Any]:
    return filled(fields, note=text_in, credit_line=credits_in, expires_s=whole_in)


def confirmation(fields: Fields) -> Mapping[str, Any]:
    return filled(fields, confirm=text_in)


def key_revoked(_request: Request, done: Any) -> str:
    return f"The key {done['name']} opens nothing any more."


def invitation_revoked(_request: Request, _done: Any) -> str:
    return "The invitation was taken back, and its line with it."


def closed(_request: Request, done: Any) -> str:
    return f"The account of {done['name']} is closed. Thank you for having been here."
