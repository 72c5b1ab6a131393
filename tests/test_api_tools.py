"""Tools, structured answers and reasoning, as the official client asks for them and gets them."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import openai
import pytest
from fixtures_api import MODEL, Said, Script, Stand, chat_body, deltas, error_of

from coordinator.api.tools import SCHEMA_BYTES_MAX, SCHEMA_DEPTH_MAX, TOOLS_BYTES_MAX, TOOLS_MAX
from coordinator.core.jobs import JobId
from coordinator.core.reading import call_id
from potluck.v1 import session_pb2, work_pb2

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "where"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather there.",
        "parameters": SCHEMA,
        "strict": True,
    },
}
ASK: Any = [{"role": "user", "content": "How is the weather in Zürich?"}]
ARGUMENTS = '{"city": "Zürich"}'
CALL = f'<tool_call>\n{{"name": "get_weather", "arguments": {ARGUMENTS}}}\n</tool_call>'
HERMES = work_pb2.OutputFormat(tools="hermes")
THINK = work_pb2.OutputFormat(reasoning="think", tools="hermes")


def writing(text: str, form: work_pb2.OutputFormat, *, size: int = 3, reason: str = "stop") -> Script:
    """Every choice gets the text, so many letters a frame; how it is to be read comes with the first."""

    async def script(assign: session_pb2.Assign) -> AsyncIterator[Said]:
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        choices = range(assign.work.chat.sampling.choices)
        prompt: work_pb2.RenderedPrompt | None = work_pb2.RenderedPrompt(text="prompt", format=form)
        for frame in zip(*(deltas(*pieces, choice=c, reason=reason) for c in choices), strict=True):
            said = session_pb2.Frame(deltas=frame)
            if prompt is not None:
                said.prompt.CopyFrom(prompt)
            prompt = None
            yield said

    return script


async def test_what_is_asked_for_reaches_the_worker(stand: Stand) -> None:
    """Tools, choice, schema, effort, and a conversation with calls, answers to them and reasoning."""
    messages: Any = [
        *ASK,
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "I must look.",
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": ARGUMENTS},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "20 degrees"}]},
    ]
    await stand.openai().chat.completions.create(
        model=MODEL,
        messages=messages,
        tools=[TOOL],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
        parallel_tool_calls=False,
        reasoning_effort="low",
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "answer", "description": "It.", "schema": SCHEMA, "strict": True},
        },
    )
    chat = stand.bench.assigned[0].work.chat
    _, said, answered = chat.messages
    assert (said.content, said.reasoning) == ("", "I must look.")
    assert list(said.tool_calls) == [work_pb2.ToolCall(id="call_1", name="get_weather", arguments=ARGUMENTS)]
    assert (answered.role, answered.tool_call_id, answered.content) == ("tool", "call_1", "20 degrees")
    [tool] = chat.tools
    assert (tool.name, tool.description, tool.strict) == ("get_weather", "The weather there.", True)
    assert json.loads(tool.parameters) == SCHEMA
    assert (chat.tool_choice, chat.tool_name, chat.parallel_tool_calls) == ("function", "get_weather", False)
    assert chat.structure.kind == "json_schema"
    assert json.loads(chat.structure.schema) == {"description": "It.", **SCHEMA}
    assert chat.reasoning_effort == "low"


async def test_what_is_left_out(stand: Stand) -> None:
    """With tools the choice is auto, and calls may come together; without, nothing is said of either."""
    client = stand.openai().chat.completions
    await client.create(model=MODEL, messages=ASK, tools=[TOOL])
    await client.create(
        model=MODEL, messages=ASK, tools=[], tool_choice="auto", response_format={"type": "text"}
    )
    with_tools, without = (assign.work.chat for assign in stand.bench.assigned)
    assert (with_tools.tool_choice, with_tools.parallel_tool_calls) == ("auto", True)
    assert (without.tool_choice, without.parallel_tool_calls, without.structure.kind) == ("", False, "")


async def test_a_tool_call(stand: Stand) -> None:
    """No content, the call with an id that follows from the job, and its finish reason."""
    stand.bench.script = writing(CALL, HERMES)
    raw = await stand.openai().chat.completions.with_raw_response.create(
        model=MODEL, messages=ASK, tools=[TOOL]
    )
    [choice] = raw.parse().choices
    assert (choice.message.content, choice.finish_reason) == (None, "tool_calls")
    assert choice.message.tool_calls is not None
    [call] = choice.message.tool_calls
    assert call.type == "function"
    assert (call.function.name, call.function.arguments) == ("get_weather", ARGUMENTS)
    assert call.id == call_id(raw.headers["x-potluck-job-id"], 0, 0)
    assert "reasoning_content" not in (choice.message.model_extra or {})


async def test_a_tool_call_in_a_stream(stand: Stand) -> None:
    """The client's own accumulator puts it together; arguments come in several pieces, with nothing in between."""
    stand.bench.script = writing("Let me look.\n" + CALL, HERMES, size=1)
    async with stand.openai().chat.completions.stream(
        model=MODEL, messages=ASK, tools=[TOOL], stream_options={"include_usage": True}
    ) as stream:
        final = await stream.get_final_completion()
    [choice] = final.choices
    assert (choice.message.content, choice.finish_reason) == ("Let me look.", "tool_calls")
    assert choice.message.tool_calls is not None
    [call] = choice.message.tool_calls
    assert call.function.arguments == ARGUMENTS
    assert call.function.parsed_arguments == {"city": "Zürich"}


