"""The official client, pointed at the pool with nothing but its address and key changed."""

import asyncio
import base64
import math
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
from fixtures_api import MODEL, TEXT, Said, Stand, chat_body, deltas, embedding, error_of, sampling, saying

from coordinator.core.jobs import JobId
from potluck.v1 import session_pb2, work_pb2

ASK: Any = [{"role": "user", "content": "a b c"}]


async def test_a_whole_chat_answer(stand: Stand) -> None:
    """Text, finish reason, usage with the charge, and the pool's headers."""
    raw = await stand.openai().chat.completions.with_raw_response.create(model=MODEL, messages=ASK)
    answer = raw.parse()
    assert answer.object == "chat.completion"
    assert answer.model == MODEL
    assert answer.id.startswith("chatcmpl-")
    [choice] = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", TEXT, "stop")
    assert choice.logprobs is None
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    job_id = raw.headers["x-potluck-job-id"]
    extra: Any = answer.usage.model_extra
    assert extra["potluck"]["job_id"] == job_id
    assert extra["potluck"]["charge"] == -stand.available()["balance"] > 0
    assert raw.headers["x-request-id"].startswith("req_")
    assert 0 < float(raw.headers["x-potluck-overhead-ms"]) < 10_000


async def test_a_streamed_chat_answer(stand: Stand) -> None:
    """The role comes first, then the pieces in order, the finish reason, the usage with no choices."""
    chunks = [
        chunk
        async for chunk in await stand.openai().chat.completions.create(
            model=MODEL, messages=ASK, stream=True, stream_options={"include_usage": True}
        )
    ]
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    *pieces, last = chunks
    assert pieces[0].choices[0].delta.role == "assistant"
    assert pieces[0].choices[0].delta.content == ""
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in pieces) == TEXT
    )  # however many came together
    assert [chunk.choices[0].finish_reason for chunk in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in pieces)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens > 0


async def test_the_bytes_of_a_stream(stand: Stand) -> None:
    """As the wire has it: each event one `data:` line, the last one [DONE], no usage unless asked for."""
    response = await stand.chat(stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-store"
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: {") for event in events[:-2])
    assert "usage" not in response.text


@pytest.mark.parametrize("stream", [False, True])
async def test_several_choices(stand: Stand, stream: bool) -> None:
    """`n` choices interleaved on the wire come out apart."""

    async def script(assign: session_pb2.Assign) -> AsyncIterator[Said]:
        for first, second in zip(deltas("a", "b"), deltas("x", "y", choice=1), strict=True):
            yield [first]
            yield [second]

    stand.bench.script = script
    texts = {0: "", 1: ""}
    if stream:
        async for chunk in await stand.openai().chat.completions.create(
            model=MODEL, messages=ASK, n=2, stream=True
        ):
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    else:
        answer = await stand.openai().chat.completions.create(model=MODEL, messages=ASK, n=2)
        texts = {choice.index: choice.message.content or "" for choice in answer.choices}
    assert texts == {0: "ab", 1: "xy"}


async def test_parameters_reach_the_worker(stand: Stand) -> None:
    """Nothing that decides about the answer is lost or changed on the way."""
    await stand.openai().chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "developer", "content": "be brief"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
                "name": "al",
            },
        ],
        temperature=0.25,
        top_p=0.5,
        seed=-1,
        stop=["\n\n", "END"],
        max_completion_tokens=7,
        extra_body={"top_k": 40, "potluck": {"workers": [stand.worker]}},
    )
    [assign] = stand.bench.assigned
    chat = assign.work.chat
    assert [(m.role, m.content, m.name) for m in chat.messages] == [
        ("developer", "be brief", ""),
        ("user", "ab", "al"),
    ]
    assert chat.sampling == work_pb2.Sampling(
        temperature=0.25, top_p=0.5, top_k=40, seed=2**64 - 1, stop=["\n\n", "END"], max_tokens=7, choices=1
    )


async def test_what_is_left_out_has_the_defaults_of_the_openai_api(stand: Stand) -> None:
    """Temperature 1, no top_p, the pool's `max_tokens`, and a seed that is drawn anew for each job."""
    for _ in range(2):
        await stand.openai().chat.completions.create(model=MODEL, messages=ASK)
    first, second = (sampling(assign) for assign in stand.bench.assigned)
    assert (first.temperature, first.top_p, first.top_k, first.choices) == (1.0, 1.0, 0, 1)
    assert first.max_tokens == stand.context.settings.default_max_tokens
    assert first.seed != second.seed


