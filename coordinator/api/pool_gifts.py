"""Pool routes for credits that are given: transfers between members, grants out of the commons."""

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import AfterValidator, Field
from starlette.requests import Request
from starlette.responses import Response

from coordinator.api.answers import people
from coordinator.api.audited import audited
from coordinator.api.desk import Desk, idempotency_key
from coordinator.api.errors import Json
from coordinator.api.routing import add, new_router
from coordinator.api.running import refused
from coordinator.api.schema import Schema
from coordinator.audit_log.event import Action
from coordinator.core.ledger import COMMONS, Recorded
from coordinator.records import Member
from coordinator.refusal import Refusal

AMOUNT_MAX = 10**15
TEXT_CHARS_MAX = 200
WHO_CHARS_MAX = 128


def one_line(text: str) -> str:
    """Raises ValueError for what cannot be shown on one line."""
    if not text.isprintable():
        raise ValueError("only characters that can be printed, on one line")
    return text.strip()


Amount = Annotated[int, Field(ge=1, le=AMOUNT_MAX)]
Who = Annotated[str, Field(min_length=1, max_length=WHO_CHARS_MAX)]
Note = Annotated[str, Field(max_length=TEXT_CHARS_MAX), AfterValidator(one_line)]
Reason = Annotated[str, AfterValidator(one_line), Field(min_length=1, max_length=TEXT_CHARS_MAX)]


class TransferRequest(Schema):
    """`to`: a member's name or id; `amount` in microcredits; the note is for both of you."""

    to: Who
    amount: Amount
    note: Note = ""


class GrantRequest(Schema):
    """`member`: a name or an id; `amount` in microcredits; the reason stands in the ledger."""

    member: Who
    amount: Amount
    reason: Reason


def gifts_router(desk: Desk) -> APIRouter:
    routes, router = Gifts(desk), new_router("Credits")
    add(
        router,
        "POST",
        "/pool/v1/transfers",
        routes.send,
        answer=people.Sent,
        body=TransferRequest,
        status=201,
        repeatable=True,
        errors=(402, 404, 409),
    )
    add(
        router,
        "POST",
        "/pool/v1/grants",
        routes.grant,
        answer=people.Granted,
        body=GrantRequest,
        status=201,
        repeatable=True,
        errors=(402, 404, 409),
    )
    return router


class Gifts:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def send(self, request: Request) -> Response:
        """Send what you have to another member: `{id, to, amount, note, at, account, balance, ...}`.

        With an Idempotency-Key the same request is done once. A credit line is not sent on.
        """
        context = self._desk.context
        caller = await self._desk.auth.act(request)
        caller.may_give()
        key = idempotency_key(request)
        wanted = await self._desk.read(request, TransferRequest)
        to = await self._desk.member_named(wanted.to, "to")
        try:
            done = await context.pool.giving.send(
                caller.member, to, wanted.amount, wanted.note, key=key, now=context.clock.now()
            )
        except Refusal as refusal:
            raise refused(refusal) from None
        balance = context.pool.accounts.balance(caller.member.account)
        return Json({**_body(done, to, wanted.amount), "note": wanted.note or None, **balance}, 201)

    @audited(Action.CREDITS_GRANTED, "to.id", "to.name", "amount", "reason", "entry")
    async def grant(self, request: Request) -> Response:
        """Give out of the commons, in the open: `{id, to, amount, reason, at, commons}`. For admins."""
        context = self._desk.context
        caller = await self._desk.auth.admin(request)
        caller.may_give()
        key = idempotency_key(request)
        wanted = await self._desk.read(request, GrantRequest)
        to = await self._desk.member_named(wanted.member, "member")
        request.state.unchanged = await context.pool.giving.granted(caller.member, key)
        try:
            done = await context.pool.giving.grant(caller.member, to, wanted.amount, wanted.reason, key=key)
        except Refusal as refusal:
            raise refused(refusal) from None
        commons = context.pool.accounts.balance(COMMONS)
        left = {"balance": commons["balance"], "available": commons["available"]}
        return Json({**_body(done, to, wanted.amount), "reason": wanted.reason, "commons": left}, 201)


def _body(done: Recorded, to: Member, amount: int) -> dict[str, Any]:
    return {
        "id": done.entry.id.rpartition("/")[0],
        "entry": done.number,
        "at": done.at,
        "to": {"id": to.id, "name": to.name},
        "amount": amount,
    }