async def test_the_chunks_of_a_tool_call(stand: Stand) -> None:
    """As the OpenAI API has them: the role with the call's name and id, pieces of arguments, an empty end."""
    stand.bench.script = writing(CALL, HERMES, size=1_000)
    chunks = [
        chunk.choices[0]
        async for chunk in await stand.openai().chat.completions.create(
            model=MODEL, messages=ASK, tools=[TOOL], stream=True
        )
    ]
    first, second, last = (json.loads(chunk.to_json()) for chunk in chunks)
    start = {"index": 0, "type": "function", "function": {"name": "get_weather", "arguments": ""}}
    assert first["delta"]["tool_calls"][0].pop("id").startswith("call_")
    assert first["delta"] == {"role": "assistant", "content": None, "refusal": None, "tool_calls": [start]}
    assert second["delta"] == {"tool_calls": [{"index": 0, "function": {"arguments": ARGUMENTS}}]}
    assert (last["delta"], last["finish_reason"]) == ({}, "tool_calls")


@pytest.mark.parametrize("asked", [{}, {"tools": [TOOL], "tool_choice": "none"}])
async def test_calls_are_looked_for_only_where_they_may_be(stand: Stand, asked: dict[str, Any]) -> None:
    """Without tools, or with the choice none, the markup is text like any other."""
    stand.bench.script = writing(CALL, HERMES)
    answer = await stand.openai().chat.completions.create(model=MODEL, messages=ASK, **asked)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (CALL, "stop")
    assert answer.choices[0].message.tool_calls is None


async def test_a_call_cut_at_the_limit_says_so(stand: Stand) -> None:
    stand.bench.script = writing(CALL[:60], HERMES, reason="length")
    answer = await stand.openai().chat.completions.create(model=MODEL, messages=ASK, tools=[TOOL])
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.tool_calls is not None


THOUGHT = "<think>\nIs it far?\n</think>\n\nIt is sunny."


async def test_reasoning(stand: Stand) -> None:
    """As in DeepSeek's API: beside the content, in every choice; its tokens are a part of the output's."""
    stand.bench.script = writing(THOUGHT, THINK)
    answer = await stand.openai().chat.completions.create(model=MODEL, messages=ASK, n=2)
    for choice in answer.choices:
        assert choice.message.content == "It is sunny."
        assert (choice.message.model_extra or {})["reasoning_content"] == "Is it far?"
        assert choice.finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens == 2 * 3  # words, as the emulator counts
    assert answer.usage.completion_tokens == 2 * 8


async def test_reasoning_in_a_stream(stand: Stand) -> None:
    """Read as DeepSeek's guide reads it: each chunk has both fields, and the order is reasoning, content."""
    stand.bench.script = writing(THOUGHT, THINK, size=2)
    reasoning, content, usage = "", "", None
    async for chunk in await stand.openai().chat.completions.create(
        model=MODEL, messages=ASK, stream=True, stream_options={"include_usage": True}
    ):
        usage = chunk.usage
        for choice in chunk.choices:
            delta: Any = choice.delta
            if delta.reasoning_content:
                assert content == ""
                reasoning += delta.reasoning_content
            else:
                content += delta.content
    assert (reasoning, content) == ("Is it far?", "It is sunny.")
    assert usage is not None
    assert usage.completion_tokens_details is not None
    assert usage.completion_tokens_details.reasoning_tokens == 3


