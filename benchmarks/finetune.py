#!/usr/bin/env python3
"""A fine-tune on GSM8K through the official openai client, undisturbed or with parts of the pool killed.

    benchmarks/finetune.py FILE [--examples 256] [--validation 64] [--workers 1] [--runs 1] [--kill]

FILE is GSM8K's train.jsonl (Cobbe et al., 2021), an object with `question` and `answer` a line: the first
lines are the examples, the following ones the validation. Files are uploaded, a job is created and its events
are followed to the end; then the result is asked a question. With `--kill` further runs follow, and in each a
worker, a worker's engine or the coordinator is killed with -9 at a random moment. Checked in every run:

  ended     the job has succeeded, and its model answers
  learned   the last validation loss is clearly below the first (undisturbed, with a validation)
  same      every step's training loss is the undisturbed one (one worker)
  once      as many tokens were trained as undisturbed, and settled once
  zero      nothing stays reserved, the ledger adds up to nothing, and an export of it verifies

Exit code 1 if any check fails.
"""

import argparse
import json
import random
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psutil
import stand
from fixtures_pool import Member, RealPool

from potluck.credits import aligned
from potluck.proof.lines import Fault
from potluck.proof.verify import verify

KILLED = ("worker", "engine", "coordinator")
ENDED = ("succeeded", "failed", "cancelled")
CLEARLY = 0.9  # of the first validation loss
LOSS_OFF_MAX = 1e-4
POLL_S = 0.2
EVENTS = 1_000
MINUTES_MAX = 40.0


@dataclass(frozen=True, slots=True)
class Data:
    examples: bytes
    validation: bytes
    question: str


@dataclass(slots=True)
class Run:
    """`train` by step; `valid` in the order in which it was told, with the step."""

    job: Any
    train: dict[int, float] = field(default_factory=dict)
    valid: list[tuple[int, float]] = field(default_factory=list)
    answer: str = ""
    seconds: float = 0.0


def data_of(path: Path, examples: int, validation: int) -> Data:
    """Exits with a sentence if the file is another."""
    try:
        with path.open(encoding="utf-8") as file:
            found = [json.loads(line) for line, _ in zip(file, range(examples + validation), strict=False)]
        chats = [_chat(one["question"], one["answer"]) for one in found]
    except OSError as error:
        raise SystemExit(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError):
        raise SystemExit(f"{path} is no train.jsonl of GSM8K.") from None
    return Data(b"".join(chats[:examples]), b"".join(chats[examples:]), found[-1]["question"])


def _chat(question: str, answer: str) -> bytes:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": turns}).encode() + b"\n"


@dataclass(slots=True)
class Bench:
    pool: RealPool
    asker: Member
    data: Data
    wanted: argparse.Namespace
    files: dict[str, str] = field(default_factory=dict)

    def upload(self) -> None:
        client = self.asker.openai()
        for name in ("examples", "validation"):
            if data := getattr(self.data, name):
                made = client.files.create(file=(f"{name}.jsonl", data), purpose="fine-tune")
                self.files[name] = made.id

    def run(self, suffix: str, disturb: Callable[[Any], None] | None = None) -> Run:
        client, wanted, began = self.asker.openai(), self.wanted, time.perf_counter()
        extra = {
            "rank": 16,
            "learning_rate": 3e-4,
            "workers": wanted.workers,
            "checkpoint_s": wanted.checkpoint_s,
            **({"local_steps": wanted.local_steps} if wanted.local_steps else {}),
        }
        hyperparameters: Any = {"n_epochs": 1, "batch_size": 8}
        job = client.fine_tuning.jobs.create(
            model=stand.SMALL,
            training_file=self.files["examples"],
            validation_file=self.files.get("validation"),
            method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
            suffix=suffix,
            seed=1,
            extra_body={"potluck": extra},
        )
        over = threading.Event()
        killing = threading.Thread(target=disturb, args=(over,)) if disturb is not None else None
        if killing is not None:
            killing.start()
        try:
            self.pool.until(lambda: self._ended(job.id), "the job to end")
        finally:
            over.set()
            if killing is not None:
                killing.join()
        client = self.asker.openai()
        run = Run(client.fine_tuning.jobs.retrieve(job.id), seconds=time.perf_counter() - began)
        for event in reversed(list(client.fine_tuning.jobs.list_events(job.id, limit=EVENTS))):
            data: Any = event.data or {}
            if "train_loss" in data:
                run.train[int(data["step"])] = float(data["train_loss"])
            if data.get("valid_loss") is not None:
                run.valid.append((int(data["step"]), float(data["valid_loss"])))
        if run.job.fine_tuned_model:
            said = client.chat.completions.create(
                model=run.job.fine_tuned_model,
                messages=[{"role": "user", "content": self.data.question}],
                max_tokens=64,
                temperature=0,
            )
            run.answer = said.choices[0].message.content or ""
        return run

    def _ended(self, job_id: str) -> bool:
        try:
            answer = self.asker.api("GET", f"/v1/fine_tuning/jobs/{job_id}")
        except httpx2.TransportError:
            return False  # the coordinator was killed, and comes again
        return answer.is_success and answer.json()["status"] in ENDED

    def kill(self, part: str, rng: random.Random, over: threading.Event) -> None:
        """At a random moment of the training; the part is started again where it is not by itself."""
        if over.wait(rng.uniform(2.0, self.wanted.kill_within_s)):
            print("     it was over before the kill")
            return
        name = rng.choice(sorted(self.pool.workers))
        if part == "coordinator":
            assert self.pool.coordinator is not None
            self.pool.coordinator.kill()
            self.pool.start_coordinator()
        elif part == "worker":
            self.pool.workers[name].kill()
            self.pool.start_worker(name, ready=False)
        else:
            engines = psutil.Process(self.pool.workers[name].popen.pid).children(recursive=True)
            for engine in engines:
                engine.kill()
            name = f"{name}'s {len(engines)} engines"
        print(f"     killed {name if part != 'coordinator' else part}", flush=True)