async def test_parameters_that_ask_for_nothing_are_accepted(stand: Stand) -> None:
    """Clients send defaults; a default is no reason to refuse."""
    await stand.openai().chat.completions.create(
        model=MODEL,
        messages=[*ASK, {"role": "assistant", "content": "x", "refusal": None}, *ASK],
        presence_penalty=0,
        frequency_penalty=0.0,
        logit_bias=None,
        store=False,
        user="someone",
        metadata={"a": "b"},
        response_format={"type": "text"},
        tool_choice="none",
        parallel_tool_calls=True,
        service_tier="auto",
        logprobs=False,
    )


def _scored(text: str, logprob: float) -> work_pb2.TokenLogprob:
    data = text.encode()
    top = [work_pb2.TokenLogprob(token=text, logprob=logprob, bytes=data)]
    return work_pb2.TokenLogprob(token=text, logprob=logprob, bytes=data, top=top)


async def scored(_assign: session_pb2.Assign) -> AsyncIterator[Said]:
    first, second = deltas("né", "!")
    first.logprobs.append(_scored("né", -0.5))
    second.logprobs.append(_scored("!", -math.inf))
    yield [first]
    yield [second]


async def test_logprobs_of_a_chat(stand: Stand) -> None:
    """Whole and streamed: token, logprob, bytes and the alternatives; minus infinity has a number."""
    stand.bench.script = scored
    asked: Any = {"model": MODEL, "messages": ASK, "logprobs": True, "top_logprobs": 1}
    answer = await stand.openai().chat.completions.create(**asked)
    whole = answer.choices[0].logprobs
    assert whole is not None
    assert whole.content is not None
    streamed = [
        token
        async for chunk in await stand.openai().chat.completions.create(**asked, stream=True)
        if chunk.choices[0].logprobs and chunk.choices[0].logprobs.content
        for token in chunk.choices[0].logprobs.content
    ]
    for tokens in (whole.content, streamed):
        assert [(t.token, t.logprob, t.bytes) for t in tokens] == [
            ("né", -0.5, list("né".encode())),
            ("!", -9999.0, [33]),
        ]
        assert tokens[0].top_logprobs[0].token == "né"
    assert sampling(stand.bench.assigned[0]).top_logprobs == 1


async def test_logprobs_of_a_completion(stand: Stand) -> None:
    """The older shape: parallel lists, and offsets in characters that go on from chunk to chunk."""
    stand.bench.script = scored
    asked: Any = {"model": MODEL, "prompt": "a b", "logprobs": 1}
    whole = (await stand.openai().completions.create(**asked)).choices[0].logprobs
    assert whole is not None
    assert whole.model_dump() == {
        "tokens": ["né", "!"],
        "token_logprobs": [-0.5, -9999.0],
        "top_logprobs": [{"né": -0.5}, {"!": -9999.0}],
        "text_offset": [0, 2],
    }
    offsets = [
        offset
        async for chunk in await stand.openai().completions.create(**asked, stream=True)
        if chunk.choices[0].logprobs
        for offset in chunk.choices[0].logprobs.text_offset or []
    ]
    assert offsets == [0, 2]


@pytest.mark.parametrize("stream", [False, True])
async def test_several_prompts_are_choices_of_one_answer(stand: Stand, stream: bool) -> None:
    """Prompt i with `n` 2 has the choices 2i and 2i+1; `echo` puts each prompt before its own text."""
    asked: Any = {"model": MODEL, "prompt": ["one ", "two "], "n": 2, "echo": True}
    texts = dict.fromkeys(range(4), "")
    if stream:
        usage = None
        async for chunk in await stand.openai().completions.create(
            **asked, stream=True, stream_options={"include_usage": True}
        ):
            usage = chunk.usage or usage
            for choice in chunk.choices:
                texts[choice.index] += choice.text
    else:
        answer = await stand.openai().completions.create(**asked)
        usage, texts = answer.usage, {choice.index: choice.text for choice in answer.choices}
    assert texts == {0: f"one {TEXT}", 1: f"one {TEXT}", 2: f"two {TEXT}", 3: f"two {TEXT}"}
    assert usage is not None
    extra: Any = usage.model_extra
    assert len(extra["potluck"]["job_ids"]) == 2
    assert extra["potluck"]["charge"] == -stand.available()["balance"]
    assert all(not assign.work.completion.echo for assign in stand.bench.assigned)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("a b", [("a b", [])]), ([1, 2, 3], [("", [1, 2, 3])]), ([[1], [2, 3]], [("", [1]), ("", [2, 3])])],
)
async def test_forms_of_a_prompt(stand: Stand, prompt: Any, expected: list[tuple[str, list[int]]]) -> None:
    """A string, token ids, or a list of either."""
    answer = await stand.openai().completions.create(model=MODEL, prompt=prompt)
    assert answer.object == "text_completion"
    works = [assign.work.completion for assign in stand.bench.assigned]
    assert sorted((work.prompt, list(work.prompt_ids)) for work in works) == sorted(expected)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == (2 if isinstance(prompt, str) else 3)


