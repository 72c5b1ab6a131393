#!/usr/bin/env python3
"""16 requests that come one after the other, through the torch engine, against `model.generate` of
transformers on the same 16 as one fixed batch.

    benchmarks/batching.py [--threads 1,2] [--rounds 3] [--requests 16] [--tokens 128] [--apart 1]

Both are greedy, in fp32, with as many threads, in turns. A request is sent to the engine process whenever the
first one has got `--apart` more tokens, so the batch fills and empties; `generate` has all of them from the
start, padded on the left. Counted are the tokens up to the end of each answer. Printed for each round are
tokens/s and CPU time a token (of the engine's process; of this one for generate), the ratio of the rates, and
how many answers are the same text.
"""

import argparse
import asyncio
import statistics
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import stand
import torch
import transformers
from fixtures_engine import Heard

from potluck.catalogue import Catalogue
from potluck.fetch import fetch
from potluck.home import model_cache
from potluck.v1 import engine_pb2, work_pb2
from potluck.vocabulary import tokenizer_of_gguf
from worker.engines import weights
from worker.hosts.process import EngineHost

SUBJECTS = (
    "a lighthouse keeper",
    "two rivers",
    "an old clock",
    "the last train",
    "a garden",
    "snow",
    "a fox",
)
WANTED = 0.9


@dataclass(frozen=True, slots=True)
class Run:
    answers: list[list[int]]
    seconds: float
    cpu_s: float

    @property
    def tokens(self) -> int:
        return sum(map(len, self.answers))

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds

    def line(self) -> str:
        return f"{self.rate:7.1f} tokens/s, {self.cpu_s / self.tokens * 1e3:6.2f} ms CPU a token"


def prompts(path: Path, count: int) -> list[list[int]]:
    """Of 20 to 80 tokens."""
    tokenizer = tokenizer_of_gguf(path)
    texts = (
        "<|im_start|>user\n"
        + f"Write a very long story about {SUBJECTS[index % len(SUBJECTS)]}, part {index}. " * (1 + index % 4)
        + "<|im_end|>\n<|im_start|>assistant\n"
        for index in range(count)
    )
    return [list(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts]


async def engine_run(
    host: EngineHost, heard: Heard, requests: list[list[int]], tokens: int, apart: int
) -> Run:
    heard.events.clear()
    begun, busy = time.perf_counter(), _cpu_s(host.pid)
    for index, ids in enumerate(requests):
        await heard.until(partial(_has_come, heard, apart * index))
        sampling = work_pb2.Sampling(temperature=0, top_p=1, max_tokens=tokens, choices=1)
        work = work_pb2.Work(completion=work_pb2.CompletionWork(prompt_ids=ids, sampling=sampling))
        attempt = work_pb2.Attempt(job_id=f"job{index}", number=1)
        host.send(engine_pb2.EngineCommand(start=engine_pb2.Start(attempt=attempt, work=work)))
    for index in range(len(requests)):
        event = await heard.ended(f"job{index}")
        if event.HasField("failed"):
            raise SystemExit(event.failed.failure.message)
    seconds, cpu_s = time.perf_counter() - begun, _cpu_s(host.pid) - busy
    return Run([heard.ids(f"job{index}") for index in range(len(requests))], seconds, cpu_s)


def _has_come(heard: Heard, tokens: int) -> bool:
    """The first answer has as many tokens, or has ended."""
    return len(heard.ids("job0")) >= tokens or heard.end("job0") is not None


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def generate_run(model: Any, requests: list[list[int]], tokens: int) -> Run:
    longest = max(map(len, requests))
    ends = model.generation_config.eos_token_id
    ids = torch.tensor([[ends] * (longest - len(prompt)) + prompt for prompt in requests])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in requests])
    begun, busy = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        made = model.generate(
            ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False, pad_token_id=ends
        )
    seconds, cpu_s = time.perf_counter() - begun, time.process_time() - busy
    rows = (row[longest:].tolist() for row in made)
    return Run([row[: row.index(ends)] if ends in row else row for row in rows], seconds, cpu_s)


async def compare(given: argparse.Namespace, path: Path, threads: int) -> None:
    requests = prompts(path, given.requests)
    cache = model_cache().parent / "torch"
    heard = Heard()
    load = engine_pb2.Load(
        engine="torch", model=stand.SMALL, paths=[str(path)], threads=threads, slots=given.requests,
        context_tokens=1024, cache_dir=str(cache),
    )  # fmt: skip
    host = await EngineHost.start(load, heard)
    try:
        torch.set_num_threads(threads)
        folder = weights._converted(path, cache, weights.Device("cpu", "float32"))  # noqa: SLF001 -- the engine has made it
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="sdpa", local_files_only=True
        ).eval()
        await engine_run(host, heard, requests, 4, 1)
        generate_run(model, requests, 4)
        ratios = []
        for _ in range(given.rounds):
            ours = await engine_run(host, heard, requests, given.tokens, given.apart)
            theirs = generate_run(model, requests, given.tokens)
            same = sum(one == other for one, other in zip(ours.answers, theirs.answers, strict=True))
            ratios.append(ours.rate / theirs.rate)
            print(f"{threads} threads  engine   {ours.line()}")
            print(f"{threads} threads  generate {theirs.line()}")
            print(
                f"{threads} threads  {ratios[-1]:.2f}x, {same} of {len(requests)} answers the same",
                flush=True,
            )
        print(f"{threads} threads  median {statistics.median(ratios):.2f}x, wanted {WANTED}x")
    finally:
        await host.close()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--apart", type=int, default=1)
    given = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    print(stand.machine("torch", "transformers"))
    entry = Catalogue.builtin().get(stand.SMALL)
    assert entry is not None
    path = await fetch(entry.variants[0].files[0], model_cache())
    for threads in given.threads.split(","):
        await compare(given, path, int(threads))


if __name__ == "__main__":
    asyncio.run(main())
