"""Tools, structured answers and reasoning through the official client, against a coordinator and emulator workers
that run as processes. The emulator says what the last message wants said, and claims every feature.
"""

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures_pool import RealPool
from openai.resources.chat.completions import Completions
from pydantic import BaseModel

MODEL = "emulator-small"
FEATURES: dict[str, Any] = {
    "features": "tools,json_schema,reasoning",
    "tools": "hermes",
    "reasoning": "think",
}
ARGUMENTS = '{"city": "Zürich"}'
CALL = f'<tool_call>\n{{"name": "get_weather", "arguments": {ARGUMENTS}}}\n</tool_call>'
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: Any = [{"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}]
THOUGHT = "<think>\nIs it far?\n</think>\n\nIt is sunny."
SEAM = 6  # pieces of four characters: the first worker falls silent behind `</thi`

pytestmark = pytest.mark.processes


def say(text: str) -> Any:
    return [{"role": "user", "content": f"say:{text}"}]


def new_pool(folder: Path) -> RealPool:
    pool = RealPool(folder)
    pool.variables |= {"POTLUCK_REQUESTS_PER_MINUTE": "100000", "POTLUCK_WAIT_FOR_WORKER_S": "60"}
    pool.start_coordinator()
    return pool


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealPool]:
    pool = new_pool(tmp_path_factory.mktemp("pool"))
    try:
        pool.add_emulator("rig", "bob", ttft_ms=1, tpot_ms=1, **FEATURES)
        yield pool
    finally:
        pool.close()


@contextlib.contextmanager
def asking(pool: RealPool) -> Iterator[Completions]:
    """The official client's chat, closed afterwards."""
    with pool.member("ada").openai() as client:
        yield client.chat.completions


@pytest.fixture
def chat(pool: RealPool) -> Iterator[Completions]:
    with asking(pool) as completions:
        yield completions


@pytest.mark.parametrize("streamed", [False, True])
def test_a_tool_call_round_trip(chat: Completions, streamed: bool) -> None:
    """Ask, get a call, answer it, get the rest: the message goes back as it came."""
    asked: dict[str, Any] = {
        "model": MODEL,
        "messages": say(f"<think>I look.</think>\n\n{CALL}"),
        "tools": TOOLS,
    }
    if streamed:
        with chat.stream(**asked) as stream:
            choice: Any = stream.get_final_completion().choices[0]
    else:
        choice = chat.create(**asked).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    [call] = choice.message.tool_calls
    assert (call.function.name, call.function.arguments) == ("get_weather", ARGUMENTS)
    result = {"role": "tool", "tool_call_id": call.id, "content": "say:It is 20 degrees."}
    asked["messages"] = [*asked["messages"], choice.message, result]
    answer = chat.create(**asked)
    assert answer.choices[0].message.content == "It is 20 degrees."
    assert answer.choices[0].finish_reason == "stop"


class Weather(BaseModel):
    city: str
    degrees: int


def test_a_structured_answer(chat: Completions) -> None:
    """`response_format` as a schema, and from a pydantic model by the client's own `parse`, whole and streamed."""
    said = {"city": "Zürich", "degrees": 20}
    asked: Any = {"model": MODEL, "messages": say(json.dumps(said, ensure_ascii=False))}
    form: Any = {
        "type": "json_schema",
        "json_schema": {"name": "weather", "schema": Weather.model_json_schema(), "strict": True},
    }
    assert json.loads(chat.create(**asked, response_format=form).choices[0].message.content or "") == said
    assert chat.parse(**asked, response_format=Weather).choices[0].message.parsed == Weather(**said)
    with chat.stream(**asked, response_format=Weather) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == Weather(**said)


def test_reasoning(chat: Completions) -> None:
    whole = chat.create(model=MODEL, messages=say(THOUGHT))
    message: Any = whole.choices[0].message
    assert (message.reasoning_content, message.content) == ("Is it far?", "It is sunny.")
    assert whole.usage is not None
    assert whole.usage.completion_tokens_details is not None
    assert whole.usage.completion_tokens_details.reasoning_tokens == 3
    with chat.create(model=MODEL, messages=say(THOUGHT), stream=True) as stream:
        assert read(stream) == ("Is it far?", "It is sunny.")


def test_a_stored_job_keeps_the_message(pool: RealPool) -> None:
    """`POST /pool/v1/jobs` keeps the message as the route would have given it."""
    request = {"model": MODEL, "messages": say(f"<think>I look.</think>{CALL}"), "tools": TOOLS}
    member = pool.member("ada")
    job = (
        member.api("POST", "/pool/v1/jobs", json={"kind": "chat", "request": request})
        .raise_for_status()
        .json()
    )
    pool.until(lambda: pool.job(job["id"])["state"] == "succeeded", "the job to succeed")
    message = member.api("GET", f"/pool/v1/jobs/{job['id']}/result").json()["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == (None, "I look.")
    assert message["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": ARGUMENTS}


def read(chunks: Any) -> tuple[str, str]:
    """Reasoning and content of a stream, as DeepSeek's guide reads them."""
    reasoning, content = "", ""
    for chunk in chunks:
        for choice in chunk.choices:
            if choice.delta.reasoning_content:
                reasoning += choice.delta.reasoning_content
            else:
                content += choice.delta.content
    return reasoning, content


def test_a_worker_killed_inside_the_tag_does_not_show(tmp_path: Path) -> None:
    """Two answers, one whole, one streamed, stop behind `</thi`; kill -9; another worker writes `nk>` and the rest."""
    pool = new_pool(tmp_path)
    try:
        options: dict[str, Any] = {"ttft_ms": 1, "tpot_ms": 0, "hang_after_tokens": SEAM, **FEATURES}
        silent = pool.add_emulator("silent", "bob", **options)
        with asking(pool) as chat:
            whole: list[Any] = []
            ask = threading.Thread(
                target=lambda: whole.append(chat.create(model=MODEL, messages=say(THOUGHT)))
            )
            ask.start()
            pool.until(lambda: pool.view("silent").get("running") == 1, "the first answer to begin")
            with chat.create(model=MODEL, messages=say(THOUGHT), stream=True) as stream:
                first = next(stream)  # what the worker will ever say has arrived: it comes in one frame
                pool.add_emulator("other", "bob", ttft_ms=1, tpot_ms=1, **FEATURES)
                silent.kill()
                assert read([first, *stream]) == ("Is it far?", "It is sunny.")
            ask.join(60)
        message = whole[0].choices[0].message
        assert (message.reasoning_content, message.content) == ("Is it far?", "It is sunny.")
        jobs = pool.admin.api("GET", "/pool/v1/jobs?all=true").raise_for_status().json()["data"]
        assert len(jobs) == 2
        for job in jobs:
            lost, done = job["attempts"]
            assert (lost["state"], done["state"]) == ("lost", "succeeded")
            assert lost["tokens"] == len(["<think>", "Is", "it", "far?", "</thi"])
        assert pool.ledger_sum() == 0
    finally:
        pool.close()