async def test_reasoning_and_then_a_call(stand: Stand) -> None:
    stand.bench.script = writing(f"<think>I look.</think>\n\n{CALL}", THINK)
    answer = await stand.openai().chat.completions.create(model=MODEL, messages=ASK, tools=[TOOL])
    message = answer.choices[0].message
    assert (message.content, (message.model_extra or {})["reasoning_content"]) == (None, "I look.")
    assert message.tool_calls is not None
    assert len(message.tool_calls) == 1


@pytest.mark.parametrize("opened", [False, True])
async def test_another_worker_goes_on_inside_a_tag(stand: Stand, opened: bool) -> None:
    """An attempt ends in the middle of `</think>`; the next one sends the rest and says nothing of the form."""
    text = THOUGHT.removeprefix("<think>") if opened else THOUGHT
    cut = text.index("</think>") + 4
    form = work_pb2.OutputFormat(reasoning="think", reasoning_open=opened)

    async def script(assign: session_pb2.Assign) -> AsyncIterator[Said]:
        if assign.attempt.number == 1:
            prompt = work_pb2.RenderedPrompt(text="prompt", format=form)
            yield session_pb2.Frame(prompt=prompt, deltas=[work_pb2.Delta(text=text[:cut])])
            yield work_pb2.Failure(fault=work_pb2.FAULT_NONE, code="yielded", message="the owner is back")
        else:
            assert assign.continuation.prompt.format == form
            yield [work_pb2.Delta(text=text[cut:], text_offset=cut, finish_reason="stop")]

    stand.bench.script = script
    answer = await stand.openai().chat.completions.create(model=MODEL, messages=ASK)
    message = answer.choices[0].message
    assert (message.content, (message.model_extra or {})["reasoning_content"]) == (
        "It is sunny.",
        "Is it far?",
    )
    assert len(stand.bench.assigned) == 2


async def test_a_prompt_too_long_to_be_told_still_says_how_to_read(stand: Stand) -> None:
    """The next attempt renders it again, and the form stays that of the first."""

    async def script(assign: session_pb2.Assign) -> AsyncIterator[Said]:
        if assign.attempt.number == 1:
            prompt = work_pb2.RenderedPrompt(format=THINK)
            yield session_pb2.Frame(prompt=prompt, deltas=[work_pb2.Delta(text="<think>a")])
            yield work_pb2.Failure(fault=work_pb2.FAULT_NONE, code="yielded", message="")
        else:
            assert not assign.continuation.HasField("prompt")
            assert assign.continuation.delivered[0].text == "<think>a"
            prompt = work_pb2.RenderedPrompt(text="again", format=HERMES)
            rest = work_pb2.Delta(text="b</think>c", text_offset=8, finish_reason="stop")
            yield session_pb2.Frame(prompt=prompt, deltas=[rest])

    stand.bench.script = script
    answer = await stand.openai().chat.completions.create(model=MODEL, messages=ASK)
    message = answer.choices[0].message
    assert (message.content, (message.model_extra or {})["reasoning_content"]) == ("c", "ab")


async def test_logprobs_cover_every_token(stand: Stand) -> None:
    """Reasoning and markup included, in order, whole and streamed: joined they are what the model wrote."""
    pieces = ["<think>", "Hm", ".</th", "ink>", "Yes", "."]

    async def script(_assign: session_pb2.Assign) -> AsyncIterator[Said]:
        prompt: work_pb2.RenderedPrompt | None = work_pb2.RenderedPrompt(text="prompt", format=THINK)
        for delta in deltas(*pieces):
            delta.logprobs.add(token=delta.text, logprob=-1.0, bytes=delta.text.encode())
            frame = session_pb2.Frame(deltas=[delta])
            if prompt is not None:
                frame.prompt.CopyFrom(prompt)
            prompt = None
            yield frame

    stand.bench.script = script
    asked: Any = {"model": MODEL, "messages": ASK, "logprobs": True}
    whole = (await stand.openai().chat.completions.create(**asked)).choices[0].logprobs
    assert whole is not None
    assert [token.token for token in whole.content or ()] == pieces
    streamed = [
        token.token
        async for chunk in await stand.openai().chat.completions.create(**asked, stream=True)
        if chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content or ()
    ]
    assert streamed == pieces


