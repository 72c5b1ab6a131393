"""`POST /v1/chat/completions`."""

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from coordinator.api import contract, logprobs, prepare
from coordinator.api.answer import Choice, collect_choices
from coordinator.api.answers import generation
from coordinator.api.chunks import ChatChunks
from coordinator.api.desk import Desk, idempotency_key
from coordinator.api.errors import Json
from coordinator.api.requests import ChatRequest
from coordinator.api.routing import add, new_router
from coordinator.api.stream import EventStream
from coordinator.api.usage import Usage
from coordinator.core.parts import Content
from coordinator.message import message_of


def chat_router(desk: Desk) -> APIRouter:
    router = new_router("Chat")
    add(
        router,
        "POST",
        "/v1/chat/completions",
        Chat(desk).create,
        answer=generation.ChatCompletion,
        body=ChatRequest,
        media=(contract.JSON, contract.EVENTS),
        repeatable=True,
        errors=(402, 404, 409, 500),
    )
    return router


class Chat:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def create(self, request: Request) -> Response:
        """Answer a conversation, whole or as server-sent events, in the OpenAI API's shapes.

        The usage object also has `potluck: {charge, job_id}`, the charge in microcredits. Takes an
        `Idempotency-Key` header and the extra body `potluck: {"workers": "mine" | "trusted" | [ids]}`.
        """
        context = self._desk.context
        caller = await self._desk.auth.work(request)
        chat = await self._desk.read(request, ChatRequest)
        submission = await prepare.chat(context, caller, chat, idempotency_key(request))
        running = await self._desk.run(request, caller, [submission])
        answer_id = f"chatcmpl-{running.job_ids[0].removeprefix('job_')}"
        created = int(context.clock.now())
        if chat.stream:
            chunks = ChatChunks(
                answer_id,
                created,
                submission.name,
                choices=submission.choices,
                usage=chat.include_usage,
                logprobs=bool(chat.logprobs),
            )
            return EventStream(
                context, running, chunks, choices=submission.choices, include_usage=chat.include_usage
            )
        async with running:
            running.watch(request.receive)
            choices = await collect_choices(running.events(), 1, submission.choices)
            heard_at = context.clock.now()
        body = body_of(
            answer_id, created, submission.name, choices, running.usage, scored=bool(chat.logprobs)
        )
        headers = {**running.headers, "x-potluck-overhead-ms": running.overhead_ms(heard_at)}
        return Json(body, headers=headers)


def body_of(
    answer_id: str, created: int, model: str, choices: list[Choice], usage: Usage, *, scored: bool
) -> dict[str, Any]:
    """The chat.completion object."""
    return {
        "id": answer_id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [_choice(index, choice, scored=scored) for index, choice in enumerate(choices)],
        "usage": usage.body,
    }


def _choice(index: int, choice: Choice, *, scored: bool) -> dict[str, Any]:
    parts = [Content(choice.text)] if choice.read is None else choice.read
    return {
        "index": index,
        "message": message_of(parts, reasons=choice.reasons),
        "logprobs": logprobs.chat(choice.logprobs) if scored and choice.logprobs else None,
        "finish_reason": choice.finish_reason,
    }
