#!/usr/bin/env python3
"""Rounds on several workers against data-parallel training with as many optimizer steps, in one process.

    benchmarks/rounds.py GSM8K [--examples 256] [--validation 64] [--local-steps 16,8] [--rate 3e-4]
    benchmarks/rounds.py GSM8K --liar --examples 1024 --rate 3e-3

GSM8K is its train.jsonl (Cobbe et al. 2021, arXiv 2110.14168), of which the first lines are trained and the
last ones held out. Both ways train the same examples in the same shares at the same learning rates, from the
same adapter, by the worker's own functions. The reference averages the gradients of all shares' batches
before each step, as data-parallel training does; the rounds are driven by the coordinator's own state
machine, with int8 updates, its aggregation and bfloat16 adapters.

Printed are the held-out losses and their ratio, and the bytes that each would have sent and fetched: a ring
all-reduce of float32 gradients at each step against the files of updates and adapters that were made. Of
several numbers of local steps the figure is the worst. Then one round of 100 local steps on each worker, of
one short example each, on a tiny random model, for its bytes alone: they follow from the adapter's size and
the number of steps, and not from what is learnt; beside so small an adapter the files' heads and scales weigh
most. `--liar`: four workers train a tiny random model, and one of them sends its updates
with the sign flipped and ten times as large.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import stand
import torch
from examples import RANK, small_model, tiny_model, write_examples

from coordinator import aggregation
from coordinator.core.course import (
    Action,
    Aggregate,
    Aggregated,
    Began,
    Checkpointed,
    Course,
    Event,
    Fail,
    OpenEvaluate,
    OpenTrain,
    PartDone,
    steps_of,
)
from coordinator.core.tunings import begin
from potluck import deltas, lora
from potluck.lora import Shapes
from potluck.shuffle import order
from potluck.tensors import Array
from potluck.v1 import engine_pb2, work_pb2
from worker.engines import weights
from worker.training import attempt, packing, plan
from worker.training.adapter import Adapter
from worker.training.lines import Lines
from worker.training.loop import DELTA_NAME, Shell
from worker.training.moments import Moments
from worker.training.passes import Passes
from worker.training.precision import precision

SEED: Final = 7
BATCH: Final = 8
SEQUENCE_TOKENS: Final = 512
WARMUP_SHARE: Final = 0.05
LIAR: Final = 3  # the last of four shares
FLOAT_BYTES: Final = 4
MANY_STEPS: Final = 100
MANY_HELD_OUT: Final = 4
NOBODY_STOPS: Final = Shell(say=lambda _: None, unwanted=lambda: False, clock=time.monotonic)

Tensors = Mapping[str, Array]
Combine = Callable[[Mapping[int, Tensors], Mapping[int, float]], Tensors]
Spoil = Callable[[int, Tensors], Tensors]


@dataclass(slots=True)
class Bench:
    """A model, its examples, and what is asked of both ways."""

    loaded: weights.Loaded
    of: Shapes
    folder: Path
    examples: int
    validation: int
    rate: float
    workers: int
    batch: int = BATCH
    files: int = 0

    def course(self, local_steps: int) -> Course:
        return Course(
            examples=self.examples,
            epochs=1,
            batch_size=self.batch,
            steps=steps_of(self.examples, 1, self.batch, self.workers),
            seed=SEED,
            workers=self.workers,
            local_steps=local_steps,
            validation=self.validation,
            segment_s=1e9,
            round_s=1e9,
        )

    def plan(self, steps: int) -> work_pb2.TrainingPlan:
        return work_pb2.TrainingPlan(
            method=plan.SFT,
            lora=work_pb2.LoraConfig(rank=RANK, alpha=2 * RANK),
            epochs=1,
            batch_size=self.batch,
            sequence_tokens=SEQUENCE_TOKENS,
            learning_rate=self.rate,
            warmup_steps=max(1, round(steps * WARMUP_SHARE)),
            schedule="cosine",
            gradient_norm_max=1.0,
            seed=SEED,
            examples=self.examples,
            steps=steps,
        )

    def train(self, work: work_pb2.TrainingWork, adapter: bytes) -> tuple[work_pb2.Trained, Path]:
        """What a worker's engine does with a part; and the folder with what it made."""
        self.files += 1
        folder = self.folder / f"part-{self.files}"
        folder.mkdir()
        (start := folder / "start.safetensors").write_bytes(adapter)
        files = engine_pb2.TrainingFiles(
            examples=str(self.folder / "examples.jsonl"),
            validation=str(self.folder / "validation.jsonl"),
            adapter=str(start),
            folder=str(folder),
        )
        return attempt.train(self.loaded, work, files, NOBODY_STOPS), folder

    def evaluate(self, adapter: bytes, lines: Sequence[int] = ()) -> work_pb2.Trained:
        work = work_pb2.TrainingWork(plan=self.plan(1), validate=True, validated=lines)
        return self.train(work, adapter)[0]

    def first(self) -> dict[str, Array]:
        return lora.initial(self.of, SEED)

    @property
    def parameters(self) -> int:
        return lora.parameters(self.of)

    @property
    def data_parallel_bytes(self) -> int:
        """Up and down, of all workers together: a ring all-reduce of the gradients at each step."""
        return 2 * 2 * (self.workers - 1) * self.parameters * FLOAT_BYTES * self.course(1).steps


