"""The pool as its admins run it: what it tells its members, settings, audit log; and the terms' own page."""

from collections.abc import Hashable, Mapping
from typing import Any, Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from coordinator.api.auth import Caller
from coordinator.api.pool_audit import NUMBER_MAX, SUBJECT_CHARS_MAX, Audit
from coordinator.api.pool_notices import NoticeRoutes
from coordinator.api.query import integer, word
from coordinator.audit_log.event import Action, Recorded
from coordinator.dashboard.asking import Fields, add_form, ask
from coordinator.dashboard.form import filled, text_in, whole_in, without_blanks
from coordinator.dashboard.live import Fragment, everybody
from coordinator.dashboard.page import Site
from coordinator.notices.notice import Level

SHOWN: Final = 25
EVERY_S: Final = 2.0


def add_pool(site: Site, router: APIRouter) -> None:
    pages, notices = PoolPages(site), NoticeRoutes(site.desk)
    audit = Fragment("audit", pages.version, pages.show_audit, whose=everybody, every_s=EVERY_S, admin=True)
    site.live.add(audit)
    site.add(router, "GET", "/pool", pages.page, admin=True)
    site.add(router, "GET", "/terms", pages.terms)
    add_form(site, router, "/pool/terms", notices.put_terms, terms_written, _text, admin=True)
    add_form(site, router, "/pool/announcement", notices.put_announcement, announced, _line, admin=True)
    add_form(site, router, "/terms/accept", notices.accept, accepted, _version)


class PoolPages:
    def __init__(self, site: Site) -> None:
        self._site, self._context = site, site.desk.context

    def version(self, _caller: Caller, _argument: str) -> Hashable:
        return self._context.audit_log.last

    async def page(self, request: Request, caller: Caller) -> Response:
        if (tidied := without_blanks(request)) is not None:
            return tidied
        given = request.query_params
        asked = {name: given[name] for name in ("action", "subject") if name in given}
        before = integer(request, "before", 0, NUMBER_MAX) or None
        filtered = await self._audit(request, asked, before) if asked or before else ""
        settings = (await ask(Audit(self._site.desk).settings, request))["data"]
        board, now = self._context.board, self._context.clock.now()
        return await self._site.page(
            request,
            caller,
            "pool.html",
            see=() if filtered else ("audit",),
            filtered=filtered,
            asked=asked,
            actions=[action.value for action in Action],
            settings=settings,
            terms=board.terms,
            accepted=sum(
                board.terms is not None and v >= board.terms.version for v in board.accepted.values()
            ),
            announcement=board.shown(now),
            levels=[level.value for level in Level],
        )

    async def terms(self, request: Request, caller: Caller) -> Response:
        board = self._context.board
        owed = board.owed(caller.member.id)
        return await self._site.page(request, caller, "terms.html", terms=board.terms, owed=owed)

    async def show_audit(self, _caller: Caller, _argument: str) -> str:
        found = await self._context.store.events(limit=SHOWN + 1)
        return await self._events(found, {})

    async def _audit(self, request: Request, asked: Mapping[str, str], before: int | None) -> str:
        action = word(request, "action", [action.value for action in Action])
        found = await self._context.store.events(
            limit=SHOWN + 1,
            before=before,
            action=None if action is None else Action(action),
            subject=asked["subject"][:SUBJECT_CHARS_MAX] if "subject" in asked else None,
        )
        return await self._events(found, asked)

    async def _events(self, found: list[Recorded], asked: Mapping[str, str]) -> str:
        names = {member.id: member.name for member in await self._context.store.members()}
        return self._site.text(
            "fragments/audit.html", events=found[:SHOWN], more=len(found) > SHOWN, names=names, asked=asked
        )


def _text(fields: Fields) -> Mapping[str, Any]:
    return {"text": fields.get("text", "")}


def _line(fields: Fields) -> Mapping[str, Any]:
    return {"text": fields.get("text", ""), **filled(fields, level=text_in, expires_s=whole_in)}


def _version(fields: Fields) -> Mapping[str, Any]:
    return filled(fields, version=whole_in)


def terms_written(_request: Request, done: Any) -> str:
    return f"Version {done['version']} of the terms holds. Members are asked to accept it."


def announced(_request: Request, done: Any) -> str:
    return "All pages show it." if done["text"] else "No page shows an announcement any more."


def accepted(_request: Request, done: Any) -> str:
    return f"You have accepted version {done['version']}. Thank you."
