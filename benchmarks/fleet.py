#!/usr/bin/env python3
"""How many workers one coordinator carries: sessions over real gRPC with mutual TLS, each with its own keys.

    benchmarks/fleet.py [--workers 100,1000,10000] [--asked 400] [--seconds 30]

Each worker is enrolled, holds a connection and a stream, beats as it is told to, and answers what it is
given; it has no engine. Printed for each size: the coordinator's CPU while all are idle, its memory, how late
its event loop is (what its lightest route takes), and how long an assignment takes, from the member's request
to the worker that reads it, by this machine's monotonic clock. Half of the requests come one by one, the
others eight at a time. Fishtest, the largest volunteer fleet whose figures are public, reports 9,423 workers,
and a median of 15 ms for a request of one.
"""

import argparse
import asyncio
import base64
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
import httpx2
import psutil
import stand
from fixtures_pool import Member, RealPool
from fixtures_sessions import METHOD, MODEL, OPTIONS, SERVED, frame, result

from coordinator.spelling import proquint
from potluck.identity import WorkerIdentity
from potluck.v1 import session_pb2, work_pb2

ENROLLING: Final = 16  # at once
CONNECTING: Final = 64
USES_A_TOKEN: Final = 100
AT_ONCE: Final = 8
LOOKS: Final = 200  # at how late the event loop is


@dataclass(slots=True)
class Light:
    """A worker that does nothing but what the pool sees of one."""

    identity: WorkerIdentity
    ca: bytes
    certificate: bytes
    lags: list[float]  # of all workers: seconds from the request to the assignment
    tasks: list["asyncio.Task[None]"] = field(default_factory=list)
    channel: grpc.aio.Channel | None = None
    call: Any = None

    async def connect(self, address: str) -> None:
        credentials = grpc.ssl_channel_credentials(self.ca, self.identity.tls_key_pem(), self.certificate)
        self.channel = grpc.aio.secure_channel(address, credentials, options=OPTIONS)
        read = session_pb2.CoordinatorMessage.FromString
        self.call = self.channel.stream_stream(METHOD, response_deserializer=read)()
        hello = session_pb2.Hello(protocol=1, models=[SERVED], slots=SERVED.slots)
        await self.send(session_pb2.WorkerMessage(hello=hello))
        welcome = (await self.call.read()).welcome
        self.tasks.append(asyncio.create_task(self.serve()))
        self.tasks.append(asyncio.create_task(self.beat(welcome.heartbeat_idle_ms / 1000)))

    async def send(self, *messages: session_pb2.WorkerMessage) -> None:
        for message in messages:
            await self.call.write(message.SerializeToString())

    async def beat(self, every_s: float) -> None:
        sign = session_pb2.WorkerMessage(heartbeat=session_pb2.Heartbeat(models=[SERVED]))
        while True:
            await asyncio.sleep(every_s)
            await self.send(sign)

    async def serve(self) -> None:
        while isinstance(message := await self.call.read(), session_pb2.CoordinatorMessage):
            if message.HasField("assign"):
                asked_at = float(message.assign.work.chat.messages[0].content)
                self.lags.append(time.monotonic() - asked_at)
                await self.answer(message.assign)

    async def answer(self, assign: session_pb2.Assign) -> None:
        one = work_pb2.Delta(text=f" {proquint(0)}", token_ids=[0], finish_reason="length")
        await self.send(
            session_pb2.WorkerMessage(accepted=session_pb2.Accepted(attempt=assign.attempt)),
            frame(assign, 1, one),
            result(assign, 2, completed=session_pb2.Completed()),
        )

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        if self.channel is not None:
            self.call.cancel()
            await self.channel.close()


