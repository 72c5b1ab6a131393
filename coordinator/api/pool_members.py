"""Pool routes about members, for admins."""

from typing import Annotated

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from coordinator.api import contract
from coordinator.api.answers import people
from coordinator.api.audited import audited
from coordinator.api.desk import Desk
from coordinator.api.errors import ApiError, Json
from coordinator.api.routing import add, new_router
from coordinator.api.schema import Schema
from coordinator.api.shapes import account_body, when
from coordinator.audit_log.event import Action
from coordinator.naming import CHARS_MAX as NAME_CHARS_MAX
from coordinator.records import Role
from coordinator.store_errors import NameTaken, StoreError, StoreUnavailable

CREDIT_LINE_MAX = 10**15
FIRST_KEY_NAME = "first"

Name = Annotated[str, Field(min_length=1, max_length=NAME_CHARS_MAX)]


class MemberRequest(Schema):
    """`credit_line` in microcredits; the pool's default if it is left out."""

    name: Name
    role: Annotated[Role, Field(strict=False)] = Role.MEMBER
    credit_line: Annotated[int, Field(ge=0, le=CREDIT_LINE_MAX)] | None = None


def members_router(desk: Desk) -> APIRouter:
    routes, router = Members(desk), new_router("Members")
    add(router, "GET", "/pool/v1/members", routes.list, answer=contract.list_of(people.AccountBody))
    add(
        router,
        "POST",
        "/pool/v1/members",
        routes.create,
        answer=people.NewMember,
        body=MemberRequest,
        status=201,
        errors=(409,),
    )
    return router


class Members:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def list(self, request: Request) -> Response:
        """All members: `{data: [{id, name, role, state, account, credit_line, seen_at, ...}]}`. For admins.

        `seen_at`: when the member was last here, by any key.
        """
        context = self._desk.context
        await self._desk.auth.admin(request)
        members = await context.store.members()
        seen = context.presence.last
        return Json(
            {
                "data": [
                    {**account_body(one, context.pool.accounts), "seen_at": when(seen.get(one.id))}
                    for one in members
                ]
            }
        )

    @audited(Action.MEMBER_ADDED, "id", "name", "role", "credit_line")
    async def create(self, request: Request) -> Response:
        """A new member with an account and a first key, shown this once: `{id, name, key}`. For admins."""
        context = self._desk.context
        await self._desk.auth.admin(request)
        wanted = await self._desk.read(request, MemberRequest)
        line = context.settings.default_credit_line if wanted.credit_line is None else wanted.credit_line
        try:
            member, key = await context.store.create_member(
                wanted.name, wanted.role, line, FIRST_KEY_NAME, context.clock.now()
            )
        except StoreUnavailable:
            raise  # no word about the name
        except NameTaken as error:
            raise ApiError(409, "name_taken", sentence(error), param="name", retry=False) from None
        except StoreError as error:
            raise ApiError(400, "invalid_value", sentence(error), param="name") from None
        await context.pool.accounts.open(member.account, line)
        return Json({"id": member.id, "name": member.name, "role": member.role.value, "key": key}, 201)


def sentence(error: Exception) -> str:
    """The store writes them for people, without the capital letter and the full stop."""
    text = str(error)
    return f"{text[:1].upper()}{text[1:]}."
