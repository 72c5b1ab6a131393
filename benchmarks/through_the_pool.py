#!/usr/bin/env python3
"""A real small model through the pool with one and two workers, against the same engines called directly.

    benchmarks/through_the_pool.py [--engines llamacpp,torch] [--workers 1,2] [--streams 1,8] [--rounds 3]
                                   [--tokens 96]

An engine has one thread on both sides. Directly means: in a process as the engine's own, without worker or
coordinator, as many of them as there are workers, the streams shared out evenly;
through the pool: HTTP with authentication and ledger, mutual TLS to the worker, a pipe to its engine. Both
answer the same questions in turns, and each side's tokens are counted by itself. Printed for each round are
tokens/s and CPU time a token (for the pool: of the coordinator, the daemon and the engine, each apart), and
the ratio of the rates.
"""

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

import psutil
import stand
from fixtures_engine import Heard, chat
from fixtures_pool import RealPool

from potluck.catalogue import Catalogue
from potluck.fetch import fetch
from potluck.home import model_cache
from potluck.v1 import engine_pb2, work_pb2
from worker.engines.engine import Engine

QUESTION = "Write a very long story about a lighthouse keeper who finds a message in a bottle."
TEMPERATURE, TOP_P = 0.8, 0.95
CONTEXT_TOKENS, SLOTS = 1024, 8


@dataclass(frozen=True, slots=True)
class Run:
    tokens: int
    seconds: float
    cpu_s: dict[str, float]

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds

    def line(self) -> str:
        parts = ", ".join(f"{who} {spent / self.tokens * 1e3:.2f}" for who, spent in self.cpu_s.items())
        return f"{self.rate:7.1f} tokens/s; ms CPU a token: {parts}"


class Alone:
    """An engine in this process, without pipe, worker or coordinator."""

    def __init__(self, engine: str) -> None:
        self.heard = Heard()
        loop = asyncio.get_running_loop()

        def emit(event: engine_pb2.EngineEvent) -> None:
            loop.call_soon_threadsafe(self.heard, event)

        self.name, self.engine = engine, _engine(engine, emit)
        self.count = 0

    async def load(self, path: Path) -> None:
        load = engine_pb2.Load(
            engine=self.name, model=stand.SMALL, paths=[str(path)], threads=1, slots=SLOTS,
            context_tokens=CONTEXT_TOKENS, cache_dir=str(model_cache().parent / "torch"), kinds=["chat"],
        )  # fmt: skip
        await self.engine.load(load)

    async def answer(self, seed: int, tokens: int) -> int:
        self.count += 1
        job = f"job{self.count}"
        work = chat(QUESTION, temperature=TEMPERATURE, top_p=TOP_P, seed=seed, max_tokens=tokens)
        attempt = work_pb2.Attempt(job_id=job, number=1)
        self.engine.start(engine_pb2.Start(attempt=attempt, work=work))
        event = await self.heard.ended(job)
        if event.HasField("failed"):
            raise SystemExit(event.failed.failure.message)
        return event.done.usage.output_tokens


async def alone(engine: str, path: Path, asked: Connection) -> None:
    """A child's whole life: answers what comes through `asked`, all of it at once, until it is closed."""
    mine = Alone(engine)
    await mine.load(path)
    asked.send(0)
    try:
        while batch := await asyncio.to_thread(_received, asked):
            counts = await asyncio.gather(*(mine.answer(seed, tokens) for seed, tokens in batch))
            mine.heard.events.clear()
            asked.send(sum(counts))
    finally:
        await mine.engine.close()


def _received(asked: Connection) -> list[tuple[int, int]]:
    try:
        batch: list[tuple[int, int]] = asked.recv()
    except EOFError:
        return []
    return batch


def run_alone(engine: str, path: Path, asked: Connection) -> None:
    asyncio.run(alone(engine, path, asked))


class Direct:
    """As many processes as there are workers, each with an engine that is called in it."""

    def __init__(self, engine: str, path: Path, count: int) -> None:
        self.name, self.asked, self.children = engine, list[Connection](), list[SpawnProcess]()
        spawn = get_context("spawn")
        for _ in range(count):
            mine, theirs = spawn.Pipe()
            child = spawn.Process(target=run_alone, args=(engine, path, theirs))
            child.start()
            theirs.close()
            self.asked.append(mine)
            self.children.append(child)
        for asked in self.asked:
            asked.recv()

    async def answers(self, seeds: Sequence[int], tokens: int) -> int:
        count = len(self.asked)
        for n, asked in enumerate(self.asked):
            asked.send([(seed, tokens) for seed in seeds[n::count]])
        busy = self.asked[: len(seeds)]
        return sum(await asyncio.gather(*(asyncio.to_thread(asked.recv) for asked in busy)))

    def cpu_s(self) -> dict[str, float]:
        return {"engine": sum(_cpu_s(psutil.Process(child.pid)) for child in self.children)}

    def close(self) -> None:
        for asked, child in zip(self.asked, self.children, strict=True):
            asked.close()
            child.join(stand.END_S_MAX)
            child.kill()


