"""A fine-tune's parts on real worker processes: one is killed in the middle, and what is learned is the same."""

import asyncio
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fixtures_pool import Process
from fixtures_sessions import MODEL, House, open_house
from test_finetune_parts import Keeper, open_whole

from coordinator.core.jobs import Job, JobState
from coordinator.training_store import TrainingStore
from potluck import lora
from potluck.pricing import Training
from potluck.v1 import engine_pb2, work_pb2
from worker.engines.emulated_training import Session, made

SHAPES = {
    "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": (4, 32),
    "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": (32, 4),
}
LINES, STEPS, CUT = 20, 20, 8
TURNS = [{"role": "user", "content": "is it good"}, {"role": "assistant", "content": "yes indeed"}]
EXAMPLES = (json.dumps({"messages": TURNS}) + "\n").encode() * LINES
ADAPTER = lora.encode(lora.initial(SHAPES, 9))
PLAN = work_pb2.TrainingPlan(
    method="sft", epochs=2, batch_size=2, sequence_tokens=16, seed=9, examples=LINES, steps=STEPS
)
BOUND = Training("sft", lora.parameters(SHAPES), 64, 4_096, 0, 0)


def artifact(data: bytes) -> work_pb2.Artifact:
    return work_pb2.Artifact(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))


@dataclass
class Chain:
    """Trainings that look at what was made, and keep the curve."""

    store: TrainingStore
    losses: dict[int, float] = field(default_factory=dict)
    ends: dict[str, work_pb2.Trained] = field(default_factory=dict)
    stepped: asyncio.Event = field(default_factory=asyncio.Event)

    def steps(self, job: Job, steps: Sequence[work_pb2.TrainingStep]) -> str:
        self.losses |= {step.step: step.train_loss for step in steps}
        self.stepped.set()
        return "" if job.kind == "finetune" else "no part of it"

    async def trained(self, job: Job, trained: work_pb2.Trained) -> Training | str:
        lora.decode(self.store.path(trained.adapter.sha256).read_bytes(), SHAPES)
        self.ends[job.id] = trained
        return Training("sft", BOUND.adapter_parameters, trained.tokens, trained.square_tokens)


def uncut(folder: Path) -> dict[str, bytes]:
    """What all steps make in one go, in this process."""
    (folder / "examples").write_bytes(EXAMPLES)
    (folder / "adapter").write_bytes(ADAPTER)
    files = engine_pb2.TrainingFiles(examples=str(folder / "examples"), adapter=str(folder / "adapter"))
    work = work_pb2.Work(training=work_pb2.TrainingWork(plan=PLAN, last_step=STEPS))
    session = Session.read(engine_pb2.Start(work=work, files=files))
    for number in range(STEPS):
        session.step(number)
    return made(session, "")


async def start_worker(house: House, folder: Path, name: str, **options: Any) -> Process:
    """Joined and started by the commands that its owner would give."""
    home = folder / name
    home.mkdir()
    (home / "token").write_text(await house.token(), encoding="utf-8")
    arguments = ["worker", "join", house.url, "--token", f"file:{home / 'token'}", "--name", name]
    joining = Process.start(f"join {name}", arguments, home)
    assert await asyncio.to_thread(joining.popen.wait, 60) == 0, "".join(joining.lines)
    flags = ["--engine", "emulator", "--models", MODEL]
    for option, value in options.items():
        flags += ["--engine-option", f"{option}={value}"]
    return Process.start(name, ["worker", "start", *flags], home)


async def until(condition: Any, process: Process) -> None:
    async with asyncio.timeout(60):
        while not condition():
            assert process.popen.poll() is None, "".join(process.lines[-30:])
            await asyncio.sleep(0)


async def test_a_killed_worker_costs_its_part_alone_and_nothing_of_what_is_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first part is paid to the worker that is killed in its second, which the other does from the same
    start: adapter and optimizer state end as if one process had never stopped.
    """
    async with open_house(tmp_path / "pool", monkeypatch) as house:
        pool, processes = house.running.pool, []
        chain = Chain(pool.training_store)
        pool.training = chain
        examples, adapter = await chain.store.put(EXAMPLES), await chain.store.put(ADAPTER)
        assert (examples.sha256, adapter.sha256) == (artifact(EXAMPLES).sha256, artifact(ADAPTER).sha256)
        parts, whole = await open_whole(house, parts=40)
        keeper = Keeper()
        parts.watch(whole.id, keeper)

        def submit(number: int, **more: Any) -> None:
            given = {"plan": PLAN, "examples": artifact(EXAMPLES), "adapter": artifact(ADAPTER)}
            work = work_pb2.Work(training=work_pb2.TrainingWork(**{**given, **more}))
            bound = Training("sft", BOUND.adapter_parameters, 400, 6_400)
            pool.training_store.expect(parts.submit_training(whole, number, work, bound, 16).id, 10**6)

        try:
            first = await start_worker(house, tmp_path, "first", steps_per_s=20)
            processes.append(first)
            workers = pool.engine.fleet.workers
            await until(
                lambda: any("finetune" in m.kinds for w in workers.values() for m in w.models.values()), first
            )
            submit(1, last_step=CUT)
            await until(lambda: keeper.ended, first)
            (ended,) = keeper.ended
            assert (ended.state, ended.output_tokens) == (JobState.SUCCEEDED, CUT * 2 * 5)
            made_first = chain.ends[ended.id]
            submit(2, first_step=CUT, last_step=STEPS, adapter=made_first.adapter, state=made_first.state)
            await until(lambda: CUT + 2 in chain.losses, first)
            first.kill()
            second = await start_worker(house, tmp_path, "second", steps_per_s=0)
            processes.append(second)
            await until(lambda: len(keeper.ended) == 2, second)
            ended = keeper.ended[1]
            assert (ended.state, ended.output_tokens) == (JobState.SUCCEEDED, (STEPS - CUT) * 2 * 5)
            assert [attempt.state for attempt in ended.attempts] == ["lost", "succeeded"]
            assert [attempt.tokens for attempt in ended.attempts] == [0, (STEPS - CUT) * 2 * 5]
        finally:
            for process in processes:
                await asyncio.to_thread(process.stop)
        expected, last = uncut(tmp_path), chain.ends[ended.id]
        store = pool.training_store
        assert store.path(last.adapter.sha256).read_bytes() == expected["adapter.safetensors"]
        assert store.path(last.state.sha256).read_bytes() == expected["state.safetensors"]
        curve = [loss for _, loss in sorted(chain.losses.items())]
        assert len(curve) == STEPS
        assert curve == sorted(curve, reverse=True)
