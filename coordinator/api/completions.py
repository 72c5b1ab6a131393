"""`POST /v1/completions`, the older form of generation: a prompt in, its continuation out."""

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from coordinator.api import contract, logprobs, prepare
from coordinator.api.answer import Choice, collect_choices
from coordinator.api.answers import generation
from coordinator.api.chunks import CompletionChunks
from coordinator.api.desk import Desk, idempotency_key
from coordinator.api.errors import Json
from coordinator.api.requests import CompletionRequest
from coordinator.api.routing import add, new_router
from coordinator.api.stream import EventStream
from coordinator.api.usage import Usage


def completions_router(desk: Desk) -> APIRouter:
    router = new_router("Completions")
    add(
        router,
        "POST",
        "/v1/completions",
        Completions(desk).create,
        answer=generation.TextCompletion,
        body=CompletionRequest,
        media=(contract.JSON, contract.EVENTS),
        repeatable=True,
        errors=(402, 404, 409, 500),
    )
    return router


class Completions:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def create(self, request: Request) -> Response:
        """Continue one or several prompts. Choice `i * n + k` is the k-th one of the i-th prompt."""
        context = self._desk.context
        caller = await self._desk.auth.work(request)
        completion = await self._desk.read(request, CompletionRequest)
        submissions = await prepare.completions(context, caller, completion, idempotency_key(request))
        running = await self._desk.run(request, caller, submissions)
        answer_id = f"cmpl-{running.job_ids[0].removeprefix('job_')}"
        created, model, n = int(context.clock.now()), submissions[0].name, submissions[0].choices
        echoes = echoes_of(completion, n)
        scored = completion.logprobs is not None
        if completion.stream:
            chunks = CompletionChunks(
                answer_id, created, model, echoes=echoes, usage=completion.include_usage, logprobs=scored
            )
            return EventStream(context, running, chunks, choices=n, include_usage=completion.include_usage)
        async with running:
            running.watch(request.receive)
            choices = await collect_choices(running.events(), len(submissions), n)
            heard_at = context.clock.now()
        body = body_of(answer_id, created, model, choices, echoes, running.usage, scored=scored)
        headers = {**running.headers, "x-potluck-overhead-ms": running.overhead_ms(heard_at)}
        return Json(body, headers=headers)


def echoes_of(completion: CompletionRequest, n: int) -> list[str]:
    """What stands before each choice's text."""
    return [
        prompt if completion.echo and isinstance(prompt, str) else ""
        for prompt in completion.prompt
        for _ in range(n)
    ]


def body_of(
    answer_id: str,
    created: int,
    model: str,
    choices: list[Choice],
    echoes: list[str],
    usage: Usage,
    *,
    scored: bool,
) -> dict[str, Any]:
    """The text_completion object."""
    return {
        "id": answer_id,
        "object": "text_completion",
        "created": created,
        "model": model,
        "choices": [
            _choice(index, choice, echo, scored=scored)
            for index, (choice, echo) in enumerate(zip(choices, echoes, strict=True))
        ],
        "usage": usage.body,
    }


def _choice(index: int, choice: Choice, echo: str, *, scored: bool) -> dict[str, Any]:
    return {
        "index": index,
        "text": echo + choice.text,
        "logprobs": logprobs.legacy(choice.logprobs, 0) if scored and choice.logprobs else None,
        "finish_reason": choice.finish_reason,
    }
