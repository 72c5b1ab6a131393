"""Pool routes for invitations: make, list, take back, accept."""

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from coordinator.api import contract
from coordinator.api.address import http_address
from coordinator.api.answers import people
from coordinator.api.audited import audited, note
from coordinator.api.context import Context
from coordinator.api.desk import Desk, idempotency_key
from coordinator.api.errors import ApiError, Json
from coordinator.api.pool_gifts import Note
from coordinator.api.pool_members import CREDIT_LINE_MAX, Name, sentence
from coordinator.api.query import boolean, only
from coordinator.api.routing import add, new_router
from coordinator.api.running import refused
from coordinator.api.schema import Schema
from coordinator.api.shapes import when
from coordinator.audit_log.event import Action
from coordinator.core.jobs import MemberId
from coordinator.invitations import Wanted, looks_like_invite
from coordinator.records import Invite, InviteState, Member
from coordinator.refusal import Refusal
from coordinator.store_errors import (
    InviteEnded,
    InviteRefused,
    InviteSuspended,
    InviteUsed,
    NameTaken,
    StoreConflict,
    StoreError,
    StoreUnavailable,
    Unknown,
)

INVITE_S = 7 * 86_400
INVITE_S_MAX = 30 * 86_400
TOKEN_CHARS_MAX = 256


class InviteRequest(Schema):
    """The new member's `credit_line` (microcredits) is lent out of yours, or with `from_pool` by the pool.

    The pool is an admin's default: whose lines all come from one member stand in one line with that member.
    """

    credit_line: Annotated[int, Field(ge=0, le=CREDIT_LINE_MAX)] | None = None
    expires_s: Annotated[int, Field(ge=1, le=INVITE_S_MAX)] = INVITE_S
    note: Note = ""
    from_pool: bool | None = None


class AcceptRequest(Schema):
    """The token that somebody gave you, and the name that you want to have here."""

    token: Annotated[str, Field(max_length=TOKEN_CHARS_MAX)]
    name: Name


def invites_router(desk: Desk) -> APIRouter:
    routes, router = Invites(desk), new_router("Invitations")
    add(
        router,
        "POST",
        "/pool/v1/invites",
        routes.create,
        answer=people.NewInvite,
        body=InviteRequest,
        status=201,
        repeatable=True,
        errors=(402, 409),
    )
    add(
        router,
        "GET",
        "/pool/v1/invites",
        routes.list,
        answer=contract.list_of(people.InviteBody),
        query=(contract.flag("all", "Everybody's; for admins."),),
    )
    add(
        router,
        "POST",
        "/pool/v1/invites/accept",
        routes.accept,
        answer=people.Joined,
        body=AcceptRequest,
        status=201,
        open_to_all=True,
        repeatable=True,
        errors=(402, 404, 409, 429, 503),
    )
    add(
        router,
        "DELETE",
        "/pool/v1/invites/{invite_id}",
        routes.revoke,
        answer=people.EndedInvite,
        errors=(409,),
    )
    return router


