"""Pool routes about API keys. A key made by a key may at most what that one may (security rule 6)."""

from typing import Annotated

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from coordinator.api import contract
from coordinator.api.answers import people
from coordinator.api.audited import audited
from coordinator.api.auth import Caller
from coordinator.api.context import Context
from coordinator.api.desk import Desk
from coordinator.api.errors import ApiError, Json
from coordinator.api.pool_limits import KeyLimits
from coordinator.api.pool_members import Name, sentence
from coordinator.api.prepare import unknown_model
from coordinator.api.query import boolean, only
from coordinator.api.routing import add, new_router
from coordinator.api.running import refused
from coordinator.api.schema import Schema
from coordinator.api.shapes import key_body, when
from coordinator.audit_log.event import Action
from coordinator.bounds import check_model
from coordinator.records import Ancestor, ApiKey, Member, Scope
from coordinator.refusal import Refusal
from coordinator.store_errors import LastAdmin, LastKey, StoreConflict, StoreError, StoreUnavailable, Unknown

KEY_S_MAX = 10 * 366 * 86_400
MODELS_MAX = 64
MODEL_CHARS_MAX = 256
ANCESTORS_MAX = 8
TOLD = ("name", "scopes", "models", "limits", "expires_at")  # of a key, in the audit log


class KeyRequest(Schema):
    """A key without `expires_s` (seconds) is good until it is revoked; one without `scopes` or `models` may
    all that the key which makes it may.
    """

    name: Name
    expires_s: Annotated[int, Field(ge=1, le=KEY_S_MAX)] | None = None
    scopes: Annotated[list[Annotated[Scope, Field(strict=False)]], Field(min_length=1)] | None = None
    models: (
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=MODEL_CHARS_MAX)]],
            Field(min_length=1, max_length=MODELS_MAX),
        ]
        | None
    ) = None
    limits: KeyLimits = KeyLimits()


def keys_router(desk: Desk) -> APIRouter:
    routes, router = Keys(desk), new_router("Keys")
    add(
        router,
        "GET",
        "/pool/v1/members/{member}/keys",
        routes.list_of,
        answer=contract.list_of(people.KeyBody),
    )
    add(
        router,
        "POST",
        "/pool/v1/members/{member}/keys",
        routes.create_of,
        answer=people.NewKey,
        body=KeyRequest,
        status=201,
        errors=(409,),
    )
    add(router, "GET", "/pool/v1/keys", routes.list, answer=contract.list_of(people.KeyBody))
    add(
        router,
        "POST",
        "/pool/v1/keys",
        routes.create,
        answer=people.NewKey,
        body=KeyRequest,
        status=201,
        errors=(404, 409),
    )
    add(
        router,
        "DELETE",
        "/pool/v1/keys/{key_id}",
        routes.revoke,
        answer=people.RevokedKey,
        query=(contract.flag("force", "Also the own last usable key."),),
        errors=(409,),
    )
    return router


class Keys:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def list(self, request: Request) -> Response:
        """The caller's keys without their secrets: `{data: [{id, name, scopes, models, limits, ...}]}`."""
        caller = await self._desk.auth.look(request)
        keys = await self._desk.context.store.list_keys(caller.member.id)
        return Json({"data": [key_body(key, caller.member) for key in keys]})

    @audited(Action.KEY_MADE, "id", *TOLD)
    async def create(self, request: Request) -> Response:
        """A further key of the caller, shown this once: `{id, name, key, scopes, models, limits, ...}`.

        Its limits count beside the member's, and its use counts for the limits of the key that made it. What
        is wider than the caller's key is refused (scopes, models) or narrowed (limits, expiry).
        """
        caller = await self._desk.auth.act(request)
        return await self._make(request, caller, caller.member)

    async def list_of(self, request: Request) -> Response:
        """A member's keys without their secrets. For admins."""
        await self._desk.auth.admin(request)
        member = await self._desk.member(request)
        keys = await self._desk.context.store.list_keys(member.id)
        return Json({"data": [key_body(key, member) for key in keys]})

    @audited(Action.KEY_MADE, "id", "member", *TOLD)
    async def create_of(self, request: Request) -> Response:
        """A further key for a member who lost theirs, shown this once. For admins."""
        caller = await self._desk.auth.admin(request)
        return await self._make(request, caller, await self._desk.member(request))

    async def _make(self, request: Request, caller: Caller, member: Member) -> Response:
        wanted = await self._desk.read(request, KeyRequest)
        key, text = await make_key(self._desk.context, caller, member, wanted)
        return Json({**key_body(key, member), "member": member.id, "key": text}, 201)

    @audited(Action.KEY_REVOKED, "id", "name", "member")
    async def revoke(self, request: Request) -> Response:
        """Revoke a key of the caller, or as an admin anybody's; it is worth nothing from now on.

        The caller's own last usable key only with `?force=true`, and the last key of the last admin never.
        """
        context = self._desk.context
        caller = await self._desk.auth.look(request)
        key_id = request.path_params["key_id"][:64]
        owner = None if caller.admin else caller.member.id
        only(request, ("force",))
        keep = None if boolean(request, "force") else caller.member.id
        try:
            key = await context.store.revoke_key(key_id, context.clock.now(), member=owner, keep_one_of=keep)
        except LastAdmin as error:
            raise ApiError(409, "last_admin", sentence(error), retry=False) from None
        except LastKey as error:
            raise ApiError(409, "last_key", sentence(error), retry=False) from None
        except Unknown:
            raise ApiError(404, "key_not_found", f"You have no key {key_id}.") from None
        self._desk.auth.forget()
        return Json(
            {"id": key.id, "name": key.name, "member": key.member, "revoked_at": when(key.revoked_at)}
        )


