#!/usr/bin/env python3
"""What the pool adds to an engine: time to first token, and tokens relayed, against the engine alone.

    benchmarks/relay.py [--streams 1,8,32] [--seconds 8]

Starts an emulator (20 ms to the first token, 5 ms a token) as a bare engine process, and a real pool with
one worker that runs the same emulator; drives both in turn with the same number of streams. The client, the
coordinator, the worker and the engine share the machine's cores. Prints medians and the difference.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / "tests")]

from fixtures_pool import RealPool

from potluck.v1 import engine_pb2, work_pb2
from worker.hosts.process import EngineHost

TTFT_MS, TPOT_MS, TOKENS = 20, 5, 50
MODEL = "emulator-small"


@dataclass
class Figures:
    first: list[float] = field(default_factory=list)  # seconds
    tokens: int = 0
    seconds: float = 0.0

    def line(self) -> str:
        first = sorted(self.first)
        p50, p99 = statistics.median(first), first[min(len(first) - 1, int(len(first) * 0.99))]
        rate = self.tokens / self.seconds
        times = f"TTFT p50 {p50 * 1e3:6.1f} ms  p99 {p99 * 1e3:6.1f} ms"
        return f"{times}  {rate:8.0f} tokens/s  ({len(first)} answers)"

    def quantile(self, q: float) -> float:
        first = sorted(self.first)
        return first[min(len(first) - 1, int(len(first) * q))] * 1e3


class Direct:
    """The engine process alone, spoken to over its pipe."""

    def __init__(self) -> None:
        self.waiting: dict[str, asyncio.Queue[engine_pb2.EngineEvent]] = {}
        self.count = 0

    def hear(self, event: engine_pb2.EngineEvent) -> None:
        body = event.WhichOneof("body")
        if body in {"output", "done", "failed"}:
            self.waiting[getattr(event, body).attempt.job_id].put_nowait(event)

    async def start(self) -> None:
        options = {"ttft_ms": str(TTFT_MS), "tpot_ms": str(TPOT_MS)}
        load = engine_pb2.Load(engine="emulator", model=MODEL, slots=256, options=options, kinds=["chat"])
        self.host = await EngineHost.start(load, self.hear)

    async def answer(self, figures: Figures) -> None:
        self.count += 1
        job_id = f"job{self.count}"
        queue = self.waiting[job_id] = asyncio.Queue()
        work = work_pb2.Work()
        work.chat.messages.add(role="user", content="hello")
        work.chat.sampling.CopyFrom(
            work_pb2.Sampling(temperature=1, top_p=1, seed=self.count, max_tokens=TOKENS, choices=1)
        )
        began, first = time.perf_counter(), 0.0
        start = engine_pb2.Start(attempt=work_pb2.Attempt(job_id=job_id, number=1), work=work)
        self.host.send(engine_pb2.EngineCommand(start=start))
        while True:
            event = await queue.get()
            if event.HasField("output"):
                first = first or time.perf_counter() - began
                figures.tokens += sum(len(d.token_ids) for d in event.output.deltas)
            else:
                break
        figures.first.append(first)
        del self.waiting[job_id]


class Pooled:
    """The same through HTTP, by a client that does as little as it can."""

    def __init__(self, port: int, key: str) -> None:
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": "hello"}],
            "max_tokens": TOKENS,
            "stream": True,
        }
        payload = json.dumps(body).encode()
        self.port = port
        self.request = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
        ).encode() + payload
        self.idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def answer(self, figures: Figures) -> None:
        connection = self.idle.pop() if self.idle else await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = connection
        began, first = time.perf_counter(), 0.0
        writer.write(self.request)
        while True:
            line = await reader.readline()
            if not line:
                raise ConnectionError("the coordinator closed the connection")
            if line.startswith(b'data: {"') and b'"content":"' in line and b'"content":""' not in line:
                first = first or time.perf_counter() - began
            elif line.startswith(b"HTTP/1.1") and b" 200 " not in line:
                raise ConnectionError(line.decode())
            elif line == b"0\r\n":
                await reader.readline()
                break
        figures.first.append(first)
        figures.tokens += TOKENS  # several may come in one chunk, but all of them come
        self.idle.append(connection)


async def drive(answer: "Direct | Pooled", streams: int, seconds: float) -> Figures:
    figures = Figures()
    ends = time.perf_counter() + seconds

    async def one() -> None:
        while time.perf_counter() < ends:
            await answer.answer(figures)

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(streams)))
    figures.seconds = time.perf_counter() - began
    return figures


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, from /proc."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def compare(pool: RealPool, key: str, streams: list[int], seconds: float) -> None:
    direct, pooled = Direct(), Pooled(pool.http_port, key)
    await direct.start()
    try:
        for count in streams:
            await drive(direct, count, 1), await drive(pooled, count, 1)
            alone = await drive(direct, count, seconds)
            assert pool.coordinator is not None
            before = cpu_seconds(pool.coordinator.popen.pid)
            through = await drive(pooled, count, seconds)
            used = cpu_seconds(pool.coordinator.popen.pid) - before
            print(f"{count:3} streams  engine   {alone.line()}")
            print(f"{count:3} streams  pool     {through.line()}")
            added = [through.quantile(q) - alone.quantile(q) for q in (0.5, 0.99)]
            rate = (through.tokens / through.seconds) / (alone.tokens / alone.seconds)
            print(
                f"{count:3} streams  added    TTFT p50 {added[0]:6.1f} ms  p99 {added[1]:6.1f} ms  "
                f"{rate:.2f}x tokens/s; coordinator CPU {used / through.tokens * 1e6:.0f} us a token",
                flush=True,
            )
    finally:
        for _, writer in pooled.idle:
            writer.close()
        await direct.host.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--streams", default="1,8,32")
    parser.add_argument("--seconds", type=float, default=8.0)
    wanted = parser.parse_args()
    versions = subprocess.run(
        [sys.executable, "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    named = [v for v in versions if v.split("==")[0] in {"grpcio", "fastapi", "uvicorn", "protobuf"}]
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {' '.join(named)}"
    )
    print(f"emulator: {TTFT_MS} ms to the first token, {TPOT_MS} ms a token, {TOKENS} tokens an answer")
    with tempfile.TemporaryDirectory() as folder:
        pool = RealPool(Path(folder))
        settings = {"POTLUCK_REQUESTS_PER_MINUTE": "1000000", "POTLUCK_CONCURRENT_JOBS": "512"}
        pool.variables.update(settings)
        pool.start_coordinator()
        try:
            pool.add_emulator("rig", "bob", ttft_ms=TTFT_MS, tpot_ms=TPOT_MS, slots=256)
            member = pool.member("carol", credit_line=10**12)
            asyncio.run(
                compare(pool, member.key, [int(s) for s in wanted.streams.split(",")], wanted.seconds)
            )
        finally:
            pool.close()


if __name__ == "__main__":
    main()
