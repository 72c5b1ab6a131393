"""Chat with any model that the caller may ask. The page's script asks the route that programs ask."""

from dataclasses import dataclass
from typing import Any, Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from coordinator import views
from coordinator.api.address import http_address
from coordinator.api.auth import Caller
from coordinator.api.context import Context
from coordinator.api.openai_models import asked_by
from coordinator.api.prepare import NAME_CHARS_SHOWN_MAX
from coordinator.core.jobs import Kind
from coordinator.dashboard.page import Site

# How a model is, in words, the best first.
STATES: Final = {
    "ready": "ready",
    "loading": "loading now",
    "downloading": "being fetched now",
    "present": "loads when it is asked",
    "absent": "is fetched when it is asked",
    "unserved": "nobody serves it now",
}


@dataclass(frozen=True, slots=True)
class Choice:
    """A model to chat with. Prices are microcredits for 1,000 tokens."""

    name: str
    state: str
    workers: int
    context_tokens: int
    prompt_price: int
    output_price: int

    @property
    def words(self) -> str:
        return STATES[self.state]


def add_playground(site: Site, router: APIRouter) -> None:
    context = site.desk.context

    async def page(request: Request, caller: Caller) -> Response:
        wanted = request.query_params.get("model", "")[:NAME_CHARS_SHOWN_MAX]
        choices = choices_of(context, caller, wanted)
        chosen = next((choice.name for choice in choices if choice.name == wanted), None)
        return await site.page(
            request,
            caller,
            "playground.html",
            choices=choices,
            chosen=chosen or (choices[0].name if choices else ""),
            missing=wanted if wanted and chosen is None else "",
            address=http_address(request, context.settings),
            max_tokens=context.settings.default_max_tokens,
        )

    site.add(router, "GET", "/playground", page)


def choices_of(context: Context, caller: Caller, wanted: str = "") -> list[Choice]:
    """Those that answer chats, the ready ones first; `wanted` too, if it is a checkpoint of the caller's."""
    tuned = context.tuned.seen_by(caller.member.id)
    shown = {body["name"]: body for body in (*views.models(context.pool), *views.tuned(context.pool, tuned))}
    names = [body["id"] for body in asked_by(context, caller)]
    checkpoint = context.tuned.get(wanted, caller.member.id) if wanted not in shown else None
    if checkpoint is not None and (not caller.key.models or checkpoint.base in caller.key.models):
        names.append(checkpoint.name)
        shown |= {body["name"]: body for body in views.tuned(context.pool, [checkpoint])}
    choices = [_choice(shown[name]) for name in names if name in shown]
    order = list(STATES)
    return sorted((c for c in choices if c is not None), key=lambda c: (order.index(c.state), c.name))


def _choice(body: dict[str, Any]) -> Choice | None:
    if Kind.CHAT.value not in body["kinds"]:
        return None
    return Choice(
        name=body["name"],
        state=body["state"],
        workers=body["workers"],
        context_tokens=body["context_tokens"],
        prompt_price=body["price"]["prompt_1000_tokens"],
        output_price=body["price"]["output_1000_tokens"],
    )