def curve(run: Run) -> str:
    points = [f"step {step}: {loss:.3f}" for step, loss in run.valid]
    steps = sorted(run.train)
    shown = [f"{run.train[step]:.2f}" for step in steps[:: max(1, len(steps) // 16)]]
    return f"validation {', '.join(points) or 'none'}\n     training   {' '.join(shown)}"


def problems_of(bench: Bench, run: Run, undisturbed: Run | None) -> list[str]:
    """In words."""
    found = []
    if run.job.status != "succeeded" or not run.answer.strip():
        found.append(f"the job is {run.job.status} ({run.job.error}), its model says {run.answer!r}")
    if undisturbed is None and len(run.valid) > 1 and run.valid[-1][1] > CLEARLY * run.valid[0][1]:
        found.append(f"the validation loss went from {run.valid[0][1]:.3f} to {run.valid[-1][1]:.3f} only")
    settled, tokens = settlements(bench, run)
    if tokens != run.job.trained_tokens:
        found.append(f"{tokens} tokens were settled, {run.job.trained_tokens} trained")
    if len(settled) != len(set(settled)):
        found.append("a part was settled twice")
    if undisturbed is not None and run.job.trained_tokens != undisturbed.job.trained_tokens:
        found.append(f"{run.job.trained_tokens} tokens, undisturbed {undisturbed.job.trained_tokens}")
    if undisturbed is not None and bench.wanted.workers == 1:
        steps = undisturbed.train.keys() | run.train.keys()
        off = [s for s in steps if abs(run.train.get(s, 9) - undisturbed.train.get(s, 9)) > LOSS_OFF_MAX]
        if off:
            found.append(f"the loss of {len(off)} steps is another, the first is step {min(off)}")
    if reserved := bench.asker.balance()["reserved"]:
        found.append(f"{reserved} are still reserved")
    if total := bench.pool.ledger_sum():
        found.append(f"the ledger's sum is {total}")
    return found


def settlements(bench: Bench, run: Run) -> tuple[list[str], int]:
    """The parts that were paid, and their tokens, from an export that verifies."""
    export = bench.pool.folder / "export.jsonl"
    export.write_bytes(bench.asker.api("GET", "/pool/v1/ledger/export").raise_for_status().content)
    try:
        verify(export)
    except Fault as fault:
        raise SystemExit(f"the export does not verify: {fault}") from None
    whole = (run.job.model_extra or {})["potluck"]["job"]
    entries = [json.loads(line) for line in export.read_text(encoding="utf-8").splitlines()]
    mine = [e for e in entries if str(e.get("id", "")).startswith(f"{whole}/settle/")]
    tokens = sum(json.loads(entry["details"])["training"]["tokens"] for entry in mine)
    return [entry["id"] for entry in mine], tokens


def told(name: str, bench: Bench, run: Run, undisturbed: Run | None) -> bool:
    """Prints what came of a run; whether all checks hold."""
    found = problems_of(bench, run, undisturbed)
    extra = (run.job.model_extra or {})["potluck"]
    tokens = run.job.trained_tokens or 0
    print(
        f"{name}: {run.job.status} after {run.seconds:.0f} s, {tokens} tokens trained"
        f" ({tokens / run.seconds:.0f}/s in all), charged {aligned(extra['charge'] or 0).strip()} of"
        f" {aligned(extra['quote']).strip()} credits\n     {curve(run)}\n"
        f"     {run.job.fine_tuned_model}: {' '.join(run.answer.split())[:100]}\n"
        f"     {'; '.join(found) or 'ok'}",
        flush=True,
    )
    return not found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="train.jsonl of GSM8K")
    parser.add_argument("--examples", type=int, default=256)
    parser.add_argument("--validation", type=int, default=64)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--local-steps", type=int, default=0, help="of a round; 0: the pool's default")
    parser.add_argument("--checkpoint-s", type=int, default=30)
    parser.add_argument("--kill", action="store_true", help="kill a part in each run after the first")
    parser.add_argument("--kill-within-s", type=float, default=30.0)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1, help="of the kills")
    wanted = parser.parse_args()
    rng, data = random.Random(wanted.seed), data_of(wanted.file, wanted.examples, wanted.validation)
    print(stand.machine("openai", "torch", "transformers", "peft"), flush=True)
    with stand.running_pool() as pool:
        pool.start_s = MINUTES_MAX * 60
        bench = Bench(pool, pool.member("asker", credit_line=10**12), data, wanted)
        for number in range(1, wanted.workers + 1 + wanted.kill):
            flags = ["--engine", "torch", "--models", stand.SMALL, "--threads", "1"]
            pool.add_worker(f"rig{number}", f"owner{number}", *flags)
        bench.upload()
        first = bench.run("undisturbed")
        good = told("undisturbed", bench, first, None)
        for number in range(1, wanted.runs):
            part = KILLED[number % len(KILLED)]

            def disturb(over: threading.Event, part: str = part) -> None:
                bench.kill(part, rng, over)

            run = bench.run(f"run-{number}", disturb if wanted.kill else None)
            good &= told(f"{number:2}", bench, run, first)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
