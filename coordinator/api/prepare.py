"""From a checked request to submissions: the model, the token counts, the limits, the work as protobuf."""

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from coordinator.api.auth import Caller
from coordinator.api.context import Context
from coordinator.api.errors import ApiError
from coordinator.api.messages import Message
from coordinator.api.requests import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    Generation,
    PotluckOptions,
    Prompt,
)
from coordinator.api.schema import validated
from coordinator.api.tools import text_of
from coordinator.chatwork import counted
from coordinator.core.jobs import Kind
from coordinator.records import Member
from coordinator.submission import Submission
from coordinator.tuned.model import MARK, TunedModel
from potluck.catalogue import Catalogue, ModelEntry
from potluck.v1 import work_pb2

# Counting this many characters takes about as long as handing them to a thread.
COUNT_INLINE_CHARS_MAX = 4_096
CLOSE_NAMES_MAX = 5
NAME_CHARS_SHOWN_MAX = 256
U64 = 2**64 - 1

SCHEMA_BY_KIND: dict[Kind, type[ChatRequest] | type[CompletionRequest] | type[EmbeddingRequest]] = {
    Kind.CHAT: ChatRequest,
    Kind.COMPLETION: CompletionRequest,
    Kind.EMBEDDING: EmbeddingRequest,
}

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Found:
    """The catalogue's entry, and the tuned model on top of it where one was asked for."""

    entry: ModelEntry
    tuned: TunedModel | None = None

    @property
    def name(self) -> str:
        return "" if self.tuned is None else self.tuned.name

    def work(self, **kind: Any) -> work_pb2.Work:
        """With the adapter's files."""
        return work_pb2.Work(**kind, adapter=None if self.tuned is None else self.tuned.adapter)


def find_model(context: Context, member: Member, name: str, kind: Kind) -> Found:
    """Aliases are resolved. Raises ApiError 404 with the names that are close, or 400."""
    catalogue = context.catalogue()
    tuned = context.tuned.get(name, member.id)
    entry = catalogue.get(name if tuned is None else tuned.base)
    if entry is None:
        raise unknown_model(catalogue, name)
    if kind.value not in entry.kinds:
        message = f"{entry.name} does not do {kind.value}; it does {', '.join(entry.kinds)}."
        raise ApiError(400, "model_does_not_serve_kind", message, param="model")
    return Found(entry, tuned)


async def _countable(context: Context, caller: Caller, name: str, kind: Kind) -> Found:
    """The model, once its tokenizer is there, if that is on its way: a first request is not overcharged."""
    found = find_model(context, caller.member, name, kind)
    await context.pool.vocabularies.wait(found.entry.name)
    return found


def unknown_model(catalogue: Catalogue, name: str) -> ApiError:
    if MARK in name:
        message = f"There is no tuned model {name[:NAME_CHARS_SHOWN_MAX]!r} of yours, or shared with you."
        return ApiError(404, "model_not_found", message, param="model")
    close = catalogue.closest(name[:NAME_CHARS_SHOWN_MAX])[:CLOSE_NAMES_MAX]
    hint = f" Close to it: {', '.join(close)}." if close else " `potluck models` lists what there is."
    message = f"This pool has no model {name[:NAME_CHARS_SHOWN_MAX]!r}.{hint}"
    return ApiError(404, "model_not_found", message, param="model")


async def submissions_of(
    context: Context,
    caller: Caller,
    kind: Kind,
    body: Any,
    *,
    key: str | None = None,
    within: str = "request",
) -> list[Submission]:
    """The request of that kind inside another body, checked whole. Raises ApiError 400 or 404."""
    request = validated(SCHEMA_BY_KIND[kind], body, within=within)
    if isinstance(request, ChatRequest):
        return [await chat(context, caller, request, key)]
    if isinstance(request, CompletionRequest):
        return await completions(context, caller, request, key)
    return [await embedding(context, caller, request)]