async def test_a_stored_job_keeps_reasoning_and_calls(stand: Stand) -> None:
    stand.bench.script = writing(f"<think>I look.</think>\n\n{CALL}", THINK)
    body = {"kind": "chat", "request": chat_body(tools=[TOOL])}
    job_id = (await stand.ask("POST", "/pool/v1/jobs", json=body)).json()["id"]
    async for _ in stand.context.pool.relay.follow(JobId(job_id)):
        pass
    await stand.ticker.committed()
    answer = (await stand.ask("GET", f"/pool/v1/jobs/{job_id}/result")).json()
    message = answer["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == (None, "I look.")
    assert message["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": ARGUMENTS}
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
    assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": 2}
    assert not stand.context.pool.transcripts.open


async def test_the_quote_counts_tools_and_schema(stand: Stand) -> None:
    async def tokens(**more: Any) -> int:
        body = {"kind": "chat", "request": chat_body(**more)}
        counted: int = (await stand.ask("POST", "/pool/v1/quote", json=body)).json()["prompt_tokens"]
        return counted

    bare = await tokens()
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
    assert await tokens(tools=[TOOL]) >= bare + 10
    assert await tokens(response_format=form) >= bare + 10
    assert await tokens(tools=[TOOL], response_format=form) >= bare + 20


@pytest.mark.parametrize(
    ("more", "lacking"),
    [
        ({"tools": [TOOL]}, "no structured output (JSON Schema) and no tool calls"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "no tool calls"),
        ({"response_format": {"type": "json_object"}}, "no structured output"),
    ],
)
async def test_what_no_worker_can_do_is_refused_at_once(
    stand: Stand, more: dict[str, Any], lacking: str
) -> None:
    """A worker whose model was not loaded yet may turn out to be able to, and is tried."""
    fleet = stand.context.pool.engine.fleet
    worker = fleet.workers[stand.worker]
    fleet.serve(worker, {MODEL: replace(worker.models[MODEL], features=frozenset({"reasoning"}))})
    response = await stand.chat(**more)
    assert (response.status_code, error_of(response)["code"]) == (400, "no_worker_could_serve")
    assert lacking in error_of(response)["message"]
    assert (await stand.chat()).status_code == 200
    fleet.serve(worker, {MODEL: replace(worker.models[MODEL], features=frozenset(), state="present")})
    assert (await stand.chat(**more)).status_code == 200


async def test_models_and_workers_show_features(stand: Stand) -> None:
    features = ["json_schema", "lora", "reasoning", "tools"]
    models = (await stand.ask("GET", "/pool/v1/models")).json()
    assert next(model for model in models if model["name"] == MODEL)["features"] == features
    [worker] = (await stand.ask("GET", "/pool/v1/workers")).json()
    assert worker["models"][0]["features"] == features


def _tool(**function: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "f", **function}}]}


def _format(**schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}, **schema}}}


def _deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels - 1):
        schema = {"items": schema}
    return schema


def _called(**more: Any) -> dict[str, Any]:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    return {
        "messages": [
            *ASK,
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "content": "x", **more},
        ]
    }


