"""Emulated training: the loss falls, segments go on as if uncut, deltas fit, and mishaps happen as told."""

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures_engine import Heard, hosted

from potluck import deltas, lora, tensors
from potluck.v1 import engine_pb2, work_pb2
from worker.engines.emulated_training import HELD_OUT

SHAPES = {
    "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": (4, 16),
    "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": (16, 4),
}
LINES = 12
PLAN = work_pb2.TrainingPlan(
    method="sft",
    epochs=2,
    batch_size=4,
    sequence_tokens=8,
    learning_rate=1e-3,
    seed=5,
    examples=LINES,
    steps=6,
)


def load(**options: str) -> engine_pb2.Load:
    return engine_pb2.Load(
        engine="emulator", model="emulator-small", kinds=["finetune"], options={"steps_per_s": "0"} | options
    )


class Bench:
    """The files of a fine-tune in one folder, and a folder for each attempt."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.examples, self.validation = folder / "examples.jsonl", folder / "validation.jsonl"
        self.examples.write_text("".join(self.line(n) for n in range(LINES)), encoding="utf-8")
        self.validation.write_text("".join(self.line(n) for n in range(3)), encoding="utf-8")
        self.adapter = folder / "adapter"
        self.adapter.write_bytes(lora.encode(lora.initial(SHAPES, 5)))

    @staticmethod
    def line(number: int) -> str:
        """A question of three words, an answer of two; the last example is cut at 8 tokens."""
        answer = "yes indeed" if number < LINES - 1 else "a " * 20
        turns = [{"role": "user", "content": f"is {number} good"}, {"role": "assistant", "content": answer}]
        return json.dumps({"messages": turns}) + "\n"

    def start(
        self, job: str, *, adapter: Path | None = None, state: Path | None = None, **more: Any
    ) -> engine_pb2.EngineCommand:
        made = self.folder / job
        made.mkdir()
        files = engine_pb2.TrainingFiles(
            examples=str(self.examples),
            validation=str(self.validation),
            adapter=str(adapter or self.adapter),
            state=str(state) if state else "",
            folder=str(made),
        )
        work = work_pb2.TrainingWork(**{"plan": PLAN, "last_step": 6, **more})
        attempt = work_pb2.Attempt(job_id=job, number=1)
        begin = engine_pb2.Start(attempt=attempt, work=work_pb2.Work(training=work), files=files)
        return engine_pb2.EngineCommand(start=begin)

    def made(self, job: str, name: str = "adapter.safetensors") -> bytes:
        return (self.folder / job / name).read_bytes()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def steps(heard: Heard, job: str) -> list[work_pb2.TrainingStep]:
    outputs = [event.output for event in heard.events if event.HasField("output")]
    return [step for output in outputs if output.attempt.job_id == job for step in output.steps]


async def done(heard: Heard, job: str) -> work_pb2.Trained:
    event = await heard.ended(job)
    assert event.HasField("done"), event
    return event.done.trained


async def test_the_loss_falls_because_the_adapter_changes_and_segments_are_one_whole(bench: Bench) -> None:
    """Cut after two steps and gone on with from adapter and state: the same bytes, the same steps."""
    async with hosted(load()) as (host, heard):
        host.send(bench.start("whole", validate=True))
        whole = await done(heard, "whole")
        losses = [step.train_loss for step in steps(heard, "whole")]
        assert losses == sorted(losses, reverse=True)
        assert whole.valid_loss < HELD_OUT * losses[-1]
        assert (whole.steps, whole.tokens, whole.square_tokens) == (6, 2 * 63, 2 * (11 * 25 + 64))
        assert (whole.valid_tokens, whole.valid_square_tokens, whole.valid_target_tokens) == (15, 75, 6)
        assert sum(step.tokens for step in steps(heard, "whole")) == whole.tokens
        assert sum(step.target_tokens for step in steps(heard, "whole")) == 2 * (11 * 2 + 8)
        host.send(bench.start("one", last_step=2))
        await done(heard, "one")
        folder = bench.folder / "one"
        more = {"adapter": folder / "adapter.safetensors", "state": folder / "state.safetensors"}
        host.send(bench.start("two", first_step=2, **more))
        second = await done(heard, "two")
        assert (second.first_step, second.steps) == (2, 4)
        assert [*steps(heard, "one"), *steps(heard, "two")] == steps(heard, "whole")
        for name in ("adapter.safetensors", "state.safetensors"):
            assert bench.made("two", name) == bench.made("whole", name)
        host.send(bench.start("stateless", first_step=2, adapter=folder / "adapter.safetensors"))
        await done(heard, "stateless")
        assert bench.made("stateless") != bench.made("whole"), "the state matters"


async def test_a_share_of_a_round_trains_its_leased_lines_and_answers_what_changed(bench: Bench) -> None:
    async with hosted(load()) as (host, heard):
        leased = [11, 0, 1, 2, 3, 4]
        host.send(bench.start("share", leased=leased, delta=True, last_step=2))
        share = await done(heard, "share")
        assert share.tokens == 8 + 5 * 5
        assert not (bench.folder / "share" / "state.safetensors").exists()
        delta = deltas.decode(bench.made("share", "delta.safetensors"))
        began = lora.decode(bench.adapter.read_bytes(), SHAPES)
        host.send(bench.start("chain", leased=leased, last_step=2))
        await done(heard, "chain")
        ended = lora.decode(bench.made("chain"), SHAPES)
        for name, array in delta.items():
            assert np.allclose(array, began[name] - ended[name], atol=np.abs(array).max() / 100)


async def test_a_validation_alone_makes_nothing(bench: Bench) -> None:
    async with hosted(load()) as (host, heard):
        host.send(bench.start("look", last_step=0, validate=True, validated=[0, 2]))
        look = await done(heard, "look")
        assert (look.steps, look.tokens, look.valid_tokens) == (0, 0, 10)
        assert list((bench.folder / "look").iterdir()) == []


async def test_a_segment_ends_by_time_with_the_step_that_runs(bench: Bench) -> None:
    async with hosted(load(steps_per_s="1")) as (host, heard):
        host.send(bench.start("timed", seconds_max=1))
        assert (await done(heard, "timed")).steps == 1


async def test_who_is_stopped_says_so_and_others_go_on(bench: Bench) -> None:
    async with hosted(load(hang_after_steps="1")) as (host, heard):
        host.send(bench.start("hangs"))
        await heard.until(lambda: steps(heard, "hangs"))
        attempt = work_pb2.Attempt(job_id="hangs", number=1)
        host.send(engine_pb2.EngineCommand(stop=engine_pb2.Stop(attempt=attempt)))
        assert (await heard.ended("hangs")).failed.failure.code == "stopped"
        host.send(bench.start("look", last_step=0))
        await done(heard, "look")


@pytest.mark.parametrize(
    ("option", "fault", "code"),
    [
        ("fail_after_steps", work_pb2.FAULT_WORKER, "emulated"),
        ("nan_after_steps", work_pb2.FAULT_JOB, "loss_not_finite"),
    ],
)
async def test_mishaps_happen_after_so_many_steps(
    bench: Bench, option: str, fault: work_pb2.Fault.ValueType, code: str
) -> None:
    async with hosted(load(**{option: "2"})) as (host, heard):
        host.send(bench.start("fails"))
        failure = (await heard.ended("fails")).failed.failure
        assert (failure.fault, failure.code, len(steps(heard, "fails"))) == (fault, code, 2)


async def test_an_engine_that_dies_takes_its_attempt_with_it(bench: Bench) -> None:
    async with hosted(load(die_after_steps="1")) as (host, heard):
        host.send(bench.start("dies"))
        assert (await heard.ended("dies")).failed.failure.code == "engine_died"
        assert len(steps(heard, "dies")) <= 1
        async with asyncio.timeout(30):
            await host.exited


async def test_what_cannot_be_trained_on_is_said(bench: Bench) -> None:
    """Lines that there are not, and files that are none; an emulator that only serves."""
    async with hosted(load()) as (host, heard):
        host.send(bench.start("lines", leased=[99], last_step=1))
        failure = (await heard.ended("lines")).failed.failure
        assert (failure.fault, failure.code) == (work_pb2.FAULT_JOB, "bad_training")
        assert failure.message == "there are 12 examples, and line 99 is wanted"
        host.send(bench.start("files", adapter=bench.examples))
        assert (await heard.ended("files")).failed.failure.code == "bad_files"
    serves = load()
    del serves.kinds[:]
    async with hosted(serves) as (host, heard):
        host.send(bench.start("served"))
        assert (await heard.ended("served")).failed.failure.code == "not_loaded_for_it"


@pytest.mark.parametrize("lie", ["zero", "huge", "flipped", "shape", "nan"])
async def test_a_liar_answers_something_else(bench: Bench, lie: str) -> None:
    async with hosted(load(makes=lie)) as (host, heard):
        host.send(bench.start("lies", delta=True, last_step=2))
        await done(heard, "lies")
        data = bench.made("lies", "delta.safetensors")
    if lie == "nan":
        with pytest.raises(deltas.DeltaError, match="peak"):
            deltas.decode(data)
        assert tensors.read(data)
        return
    delta = deltas.decode(data)
    sizes = [float(np.abs(array).max()) for array in delta.values()]
    if lie == "zero":
        assert max(sizes) == 0
    if lie == "huge":
        assert max(sizes) > 1_000
    if lie == "shape":
        assert {name: array.shape for name, array in delta.items()} != SHAPES
    if lie == "flipped":
        async with hosted(load()) as (host, heard):
            host.send(bench.start("honest", delta=True, last_step=2))
            await done(heard, "honest")
        honest = deltas.decode(bench.made("honest", "delta.safetensors"))
        for name, array in delta.items():
            assert np.allclose(array, -10 * honest[name], atol=np.abs(array).max() / 50)


async def test_nothing_moves_faster_than_adam_would_move_it(bench: Bench) -> None:
    """Ten learning rates in a step are what a pool believes of anybody."""
    async with hosted(load()) as (host, heard):
        host.send(bench.start("chain"))
        await done(heard, "chain")
    began, ended = lora.decode(bench.adapter.read_bytes()), lora.decode(bench.made("chain"))
    furthest = max(float(np.abs(ended[name] - began[name]).max()) for name in SHAPES)
    assert 0 < furthest < 10 * PLAN.learning_rate * PLAN.steps