async def chat(context: Context, caller: Caller, request: ChatRequest, key: str | None) -> Submission:
    """`key` is the request's Idempotency-Key, which fixes the seed."""
    found = await _countable(context, caller, request.model, Kind.CHAT)
    entry = found.entry
    work = _chat_work(request)
    more = counted(work)
    characters = sum(len(message.content) for message in work.messages) + sum(map(len, more))
    exact = context.counter.exact(entry.name)
    prompt_tokens = await _count(
        characters, lambda: context.counter.count_chat(entry.name, list(work.messages), more)
    )
    wanted = request.max_completion_tokens or request.max_tokens
    max_tokens = _room(context, entry, prompt_tokens, wanted, param="messages")
    sampling = _sampling(context, caller, request, max_tokens, key)
    sampling.logprobs = bool(request.logprobs)
    sampling.top_logprobs = request.top_logprobs or 0
    work.sampling.CopyFrom(sampling)
    return Submission(
        kind=Kind.CHAT,
        model=entry.name,
        member=caller.member,
        key=caller.key,
        tuned=found.name,
        work=found.work(chat=work),
        prompt_tokens=prompt_tokens,
        max_tokens=max_tokens,
        choices=sampling.choices,
        exact=exact,
        workers=_workers(request.potluck),
        wait_s=_wait_s(request.potluck),
    )


def _chat_work(request: ChatRequest) -> work_pb2.ChatWork:
    """All but the sampling. `tool_choice` auto is what the OpenAI API takes where there are tools."""
    choice, wanted = request.tool_choice
    work = work_pb2.ChatWork(
        messages=[_message(message) for message in request.messages],
        tools=[
            work_pb2.Tool(
                name=tool.function.name,
                description=tool.function.description or "",
                parameters=text_of(tool.function.parameters),
                strict=bool(tool.function.strict),
            )
            for tool in request.tools
        ],
        reasoning_effort=request.reasoning_effort or "",
    )
    if request.tools:
        work.tool_choice, work.tool_name = choice or "auto", wanted
        work.parallel_tool_calls = request.parallel_tool_calls is not False
    wanted_form = request.response_format
    if wanted_form is not None and wanted_form.type != "text":
        named = wanted_form.json_schema
        work.structure.kind = wanted_form.type
        work.structure.schema = "" if named is None else named.text
    return work


def _message(message: Message) -> work_pb2.ChatMessage:
    calls = [
        work_pb2.ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)
        for call in message.tool_calls
    ]
    return work_pb2.ChatMessage(
        role=message.role,
        content=message.content or "",
        name=message.name or "",
        tool_calls=calls,
        tool_call_id=message.tool_call_id or "",
        reasoning=message.reasoning_content or "",
    )


async def completions(
    context: Context, caller: Caller, request: CompletionRequest, key: str | None
) -> list[Submission]:
    """One submission for each prompt. The API echoes, so that an echo is never counted as output."""
    found = await _countable(context, caller, request.model, Kind.COMPLETION)
    entry = found.entry
    exact = context.counter.exact(entry.name)
    counts = await _count_each(context, entry, request.prompt)
    submissions = []
    for prompt, prompt_tokens in zip(request.prompt, counts, strict=True):
        max_tokens = _room(context, entry, prompt_tokens, request.max_tokens, param="prompt")
        sampling = _sampling(context, caller, request, max_tokens, key)
        sampling.logprobs = request.logprobs is not None
        sampling.top_logprobs = request.logprobs or 0
        completion = work_pb2.CompletionWork(sampling=sampling)
        if isinstance(prompt, str):
            completion.prompt = prompt
        else:
            completion.prompt_ids.extend(prompt)
        submissions.append(
            Submission(
                kind=Kind.COMPLETION,
                model=entry.name,
                member=caller.member,
                key=caller.key,
                tuned=found.name,
                work=found.work(completion=completion),
                prompt_tokens=prompt_tokens,
                max_tokens=max_tokens,
                choices=sampling.choices,
                exact=exact or not isinstance(prompt, str),
                workers=_workers(request.potluck),
                wait_s=_wait_s(request.potluck),
            )
        )
    return submissions


