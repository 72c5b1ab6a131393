#!/usr/bin/env python3
"""An owner takes the serving worker back in mid-answer, again and again: how soon, and at whose cost.

    benchmarks/yielding.py [--runs 10] [--engine emulator|torch|llamacpp] [--seed 1]

Two workers of two members serve; a third asks through the official openai client for an answer of 400
tokens, as a stream. Each run gives an answer undisturbed, then again, and at a random moment of it the owner
of the worker that serves says what `potluck worker pause` says (a file), and `resume` afterwards. Checked in
every run:

  whole     one stream that ended at its length, all tokens counted (llamacpp gives no ids: a few off)
  same      the text is the undisturbed one (emulator and torch, as in failover.py)
  charged   once: the undisturbed answer's charge, and nothing stays reserved
  paid      each worker's owner has earned what its own tokens are worth; the ledger adds up to nothing
  blame     nobody is blamed: the reliability of both workers is 1
  memory    the engine's process is gone, and with it its memory, within 5 s of the owner's word

Printed are the time from the owner's word until the memory is back, the part of it until the job was
elsewhere (the daemon looks once a second), and the longest silence that the client sees. Exit code 1 if any
check fails.
"""

import argparse
import random
import statistics
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import psutil
import stand
from failover import OWNERS, POLL_S, TOKENS_OFF_MAX, TRIES_MAX, Answer, Bench, book_problems, standing
from fixtures_margin import MARGIN_MAX

from worker.wish import Wish, Word

TOKENS = 400
BACK_S_MAX = 5.0
WAIT_S_MAX = 30.0


@dataclass(frozen=True, slots=True)
class Yield:
    worker: str
    at: float  # of the word
    memory_bytes: int  # of the engine, before
    freed_s: float  # until its process was gone
    heard_s: float  # of these, until the job was elsewhere
    handed_over: bool  # False: the answer ended without another attempt


@dataclass(slots=True)
class Times:
    freed: list[float] = field(default_factory=list)
    heard: list[float] = field(default_factory=list)
    silences: list[float] = field(default_factory=list)


def engine_of(bench: Bench, name: str) -> psutil.Process:
    """The process of the worker's one engine."""
    daemon = psutil.Process(bench.pool.workers[name].popen.pid)
    return next(child for child in daemon.children() if "worker.engines" in child.cmdline())


def owner_says(bench: Bench, name: str, word: Word) -> None:
    """What the command writes; its own start-up is left out of what is measured."""
    Wish(word=word, given_at=time.time()).save(bench.pool.folder / name / "worker")


def take_back(bench: Bench, moment: float, over: threading.Event) -> Yield | None:
    """Pause the worker that serves; None if the answer was over before."""
    while (job := bench.running()) is None:
        if over.wait(POLL_S):
            return None
    workers = {row["id"]: row["name"] for row in bench.pool.admin.api("GET", "/pool/v1/workers").json()}
    name = workers[job["attempts"][-1]["worker"]]
    if over.wait(max(0.0, moment - time.perf_counter())):
        return None
    engine = engine_of(bench, name)
    memory_bytes = engine.memory_info().rss
    at, heard = time.perf_counter(), 0.0
    owner_says(bench, name, "pause")
    pause = threading.Event()
    while engine.is_running() and engine.status() != psutil.STATUS_ZOMBIE:
        if not heard and len(bench.pool.job(job["id"])["attempts"]) > 1:
            heard = time.perf_counter() - at
        if time.perf_counter() - at > WAIT_S_MAX:
            break
        pause.wait(POLL_S)
    freed = time.perf_counter() - at
    while not over.wait(POLL_S):
        if len(bench.pool.job(job["id"])["attempts"]) > 1:
            return Yield(name, at, memory_bytes, freed, heard or freed, handed_over=True)
    ended = len(bench.pool.job(job["id"])["attempts"]) > 1
    return Yield(name, at, memory_bytes, freed, heard or freed, handed_over=ended)


def disturbed(bench: Bench, seed: int, delay_s: float) -> tuple[Answer, Yield | None]:
    over = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        taking = threads.submit(take_back, bench, time.perf_counter() + delay_s, over)
        try:
            answer = bench.ask(seed)
        finally:
            over.set()
        return answer, taking.result()


def come_back(bench: Bench, name: str) -> None:
    """`resume`, and the model is loaded again."""
    owner_says(bench, name, "share")
    bench.pool.until(lambda: bench.pool.ready(name), f"{name} to be ready again")