@dataclass(slots=True)
class Fleet:
    pool: RealPool
    owner: Member
    http: httpx2.AsyncClient
    workers: list[Light] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)

    async def grow(self, size: int) -> None:
        """Enrols and connects as many as are missing; prints how fast."""
        missing = size - len(self.workers)
        began = time.monotonic()
        for _ in range(0, missing, USES_A_TOKEN):
            uses = min(USES_A_TOKEN, size - len(self.workers))
            made = await self.post("/pool/v1/join-tokens", {"uses": uses}, self.owner.key)
            await gathered(ENROLLING, [self.enrol(made["token"], n) for n in range(uses)])
        enrolled = time.monotonic()
        fresh = self.workers[size - missing :]
        await gathered(CONNECTING, [worker.connect(f"127.0.0.1:{self.pool.grpc_port}") for worker in fresh])
        connected = time.monotonic()
        print(
            f"{size:,} workers: enrolled {missing / (enrolled - began):,.0f} a second, "
            f"connected {missing / (connected - enrolled):,.0f} a second",
            flush=True,
        )

    async def enrol(self, token: str, number: int) -> None:
        identity = await asyncio.to_thread(WorkerIdentity.generate)
        key = base64.b64encode(identity.receipt_public_key()).decode()
        name = f"light-{len(self.workers)}-{number}"
        body = {"token": token, "name": name, "csr": identity.csr().decode(), "receipt_key": key}
        made = await self.post("/pool/v1/enrol", body)
        self.workers.append(Light(identity, made["ca"].encode(), made["certificate"].encode(), self.lags))

    async def post(self, path: str, body: dict[str, Any], key: str = "") -> dict[str, Any]:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        answer = await self.http.post(self.pool.url + path, json=body, headers=headers)
        made: dict[str, Any] = answer.raise_for_status().json()
        return made

    async def ask(self, asker: Member) -> None:
        """One token; the question is the time."""
        body = {
            "model": MODEL,
            "max_tokens": 1,
            "messages": [{"role": "user", "content": str(time.monotonic())}],
        }
        await self.post("/v1/chat/completions", body, asker.key)

    async def assignments(self, asker: Member, count: int, at_once: int) -> str:
        self.lags.clear()
        await gathered(at_once, [self.ask(asker) for _ in range(count)])
        return spread(self.lags)

    async def lateness(self) -> list[float]:
        """Seconds that the lightest request takes: whatever is before it in the coordinator's event loop."""
        took = []
        for _ in range(LOOKS):
            began = time.monotonic()
            (await self.http.get(f"{self.pool.url}/healthz")).raise_for_status()
            took.append(time.monotonic() - began)
        return took


def spread(seconds: list[float]) -> str:
    p50, p99 = (1000 * stand.quantile(seconds, q) for q in (0.5, 0.99))
    return f"p50 {p50:.1f} ms, p99 {p99:.1f} ms"


async def gathered(at_once: int, coroutines: list[Any]) -> None:
    """All of them, so many at a time."""
    room = asyncio.Semaphore(at_once)

    async def one(coroutine: Any) -> None:
        async with room:
            await coroutine

    await asyncio.gather(*(one(coroutine) for coroutine in coroutines))


async def measure(pool: RealPool, sizes: list[int], asked: int, seconds: float) -> None:
    assert pool.coordinator is not None
    pid = pool.coordinator.popen.pid
    owner, asker = pool.member("bob"), pool.member("alice", credit_line=10**12)
    async with httpx2.AsyncClient(timeout=120, verify=False) as http, AsyncExitStack() as stack:
        fleet = Fleet(pool, owner, http)
        stack.push_async_callback(lambda: gathered(CONNECTING, [worker.close() for worker in fleet.workers]))
        for size in sizes:
            await fleet.grow(size)
            used, began = stand.cpu_seconds(pid), time.monotonic()
            await asyncio.sleep(seconds)
            share = (stand.cpu_seconds(pid) - used) / (time.monotonic() - began)
            late = await fleet.lateness()
            there = (
                await http.get(f"{pool.url}/pool/v1/status", headers={"authorization": f"Bearer {asker.key}"})
            ).json()
            print(
                f"  idle: {share:.1%} of a processor, {psutil.Process(pid).memory_info().rss / 1e6:,.0f} MB"
            )
            print(f"  its event loop: {spread(late)}")
            print(f"  assigned, one by one: {await fleet.assignments(asker, asked // 2, 1)}")
            alone = 1000 * stand.quantile(fleet.lags, 0.5)
            print(f"  assigned, {AT_ONCE} at a time: {await fleet.assignments(asker, asked // 2, AT_ONCE)}")
            print(
                f"  sharing: {there['workers']['sharing']:,}; the ledger's sum: {there['ledger_sum']}",
                flush=True,
            )
        stand.figure("sessions", there["workers"]["sharing"], digits=0)
        stand.figure("assigned p50, one by one", alone, "ms", 1)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", default="100,1000,10000", help="sizes, each larger than the one before")
    parser.add_argument("--asked", type=int, default=400, help="requests at each size")
    parser.add_argument("--seconds", type=float, default=30.0, help="of idling at each size")
    wanted = parser.parse_args()
    print(stand.machine("grpcio"), flush=True)
    with stand.running_pool() as pool:
        stand.run(measure(pool, [int(n) for n in wanted.workers.split(",")], wanted.asked, wanted.seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
