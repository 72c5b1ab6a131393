"""Pool routes about limits: the caller's with what is used of them, and for admins those of a member."""

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from coordinator.api import contract
from coordinator.api.answers import people
from coordinator.api.audited import audited
from coordinator.api.auth import ANY_SCOPE, Caller
from coordinator.api.desk import Desk
from coordinator.api.errors import ApiError, Json
from coordinator.api.routing import add, new_router
from coordinator.api.schema import Schema
from coordinator.api.shapes import when
from coordinator.audit_log.event import Action
from coordinator.bounds import bounds_of, owner_of, read, written
from coordinator.core.budgets import Bound, Limit, Limits, period_ends
from coordinator.core.jobs import MemberId
from coordinator.records import Member

COUNT_MAX = 2**31
AMOUNT_MAX = 2**62
MEMBER_CHARS_MAX = 256

Count = Annotated[int, Field(ge=1, le=COUNT_MAX)]
Tokens = Annotated[int, Field(ge=1, le=2**53)]
Amount = Annotated[int, Field(ge=1, le=AMOUNT_MAX)]
TokensOrNone = Annotated[int, Field(ge=0, le=2**53)]
AmountOrNone = Annotated[int, Field(ge=0, le=AMOUNT_MAX)]


class KeyLimits(Schema):
    """Beside the member's own; what is left out is not limited. Credits are microcredits."""

    requests_per_minute: Count | None = None
    tokens_per_minute: Tokens | None = None
    concurrent_jobs: Count | None = None
    credits_per_day: Amount | None = None
    credits_per_month: Amount | None = None

    @property
    def limits(self) -> Limits:
        return read(self.model_dump())


class LimitsRequest(Schema):
    """A member's own limits, all of them: what is left out is as the pool has it for everybody, and 0 is no
    limit whatever the pool has. Credits are microcredits.
    """

    requests_per_minute: Count | None = None
    tokens_per_minute: TokensOrNone | None = None
    concurrent_jobs: Count | None = None
    credits_per_day: AmountOrNone | None = None
    credits_per_month: AmountOrNone | None = None

    @property
    def limits(self) -> Limits:
        return read(self.model_dump())


def limits_router(desk: Desk) -> APIRouter:
    routes, router = LimitRoutes(desk), new_router("Limits")
    add(router, "GET", "/pool/v1/limits", routes.mine, answer=contract.list_of(people.LimitRow))
    add(router, "GET", "/pool/v1/members/{member}/limits", routes.show, answer=people.MemberLimits)
    add(
        router,
        "PUT",
        "/pool/v1/members/{member}/limits",
        routes.put,
        answer=people.MemberLimits,
        body=LimitsRequest,
    )
    return router


class LimitRoutes:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def mine(self, request: Request) -> Response:
        """What limits the caller: `{data: [{of, name, limit, allowed, used, renews_at, set_by}]}`.

        `of` is what is counted, the member (over all its keys) or a key; `used` counts what open jobs hold.
        `allowed` is null where nothing limits the member. `renews_at`: when the day or month is over (UTC),
        or when the last minute's use counts no more.
        """
        caller = await self._desk.auth.look(request, *ANY_SCOPE)
        rows = [
            self._row(caller, bound, limit)
            for bound in caller.bounds
            for limit in Limit
            if bound.subject == caller.member.id or bound.limits.of(limit) is not None
        ]
        return Json({"data": rows})

    async def show(self, request: Request) -> Response:
        """A member's own limits and which hold: `{id, name, limits, effective}`. For admins."""
        await self._desk.auth.admin(request)
        return Json(self._body(await self._find(request)))

    @audited(Action.MEMBER_LIMITED, "id", "name", "limits")
    async def put(self, request: Request) -> Response:
        """Set a member's own limits, all of them; they hold from the next request on. For admins."""
        await self._desk.auth.admin(request)
        wanted = await self._desk.read(request, LimitsRequest)
        member = await self._find(request)
        changed = await self._desk.context.store.set_limits(member.id, wanted.limits)
        self._desk.auth.forget()
        return Json(self._body(changed))

    def _row(self, caller: Caller, bound: Bound, limit: Limit) -> dict[str, Any]:
        owner = owner_of(bound, limit, caller.member, caller.key)
        used, renews_at = self._used(bound.subject, limit)
        return {
            "of": "member" if bound.subject == caller.member.id else "key",
            "name": owner.name,
            "limit": limit.value,
            "allowed": bound.limits.of(limit),
            "used": used,
            "renews_at": when(renews_at),
            "set_by": owner.of,
        }

    def _used(self, subject: str, limit: Limit) -> tuple[int, float | None]:
        pool = self._desk.context.pool
        now = pool.now()
        match limit:
            case Limit.REQUESTS:
                used, empty_at = self._desk.auth.requests(subject)
                return used, empty_at if used else None
            case Limit.TOKENS:
                used, empty_at = pool.budgets.tokens(subject, now)
                return used, empty_at if used else None
            case Limit.CONCURRENT:
                return self._desk.gauge.open(subject), None
            case Limit.DAY | Limit.MONTH:
                spent = pool.budgets.spent(subject, now)
                used = spent.held + (spent.day if limit is Limit.DAY else spent.month)
                return used, period_ends(limit, now)

    async def _find(self, request: Request) -> Member:
        named = request.path_params["member"][:MEMBER_CHARS_MAX]
        store = self._desk.context.store
        member = await store.member(MemberId(named)) or await store.member_by_name(named)
        if member is None:
            message = f"This pool has no member {named}. `potluck members list` shows them."
            raise ApiError(404, "member_not_found", message)
        return member

    def _body(self, member: Member) -> dict[str, Any]:
        effective = bounds_of(member, None, self._desk.context.settings)[0].limits
        return {
            "id": member.id,
            "name": member.name,
            "limits": written(member.limits),
            "effective": written(effective),
        }
