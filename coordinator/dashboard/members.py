"""Members as admins see them: the list, one of them, and all that can be done to one."""

from collections.abc import Hashable, Mapping
from typing import Any, Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from coordinator.api.auth import Caller
from coordinator.api.pool_gifts import Gifts
from coordinator.api.pool_keys import Keys
from coordinator.api.pool_limits import LimitRoutes
from coordinator.api.pool_members import Members
from coordinator.api.pool_standing import Standing
from coordinator.api.shapes import account_body, key_body
from coordinator.bounds import bounds_of, written
from coordinator.core.budgets import Limit
from coordinator.core.jobs import MemberId
from coordinator.core.ledger import COMMONS
from coordinator.dashboard.asking import Fields, add_form
from coordinator.dashboard.form import credits_in, filled, text_in, whole_in, without_blanks
from coordinator.dashboard.live import Fragment, everybody
from coordinator.dashboard.page import Site
from coordinator.naming import folded
from coordinator.records import MemberState, Role
from potluck.credits import rounded

EVERY_S: Final = 2.0
SHOWN_MAX: Final = 200
IN_CREDITS: Final = {Limit.DAY.value, Limit.MONTH.value}


def add_members(site: Site, router: APIRouter) -> None:
    pages, desk = MemberPages(site), site.desk
    for name, show in (("members", pages.show_all), ("member", pages.show_one)):
        fragment = Fragment(name, pages.version, show, whose=everybody, every_s=EVERY_S, admin=True)
        site.live.add(fragment)
    site.add(router, "GET", "/members", pages.page, admin=True)
    site.add(router, "GET", "/members/{member}", pages.member_page, admin=True)
    standing, gifts = Standing(desk), Gifts(desk)
    of_member = "/members/{member}"
    forms: tuple[tuple[Any, ...], ...] = (
        ("/members", Members(desk).create, pages.added, new_member),
        ("/members/grant", gifts.grant, granted, grant),
        (f"{of_member}/change", standing.change, changed, change),
        (f"{of_member}/limits", LimitRoutes(desk).put, limited, limits),
        (f"{of_member}/freeze", standing.freeze, frozen, reason),
        (f"{of_member}/unfreeze", standing.unfreeze, unfrozen),
        (f"{of_member}/close", standing.close, closed, reason),
        (f"{of_member}/keys", Keys(desk).create_of, pages.key_made, new_key),
    )
    for form in forms:
        add_form(site, router, *form, admin=True)


class MemberPages:
    def __init__(self, site: Site) -> None:
        self._site, self._context = site, site.desk.context

    def version(self, _caller: Caller, _argument: str) -> Hashable:
        accounts = self._context.pool.engine.book.accounts
        minute = int(self._context.clock.now() // 60)  # of when they were last here
        return (
            self._context.audit_log.last,
            minute,
            tuple((a.balance, a.reserved, a.credit_line) for a in accounts.values()),
        )

    async def page(self, request: Request, caller: Caller) -> Response:
        if (tidied := without_blanks(request)) is not None:
            return tidied
        wanted = request.query_params.get("q", "")
        found = await self._list(wanted) if wanted else ""
        return await self._site.page(
            request,
            caller,
            "members.html",
            see=("all-invitations", *(() if wanted else ("members",))),
            found=found,
            wanted=wanted,
            roles=[role.value for role in Role],
            commons=self._context.pool.accounts.balance(COMMONS),
            default_line=self._context.settings.default_credit_line,
            invite_line=self._context.settings.invite_credit_line,
        )

    async def member_page(self, request: Request, caller: Caller) -> Response:
        member = await self._site.desk.member(request)
        effective = written(bounds_of(member, None, self._context.settings)[0].limits)
        return await self._site.page(
            request,
            caller,
            "member.html",
            see=(f"member:{member.id}",),
            member=member,
            roles=[role.value for role in Role],
            limits=[(limit.value, _of(member.limits, limit), effective.get(limit.value)) for limit in Limit],
            in_credits=IN_CREDITS,
            line=self._context.pool.accounts.balance(member.account)["credit_line"],
            commons=self._context.pool.accounts.balance(COMMONS),
        )

    async def show_all(self, _caller: Caller, _argument: str) -> str:
        return await self._list("")

    async def _list(self, wanted: str) -> str:
        members = [m for m in await self._context.store.members() if folded(wanted) in folded(m.name)]
        shown = [self._row(member) for member in members[:SHOWN_MAX]]
        return self._site.text("fragments/members.html", members=shown, more=len(members) - len(shown))

    async def show_one(self, _caller: Caller, argument: str) -> str:
        member = await self._site.desk.member_named(argument)
        keys = await self._context.store.list_keys(member.id)
        workers = [w for w in self._context.pool.engine.fleet.workers.values() if w.member == member.id]
        return self._site.text(
            "fragments/member.html",
            member=self._row(member),
            balance=self._context.pool.accounts.balance(member.account),
            keys=[key_body(key, member) for key in keys],
            workers=workers,
            active=MemberState.ACTIVE.value,
        )

    def _row(self, member: Any) -> dict[str, Any]:
        body = account_body(member, self._context.pool.accounts)
        return {**body, "seen_at": self._context.presence.last.get(MemberId(member.id))}

    def added(self, _request: Request, made: Any) -> Response:
        return self._site.html("fragments/new_key.html", {"name": made["name"], "key": made["key"]})

    def key_made(self, request: Request, made: Any) -> Response:
        return self._site.html(
            "fragments/new_key.html", {"name": request.path_params["member"], "key": made["key"]}
        )


def _of(limits: Any, limit: Limit) -> int | None:
    found: int | None = limits.of(limit)
    return found


def new_member(fields: Fields) -> Mapping[str, Any]:
    return filled(fields, name=text_in, role=text_in, credit_line=credits_in)


def new_key(fields: Fields) -> Mapping[str, Any]:
    return filled(fields, name=text_in)


def grant(fields: Fields) -> Mapping[str, Any]:
    return filled(fields, member=text_in, amount=credits_in, reason=text_in)


def change(fields: Fields) -> Mapping[str, Any]:
    return filled(fields, role=text_in, credit_line=credits_in)


def limits(fields: Fields) -> Mapping[str, Any]:
    """What is empty is as the pool has it for everybody."""
    readers = {limit.value: credits_in if limit.value in IN_CREDITS else whole_in for limit in Limit}
    return filled(fields, **readers)


def reason(fields: Fields) -> Mapping[str, Any]:
    return filled(fields, reason=text_in)


def granted(_request: Request, done: Any) -> str:
    return f"{rounded(done['amount'])} credits were granted to {done['to']['name']}."


def changed(_request: Request, done: Any) -> str:
    return f"{done['name']} has the role {done['role']} and a credit line of {rounded(done['credit_line'])}."


def limited(_request: Request, done: Any) -> str:
    return f"The limits of {done['name']} hold from the next request on."


def frozen(_request: Request, done: Any) -> str:
    return f"The account of {done['name']} is frozen."


def unfrozen(_request: Request, done: Any) -> str:
    return f"{done['name']} may do everything again."


def closed(_request: Request, done: Any) -> str:
    return f"The account of {done['name']} is closed."
