"""What servers have split is one text again, which the pool's parsers read as the server meant it. Settings of bridges."""

import json
from pathlib import Path
from typing import Any

import pytest
from fixtures_engine import chat

from potluck.v1 import engine_pb2, work_pb2
from worker.bridges import Bridge
from worker.engines import bodies
from worker.engines.canonical import Canonical
from worker.engines.engine import EngineError
from worker.engines.pieces import open_choices
from worker.engines.served import Served
from worker.errors import WorkerConflict
from worker.settings import Settings

VLLM = Served("m", "vllm", 4096)


def written(*deltas: dict[str, Any]) -> str:
    canonical = Canonical()
    return "".join(canonical.feed(delta) for delta in deltas) + canonical.end()


def call(index: int, name: str | None = None, arguments: object = None) -> dict[str, Any]:
    return {"tool_calls": [{"index": index, "function": {"name": name, "arguments": arguments}}]}


@pytest.mark.parametrize(
    ("deltas", "text"),
    [
        ([{"role": "assistant", "content": ""}, {"content": "Hi"}, {"content": "!"}], "Hi!"),
        (
            [{"reasoning_content": "a "}, {"reasoning_content": "b"}, {"content": "c"}],
            "<think>\na b\n</think>\n\nc",
        ),
        ([{"reasoning": "a"}, {"content": "c", "reasoning": None}], "<think>\na\n</think>\n\nc"),
        ([{"reasoning_content": "cut"}], "<think>\ncut\n</think>"),
        (
            [{"content": "Well."}, call(0, "f", ""), call(0, None, '{"a"'), call(0, None, ": 1}")],
            'Well.<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>',
        ),
        (
            [call(0, "f"), call(1, "g", {"b": "é"})],
            (
                '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>\n'
                '<tool_call>\n{"name": "g", "arguments": {"b": "é"}}\n</tool_call>'
            ),
        ),
        ([{"tool_calls": [7, {"function": None}], "content": 5, "reasoning": []}], ""),
    ],
    ids=["text", "thoughts", "reasoning", "cut", "call", "calls", "nonsense"],
)
def test_what_was_split_is_one_text(deltas: list[dict[str, Any]], text: str) -> None:
    assert written(*deltas) == text


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"url": "ftp://localhost"}, "begins with http"),
        ({"url": "http://192.168.1.5:8000"}, "remote = true"),
        ({"url": "http://localhost.evil.example"}, "remote = true"),
        ({"url": "http://me:pass@127.0.0.1"}, "key_file"),
        ({"url": "http://127.0.0.1/?x=1"}, "no user, password or query"),
        ({"url": "http://127.0.0.1", "colour": "red"}, "Extra inputs"),
        ({"url": "http://127.0.0.1", "command": [""]}, "at least 1 character"),
    ],
)
def test_a_bridge_goes_nowhere_that_the_owner_did_not_name(
    values: dict[str, Any], words: str, tmp_path: Path
) -> None:
    table = "\n".join(f"{name} = {json.dumps(value)}" for name, value in values.items())
    (tmp_path / "worker.toml").write_text(f'[bridge."qwen3-8b"]\n{table}\n')
    with pytest.raises(WorkerConflict) as raised:
        Settings.load(flags={}, environ={}, folder=tmp_path)
    assert words in str(raised.value)
    assert "bridge.qwen3-8b" in str(raised.value)
    assert "pass" not in str(raised.value).replace("password", "")


