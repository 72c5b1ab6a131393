#!/usr/bin/env python3
"""LoRA training of SmolLM2-135M through the trainer's engine process, against a bare loop of transformers and
peft on the same examples.

    benchmarks/training.py DATA [--threads 1,2] [--rounds 3] [--steps 4] [--batch 8]

DATA: JSON lines with `question` and `answer`, such as GSM8K's train.jsonl. Both train all linear layers, r =
16, in fp32, from the same adapter, in turns, the same examples in the same order; the bare loop pads each
batch to its longest, as everybody's first loop does. Counted are real tokens, without padding; the engine's
time is from its Start to its Done, reading and writing of checkpoints included. Printed for each round are
tokens/s, CPU time a token, the ratio of the rates, and the losses of each step on both sides.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import psutil
import stand
import torch
import transformers
from fixtures_engine import Heard

from potluck import lora
from potluck.catalogue import Catalogue, ModelEntry
from potluck.fetch import fetch
from potluck.home import model_cache
from potluck.training_data import example_of
from potluck.v1 import engine_pb2, work_pb2
from worker.engines import weights
from worker.hosts.process import EngineHost
from worker.training.packing import Tokens
from worker.training.plan import examples_of, learning_rate
from worker.training.reading import Reader

WANTED = 0.95
RANK, ALPHA, RATE = 16, 32.0, 3e-4
TOKENS_MAX = 1024
WAIT_S_MAX = 3600.0


@dataclass(frozen=True, slots=True)
class Run:
    tokens: int
    losses: list[float]
    seconds: float
    cpu_s: float

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds

    def line(self) -> str:
        return f"{self.rate:7.1f} tokens/s, {self.cpu_s / self.tokens * 1e3:6.2f} ms CPU a token"


@dataclass(frozen=True, slots=True)
class Setting:
    """What both sides train. `batches`: the tokens of each step's examples."""

    folder: Path
    model: Path
    work: work_pb2.TrainingWork
    batches: list[list[Tokens]]


def prepare(folder: Path, model: Path, entry: ModelEntry, data: Path, steps: int, batch: int) -> Setting:
    count = steps * batch
    with data.open(encoding="utf-8") as file:
        pairs = [json.loads(line) for line, _ in zip(file, range(count), strict=False)]
    if len(pairs) < count:
        raise SystemExit(f"{data} has {len(pairs)} lines; {count} are needed")
    lines = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in ((pair["question"], pair["answer"]) for pair in pairs)
    ]  # fmt: skip
    (folder / "examples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    of = lora.shapes(entry.linears, entry.shape.layers, RANK)
    (folder / "adapter.safetensors").write_bytes(lora.encode(lora.initial(of, seed=1)))
    plan = work_pb2.TrainingPlan(
        method="sft", lora=work_pb2.LoraConfig(rank=RANK, alpha=ALPHA), epochs=1, batch_size=batch,
        sequence_tokens=TOKENS_MAX, learning_rate=RATE, schedule="cosine", warmup_steps=1,
        gradient_norm_max=1.0, seed=1, examples=count, steps=steps,
    )  # fmt: skip
    work = work_pb2.TrainingWork(plan=plan, first_step=0, last_step=steps)
    text = weights._text_of_gguf(model)  # noqa: SLF001 -- as the engine reads it
    reader = Reader(text, (), TOKENS_MAX, text.tokenizer.get_vocab_size())
    read = [reader.read(example_of(line), plan.method)[0] for line in lines]
    batches = [[read[place] for place in examples_of(work, step)] for step in range(steps)]
    return Setting(folder, model, work, batches)


async def engine_run(host: EngineHost, heard: Heard, setting: Setting, job: str) -> Run:
    out = setting.folder / job
    out.mkdir()
    heard.clear()
    begun, busy = time.perf_counter(), _cpu_s(host.pid)
    files = engine_pb2.TrainingFiles(
        examples=str(setting.folder / "examples.jsonl"),
        adapter=str(setting.folder / "adapter.safetensors"),
        folder=str(out),
    )
    attempt, work = work_pb2.Attempt(job_id=job, number=1), work_pb2.Work(training=setting.work)
    host.send(engine_pb2.EngineCommand(start=engine_pb2.Start(attempt=attempt, work=work, files=files)))
    await heard.until(lambda: heard.end(job), WAIT_S_MAX)
    seconds, cpu_s = time.perf_counter() - begun, _cpu_s(host.pid) - busy
    event = heard.end(job)
    if event is None or event.HasField("failed"):
        raise SystemExit(f"the engine failed: {event}")
    steps = [step for e in heard.events if e.HasField("output") for step in e.output.steps]
    return Run(event.done.trained.tokens, [step.train_loss for step in steps], seconds, cpu_s)


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def bare_model(setting: Setting) -> Any:
    """As peft's own first example has it."""
    cache = model_cache().parent / "torch"
    folder = weights._converted(setting.model, cache, weights.Device("cpu", "float32"))  # noqa: SLF001 -- the engine has made it
    base = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    )
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets, task_type="CAUSAL_LM")
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        return peft.get_peft_model(base, config)