F = "tools.0.function"
WRONG: list[tuple[dict[str, Any], str, str]] = [
    (_tool(name="no name"), "invalid_value", f"{F}.name"),
    (_tool(name="n" * 65), "invalid_value", f"{F}.name"),
    (_tool(name="f\n"), "invalid_value", f"{F}.name"),
    (_tool(parameters=[]), "invalid_type", f"{F}.parameters"),
    (_tool(parameters={"x": "y" * SCHEMA_BYTES_MAX}), "invalid_value", f"{F}.parameters"),
    (_tool(parameters=_deep(SCHEMA_DEPTH_MAX + 1)), "invalid_value", f"{F}.parameters"),
    (_tool(parameters={"items": {"$ref": "https://example.org/x"}}), "invalid_value", f"{F}.parameters"),
    (_tool(strange=1), "unknown_parameter", f"{F}.strange"),
    ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "unsupported_parameter", "tools.0.custom"),
    ({"tools": [{"type": "function"}]}, "missing_required_parameter", F),
    ({"tools": [*_tool()["tools"], *_tool()["tools"]]}, "invalid_value", "tools"),
    ({"tools": [_tool(name=f"f{i}")["tools"][0] for i in range(TOOLS_MAX + 1)]}, "invalid_value", "tools"),
    (
        {
            "tools": [
                _tool(name=f"f{i}", parameters={"x": "y" * (SCHEMA_BYTES_MAX - 50)})["tools"][0]
                for i in range(TOOLS_BYTES_MAX // SCHEMA_BYTES_MAX + 1)
            ]
        },
        "invalid_value",
        "tools",
    ),
    ({"tool_choice": "required"}, "invalid_value", "tool_choice"),
    ({**_tool(), "tool_choice": "any"}, "invalid_value", "tool_choice"),
    (
        {**_tool(), "tool_choice": {"type": "function", "function": {"name": "g"}}},
        "invalid_value",
        "tool_choice",
    ),
    ({**_tool(), "tool_choice": {"type": "allowed_tools"}}, "unsupported_parameter", "tool_choice"),
    ({**_tool(), "tool_choice": {"type": "function"}}, "invalid_type", "tool_choice"),
    ({"functions": [{"name": "f"}]}, "unsupported_parameter", "functions"),
    ({"function_call": "auto"}, "unsupported_parameter", "function_call"),
    ({"reasoning_effort": "xhigh"}, "invalid_value", "reasoning_effort"),
    ({"response_format": {"type": "yaml"}}, "invalid_value", "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "invalid_value", "response_format.json_schema"),
    (_format(schema=None), "invalid_type", "response_format.json_schema.schema"),
    (_format(schema=_deep(SCHEMA_DEPTH_MAX + 1)), "invalid_value", "response_format.json_schema.schema"),
    (_format(name=""), "invalid_value", "response_format.json_schema.name"),
    (_called(), "invalid_value", "messages.2.tool_call_id"),
    (_called(tool_call_id="2"), "invalid_value", "messages.2.tool_call_id"),
    (_called(tool_call_id="1", content=None), "invalid_value", "messages.2"),
    (
        {"messages": [{"role": "user", "content": "x", "tool_call_id": "1"}]},
        "invalid_value",
        "messages.0.tool_call_id",
    ),
    (
        {"messages": [{**_called()["messages"][1], "role": "user"}]},
        "invalid_value",
        "messages.0.tool_calls",
    ),
    (
        {"messages": [{"role": "user", "content": "", "reasoning_content": "x"}]},
        "invalid_value",
        "messages.0.reasoning_content",
    ),
    (
        {"messages": [{"role": "assistant", "content": "", "function_call": {"name": "f"}}]},
        "unsupported_parameter",
        "messages.0.function_call",
    ),
]


async def test_what_is_wrong_or_not_supported_is_refused_by_name(stand: Stand) -> None:
    for change, code, param in WRONG:
        response = await stand.chat(**change)
        assert response.status_code == 400, change
        error = error_of(response)
        assert (error["code"], error["param"]) == (code, param), error
    assert "use tools" in error_of(await stand.chat(functions=[{"name": "f"}]))["message"]
    assert not stand.bench.assigned


async def test_at_the_bounds_it_is_taken(stand: Stand) -> None:
    taken = [_tool(parameters=_deep(SCHEMA_DEPTH_MAX)), _tool(name="n" * 64), _called(tool_call_id="1")]
    for change in taken:
        response = await stand.chat(**change)
        assert response.status_code == 200, response.text


async def test_an_answer_can_be_sent_back_as_it_came(stand: Stand) -> None:
    """A round trip with the client's own objects: the message with its call goes into the next request."""
    stand.bench.script = writing(f"<think>I look.</think>\n\n{CALL}", THINK)
    client = stand.openai().chat.completions
    asked: list[Any] = list(ASK)
    message = (await client.create(model=MODEL, messages=asked, tools=[TOOL])).choices[0].message
    assert message.tool_calls is not None
    asked += [message, {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "20 degrees"}]
    stand.bench.script = writing("<think>Good.</think>It is warm.", THINK)
    answer = await client.create(model=MODEL, messages=asked, tools=[TOOL])
    assert answer.choices[0].message.content == "It is warm."
    assert stand.bench.assigned[-1].work.chat.messages[1].reasoning == "I look."


async def test_a_failure_in_mid_stream_is_still_an_error(stand: Stand) -> None:
    """What was held back does not hide it."""

    async def script(_assign: session_pb2.Assign) -> AsyncIterator[Said]:
        prompt = work_pb2.RenderedPrompt(text="prompt", format=THINK)
        yield session_pb2.Frame(prompt=prompt, deltas=[work_pb2.Delta(text="<think>a </thi")])
        yield work_pb2.Failure(fault=work_pb2.FAULT_JOB, code="unsupported", message="not with this model")

    stand.bench.script = script
    with pytest.raises(openai.APIError):
        async for _ in await stand.openai().chat.completions.create(model=MODEL, messages=ASK, stream=True):
            pass