async def test_embeddings_as_floats_and_as_base64(stand: Stand) -> None:
    """The client asks for base64 by itself; both forms hold the same float32 numbers, in the inputs' order."""
    stand.bench.script = embedding
    by_default = await stand.openai().embeddings.create(model=MODEL, input=["a b", "c"])
    assert [item.index for item in by_default.data] == [0, 1]
    assert by_default.data[1].embedding == pytest.approx([0.1, -0.5, 1.0, 1e-3])
    assert by_default.usage.prompt_tokens == by_default.usage.total_tokens == 3
    asked = {"model": MODEL, "input": "a", "encoding_format": "base64"}
    encoded = (await stand.ask("POST", "/v1/embeddings", json=asked)).json()["data"][0]["embedding"]
    numbers = np.frombuffer(base64.b64decode(encoded), "<f4")
    plain = await stand.ask("POST", "/v1/embeddings", json={**asked, "encoding_format": "float"})
    assert plain.json()["data"][0]["embedding"] == pytest.approx(numbers.tolist())
    assert "0.1,-0.5,0.0,0.001]" in plain.text  # a float32's own digits


@pytest.mark.parametrize(("given", "count"), [([5, 6], 1), ([[5], [6, 7]], 2)])
async def test_embeddings_of_token_ids(stand: Stand, given: Any, count: int) -> None:
    stand.bench.script = embedding
    answer = await stand.openai().embeddings.create(model=MODEL, input=given)
    assert len(answer.data) == count


async def test_models(stand: Stand) -> None:
    listed = [model.id async for model in stand.openai().models.list()]
    assert MODEL in listed
    assert (await stand.openai().models.retrieve(MODEL)).id == MODEL


async def _failing(stand: Stand, **more: Any) -> Any:
    name = more.pop("by", "alice")
    asked: Any = {"model": MODEL, "messages": ASK, **more}
    return await stand.openai(name).chat.completions.create(**asked)


async def test_each_error_class_of_the_client(stand: Stand) -> None:
    """What the official client raises depends on the status alone; code and param tell the rest."""
    with pytest.raises(openai.AuthenticationError) as wrong_key:
        await _failing(stand, by="sk-potluck-wrong")
    assert wrong_key.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError) as wrong_model:
        await _failing(stand, model="emulator-smal")
    assert wrong_model.value.code == "model_not_found"
    assert "emulator-small" in wrong_model.value.message
    with pytest.raises(openai.BadRequestError) as too_long:
        await _failing(stand, max_tokens=10**6)
    assert too_long.value.code == "context_length_exceeded"
    assert "1,000,000" in too_long.value.message
    with pytest.raises(openai.BadRequestError) as unsupported:
        await _failing(stand, functions=[{"name": "f"}])
    assert (unsupported.value.code, unsupported.value.param) == ("unsupported_parameter", "functions")
    with pytest.raises(openai.PermissionDeniedError):
        await stand.openai().get("/../pool/v1/members", cast_to=httpx2.Response)
    once = {"Idempotency-Key": "once"}
    await _failing(stand, extra_headers=once)  # the first time, it is answered
    with pytest.raises(openai.ConflictError) as conflict:
        await _failing(stand, extra_headers=once)
    assert conflict.value.code == "idempotency_replay"


async def test_too_poor(stand: Stand) -> None:
    """402 says what it costs, what there is, and how to earn; nothing is held afterwards."""
    body = {"name": "carol", "credit_line": 0}
    key = (await stand.ask("POST", "/pool/v1/members", by="admin", json=body)).json()["key"]
    with pytest.raises(openai.APIStatusError) as poor:
        await _failing(stand, by=key)
    assert poor.value.status_code == 402
    assert poor.value.code == "insufficient_credits"
    assert "worker join" in poor.value.message
    balance = (await stand.ask("GET", "/pool/v1/balance", by=key)).json()
    assert (balance["balance"], balance["reserved"]) == (0, 0)