class Invites:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    @audited(Action.INVITATION_MADE, "id", "note", "credit_line", "from_pool", "expires_at")
    async def create(self, request: Request) -> Response:
        """Invite one person: `{id, token, credit_line, expires_at, commands}`; the token is shown this once.

        The line is set aside until the invitation is accepted, taken back, or expires.
        """
        context = self._desk.context
        caller = await self._desk.auth.act(request)
        caller.may_give()
        key = idempotency_key(request)
        asked = await self._desk.read(request, InviteRequest)
        if asked.from_pool and not caller.admin:
            message = "Only an admin may let the pool lend the line; leave from_pool out to lend your own."
            raise ApiError(403, "admin_needed", message, param="from_pool")
        from_pool = caller.admin if asked.from_pool is None else asked.from_pool
        wanted, now = Wanted(asked.credit_line, asked.expires_s, asked.note, from_pool), context.clock.now()
        try:
            invite, token = await context.pool.invitations.create(caller.member, wanted, key=key, now=now)
        except Refusal as refusal:
            raise refused(refusal) from None
        except StoreConflict as error:
            raise ApiError(409, "too_many_invites", sentence(error), retry=False) from None
        request.state.unchanged = invite.created_at != now  # its first answer was lost
        address = http_address(request, context.settings)
        commands = [f"potluck login {address} --invite {token} --name NAME"]
        body = {**_body(invite, {caller.member.id: caller.member.name}), "token": token, "commands": commands}
        return Json(body, 201)

    async def list(self, request: Request) -> Response:
        """The caller's invitations, newest first: `{data: [{id, state, by, credit_line, ...}]}`.

        Admins: `?all=true`.
        """
        context = self._desk.context
        caller = await self._desk.auth.look(request)
        only(request, ("all",))
        everybody = boolean(request, "all")
        if everybody and not caller.admin:
            raise ApiError(
                403, "admin_needed", "Only an admin may list everybody's invitations.", param="all"
            )
        return Json({"data": await invites_of(context, None if everybody else caller.member.id)})

    @audited(Action.INVITATION_REVOKED, "id")
    async def revoke(self, request: Request) -> Response:
        """Take an open invitation back, as who made it or an admin: `{id, state}`. Its line returns."""
        context = self._desk.context
        caller = await self._desk.auth.look(request)
        invite_id = request.path_params["invite_id"][:64]
        try:
            ended = await context.pool.invitations.revoke(
                invite_id, member=None if caller.admin else caller.member.id, now=context.clock.now()
            )
        except Unknown:
            raise ApiError(404, "invite_not_found", f"You have no invitation {invite_id}.") from None
        except InviteUsed as error:
            raise ApiError(409, "invite_used", sentence(error), retry=False) from None
        except Refusal as refusal:
            raise refused(refusal) from None
        return Json({"id": ended.id, "state": ended.state.value, "revoked_at": when(ended.revoked_at)})

    async def accept(self, request: Request) -> Response:
        """Become a member by an invitation, without a key: `{id, name, key}`; the key is shown this once."""
        context = self._desk.context
        self._desk.auth.refuse_guessers(request)
        key = idempotency_key(request)
        wanted = await self._desk.read(request, AcceptRequest)
        member, text = await accept(self._desk, request, wanted, key)
        balance = context.pool.accounts.balance(member.account)
        body = {"id": member.id, "name": member.name, "role": member.role.value, "key": text}
        return Json({**body, "credit_line": balance["credit_line"], "pool": context.settings.pool_name}, 201)


async def invites_of(context: Context, member: MemberId | None) -> list[dict[str, Any]]:
    """One member's invitations, or everybody's; those whose time is over have ended."""
    await context.pool.invitations.sweep(context.clock.now())
    names: dict[Any, str] = {member.id: member.name for member in await context.store.members()}
    return [_body(invite, names) for invite in await context.store.invites(member=member)]


async def accept(desk: Desk, request: Request, wanted: AcceptRequest, key: str | None) -> tuple[Member, str]:
    """The new member, and the text of its key. Raises ApiError. `key`: the request's Idempotency-Key."""
    context, token, now = desk.context, wanted.token.strip(), desk.context.clock.now()
    if not looks_like_invite(token):
        message = "This is not an invitation: one starts with `pli_` and has 47 characters. Copy it whole."
        raise ApiError(400, "invite_malformed", message, param="token")
    try:
        member, text = await context.pool.invitations.accept(token, wanted.name, key=key, now=now)
    except InviteRefused as error:
        desk.auth.count_failure(request, "invitation")
        raise _refused(error) from None
    except NameTaken as error:
        raise ApiError(409, "name_taken", sentence(error), param="name", retry=False) from None
    except StoreUnavailable:
        raise
    except StoreError as error:
        raise ApiError(400, "invalid_value", sentence(error), param="name") from None
    except Refusal as refusal:
        raise refused(refusal) from None
    if member.created_at == now:  # else the answer to the first request was lost
        await note(desk, request, Action.MEMBER_JOINED, member.id, {"name": member.name}, by=member.id)
    return member, text


def _refused(error: InviteRefused) -> ApiError:
    code = {
        InviteUsed: "invite_used",
        InviteEnded: "invite_ended",
        InviteSuspended: "invite_suspended",
    }.get(type(error))
    if code is None:
        return ApiError(404, "invite_unknown", sentence(error), param="token")
    return ApiError(409, code, sentence(error), param="token", retry=False)


def _body(invite: Invite, names: dict[Any, str]) -> dict[str, Any]:
    accepted = invite.state is InviteState.ACCEPTED
    return {
        "id": invite.id,
        "state": invite.state.value,
        "by": names.get(invite.member, invite.member),
        "credit_line": invite.credit_line,
        "from_pool": invite.from_pool,
        "note": invite.note or None,
        "created_at": when(invite.created_at),
        "expires_at": when(invite.expires_at),
        "accepted_by": names.get(invite.accepted_by) if accepted else None,
        "ended_at": when(invite.accepted_at if accepted else invite.revoked_at),
    }
