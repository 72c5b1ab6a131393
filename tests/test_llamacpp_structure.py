"""llama.cpp held to structures, from the beginning and from the middle."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

import pytest
import pytest_asyncio
from fixtures_engine import Heard, chat, delivered, going_on, start
from fixtures_templates import QWEN
from test_engine_llamacpp import load

from potluck.v1 import engine_pb2, work_pb2
from worker.engines.chat import Chat
from worker.engines.engine import JobError
from worker.engines.llamacpp import LlamaCpp
from worker.engines.structure import HEADER
from worker.engines.validated import Validated

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "ok": {"type": "boolean"}},
    "required": ["name", "ok"],
    "additionalProperties": False,
}
GRAMMAR = f"{HEADER}start: %json {json.dumps(SCHEMA)}\n"


def test_text_is_taken_as_far_as_it_may_come() -> None:
    held = Validated(GRAMMAR, '{"na')
    assert held.take('me": "Zoë" }') == 'me": "Zoë" '
    assert (held.complete, held.accepting) == (False, False)
    opening = Validated(held.opening(), "")
    assert opening.take("x") == ""
    assert opening.take(", anything") == ", anything"
    assert held.take(', "ok": true} and') == ', "ok": true}'
    assert (held.complete, held.accepting) == (True, True)
    with pytest.raises(JobError, match="does not hold"):
        Validated(GRAMMAR, '{"no')


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(smollm2_path: Path) -> AsyncIterator[tuple[LlamaCpp, Heard]]:
    """In this process, with a template that knows tools and thoughts."""
    heard, loop = Heard(), asyncio.get_running_loop()

    def emit(event: engine_pb2.EngineEvent) -> None:
        loop.call_soon_threadsafe(heard, event)

    engine = LlamaCpp(emit)
    loaded = await engine.load(load(smollm2_path))
    assert list(loaded.features) == ["json_schema"]
    engine._chat = Chat(QWEN, bos="", eos="", control={}, now=datetime.now)
    yield engine, heard
    await engine.close()


@pytest.fixture
def llama(shared: tuple[LlamaCpp, Heard]) -> tuple[LlamaCpp, Heard]:
    """With what it says from now on: whoever asks it also waits for the end."""
    shared[1].clear()
    return shared


@pytest.mark.engine
@pytest.mark.asyncio(loop_scope="module")
async def test_answers_hold_to_what_was_asked_for_and_go_on_from_any_place(
    llama: tuple[LlamaCpp, Heard],
) -> None:
    engine, heard = llama
    work = chat("Tell me about Bob, as JSON.", max_tokens=200, temperature=0.8)
    work.chat.structure.kind, work.chat.structure.schema = "json_schema", json.dumps(SCHEMA)
    work.chat.reasoning_effort = "none"
    engine.start(start(work).start)
    await heard.ended()
    assert set(json.loads(heard.text().rpartition("</think>")[2])) == {"name", "ok"}
    assert heard.reason() == "stop"
    deltas = heard.deltas()
    for cut in (1, len(deltas) // 2, len(deltas) - 1):
        before, job = delivered(deltas[:cut]), f"cut{cut}"
        engine.start(start(work, job, 2, going_on(heard.prompt(), [before])).start)
        event = await heard.ended(job, 2)
        assert event.HasField("done"), event
        whole = before.text + heard.text(job, 2)
        assert set(json.loads(whole.rpartition("</think>")[2])) == {"name", "ok"}
        assert heard.reason(job, 2) == "stop"
    work.chat.structure.schema = '{"not": {}}'
    engine.start(start(work, "bad").start)
    failure = (await heard.ended("bad")).failed.failure
    assert (failure.fault, failure.code) == (work_pb2.FAULT_JOB, "unsupported_schema")


@pytest.mark.engine
@pytest.mark.asyncio(loop_scope="module")
async def test_a_required_call_is_made(llama: tuple[LlamaCpp, Heard]) -> None:
    engine, heard = llama
    work = chat("Who is Bob?", max_tokens=80)
    work.chat.tools.add(name="look_up", description="Finds people.", parameters=json.dumps(SCHEMA))
    work.chat.tool_choice, work.chat.reasoning_effort = "required", "none"
    engine.start(start(work).start)
    await heard.ended()
    call = heard.text().partition("<tool_call>\n")[2].partition("\n</tool_call>")[0]
    said = json.loads(call)
    assert said["name"] == "look_up"
    assert set(said["arguments"]) == {"name", "ok"}
    assert heard.prompt().format.tools == "hermes"