async def test_a_failure_before_the_first_token_is_a_plain_error(stand: Stand) -> None:
    """Even of a stream: nothing was sent yet, so the status can still say it."""

    async def script(_assign: session_pb2.Assign) -> AsyncIterator[Said]:
        yield work_pb2.Failure(fault=work_pb2.FAULT_JOB, code="context_too_long", message="too long for it")

    stand.bench.script = script
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as refused:
            await _failing(stand, stream=stream)
        assert refused.value.code == "context_too_long"


async def test_a_failure_in_mid_stream_is_an_event(stand: Stand) -> None:
    """What came before stays, the error is the last event, there is no [DONE]."""

    async def script(_assign: session_pb2.Assign) -> AsyncIterator[Said]:
        yield [work_pb2.Delta(text="half")]
        yield work_pb2.Failure(fault=work_pb2.FAULT_WORKER, code="engine_died", message="it died")

    stand.bench.script = script
    seen: list[str | None] = []

    async def read() -> None:
        async for chunk in await _failing(stand, stream=True):
            seen.append(chunk.choices[0].delta.content)  # noqa: PERF401 -- what came before the error counts

    with pytest.raises(openai.APIError) as broken:
        await read()
    assert seen == ["", "half"]
    assert broken.value.code == "engine_died"
    raw = await stand.chat(stream=True)
    assert raw.text.rstrip().split("\n\n")[-1].startswith('data: {"error":{')


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_cancels_its_job(stand: Stand, stream: bool) -> None:
    """The worker is told, the job ends as cancelled, what was delivered is charged, the rest is returned."""
    begun = asyncio.Event()

    async def script(_assign: session_pb2.Assign) -> AsyncIterator[Said]:
        yield [work_pb2.Delta(text="one two three")]
        begun.set()
        await asyncio.Event().wait()

    stand.bench.script = script
    asking = asyncio.create_task(stand.chat(stream=stream))
    await asyncio.wait_for(begun.wait(), 10)
    asking.cancel()
    cancelled = await asyncio.wait_for(stand.bench.cancelled.get(), 10)
    assert "went away" in cancelled.why
    await stand.ticker.turn()
    job = await stand.context.store.job(JobId(cancelled.attempt.job_id))
    assert job is not None
    assert job.state == "cancelled"
    assert job.charge == -stand.available()["balance"] > 0
    assert stand.available()["reserved"] == 0


async def test_a_job_cancelled_by_its_member_ends_its_stream(stand: Stand) -> None:
    """From another terminal: the stream ends with the reason, and the client does not try again."""
    begun = asyncio.Event()

    async def script(_assign: session_pb2.Assign) -> AsyncIterator[Said]:
        yield [work_pb2.Delta(text="one")]
        begun.set()
        await asyncio.Event().wait()

    stand.bench.script = script
    asking = asyncio.create_task(stand.chat())
    await asyncio.wait_for(begun.wait(), 10)
    [assign] = stand.bench.assigned
    answer = await stand.ask("POST", f"/pool/v1/jobs/{assign.attempt.job_id}/cancel")
    assert answer.json() == {"id": assign.attempt.job_id, "state": "cancelled", "cancelled": True}
    response = await asyncio.wait_for(asking, 10)
    assert response.status_code == 400
    assert error_of(response)["code"] == "job_cancelled"
    assert response.headers["x-should-retry"] == "false"


async def test_an_idempotency_key_has_a_limit(stand: Stand) -> None:
    longest = {"idempotency-key": "k" * 255}
    first = await stand.ask("POST", "/v1/chat/completions", headers=longest, json=chat_body())
    assert first.status_code == 200
    again = await stand.ask(
        "POST", "/v1/chat/completions", headers={"idempotency-key": "k" * 256}, json=chat_body()
    )
    assert again.status_code == 400
    assert error_of(again)["param"] == "Idempotency-Key"


async def test_an_empty_answer_has_a_stream_too(stand: Stand) -> None:
    """A model that ends at once: the role, the reason, [DONE]."""
    stand.bench.script = saying("")
    response = await stand.chat(stream=True)
    assert response.text.count("data: ") == 3