def bare_run(model: Any, setting: Setting) -> Run:
    start = lora.decode((setting.folder / "adapter.safetensors").read_bytes())
    trained = {n.replace(".default", ""): w for n, w in model.named_parameters() if w.requires_grad}
    for name, weight in trained.items():
        weight.data = torch.from_numpy(start[name])
    optimizer = torch.optim.AdamW(trained.values(), lr=RATE, weight_decay=0.0)
    losses, tokens = [], 0
    begun, busy = time.perf_counter(), time.process_time()
    for step, batch in enumerate(setting.batches):
        longest = max(len(each.ids) for each in batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for row, each in enumerate(batch):
            ids[row, : len(each.ids)] = torch.tensor(each.ids)
            mask[row, : len(each.ids)] = 1
            labels[row, list(each.targets)] = ids[row, list(each.targets)]
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.param_groups[0]["lr"] = learning_rate(setting.work, step)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        tokens += int(mask.sum())
    return Run(tokens, losses, time.perf_counter() - begun, time.process_time() - busy)


async def compare(given: argparse.Namespace, setting: Setting, threads: int) -> None:
    heard = Heard()
    load = engine_pb2.Load(
        engine="trainer", model=stand.SMALL, paths=[str(setting.model)], threads=threads, slots=1,
        cache_dir=str(model_cache().parent / "torch"),
    )  # fmt: skip
    host = await EngineHost.start(load, heard)
    try:
        torch.set_num_threads(threads)
        model = bare_model(setting)
        rates, costs = [], []
        for number in range(given.rounds):
            ours = await engine_run(host, heard, setting, f"{threads}-{number}")
            theirs = bare_run(model, setting)
            assert ours.tokens == theirs.tokens, "both read the same"
            rates.append(ours.rate / theirs.rate)
            costs.append(theirs.cpu_s / ours.cpu_s)
            print(f"{threads} threads  engine {ours.line()}, losses {_said(ours.losses)}")
            print(f"{threads} threads  bare   {theirs.line()}, losses {_said(theirs.losses)}")
            print(f"{threads} threads  {rates[-1]:.2f}x, by CPU time {costs[-1]:.2f}x", flush=True)
        print(
            f"{threads} threads  median {statistics.median(rates):.2f}x, by CPU time"
            f" {statistics.median(costs):.2f}x, wanted {WANTED}x"
        )
        said = f"against bare, {threads} thread{'s' if threads > 1 else ''}"
        stand.figure(said, statistics.median(rates), "x")
        stand.figure(f"{said}, by CPU time", statistics.median(costs), "x")
    finally:
        await host.close()


def _said(losses: list[float]) -> str:
    return " ".join(f"{loss:.4f}" for loss in losses)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=8)
    given = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    print(stand.machine("torch", "transformers", "peft"))
    entry = Catalogue.builtin().get(stand.SMALL)
    assert entry is not None
    path = await fetch(entry.variants[0].files[0], model_cache())
    for threads in given.threads.split(","):
        with tempfile.TemporaryDirectory(prefix="potluck-benchmark-") as name:
            setting = prepare(Path(name), path, entry, given.data, given.steps, given.batch)
            await compare(given, setting, int(threads))


if __name__ == "__main__":
    asyncio.run(main())
