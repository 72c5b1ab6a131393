"""Pool routes about what members may: credit lines and roles, freezing, closing."""

from typing import Annotated

from fastapi import APIRouter
from pydantic import Field, model_validator
from starlette.requests import Request
from starlette.responses import Response

from coordinator.api.answers import people
from coordinator.api.audited import audited, note
from coordinator.api.auth import Caller
from coordinator.api.desk import Desk
from coordinator.api.errors import ApiError, Json
from coordinator.api.pool_gifts import Reason
from coordinator.api.pool_members import CREDIT_LINE_MAX, sentence
from coordinator.api.routing import add, new_router
from coordinator.api.running import refused
from coordinator.api.schema import Schema
from coordinator.api.shapes import account_body
from coordinator.audit_log.event import Action
from coordinator.core.ledger import Overdrawn
from coordinator.naming import CHARS_MAX as NAME_CHARS_MAX
from coordinator.records import Member, Role
from coordinator.refusal import Refusal
from coordinator.store_errors import LastAdmin, StoreConflict


class ChangeRequest(Schema):
    """What is left out stays. `credit_line` in microcredits: the pool lends or takes back the difference."""

    credit_line: Annotated[int, Field(ge=0, le=CREDIT_LINE_MAX)] | None = None
    role: Annotated[Role, Field(strict=False)] | None = None

    @model_validator(mode="after")
    def _something(self) -> "ChangeRequest":
        if self.credit_line is None and self.role is None:
            raise ValueError("give credit_line, role or both")
        return self


class ReasonRequest(Schema):
    """The member reads the reason."""

    reason: Reason


class CloseRequest(Schema):
    """An admin gives a reason; who closes the own account gives its name as `confirm`."""

    reason: Reason | None = None
    confirm: Annotated[str, Field(max_length=NAME_CHARS_MAX)] | None = None


def standing_router(desk: Desk) -> APIRouter:
    routes, router = Standing(desk), new_router("Members")
    add(router, "GET", "/pool/v1/members/{member}", routes.show, answer=people.AccountBody)
    add(
        router,
        "PATCH",
        "/pool/v1/members/{member}",
        routes.change,
        answer=people.AccountBody,
        body=ChangeRequest,
        errors=(409,),
    )
    add(
        router,
        "POST",
        "/pool/v1/members/{member}/freeze",
        routes.freeze,
        answer=people.AccountBody,
        body=ReasonRequest,
        errors=(409,),
    )
    add(
        router,
        "POST",
        "/pool/v1/members/{member}/unfreeze",
        routes.unfreeze,
        answer=people.AccountBody,
        errors=(409,),
    )
    add(
        router,
        "POST",
        "/pool/v1/members/{member}/close",
        routes.close,
        answer=people.AccountBody,
        body=CloseRequest,
        errors=(409,),
    )
    return router


class Standing:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def show(self, request: Request) -> Response:
        """One member, by id or name: `{id, name, role, state, why, account, balance, credit_line, ...}`."""
        await self._desk.auth.admin(request)
        return self._answer(await self._desk.member(request))

    @audited(Action.MEMBER_CHANGED, "id", "name", "role", "credit_line")
    async def change(self, request: Request) -> Response:
        """Change a member's credit line or role; the line only down to what is owed and what others lent."""
        context = self._desk.context
        caller = await self._desk.auth.admin(request)
        wanted = await self._desk.read(request, ChangeRequest)
        try:
            changed = await context.pool.membership.change(
                await self._desk.member(request),
                credit_line=wanted.credit_line,
                role=wanted.role,
                by=caller.member,
                now=context.clock.now(),
            )
        except Refusal as refusal:
            raise refused(refusal) from None
        except LastAdmin as error:
            raise _last_admin(error) from None
        finally:
            self._desk.auth.forget()
        return self._answer(changed)

    @audited(Action.MEMBER_FROZEN, "id", "name", "reason")
    async def freeze(self, request: Request) -> Response:
        """Freeze a member, who may look and earn, and nothing else, until unfrozen."""
        await self._desk.auth.admin(request)
        wanted = await self._desk.read(request, ReasonRequest)
        member = await self._desk.member(request)
        membership, now = self._desk.context.pool.membership, self._desk.context.clock.now()
        try:
            frozen = await membership.freeze(member, wanted.reason, now)
        except LastAdmin as error:
            raise _last_admin(error) from None
        except StoreConflict as error:
            raise _closed(error) from None
        finally:
            self._desk.auth.forget()
        return self._answer(frozen)

    @audited(Action.MEMBER_UNFROZEN, "id", "name")
    async def unfreeze(self, request: Request) -> Response:
        """Unfreeze a member, who may do everything again."""
        await self._desk.auth.admin(request)
        member = await self._desk.member(request)
        try:
            active = await self._desk.context.pool.membership.unfreeze(member, self._desk.context.clock.now())
        except StoreConflict as error:
            raise _closed(error) from None
        finally:
            self._desk.auth.forget()
        return self._answer(active)

    @audited(Action.MEMBER_CLOSED, "id", "name", "reason")
    async def close(self, request: Request) -> Response:
        """Close an account for good: jobs, keys, tokens, invitations and workers end.

        Whoever lent the line answers for the debt; what is left goes to the commons.
        """
        context = self._desk.context
        caller = await self._desk.auth.act(request)
        wanted = await self._desk.read(request, CloseRequest)
        member = await self._named_by(request, caller)
        try:
            closed = await context.pool.membership.close(
                member, _reason(caller, member, wanted), context.clock.now()
            )
        except Refusal as refusal:
            raise refused(refusal) from None
        except LastAdmin as error:
            raise _last_admin(error) from None
        except Overdrawn as short:
            await note(self._desk, request, Action.MEMBER_CLOSED, member.id, {"name": member.name})
            message = f"The account is closed; its books wait until the commons can bear its debt: {short}."
            raise ApiError(409, "commons_short", message, retry=False) from None
        finally:
            self._desk.auth.forget()
        return self._answer(closed)

    async def _named_by(self, request: Request, caller: Caller) -> Member:
        """Any member for an admin; for everybody else only oneself. Raises ApiError 403 or 404."""
        if caller.admin:
            return await self._desk.member(request)
        own = {caller.member.id, caller.member.name}
        if request.path_params["member"] not in own:
            message = "Only an admin may close the account of somebody else."
            raise ApiError(403, "admin_needed", message)
        return caller.member

    def _answer(self, member: Member) -> Response:
        return Json(account_body(member, self._desk.context.pool.accounts))


def _reason(caller: Caller, member: Member, wanted: CloseRequest) -> str:
    """Raises ApiError 400 unless whoever closes the account has said enough."""
    if member.id == caller.member.id:
        if wanted.confirm != member.name:
            message = (
                "Closing your own account cannot be undone. If you mean it, send your name as `confirm`:"
                f" {member.name}"
            )
            raise ApiError(400, "confirmation_needed", message, param="confirm")
        return wanted.reason or "closed by its member"
    if wanted.reason is None:
        message = "reason: say why the account is closed, in 1 to 200 characters."
        raise ApiError(400, "missing_required_parameter", message, param="reason")
    return wanted.reason


def _last_admin(error: Exception) -> ApiError:
    return ApiError(409, "last_admin", sentence(error), retry=False)


def _closed(error: Exception) -> ApiError:
    return ApiError(409, "account_closed", sentence(error), retry=False)
