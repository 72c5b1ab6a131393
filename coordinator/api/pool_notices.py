"""Pool routes about what the pool tells its members: terms that they accept, and an announcement."""

from typing import Annotated, Any, Final

from fastapi import APIRouter
from pydantic import AfterValidator, Field
from starlette.requests import Request
from starlette.responses import Response

from coordinator.api.answers import people
from coordinator.api.audited import audited
from coordinator.api.auth import ANY_SCOPE
from coordinator.api.desk import Desk
from coordinator.api.errors import ApiError, Json
from coordinator.api.pool_gifts import one_line
from coordinator.api.routing import add, new_router
from coordinator.api.schema import Schema
from coordinator.api.shapes import when
from coordinator.audit_log.event import Action
from coordinator.core.jobs import MemberId
from coordinator.notices.notice import ANNOUNCEMENT_CHARS_MAX, TERMS_CHARS_MAX, Announcement, Level

ANNOUNCEMENT_S_MAX: Final = 366 * 86_400
_ALLOWED: Final = "\n\t"


def _readable(text: str) -> str:
    """Raises ValueError for what a page could not show."""
    text = text.replace("\r\n", "\n").strip()
    if not all(character.isprintable() or character in _ALLOWED for character in text):
        raise ValueError("only characters that can be printed, and line breaks")
    return text


class TermsRequest(Schema):
    """The text that members accept; blank lines part its paragraphs. An empty one asks nothing of them."""

    text: Annotated[str, Field(max_length=TERMS_CHARS_MAX), AfterValidator(_readable)]


class AcceptTermsRequest(Schema):
    """The version that was read."""

    version: Annotated[int, Field(ge=1, le=2**31 - 1)]


class AnnouncementRequest(Schema):
    """One line for all pages; an empty one takes it away. Without `expires_s` it stays until then."""

    text: Annotated[str, Field(max_length=ANNOUNCEMENT_CHARS_MAX), AfterValidator(one_line)]
    level: Annotated[Level, Field(strict=False)] = Level.INFO
    expires_s: Annotated[int, Field(ge=1, le=ANNOUNCEMENT_S_MAX)] | None = None


def notices_router(desk: Desk) -> APIRouter:
    routes, router = NoticeRoutes(desk), new_router("Notices")
    add(router, "GET", "/pool/v1/terms", routes.terms, answer=people.Terms)
    add(router, "PUT", "/pool/v1/terms", routes.put_terms, answer=people.Terms, body=TermsRequest)
    add(
        router,
        "POST",
        "/pool/v1/terms/accept",
        routes.accept,
        answer=people.Terms,
        body=AcceptTermsRequest,
        errors=(409,),
    )
    add(router, "GET", "/pool/v1/announcement", routes.announcement, answer=people.AnnouncementBody)
    add(
        router,
        "PUT",
        "/pool/v1/announcement",
        routes.put_announcement,
        answer=people.AnnouncementBody,
        body=AnnouncementRequest,
    )
    return router


class NoticeRoutes:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def terms(self, request: Request) -> Response:
        """The pool's terms of use: `{version, text, at, accepted}`; version 0 and no text without them."""
        caller = await self._desk.auth.look(request, *ANY_SCOPE)
        return Json(self._terms(caller.member.id))

    @audited(Action.TERMS_CHANGED, "version")
    async def put_terms(self, request: Request) -> Response:
        """Write the terms: another text is another version, which every member is asked about. For admins."""
        caller = await self._desk.auth.admin(request)
        wanted = await self._desk.read(request, TermsRequest)
        context = self._desk.context
        await context.board.write_terms(wanted.text, caller.member.id, context.clock.now())
        return Json(self._terms(caller.member.id))

    @audited(Action.TERMS_ACCEPTED, "version")
    async def accept(self, request: Request) -> Response:
        """Accept the version that was read, if it is still the one that holds: `{version, accepted}`."""
        caller = await self._desk.auth.look(request)
        wanted = await self._desk.read(request, AcceptTermsRequest)
        context = self._desk.context
        holds = context.board.terms
        if holds is None or wanted.version != holds.version:
            message = "version: the terms that hold are another version. Read them again, then accept them."
            raise ApiError(409, "terms_changed", message, param="version", retry=False)
        await context.board.accept(caller.member.id, wanted.version, context.clock.now())
        return Json(self._terms(caller.member.id))

    async def announcement(self, request: Request) -> Response:
        """The line that all pages show: `{text, level, at, expires_at}`; `text` is null without one."""
        await self._desk.auth.look(request, *ANY_SCOPE)
        return Json(self._announcement())

    @audited(Action.ANNOUNCEMENT_CHANGED, "", "text", "level", "expires_at")
    async def put_announcement(self, request: Request) -> Response:
        """Put a line on all pages, or take it away. For admins."""
        await self._desk.auth.admin(request)
        wanted = await self._desk.read(request, AnnouncementRequest)
        now = self._desk.context.clock.now()
        expires_at = None if wanted.expires_s is None else now + wanted.expires_s
        made = Announcement(text=wanted.text, level=wanted.level, at=now, expires_at=expires_at)
        await self._desk.context.board.announce(made if wanted.text else None)
        return Json(self._announcement())

    def _terms(self, member: MemberId) -> dict[str, Any]:
        board = self._desk.context.board
        if (terms := board.terms) is None:
            return {"version": 0, "text": "", "at": None, "accepted": True}
        accepted = board.owed(member) is None
        return {"version": terms.version, "text": terms.text, "at": when(terms.at), "accepted": accepted}

    def _announcement(self) -> dict[str, Any]:
        context = self._desk.context
        if (found := context.board.shown(context.clock.now())) is None:
            return {"text": None, "level": None, "at": None, "expires_at": None}
        return {
            "text": found.text,
            "level": found.level.value,
            "at": when(found.at),
            "expires_at": when(found.expires_at),
        }