def data_parallel(bench: Bench) -> float:
    """Held-out loss after as many steps, each with the mean of the gradients of all workers' batches."""
    course = bench.course(1)
    lines, shares = order(SEED, 0, course.examples), []
    for worker in range(course.workers):
        each = -(-course.examples // course.workers)
        shares.append(lines[worker * each : (worker + 1) * each])
    path = bench.folder / "parallel.safetensors"
    path.write_bytes(lora.encode(bench.first()))
    wire = bench.plan(course.steps)
    adapter = Adapter(bench.loaded.model, wire.lora, path)
    try:
        passes = Passes(bench.loaded.model, adapter, wire, precision(bench.loaded.device.dtype))
        room = attempt.room_of(bench.loaded, passes, adapter, 0)
        reader = attempt.reader_of(bench.loaded, SEQUENCE_TOKENS)
        moments = Moments(adapter, wire)
        with Lines(bench.folder / "examples.jsonl") as examples:
            for step in range(course.steps):
                moments.begin()
                for share in shares:
                    batch = share[step * BATCH : (step + 1) * BATCH]
                    units = [reader.read(examples[line], plan.SFT) for line in batch]
                    units = [unit for unit in units if packing.learns(unit)]
                    count = course.workers * sum(len(t.targets) for unit in units for t in unit)
                    for part in packing.micro_batches(units, room.packed):
                        tokens = sum(map(packing.size_of, part))
                        passes.learn(part, count, 1.0, checkpoints=room.checkpoints(tokens))
                rate = plan.learning_rate(work_pb2.TrainingWork(plan=wire), step)
                moments.step(moments.gradient_norm(), rate)
        made = lora.encode(adapter.arrays(adapter.values))
    finally:
        adapter.remove()
    return bench.evaluate(made).valid_loss


def sent_as_it_is(worker: int, delta: Tensors) -> Tensors:
    del worker
    return delta


@dataclass(slots=True)
class Rounds:
    """A fine-tune in rounds, its workers one after the other. Bytes are those of all workers together."""

    bench: Bench
    local_steps: int
    combine: Combine
    spoil: Spoil = sent_as_it_is
    outer: tuple[float, float] | None = None  # learning rate and momentum; None: the pool's own
    adapters: dict[str, bytes] = field(default_factory=dict)
    momenta: dict[str, Tensors] = field(default_factory=dict)
    made: dict[int, deltas.Packed] = field(default_factory=dict)
    workers: dict[int, int] = field(default_factory=dict)  # of each part
    fetched: set[tuple[int, str]] = field(default_factory=set)
    up: int = 0
    down: int = 0
    losses: list[float] = field(default_factory=list)
    loss: float = float("nan")
    rounds: int = 0

    def run(self) -> "Rounds":
        self.adapters["b0"] = lora.encode(self.bench.first(), bfloat16=True)
        machine = begin(self.bench.course(self.local_steps), "b0")
        events: list[Event] = [Began()]
        while events:
            event = events.pop(0)
            actions = machine.handle(event, 0.0)
            for place, action in enumerate(actions):
                events += self.carry_out(action, place)
        return self

    def carry_out(self, action: Action, place: int) -> list[Event]:
        match action:
            case OpenTrain() | OpenEvaluate():
                if (place, action.adapter) not in self.fetched:
                    self.fetched.add((place, action.adapter))
                    self.down += len(self.adapters[action.adapter])
                return [self.part(action, place)]
            case Aggregate():
                return [self.aggregate(action)]
            case Checkpointed(valid_loss=loss) if loss is not None:
                self.losses.append(loss)
                self.loss = loss
            case Fail():
                print(f"  gave up: {action.why}")
        return []

    def part(self, action: OpenTrain | OpenEvaluate, place: int) -> PartDone:
        adapter = self.adapters[action.adapter]
        if isinstance(action, OpenEvaluate):
            read = self.bench.evaluate(adapter, action.validated)
            return PartDone(
                part=action.part, valid_loss=read.valid_loss, valid_tokens=read.valid_target_tokens
            )
        course = self.bench.course(self.local_steps)
        work = work_pb2.TrainingWork(
            plan=self.bench.plan(course.steps),
            first_step=action.first_step,
            last_step=action.last_step,
            leased=action.leased,
            delta=True,
        )
        trained, folder = self.bench.train(work, adapter)
        sent = (folder / DELTA_NAME).read_bytes()
        self.up += len(sent)
        self.made[action.part], self.workers[action.part] = deltas.Packed(sent), place
        return PartDone(
            part=action.part,
            first_step=action.first_step,
            steps=trained.steps,
            tokens=trained.tokens,
            artifact=(f"d{action.part}",),
        )

    def aggregate(self, asked: Aggregate) -> Aggregated:
        self.rounds = asked.round
        sent = {part: self.spoil(self.workers[part], self.made[part]) for part, _, _ in asked.parts}
        update = self.combine(sent, {part: float(tokens) for part, _, tokens in asked.parts})
        theta = lora.decode(self.adapters[asked.adapter])
        name = f"b{asked.round}"
        rounds = self.bench.course(self.local_steps).rounds
        lr, mu = self.outer or aggregation.outer_step(rounds, len(sent))
        momentum = self.momenta.get(asked.adapter)
        moved, self.momenta[name] = aggregation.outer(theta, update, momentum, lr, mu)
        self.adapters[name] = lora.encode(moved, bfloat16=True)
        return Aggregated(round=asked.round, adapter=name)


def robust(sent: Mapping[int, Tensors], tokens: Mapping[int, float]) -> Tensors:
    return aggregation.aggregate(sent, tokens).delta


def compare(bench: Bench, local_steps: Sequence[int], outer: tuple[float, float] | None) -> None:
    course = bench.course(1)
    print(
        f"{bench.examples} examples on {bench.workers} workers, {course.steps} steps of each, "
        f"{bench.validation} held out, {bench.parameters:,} parameters, learning rate {bench.rate:g}"
    )
    begun = time.perf_counter()
    reference = data_parallel(bench)
    print(
        f"data-parallel: held-out loss {reference:.4f}, {bench.data_parallel_bytes / 1e6:.1f} MB up and"
        f" down, {time.perf_counter() - begun:.0f} s",
        flush=True,
    )
    losses, parts = [], []
    for steps in local_steps:
        begun = time.perf_counter()
        done = Rounds(bench, steps, robust, outer=outer).run()
        losses.append(done.loss / reference)
        parts.append(bench.data_parallel_bytes / (done.up + done.down))
        way = " ".join(f"{loss:.3f}" for loss in done.losses)
        print(
            f"{done.rounds} rounds of at most {steps} local steps: held-out loss {done.loss:.4f}, "
            f"{losses[-1]:.4f} of it ({way}); {done.up / 1e6:.1f} MB up and "
            f"{done.down / 1e6:.1f} MB down, 1/{parts[-1]:.1f} of it; "
            f"{time.perf_counter() - begun:.0f} s",
            flush=True,
        )
    stand.figure("loss against data-parallel", max(losses), digits=4)
    stand.figure("bytes, one part in", min(parts), digits=1)


def bytes_of_many(bench: Bench) -> None:
    """One round of many local steps: what was really written, against as many steps of data-parallel."""
    begun = time.perf_counter()
    done = Rounds(bench, MANY_STEPS, robust).run()
    part = bench.data_parallel_bytes / (done.up + done.down)
    print(
        f"{done.rounds} round of {MANY_STEPS} local steps on each of {bench.workers} workers, one short"
        f" example a step, a tiny model whose adapter has {bench.parameters:,}: {done.up / 1e6:.2f} MB"
        f" up and {done.down / 1e6:.2f} MB down, where data-parallel training moves"
        f" {bench.data_parallel_bytes / 1e6:.1f} MB; {time.perf_counter() - begun:.0f} s"
    )
    stand.figure(f"bytes at {MANY_STEPS} local steps, one part in", part, digits=1)


def lie(bench: Bench, local_steps: int) -> None:
    """Figure 6: an honest run, and one with a liar, with and without the robust aggregation."""

    def flipped(worker: int, delta: Tensors) -> Tensors:
        if worker != LIAR:
            return delta
        return {name: np.float32(-10) * array for name, array in delta.items()}

    honest = Rounds(bench, local_steps, robust).run()
    spoilt = Rounds(bench, local_steps, robust, spoil=flipped).run()
    naive = Rounds(bench, local_steps, aggregation.plain, spoil=flipped).run()
    print(f"four honest workers, {honest.rounds} rounds: held-out loss {honest.loss:.4f}")
    for what, run in (("robust aggregation", spoilt), ("the plain mean", naive)):
        print(f"one of four lies, {what}: {run.loss:.4f}, {run.loss / honest.loss:.4f} of it")


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("file", type=Path)
    parser.add_argument("--examples", type=int, default=256)
    parser.add_argument("--validation", type=int, default=64)
    parser.add_argument("--local-steps", default="16,8")
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--outer", help="learning rate and momentum of the outer step; default: the pool's")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--liar", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    print(stand.machine("torch", "transformers", "peft"), flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_examples(asked.file, folder, asked.examples, asked.validation)
        model = tiny_model(folder) if asked.liar else small_model()
        workers = 4 if asked.liar else 2
        bench = Bench(*model, folder, asked.examples, asked.validation, asked.rate, workers)
        local_steps = [int(steps) for steps in asked.local_steps.split(",")]
        if asked.liar:
            lie(bench, local_steps[-1])
            return
        lr, mu = (float(part) for part in (asked.outer or "0,0").split(","))
        compare(bench, local_steps, (lr, mu) if asked.outer else None)
        examples = MANY_STEPS * workers
        write_examples(asked.file, folder, examples, MANY_HELD_OUT, shortest=True)
        tiny = tiny_model(folder)
        bytes_of_many(Bench(*tiny, folder, examples, MANY_HELD_OUT, asked.rate, workers, 1, bench.files))


if __name__ == "__main__":
    main()