def _engine(name: str, emit: Callable[[engine_pb2.EngineEvent], None]) -> Engine:
    if name == "torch":
        from worker.engines.torch import Torch

        return Torch(emit)
    from worker.engines.llamacpp import LlamaCpp

    return LlamaCpp(emit)


class Pooled:
    """The same through HTTP, by a client that does as little as it can."""

    def __init__(self, pool: RealPool, workers: list[psutil.Process], key: str) -> None:
        self.pool, self.workers, self.key = pool, workers, key

    async def answers(self, seeds: Sequence[int], tokens: int) -> int:
        return sum(await asyncio.gather(*(self.answer(seed, tokens) for seed in seeds)))

    async def answer(self, seed: int, tokens: int) -> int:
        body = {
            "model": stand.SMALL, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": tokens,
            "temperature": TEMPERATURE, "top_p": TOP_P, "seed": seed, "stream": True,
            "stream_options": {"include_usage": True},
        }  # fmt: skip
        payload = json.dumps(body).encode()
        port = self.pool.http_port
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
            f"Content-Length: {len(payload)}\r\n"
            f"Authorization: Bearer {self.key}\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"
        )
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.encode() + payload)
        count = 0
        while line := await reader.readline():
            if line.startswith(b"HTTP/1.1") and b" 200 " not in line:
                raise SystemExit(line.decode())
            if line.startswith(b"data: {") and b'"usage":{' in line:
                count = json.loads(line[6:])["usage"]["completion_tokens"]
        writer.close()
        return count

    def cpu_s(self) -> dict[str, float]:
        assert self.pool.coordinator is not None
        coordinator = psutil.Process(self.pool.coordinator.popen.pid)
        return {
            "engine": sum(_cpu_s(child) for one in self.workers for child in one.children(recursive=True)),
            "daemon": sum(map(_cpu_s, self.workers)),
            "coordinator": _cpu_s(coordinator),
        }


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def drive(side: Direct | Pooled, streams: int, tokens: int, seed: int) -> Run:
    """All streams from their beginning to the last one's end."""
    before, begun = side.cpu_s(), time.perf_counter()
    count = await side.answers(range(seed, seed + streams), tokens)
    seconds, after = time.perf_counter() - begun, side.cpu_s()
    return Run(count, seconds, {who: after[who] - before[who] for who in after})


async def compare(direct: Direct, pooled: Pooled, given: argparse.Namespace) -> None:
    workers = len(pooled.workers)
    for streams in (count for count in map(int, given.streams.split(",")) if count >= workers):
        for side in (direct, pooled):
            await drive(side, streams, 8, 0)
        ratios = []
        label = f"{direct.name}, {stand.counted(streams, 'stream')}, {stand.counted(workers, 'worker')}"
        for turn in range(given.rounds):
            alone = await drive(direct, streams, given.tokens, 100 * turn)
            through = await drive(pooled, streams, given.tokens, 100 * turn)
            ratios.append(through.rate / alone.rate)
            print(f"{label}  direct {alone.line()}")
            print(f"{label}  pool   {through.line()}  ({ratios[-1]:.2f}x)", flush=True)
        stand.figure(label, statistics.median(ratios), "x")


def measure(engine: str, path: Path, workers: int, given: argparse.Namespace) -> None:
    direct = Direct(engine, path, workers)
    try:
        with stand.running_pool(POTLUCK_CONCURRENT_JOBS="64") as pool:
            flags = ["--engine", engine, "--models", stand.SMALL, "--threads", "1", "--slots", str(SLOTS)]
            started = [pool.add_worker(f"rig{n}", "bob", *flags) for n in range(workers)]
            member = pool.member("carol", 10**12)
            processes = [psutil.Process(worker.popen.pid) for worker in started]
            asyncio.run(compare(direct, Pooled(pool, processes, member.key), given))
    finally:
        direct.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--engines", default="llamacpp,torch")
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--streams", default="1,8")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=96)
    given = parser.parse_args()
    print(stand.machine("torch", "xllamacpp"))
    entry = Catalogue.builtin().get(stand.SMALL)
    assert entry is not None
    path = asyncio.run(fetch(entry.variants[0].files[0], model_cache()))
    for engine in given.engines.split(","):
        for workers in map(int, given.workers.split(",")):
            measure(engine, path, workers, given)


if __name__ == "__main__":
    main()
