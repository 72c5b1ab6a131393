"""Tokens per second of each engine, called directly: no pool, no network.

    benchmarks/engines.py [--engines emulator,llamacpp,torch] [--streams 1,4,16] [--threads 2] [--tokens 64]

Prints the whole rate over all streams, from the first Start to the last Done, with a warm-up before.
"""

import argparse
import asyncio
import time
from pathlib import Path

import psutil

from potluck.catalogue import DEFAULT_MODEL, Catalogue
from potluck.fetch import fetch
from potluck.v1 import engine_pb2, work_pb2
from worker.hosts.process import EngineHost

CACHE = Path(__file__).resolve().parent.parent / ".cache"
PROMPT = "Write a long story about a lighthouse keeper who finds a message in a bottle."


class Ends:
    """Counts tokens and remembers which attempts have ended."""

    def __init__(self) -> None:
        self.tokens = 0
        self.first: dict[str, float] = {}
        self.ended: set[str] = set()
        self.changed = asyncio.Event()

    def __call__(self, event: engine_pb2.EngineEvent) -> None:
        match event.WhichOneof("body"):
            case "output":
                self.tokens += sum(delta.tokens for delta in event.output.deltas)
                self.first.setdefault(event.output.attempt.job_id, time.perf_counter())
            case "done":
                self.ended.add(event.done.attempt.job_id)
            case "failed":
                raise SystemExit(event.failed.failure.message)
        self.changed.set()

    async def all(self, count: int) -> None:
        while len(self.ended) < count:
            self.changed.clear()
            await self.changed.wait()


def start(job: str, seed: int, tokens: int) -> engine_pb2.EngineCommand:
    sampling = work_pb2.Sampling(temperature=0.8, top_p=0.95, seed=seed, max_tokens=tokens, choices=1)
    work = work_pb2.Work(completion=work_pb2.CompletionWork(prompt=PROMPT, sampling=sampling))
    attempt = work_pb2.Attempt(job_id=job, number=1)
    return engine_pb2.EngineCommand(start=engine_pb2.Start(attempt=attempt, work=work))


async def measure(name: str, path: Path, streams: list[int], threads: int, tokens: int) -> None:
    ends = Ends()
    options = {"ttft_ms": "20", "tpot_ms": "5"} if name == "emulator" else {}
    load = engine_pb2.Load(
        engine=name,
        model=DEFAULT_MODEL,
        paths=[str(path)] if name != "emulator" else [],
        threads=threads,
        slots=max(streams),
        context_tokens=1024,
        cache_dir=str(CACHE / "torch"),
        options=options,
    )
    begun = time.perf_counter()
    host = await EngineHost.start(load, ends)
    loaded = host.loaded
    print(
        f"{name}: loaded in {time.perf_counter() - begun:.1f} s, {loaded.numerics}, "
        f"reports prefill {loaded.prefill_tokens_per_s:.0f}, decode {loaded.decode_tokens_per_s:.0f} tokens/s"
    )
    try:
        for count in [1, *streams]:  # the first warms up
            ends.tokens, ends.first, ends.ended = 0, {}, set()
            busy = psutil.Process(host.pid).cpu_times()
            begun = time.perf_counter()
            for index in range(count):
                host.send(start(f"job{index}", index, tokens))
            await ends.all(count)
            seconds = time.perf_counter() - begun
            now = psutil.Process(host.pid).cpu_times()
            cpu = now.user + now.system - busy.user - busy.system
            ttft = max(ends.first.values()) - begun
            print(
                f"  {count:3d} streams: {ends.tokens / seconds:8.1f} tokens/s, last first token after "
                f"{ttft * 1000:.0f} ms, {cpu / ends.tokens * 1000:.2f} ms CPU a token, "
                f"{host.memory_bytes() >> 20} MiB"
            )
    finally:
        begun = time.perf_counter()
        await host.close()
        print(f"  gone in {time.perf_counter() - begun:.2f} s")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--engines", default="emulator,llamacpp,torch")
    parser.add_argument("--streams", default="1,4,16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=64)
    given = parser.parse_args()
    entry = Catalogue.builtin().get(DEFAULT_MODEL)
    assert entry is not None
    path = await fetch(entry.variants[0].files[0], CACHE / "models")
    streams = [int(count) for count in given.streams.split(",")]
    for name in given.engines.split(","):
        await measure(name, path, streams, given.threads, given.tokens)


if __name__ == "__main__":
    asyncio.run(main())
