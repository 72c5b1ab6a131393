"""Pool routes for those who run it: the audit log, and the settings with where each came from."""

from collections.abc import Mapping
from typing import Any, Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from coordinator.api import contract
from coordinator.api.answers import people
from coordinator.api.desk import Desk
from coordinator.api.errors import Json
from coordinator.api.query import integer, only, word
from coordinator.api.routing import add, new_router
from coordinator.api.shapes import when
from coordinator.audit_log.event import Action, Recorded
from coordinator.audit_log.rows import EVENTS_LISTED_MAX
from coordinator.core.jobs import MemberId

EVENTS_LISTED: Final = 50
NUMBER_MAX: Final = 2**29
SUBJECT_CHARS_MAX: Final = 128


def audit_router(desk: Desk) -> APIRouter:
    routes, router = Audit(desk), new_router("Operations")
    add(
        router,
        "GET",
        "/pool/v1/audit",
        routes.list,
        answer=contract.list_of(people.AuditBody, has_more=contract.YES_NO),
        query=(
            contract.limit(EVENTS_LISTED, EVENTS_LISTED_MAX - 1),
            contract.number("before", NUMBER_MAX, "The last number of the page before."),
            contract.choice("action", Action, "Only such events."),
            contract.text("member", "By whom, a name or an id."),
            contract.text("subject", "About what, an id."),
        ),
        errors=(404,),
    )
    add(router, "GET", "/pool/v1/settings", routes.settings, answer=people.Settings)
    return router


class Audit:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def list(self, request: Request) -> Response:
        """Who changed what: `{data: [{number, at, by, key, action, subject, details}], has_more}`.

        Newest first. `?limit&before&action&member&subject`: `before` is a number, `member` a name or an id.
        For admins.
        """
        await self._desk.auth.admin(request)
        only(request, ("limit", "before", "action", "member", "subject"))
        given, store = request.query_params, self._desk.context.store
        limit = integer(request, "limit", EVENTS_LISTED, EVENTS_LISTED_MAX - 1)
        action = word(request, "action", [action.value for action in Action])
        member = (await self._desk.member_named(given["member"], "member")).id if "member" in given else None
        found = await store.events(
            limit=limit + 1,
            before=integer(request, "before", 0, NUMBER_MAX) or None,
            action=None if action is None else Action(action),
            member=member,
            subject=given["subject"][:SUBJECT_CHARS_MAX] if "subject" in given else None,
        )
        names = {one.id: one.name for one in await store.members()}
        data = [event_body(event, names) for event in found[:limit]]
        return Json({"data": data, "has_more": len(found) > limit})

    async def settings(self, request: Request) -> Response:
        """What the operator set: `{data: {name: {value, origin, description}}}`, masked. For admins."""
        await self._desk.auth.admin(request)
        settings = self._desk.context.settings
        described = type(settings).model_fields
        data = {
            name: {**shown, "description": described[name].description}
            for name, shown in settings.view().items()
        }
        return Json({"data": data})


def event_body(event: Recorded, names: Mapping[MemberId, str]) -> dict[str, Any]:
    """`by` is null where it was the pool itself, or whoever sits at its machine."""
    by = event.member
    return {
        "number": event.number,
        "at": when(event.at),
        "by": None if by is None else {"id": by, "name": names.get(by, by)},
        "key": event.key or None,
        "action": event.action.value,
        "subject": event.subject or None,
        "details": dict(event.details),
    }