async def embedding(context: Context, caller: Caller, request: EmbeddingRequest) -> Submission:
    found = await _countable(context, caller, request.model, Kind.EMBEDDING)
    entry = found.entry
    exact = context.counter.exact(entry.name)
    counts = await _count_each(context, entry, request.input)
    for index, tokens in enumerate(counts):
        if tokens > entry.context_tokens:
            raise _too_long(entry, tokens, 0, param=f"input.{index}" if len(counts) > 1 else "input")
    inputs = [
        work_pb2.EmbeddingInput(text=item) if isinstance(item, str) else work_pb2.EmbeddingInput(ids=item)
        for item in request.input
    ]
    return Submission(
        kind=Kind.EMBEDDING,
        model=entry.name,
        member=caller.member,
        key=caller.key,
        tuned=found.name,
        work=found.work(embedding=work_pb2.EmbeddingWork(inputs=inputs)),
        prompt_tokens=sum(counts),
        max_tokens=0,
        choices=1,
        prompts=tuple(counts),
        exact=exact or not any(isinstance(item, str) for item in request.input),
        workers=_workers(request.potluck),
        wait_s=_wait_s(request.potluck),
    )


async def _count_each(context: Context, entry: ModelEntry, prompts: Sequence[Prompt]) -> list[int]:
    def count() -> list[int]:
        counter = context.counter
        return [
            counter.count_text(entry.name, prompt) if isinstance(prompt, str) else len(prompt)
            for prompt in prompts
        ]

    return await _count(sum(len(prompt) for prompt in prompts if isinstance(prompt, str)), count)


async def _count(characters: int, count: Callable[[], Result]) -> Result:
    """Tokenizing much text takes long (and releases the interpreter lock): not on the event loop."""
    if characters <= COUNT_INLINE_CHARS_MAX:
        return count()
    return await asyncio.to_thread(count)


def _room(context: Context, entry: ModelEntry, prompt_tokens: int, wanted: int | None, *, param: str) -> int:
    """`max_tokens` for each choice: as asked for, or the pool's default as far as the context reaches."""
    left = entry.context_tokens - prompt_tokens
    if left < (wanted or 1):
        raise _too_long(entry, prompt_tokens, wanted or 1, param=param)
    return wanted or min(context.settings.default_max_tokens, left)


def _too_long(entry: ModelEntry, prompt_tokens: int, max_tokens: int, *, param: str) -> ApiError:
    asked = f" and {max_tokens:,} more were asked for as output" if max_tokens else ""
    message = (
        f"{entry.name} has a context of {entry.context_tokens:,} tokens; "
        f"the prompt has {prompt_tokens:,}{asked}. "
        + ("Shorten the prompt or lower max_tokens." if max_tokens > 1 else "Shorten the prompt.")
    )
    return ApiError(400, "context_length_exceeded", message, param=param)


def _sampling(
    context: Context, caller: Caller, request: Generation, max_tokens: int, key: str | None
) -> work_pb2.Sampling:
    """The OpenAI API's defaults; a negative seed is the same 64 bits read as unsigned.

    Under an Idempotency-Key the drawn seed follows from the key: a repeated request is the same request.
    """
    seed = request.seed
    if seed is None and key is not None:
        seed = int.from_bytes(hashlib.sha256(f"{caller.member.id} {key}".encode()).digest()[:8])
    if seed is None:
        seed = context.draw_seed()
    return work_pb2.Sampling(
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        top_k=request.top_k or 0,
        seed=seed & U64,
        max_tokens=max_tokens,
        stop=request.stop,
        choices=request.n or 1,
    )


def _workers(options: PotluckOptions | None) -> Any:
    return None if options is None else options.workers


def _wait_s(options: PotluckOptions | None) -> float | None:
    return None if options is None else options.wait_s
