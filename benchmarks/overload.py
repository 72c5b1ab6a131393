#!/usr/bin/env python3
"""What happens when more is asked than the pool can do: half of it, as much, twice and ten times as much.

    benchmarks/overload.py [--seconds 25] [--steps 0.5,1,2,10]

Starts a real pool with two workers that run the emulator, so that what it can do is known, and offers
requests in an open loop: they come when they come, whatever became of those before. Four members ask for a
part of their share, a fifth one is greedy and asks for all the rest. An interactive job that would wait
longer than `interactive_wait_s` (2 s here) is refused. Printed for each step: what was offered, admitted and
refused, how long an answer took of what was admitted, and a refusal; how many of those who came back when
they were told to got in; how late the coordinator's event loop was (what its lightest route takes), and its
memory.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import psutil
import stand
from fixtures_pool import Member, RealPool

WORKERS: Final = 2
SLOTS: Final = 8
TTFT_MS: Final = 20
TPOT_MS: Final = 20
TOKENS: Final = 25
JOB_S: Final = (TTFT_MS + (TOKENS - 1) * TPOT_MS) / 1_000
CAPACITY: Final = WORKERS * SLOTS / JOB_S  # jobs a second, if nothing else took time
WAIT_S: Final = 2.0
POLITE: Final = 4
POLITE_PART: Final = 0.08  # of the capacity, each
LOOK_S: Final = 0.05
ANSWER_S_MAX: Final = 60.0
RETRY: Final = b"\r\nx-stainless-retry-count: 1\r\n"


@dataclass(slots=True)
class Answer:
    status: int
    seconds: float
    retry_after_s: float = 0.0


@dataclass(slots=True)
class Step:
    """What one rate came to."""

    offered: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    admitted_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    of_polite: Counter[int] = field(default_factory=Counter)
    of_greedy: Counter[int] = field(default_factory=Counter)
    back: dict[str, list[bool]] = field(default_factory=lambda: {"polite": [], "greedy": []})
    late_s: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Client:
    """One member, by a client that does as little as it can; connections are kept."""

    member: Member
    port: int
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)
    payload: bytes = b""

    def __post_init__(self) -> None:
        body = {
            "model": stand.EMULATOR,
            "max_tokens": TOKENS,
            "messages": [{"role": "user", "content": "hello"}],
        }
        text = json.dumps(body).encode()
        self.payload = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
            f"Authorization: Bearer {self.member.key}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(text)}\r\n\r\n"
        ).encode() + text

    async def ask(self, *, back: bool = False) -> Answer:
        """`back`: it was refused before, and says so as OpenAI's clients do."""
        began = time.monotonic()
        request = self.payload.replace(b"\r\n", RETRY, 1) if back else self.payload
        try:
            async with asyncio.timeout(ANSWER_S_MAX):
                return await self.exchanged(request, began)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            return Answer(0, time.monotonic() - began)

    async def exchanged(self, request: bytes, began: float) -> Answer:
        reader, writer = self.kept() or await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in head[1:] if ": " in line)
        await reader.readexactly(int(headers.get("content-length", "0")))
        if headers.get("connection") == "close":
            writer.close()
        else:
            self.idle.append((reader, writer))
        status = int(head[0].split(" ")[1])
        return Answer(status, time.monotonic() - began, float(headers.get("retry-after", "0")))

    def kept(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """A connection that was used before, unless the coordinator has closed it since."""
        while self.idle:
            reader, writer = self.idle.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return None

    def close(self) -> None:
        for _, writer in self.idle:
            writer.close()
        self.idle.clear()


class Flood:
    def __init__(self, polite: list[Client], greedy: Client, seconds: float) -> None:
        self.polite, self.greedy, self.seconds = polite, greedy, seconds
        self.rng = random.Random(7)

    async def run(self, times: float) -> Step:
        """Offer `times` the capacity, look at the loop meanwhile, and wait for what was admitted."""
        step, asking = Step(), set[asyncio.Task[None]]()
        ends = time.monotonic() + self.seconds
        looking = asyncio.create_task(self.look(step))
        rates = [(client, POLITE_PART * CAPACITY, "polite") for client in self.polite]
        rates.append((self.greedy, (times - POLITE * POLITE_PART) * CAPACITY, "greedy"))

        async def come(client: Client, rate: float, who: str) -> None:
            """By a Poisson process."""
            at = time.monotonic()
            while (at := at + self.rng.expovariate(rate)) < ends:
                await asyncio.sleep(max(0.0, at - time.monotonic()))
                task = asyncio.create_task(self.one(step, client, who, ends))
                asking.add(task)
                task.add_done_callback(asking.discard)

        await asyncio.gather(*(come(*rate) for rate in rates))
        while asking:
            await asyncio.wait(asking)
        looking.cancel()
        return step

    async def one(self, step: Step, client: Client, who: str, ends: float) -> None:
        answer = await client.ask()
        step.offered += 1
        self.note(step, answer, who)
        if answer.status in (429, 503) and time.monotonic() + answer.retry_after_s < ends:
            await asyncio.sleep(answer.retry_after_s)
            again = await client.ask(back=True)
            self.note(step, again, who)
            step.back[who].append(again.status == 200)

    def note(self, step: Step, answer: Answer, who: str) -> None:
        step.statuses[answer.status] += 1
        (step.of_polite if who == "polite" else step.of_greedy)[answer.status] += 1
        (step.admitted_s if answer.status == 200 else step.refused_s).append(answer.seconds)

    async def look(self, step: Step) -> None:
        """How late the event loop is: what its lightest route takes."""
        looker = Client(self.greedy.member, self.greedy.port)
        request = f"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:{looker.port}\r\n\r\n".encode()
        try:
            while True:
                step.late_s.append((await looker.exchanged(request, time.monotonic())).seconds)
                await asyncio.sleep(LOOK_S)
        finally:
            looker.close()


def spread(seconds: list[float]) -> str:
    if not seconds:
        return "none"
    p50, p99 = (stand.quantile(seconds, q) * 1_000 for q in (0.5, 0.99))
    return f"p50 {p50:,.0f} ms, p99 {p99:,.0f} ms"


def told(times: float, step: Step, seconds: float, memory_mb: float) -> None:
    """One step, in words and as figures."""
    name, admitted = f"{times:g}x", step.statuses[200]
    refused = ", ".join(
        f"{n:,} with {s or 'no answer'}" for s, n in sorted(step.statuses.items()) if s != 200
    )
    polite, greedy = (sum(of.values()) - of[200] for of in (step.of_polite, step.of_greedy))
    back = "; ".join(f"{who} {sum(got)} of {len(got)}" for who, got in step.back.items() if got)
    print(
        f"{name}: offered {step.offered / seconds:,.0f}/s ({CAPACITY:,.0f}/s is what the workers can do),"
        f" admitted {admitted / seconds:,.0f}/s, refused: {refused or 'none'}\n"
        f"  refused of the polite {polite:,} of {sum(step.of_polite.values()):,},"
        f" of the greedy one {greedy:,} of {sum(step.of_greedy.values()):,}\n"
        f"  came back when told, and got in: {back or 'nobody came'}\n"
        f"  an answer: {spread(step.admitted_s)}; a refusal: {spread(step.refused_s)}\n"
        f"  event loop: {spread(step.late_s)}; coordinator: {memory_mb:,.0f} MB",
        flush=True,
    )
    stand.figure(f"admitted/s, {name}", admitted / seconds)
    stand.figure(f"answer p99, {name}", stand.quantile(step.admitted_s, 0.99), "s")
    stand.figure(f"event loop p99, {name}", stand.quantile(step.late_s, 0.99) * 1_000, "ms")
    stand.figure(f"polite refused, {name}", 100 * polite / max(1, sum(step.of_polite.values())), "%")
    if step.refused_s:
        stand.figure(f"refusal p99, {name}", stand.quantile(step.refused_s, 0.99) * 1_000, "ms")
    for who, got in step.back.items():
        if got:
            stand.figure(f"came back and got in, {who}, {name}", 100 * sum(got) / len(got), "%")
    stand.figure(f"coordinator memory, {name}", memory_mb, "MB", 0)


def nothing_held(member: Member) -> bool:
    return not member.balance()["reserved"]


def settled(pool: RealPool, members: list[Member]) -> None:
    """Nothing is held once all have their answers."""
    for member in members:
        pool.until(partial(nothing_held, member), f"{member.name} to have its answers")
    print(f"nothing is reserved any more; the ledger's sum: {pool.ledger_sum()}")


async def measure(pool: RealPool, steps: list[float], seconds: float) -> None:
    assert pool.coordinator is not None
    process = psutil.Process(pool.coordinator.popen.pid)
    members = [pool.member(f"polite{n}", credit_line=10**12) for n in range(POLITE)]
    members.append(pool.member("greedy", credit_line=10**12))
    clients = [Client(member, pool.http_port) for member in members]
    flood = Flood(clients[:-1], clients[-1], seconds)
    try:
        await asyncio.gather(*(clients[0].ask() for _ in range(WORKERS * SLOTS)))
        base_mb = process.memory_info().rss / 1e6
        print(f"before: coordinator {base_mb:,.0f} MB", flush=True)
        results = {}
        for times in steps:
            results[times] = await flood.run(times)
            told(times, results[times], seconds, process.memory_info().rss / 1e6)
            await asyncio.to_thread(settled, pool, members)
    finally:
        for client in clients:
            client.close()
    first, last = results[steps[0]], results[steps[-1]]
    extra = stand.quantile(last.admitted_s, 0.99) - stand.quantile(first.admitted_s, 0.99)
    stand.figure("no answer at all", sum(step.statuses[0] for step in results.values()), "", 0)
    stand.figure("added to an answer's p99 by overload, of the bound", extra / WAIT_S, "x")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=25.0, help="of each step")
    parser.add_argument("--steps", default="0.5,1,2,10", help="times the capacity")
    wanted = parser.parse_args()
    print(stand.machine("uvicorn"), flush=True)
    print(
        f"{WORKERS} workers of {SLOTS} slots, {JOB_S:.2f} s a job: {CAPACITY:.0f} jobs/s;"
        f" refused beyond {WAIT_S:g} s"
    )
    settings = {"POTLUCK_CONCURRENT_JOBS": "100000", "POTLUCK_INTERACTIVE_WAIT_S": str(WAIT_S)}
    with stand.running_pool(**settings) as pool:
        for n in range(WORKERS):
            pool.add_emulator(f"rig{n}", "bob", slots=SLOTS, ttft_ms=TTFT_MS, tpot_ms=TPOT_MS)
        asyncio.run(measure(pool, [float(n) for n in wanted.steps.split(",")], wanted.seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
