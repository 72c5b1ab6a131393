"""The torch engine held to structures: the answer is what was asked for, and no cut inside of it shows."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import torch
from fixtures_engine import chat, delivered, going_on, start
from fixtures_templates import DEEPSEEK_R1, QWEN
from test_torch_engine import Tiny, load

from potluck.v1 import work_pb2

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "n": {"type": "array", "items": {"enum": [1, 22, 333]}, "maxItems": 3},
        "ok": {"type": "boolean"},
    },
    "required": ["name", "n", "ok"],
    "additionalProperties": False,
}
STRUCTURE = work_pb2.Structure(kind="json_schema", schema=json.dumps(SCHEMA))


def with_template(paths: list[Path], folder: Path, template: str) -> list[Path]:
    """The same model with another chat template."""
    for path in paths:
        if path.name != "tokenizer_config.json":
            (folder / path.name).symlink_to(path)
        else:
            settings = json.loads(path.read_text())
            (folder / path.name).write_text(json.dumps(settings | {"chat_template": template}))
    return sorted(folder.iterdir())


@pytest_asyncio.fixture(params=[QWEN, DEEPSEEK_R1], ids=["qwen", "r1"])
async def tiny(request: pytest.FixtureRequest, tiny_paths: list[Path], tmp_path: Path) -> AsyncIterator[Tiny]:
    torch.set_num_threads(1)
    tiny = Tiny()
    tiny.loaded = await tiny.engine.load(
        load(with_template(tiny_paths, tmp_path, request.param), context_tokens=512)
    )
    yield tiny
    await tiny.engine.close()


def structured(seed: int, **changes: object) -> work_pb2.Work:
    work = chat("hi", seed=seed, **{"temperature": 1.0, "max_tokens": 200, **changes})
    work.chat.structure.CopyFrom(STRUCTURE)
    return work


def answer(text: str, reading: work_pb2.OutputFormat) -> str:
    """What stands behind the thoughts."""
    return text.partition("</think>")[2] if reading.reasoning_open or text.startswith("<think>") else text


async def test_it_says_what_it_can(tiny: Tiny) -> None:
    assert sorted(tiny.loaded.features) == ["json_schema", "lora", "reasoning", "tools"]


async def test_answers_hold_to_their_schema_and_end_with_it(tiny: Tiny) -> None:
    """Random weights would say anything; the temperature makes each answer another one."""
    works = {f"job{seed}": structured(seed) for seed in range(12)}
    for job, work in works.items():
        tiny.send(start(work, job))
    seen = set()
    for job in works:
        assert (await tiny.heard.ended(job)).HasField("done")
        text = tiny.heard.text(job)
        if tiny.heard.reason(job) == "length":
            continue  # a thought without end
        said = json.loads(answer(text, tiny.heard.prompt(job).format))
        assert set(said) == {"name", "n", "ok"}
        assert set(said["n"]) <= {1, 22, 333}
        seen.add(text)
    assert len(seen) > 3


async def test_every_cut_inside_a_structure_goes_on_to_the_same_answer(tiny: Tiny) -> None:
    """Greedy and sampled, two choices side by side: the delivered ids are replayed through the matcher."""
    for temperature in (0.0, 1.0):
        work = structured(3, temperature=temperature, choices=2, max_tokens=60)
        job = f"whole{temperature}"
        tiny.send(start(work, job))
        assert (await tiny.heard.ended(job)).HasField("done")
        lists = [tiny.heard.deltas(job, choice=choice) for choice in range(2)]
        cuts = range(1, max(map(len, lists)) + 1)
        for cut in cuts:
            before = [delivered(deltas[:cut]) for deltas in lists]
            before[1].choice = 1
            tiny.send(start(work, f"{job}-{cut}", 2, going_on(tiny.heard.prompt(job), before)))
        for cut in cuts:
            event = await tiny.heard.ended(f"{job}-{cut}", 2)
            assert event.HasField("done"), event
            for choice, deltas in enumerate(lists):
                head, tail = delivered(deltas[:cut]), tiny.heard.text(f"{job}-{cut}", 2, choice)
                assert head.text + tail == tiny.heard.text(job, choice=choice)


async def test_an_enforced_call_is_one_of_the_tools(tiny: Tiny) -> None:
    work = chat("hi", seed=5, temperature=1.0, max_tokens=200)
    schema = json.dumps({"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]})
    work.chat.tools.extend([work_pb2.Tool(name="look", parameters=schema), work_pb2.Tool(name="wait")])
    work.chat.tool_choice, work.chat.tool_name = "function", "look"
    for seed in range(6):
        work.chat.sampling.seed = seed
        job = f"job{seed}"
        tiny.send(start(work, job))
        assert (await tiny.heard.ended(job)).HasField("done")
        prompt = tiny.heard.prompt(job)
        if tiny.heard.reason(job) == "length":
            continue
        said = answer(tiny.heard.text(job), prompt.format).strip()
        opening = (
            '<tool_call>\n{"name": "look", ' if prompt.format.tools == "hermes" else "<｜tool▁calls▁begin｜>"
        )
        assert said.startswith(opening)
        assert '"n"' in said


async def test_what_does_not_fit_is_refused_and_others_go_on(tiny: Tiny) -> None:
    bad = structured(1)
    bad.chat.structure.schema = '{"not": {}}'
    tiny.send(start(structured(2, max_tokens=30), "good"))
    tiny.send(start(bad, "bad"))
    failure = (await tiny.heard.ended("bad")).failed.failure
    assert (failure.fault, failure.code) == (work_pb2.FAULT_JOB, "unsupported_schema")
    assert (await tiny.heard.ended("good")).HasField("done")
    strange = work_pb2.Delivered(text="no JSON", token_ids=list(b"no</think>JSON"), tokens=10)
    tiny.send(start(structured(2), "broken", 2, going_on(tiny.heard.prompt("good"), [strange])))
    failure = (await tiny.heard.ended("broken", 2)).failed.failure
    assert (failure.fault, failure.code) == (work_pb2.FAULT_JOB, "structure_broken")


async def test_a_grammar_that_gives_up_ends_its_own_attempt_only(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    from worker.engines.engine import JobError
    from worker.engines.matcher import Constraint

    def give_up(constraint: Constraint, logits: object) -> object:
        raise JobError("structure_too_complex", "too much")

    monkeypatch.setattr(Constraint, "allowed", give_up)
    tiny.send(start(chat("hi", max_tokens=20), "free"))
    tiny.send(start(structured(1), "held"))
    assert (await tiny.heard.ended("held")).failed.failure.code == "structure_too_complex"
    assert (await tiny.heard.ended("free")).HasField("done")
    tiny.send(start(chat("hi", max_tokens=5), "next"))
    assert (await tiny.heard.ended("next")).HasField("done")