def problems_of(
    bench: Bench, seed: int, whole: Answer, answer: Answer, job: dict[str, Any], taken: Yield
) -> list[str]:
    problems = []
    tokens = sum(attempt["tokens"] for attempt in job["attempts"])
    states = [attempt["state"] for attempt in job["attempts"]]
    if job["state"] != "succeeded" or states != ["failed", "succeeded"]:
        problems.append(f"the job is {job['state']}, its attempts {states}")
    if "owner" not in job["attempts"][0]["why"]:
        problems.append(f"the reason is {job['attempts'][0]['why']!r}")
    if answer.reason != "length" or abs(tokens - bench.tokens) > TOKENS_OFF_MAX[bench.engine]:
        problems.append(f"the answer ended with {answer.reason!r} after {tokens} tokens")
    if tokens != answer.usage.completion_tokens:
        problems.append(f"the attempts have {tokens} tokens, the answer {answer.usage.completion_tokens}")
    if bench.engine != "llamacpp" and answer.text != whole.text:
        margin = bench.margin(seed, answer.text)
        if margin is None or margin >= MARGIN_MAX:
            problems.append(f"the text is another (margin {margin})")
    rows = bench.pool.admin.api("GET", "/pool/v1/workers").json()
    if any(row["reliability"] < 1 for row in rows):
        problems.append(f"somebody is blamed: {[(row['name'], row['reliability']) for row in rows]}")
    if taken.freed_s > BACK_S_MAX:
        problems.append(f"the memory was back after {taken.freed_s:.1f} s")
    return problems


def one_run(bench: Bench, rng: random.Random, number: int, times: Times) -> bool:
    """Prints a line; whether all checks hold."""
    for _ in range(TRIES_MAX):
        seed = rng.getrandbits(31)
        whole = bench.ask(seed)
        if whole.reason != "length":  # the model had less to say: another seed
            continue
        before = bench.balances()
        answer, taken = disturbed(bench, seed, rng.random() * 0.5 * whole.seconds)
        if taken is not None and taken.handed_over:
            break
        print(f"     seed {seed}: the answer was over before the pause; once more")
        if taken is not None:
            come_back(bench, taken.worker)
    else:
        print(f"{number:3}  no answer could be disturbed in {TRIES_MAX} tries")
        return False
    job = bench.pool.job(answer.usage.potluck["job_id"])
    moved = {name: balance - before[name] for name, balance in bench.balances().items()}
    problems = problems_of(bench, seed, whole, answer, job, taken)
    problems += book_problems(bench, job, whole, moved)
    arrivals = [at for at, _ in answer.arrivals]
    silence = max(later - at for at, later in pairwise(arrivals) if later > taken.at)
    times.freed.append(taken.freed_s)
    times.heard.append(taken.heard_s)
    times.silences.append(silence)
    counts = [attempt["tokens"] for attempt in job["attempts"]]
    print(
        f"{number:3}  seed {seed:>10}  {taken.worker} paused after {taken.at - answer.began:6.3f} s"
        f"  tokens {counts[0]:>3} + {sum(counts[1:]):>3}  charge {job['charge']} paid"
        f" {'+'.join(str(attempt['paid'] or 0) for attempt in job['attempts'])}"
        f"  {taken.memory_bytes / 1e6:4.0f} MB back in {taken.freed_s:4.2f} s"
        f"  longest silence {silence * 1e3:5.0f} ms  {'; '.join(problems) or 'ok'}",
        flush=True,
    )
    come_back(bench, taken.worker)
    return not problems


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--engine", choices=["emulator", "torch", "llamacpp"], default="llamacpp")
    parser.add_argument("--seed", type=int, default=1, help="of all that is random here")
    wanted = parser.parse_args()
    rng, times = random.Random(wanted.seed), Times()
    used = {"emulator": (), "torch": ("torch", "transformers"), "llamacpp": ("xllamacpp",)}[wanted.engine]
    print(stand.machine("openai", "grpcio", *used))
    print(f"{wanted.engine}, workers of {', '.join(OWNERS.values())}, {TOKENS} tokens an answer")
    with standing(wanted.engine) as bench:
        bench.tokens = TOKENS
        good = [one_run(bench, rng, number, times) for number in range(1, wanted.runs + 1)]
    if times.freed:
        for what, values in (
            ("memory back after", times.freed),
            ("of these, until the job was elsewhere", times.heard),
            ("longest silence at the client", times.silences),
        ):
            print(f"{what}: median {statistics.median(values):.2f} s, worst {max(values):.2f} s")
    print(f"{sum(good)} of {len(good)} runs as they should be")
    return 0 if all(good) and good else 1


if __name__ == "__main__":
    sys.exit(main())
