"""Pool routes about members (admins only) and API keys."""

from typing import Annotated

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from coordinator.api.desk import Desk
from coordinator.api.errors import ApiError, Json
from coordinator.api.routing import add, new_router
from coordinator.api.schema import Schema
from coordinator.api.shapes import key_body, member_body, when
from coordinator.members import NAME_CHARS_MAX
from coordinator.records import Role
from coordinator.store_errors import NameTaken, StoreConflict, StoreError, StoreUnavailable, Unknown

KEY_S_MAX = 10 * 366 * 86_400
CREDIT_LINE_MAX = 10**15
FIRST_KEY_NAME = "first"

Name = Annotated[str, Field(min_length=1, max_length=NAME_CHARS_MAX)]


class MemberRequest(Schema):
    """`credit_line` in microcredits; the pool's default if it is left out."""

    name: Name
    role: Annotated[Role, Field(strict=False)] = Role.MEMBER
    credit_line: Annotated[int, Field(ge=0, le=CREDIT_LINE_MAX)] | None = None


class KeyRequest(Schema):
    """A key without `expires_s` (seconds) is good until it is revoked."""

    name: Name
    expires_s: Annotated[int, Field(ge=1, le=KEY_S_MAX)] | None = None


def members_router(desk: Desk) -> APIRouter:
    routes, router = Members(desk), new_router("pool")
    add(router, "GET", "/pool/v1/members", routes.list)
    add(router, "POST", "/pool/v1/members", routes.create, body=MemberRequest, status=201)
    add(router, "GET", "/pool/v1/keys", routes.list_keys)
    add(router, "POST", "/pool/v1/keys", routes.create_key, body=KeyRequest, status=201)
    add(router, "DELETE", "/pool/v1/keys/{key_id}", routes.revoke_key)
    return router


class Members:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def list(self, request: Request) -> Response:
        """All members: `{data: [{id, name, role, account, credit_line, created_at}]}`. For admins."""
        context = self._desk.context
        await self._desk.auth.admin(request)
        data = [
            {
                **member_body(member),
                "account": member.account,
                "credit_line": context.pool.accounts.balance(member.account)["credit_line"],
                "created_at": when(member.created_at),
            }
            for member in await context.store.members()
        ]
        return Json({"data": data})

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

    async def list_keys(self, request: Request) -> Response:
        """The caller's keys without their secrets: `{data: [{id, name, prefix, scopes, ...}]}`."""
        caller = await self._desk.auth.look(request)
        keys = await self._desk.context.store.list_keys(caller.member.id)
        return Json({"data": [key_body(key, caller.member) for key in keys]})

    async def create_key(self, request: Request) -> Response:
        """A further key of the caller, shown this once: `{id, name, key, prefix, ...}`."""
        context = self._desk.context
        caller = await self._desk.auth.look(request)
        wanted = await self._desk.read(request, KeyRequest)
        now = context.clock.now()
        expires_at = None if wanted.expires_s is None else now + wanted.expires_s
        # A key that ends does not beget one that lives longer (security rule 6).
        if caller.key.expires_at is not None:
            expires_at = min(expires_at or caller.key.expires_at, caller.key.expires_at)
        try:
            key, text = await context.store.create_key(
                caller.member.id, wanted.name, now, expires_at=expires_at
            )
        except StoreUnavailable:
            raise
        except StoreConflict as error:
            raise ApiError(409, "too_many_keys", sentence(error), retry=False) from None
        except StoreError as error:
            raise ApiError(400, "invalid_value", sentence(error), param="name") from None
        return Json({**key_body(key, caller.member), "key": text}, 201)

    async def revoke_key(self, request: Request) -> Response:
        """Revoke a key of the caller, or as an admin anybody's; it is worth nothing from now on."""
        context = self._desk.context
        caller = await self._desk.auth.look(request)
        key_id = request.path_params["key_id"][:64]
        owner = None if caller.admin else caller.member.id
        try:
            key = await context.store.revoke_key(key_id, context.clock.now(), member=owner)
        except Unknown:
            raise ApiError(404, "key_not_found", f"You have no key {key_id}.") from None
        self._desk.auth.forget()
        return Json({"id": key.id, "revoked_at": when(key.revoked_at)})


def sentence(error: Exception) -> str:
    """The store writes them for people, without the capital letter and the full stop."""
    text = str(error)
    return f"{text[:1].upper()}{text[1:]}."