async def make_key(
    context: Context, caller: Caller, member: Member, wanted: KeyRequest
) -> tuple[ApiKey, str]:
    """A key that may at most what the caller's may, and its text. Raises ApiError."""
    now = context.clock.now()
    expires_at = None if wanted.expires_s is None else now + wanted.expires_s
    # A key that ends does not beget one that lives longer.
    if caller.key.expires_at is not None:
        expires_at = min(expires_at or caller.key.expires_at, caller.key.expires_at)
    try:
        return await context.store.create_key(
            member.id,
            wanted.name,
            now,
            expires_at=expires_at,
            scopes=_scopes(caller, wanted.scopes),
            models=_models(caller, wanted.models, context),
            limits=wanted.limits.limits.within(caller.key.limits),
            within=_within(caller),
        )
    except StoreUnavailable:
        raise  # no word about the name
    except StoreConflict as error:
        raise ApiError(409, "too_many_keys", sentence(error), retry=False) from None
    except StoreError as error:
        raise ApiError(400, "invalid_value", sentence(error), param="name") from None


def _scopes(caller: Caller, wanted: list[Scope] | None) -> frozenset[Scope]:
    """None wanted: those of the caller's key, where it has less than its member may."""
    if wanted is None:
        return caller.scopes if caller.key.scopes else frozenset()
    if wider := sorted(set(wanted) - caller.scopes):
        message = (
            f"Key {caller.key.name} has the scopes {', '.join(sorted(caller.scopes))}: a key that it makes "
            f"cannot have {', '.join(wider)}."
        )
        raise ApiError(403, "scope_not_allowed", message, param="scopes")
    return frozenset(wanted)


def _models(caller: Caller, wanted: list[str] | None, context: Context) -> tuple[str, ...]:
    """The catalogue's names, aliases resolved, and those of tuned models."""
    if wanted is None:
        return caller.key.models
    catalogue, names = context.catalogue(), dict[str, None]()
    for asked in wanted:
        tuned = context.tuned.get(asked, caller.member.id)
        if (entry := catalogue.get(asked if tuned is None else tuned.base)) is None:
            raise unknown_model(catalogue, asked)
        name = entry.name if tuned is None else tuned.name
        try:
            check_model(caller.key, name, entry.name)
        except Refusal as refusal:
            raise refused(refusal) from None
        names[name] = None
    return tuple(names)


def _within(caller: Caller) -> tuple[Ancestor, ...]:
    """Limited keys make keys that share their limits, or ten keys would have ten budgets."""
    key = caller.key
    own = (Ancestor(id=key.id, name=key.name, limits=key.limits),) if key.limits else ()
    within = (*own, *key.within)
    if len(within) > ANCESTORS_MAX:
        message = (
            f"Key {key.name} is the last of {ANCESTORS_MAX} limited keys, each made with the one before."
            " Make the new key with one that has no limits of its own."
        )
        raise ApiError(409, "too_many_ancestors", message, retry=False)
    return within