def test_a_bridge_reaches_its_engine_as_strings_and_comes_back_the_same(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(" secret\n")
    bridge = Bridge(
        url="http://[::1]:8000/v1/",
        model="org/name",
        key_file=str(tmp_path / "key"),
        command=("server", "--model", "a b"),
        start_timeout_s=5,
        features=("tools",),
    )
    options = bridge.options()
    assert all(isinstance(value, str) for value in options.values())
    assert "secret" not in str(options)
    assert Bridge.parse(options) == bridge
    assert (bridge.url, bridge.key()) == ("http://[::1]:8000", "secret")
    assert bridge.load_s_max > bridge.start_timeout_s + 6 * bridge.answer_timeout_s, "it is asked, too"
    assert Bridge(url="https://gpu.example.org", remote=True).url == "https://gpu.example.org"


def body(work: work_pb2.Work, served: Served = VLLM, **continuation: Any) -> tuple[str, dict[str, Any]]:
    start = engine_pb2.Start(work=work, continuation=work_pb2.Continuation(**continuation))
    sampling = work.chat.sampling if work.HasField("chat") else work.completion.sampling
    [pieces] = open_choices(sampling, start.continuation, sampling.max_tokens)
    said = start.continuation.delivered[0].text if start.continuation.delivered else ""
    return bodies.request_of(start, served, pieces, said)


def test_a_chat_is_asked_for_in_openais_words() -> None:
    work = chat("hi", top_k=5, logprobs=True, top_logprobs=2, seed=2**63 + 1)
    work.chat.tools.add(name="f", description="d", parameters='{"type": "object"}', strict=True)
    work.chat.tool_choice, work.chat.tool_name, work.chat.reasoning_effort = "function", "f", "none"
    work.chat.messages.add(
        role="assistant", tool_calls=[work_pb2.ToolCall(id="1", name="f", arguments='{"a": 1}')]
    )
    work.chat.messages.add(role="tool", tool_call_id="1", content="x")
    path, asked = body(work)
    assert path == "/v1/chat/completions"
    assert asked["messages"][1]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a": 1}'}
    assert asked["messages"][2] == {"role": "tool", "content": "x", "tool_call_id": "1"}
    assert asked["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    assert asked["tools"][0]["function"]["strict"] is True
    assert (asked["top_k"], asked["top_logprobs"], asked["max_tokens"]) == (5, 2, 16)
    assert 0 <= asked["seed"] < 2**31
    assert asked["chat_template_kwargs"]["enable_thinking"] is False
    plain = body(work, Served("m"))[1]
    assert "top_k" not in plain
    assert plain["reasoning_effort"] == "none"
    work.chat.tool_choice = "none"
    assert "tools" not in body(work)[1]


def test_a_structure_is_a_response_format() -> None:
    work = chat("hi")
    work.chat.structure.kind = "json_object"
    assert body(work)[1]["response_format"] == {"type": "json_object"}
    work.chat.structure.kind, work.chat.structure.schema = "json_schema", '{"type": "object"}'
    form = body(work)[1]["response_format"]["json_schema"]
    assert (form["schema"], form["strict"]) == ({"type": "object"}, True)


def test_a_continuation_goes_on_where_the_server_can_and_never_begins_anew() -> None:
    """From a prompt that another engine told, by continue_final_message, or not here."""
    said = [work_pb2.Delivered(text="One, two", tokens=3)]
    told = work_pb2.RenderedPrompt(text="<user>count<assistant>")
    path, asked = body(chat("count"), Served("m"), prompt=told, delivered=said)
    assert (path, asked["prompt"]) == ("/v1/completions", "<user>count<assistant>One, two")
    assert asked["max_tokens"] == 13
    path, asked = body(chat("count"), delivered=said)
    assert asked["messages"][-1] == {"role": "assistant", "content": "One, two"}
    assert (asked["continue_final_message"], asked["add_generation_prompt"]) == (True, False)
    structured = chat("count")
    structured.chat.structure.kind = "json_object"
    thought = [work_pb2.Delivered(text="<think>\nhm", tokens=3)]
    for work, served, delivered in (
        (chat("count"), Served("m", "library"), said),
        (structured, VLLM, said),
        (chat("count"), VLLM, thought),
    ):
        with pytest.raises(EngineError) as raised:
            body(work, served, delivered=delivered)
        assert (raised.value.code, raised.value.fault) == ("cannot_continue", work_pb2.FAULT_NONE)
