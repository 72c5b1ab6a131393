"""Pool routes about the caller and the pool as a whole: me, balance, quote, models, status."""

from typing import Any, Literal

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from coordinator import views
from coordinator.api import contract, prepare
from coordinator.api.answers import people, work
from coordinator.api.auth import ANY_SCOPE
from coordinator.api.desk import Desk
from coordinator.api.errors import Json
from coordinator.api.query import only, word
from coordinator.api.routing import add, new_router
from coordinator.api.running import refused
from coordinator.api.schema import Schema
from coordinator.api.shapes import key_body, member_body
from coordinator.core.jobs import Kind
from coordinator.refusal import Refusal


class JobRequest(Schema):
    """A request of the OpenAI API, and of which kind it is: `chat`, `completion` or `embedding`."""

    kind: Literal["chat", "completion", "embedding"]
    request: dict[str, Any]


def account_router(desk: Desk) -> APIRouter:
    routes, router = Account(desk), new_router("Account")
    add(router, "GET", "/pool/v1/me", routes.me, answer=people.Whoami)
    add(router, "GET", "/pool/v1/balance", routes.balance, answer=people.Balance)
    add(router, "POST", "/pool/v1/quote", routes.quote, answer=work.Quote, body=JobRequest, errors=(404,))
    add(
        router,
        "GET",
        "/pool/v1/models",
        routes.models,
        answer=contract.one_of(contract.many(work.ModelNow), {"type": "object"}),
        query=(contract.choice("format", ["catalogue"], "All models of the pool, and all about them."),),
    )
    add(router, "GET", "/pool/v1/status", routes.status, answer=work.Status)
    return router


class Account:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def me(self, request: Request) -> Response:
        """Whose key this is: `{member: {id, name, role}, account, key: {id, name, prefix, scopes}, pool}`."""
        caller = await self._desk.auth.look(request, *ANY_SCOPE)
        return Json(
            {
                "member": member_body(caller.member),
                "account": caller.member.account,
                "key": key_body(caller.key, caller.member),
                "pool": self._desk.context.settings.pool_name,
            }
        )

    async def balance(self, request: Request) -> Response:
        """The balance, in microcredits: `{account, balance, reserved, held, credit_line, available}`."""
        caller = await self._desk.auth.look(request)
        return Json(self._desk.context.pool.accounts.balance(caller.member.account))

    async def quote(self, request: Request) -> Response:
        """The most a job can cost: `{quote, prompt_tokens, max_tokens, model}`; nothing is run or set aside.

        Several prompts add up.
        """
        context = self._desk.context
        caller = await self._desk.auth.work(request)
        wanted = await self._desk.read(request, JobRequest)
        submissions = await prepare.submissions_of(context, caller, Kind(wanted.kind), wanted.request)
        try:
            quotes = [context.pool.quote(submission) for submission in submissions]
        except Refusal as refusal:
            raise refused(refusal) from None
        return Json(
            {
                "quote": sum(quotes),
                "prompt_tokens": sum(submission.prompt_tokens for submission in submissions),
                "max_tokens": sum(submission.max_tokens * submission.choices for submission in submissions),
                "model": submissions[0].name,
            }
        )

    async def models(self, request: Request) -> Response:
        """The models that the key may ask, whether they are served now, and their price. Tuned ones have a
        `base`, the `member` whose they are, and `shared`.

        `?format=catalogue`: all models of the pool, and all about them.
        """
        caller = await self._desk.auth.look(request, *ANY_SCOPE)
        only(request, ("format",))
        if word(request, "format", ["catalogue"]) == "catalogue":
            return Response(self._desk.context.catalogue().to_wire(), media_type="application/json")
        context, allowed = self._desk.context, caller.key.models
        found = views.models(context.pool)
        found += views.tuned(context.pool, context.tuned.seen_by(caller.member.id))
        return Json([m for m in found if not allowed or {m["name"], m.get("base")} & set(allowed)])

    async def status(self, request: Request) -> Response:
        """The pool at a glance; `ledger_sum` is 0 at every moment."""
        await self._desk.auth.look(request)
        return Json(views.status(self._desk.context.pool))
