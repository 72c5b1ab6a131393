"""A pool whose jobs cost nothing to serve: the coordinator's engine, tick and books, and writers who wait.

Each writer asks for a job, waits until its hold and assignment are durable, answers as a worker would, with
its receipt, and waits until the job's close is durable; then it begins the next. How many share a commit
follows from how many wait, as in a pool.
"""

import asyncio
import contextlib
import statistics
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.core import entries, ledger
from coordinator.core.engine import Engine
from coordinator.core.fleet import Fleet, Served, Worker
from coordinator.core.jobs import Job, JobId, Kind
from coordinator.core.messages import Send, SendAssign
from coordinator.core.output import Piece
from coordinator.core.pricing import Demand, Shape, quote
from coordinator.core.receipts import ReceiptState
from coordinator.core.rules import Rules
from coordinator.ids import new_id
from coordinator.records import EnrolledWorker, Issued, Member, ReceiptRow, Role
from coordinator.store import Store
from coordinator.tick import RECEIPTS_S, Chain, ReceiptChain, Ticker

MEMBERS: Final = 64
WORKERS: Final = 8
SLOTS: Final = 64
CREDIT_LINE: Final = 10**15
MODEL: Final = "smollm2-135m-instruct"
SHAPE: Final = Shape(active_parameters=134_000_000, head_parameters=28_000_000, attention=69_120)
DEMAND: Final = Demand(Kind.CHAT, SHAPE, (40,), 256, 1)
ANSWER: Final = Piece(0, 0, "x" * 800, tuple(range(200)), "stop")


@dataclass(frozen=True, slots=True)
class Run:
    """What one run of some writers came to. Times in seconds, `cpu_s` of this process for each settlement."""

    rate: float
    settled: int
    commits: int
    commit_s: float  # median
    cpu_s: float


@dataclass(slots=True)
class Pool:
    store: Store
    members: list[Member]
    workers: list[EnrolledWorker]
    engine: Engine
    ticker: Ticker = field(init=False)
    assigned: dict[JobId, "asyncio.Future[SendAssign]"] = field(default_factory=dict)
    ended: dict[JobId, "asyncio.Future[Job]"] = field(default_factory=dict)
    commits: list[float] = field(default_factory=list)

    def sent(self, send: Send) -> None:
        if isinstance(send, SendAssign):
            self.assigned.pop(send.job).set_result(send)

    def told(self, job: Job) -> None:
        self.ended.pop(job.id).set_result(job)

    def timed(self, part: str, seconds: float) -> None:
        if part == "commit":
            self.commits.append(seconds)

    def wants(self, member: Member) -> Job:
        worst = quote(DEMAND, self.engine.rules.tariff)
        return Job(
            id=JobId(new_id("job")),
            kind=Kind.CHAT,
            model=MODEL,
            member=member.id,
            account=member.account,
            created_at=time.time(),
            quote=worst,
            hold=worst,
            prompt_tokens=DEMAND.prompts[0],
            max_tokens=DEMAND.max_tokens,
        )

    async def settle(self, member: Member) -> None:
        """One job, from its hold to its close, both durable."""
        loop, job = asyncio.get_running_loop(), self.wants(member)
        assigned = self.assigned[job.id] = loop.create_future()
        ended = self.ended[job.id] = loop.create_future()
        self.engine.submit(job, DEMAND, count=len, memory_bytes=0, now=time.time())
        self.ticker.wake()
        send = await assigned
        now = time.time()
        self.engine.accepted(send.worker, job.id, send.number, now)
        self.engine.frame(send.worker, job.id, send.number, 1, (ANSWER,), None, now)
        self.ticker.extras.receipts.append(
            ReceiptRow(
                job_id=job.id,
                attempt=send.number,
                worker_id=send.worker,
                body=bytes(300),
                signature=bytes(64),
                state=ReceiptState.MATCHED,
            )
        )
        self.ticker.wake()
        await ended

    async def run(self, writers: int, seconds: float) -> Run:
        self.commits.clear()
        settled = 0
        until = time.perf_counter() + seconds

        async def write(number: int) -> None:
            nonlocal settled
            while time.perf_counter() < until:
                await self.settle(self.members[number % MEMBERS])
                settled += 1

        for worker in self.workers:  # time went by without a word of them
            self.engine.heartbeat(
                worker.id, served=(), attempts=(), draining=False, state="", why="", now=time.time()
            )
        began, busy = time.perf_counter(), time.process_time()
        ticking = asyncio.create_task(self.ticker.run())
        await asyncio.gather(*(write(number) for number in range(writers)))
        took, busy = time.perf_counter() - began, time.process_time() - busy
        while self.ticker.extras.receipts:  # noqa: ASYNC110 -- nobody is told when they are on the disk
            await asyncio.sleep(RECEIPTS_S / 5)
        await self.ticker.committed()
        ticking.cancel()
        await asyncio.gather(ticking, return_exceptions=True)
        commits = len(self.commits)
        return Run(settled / took, settled, commits, statistics.median(self.commits), busy / max(1, settled))

    async def audit(self) -> str:
        """What is wrong with the books, and the sum of all money."""
        findings = await self.store.verify()
        entries_, total = self.ticker.chain.number, self.engine.book.total()
        return f"{entries_:,} entries, sum {total}, audit: {findings or 'nothing wrong'}"


@dataclass(slots=True)
class Founded:
    """Members who may spend and workers who may earn, when their lines are opened."""

    store: Store
    members: list[Member]
    workers: list[EnrolledWorker]
    book: ledger.Book


@contextlib.asynccontextmanager
async def founded(url: str) -> AsyncIterator[Founded]:
    """Books at the URL as a coordinator opens them, closed afterwards."""
    now = time.time()
    store = await Store.open(url, now)
    try:
        await store.create_own_accounts(0)
        members = [
            (await store.create_member(f"member-{n}", Role.MEMBER, CREDIT_LINE, "key", now))[0]
            for n in range(MEMBERS)
        ]
        workers = [await _enrolled(store, members[n], n, now) for n in range(WORKERS)]
        book = ledger.Book({account.id: account for account in (await store.load()).accounts})
        yield Founded(store, members, workers, book)
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def new_pool(url: str) -> AsyncIterator[Pool]:
    """Of idle workers that are connected, and a tick that is not running yet."""
    async with founded(url) as new:
        engine = Engine(Rules(), new.book, Fleet())
        pool = Pool(new.store, new.members, new.workers, engine)
        pool.ticker = Ticker(
            engine=engine,
            store=new.store,
            chain=Chain(),
            receipts=ReceiptChain(Ed25519PrivateKey.generate().sign),
            now=time.time,
            send=pool.sent,
            tell=pool.told,
            acknowledge=lambda _: None,
            result_of=lambda _: None,
            on_trouble=print,
            timed=pool.timed,
        )
        for account, line in await new.store.unopened():
            engine.post(entries.opening(account, line))
        await pool.ticker.turn()
        for worker in new.workers:
            engine.fleet.enrol(Worker(worker.id, worker.name, worker.member, worker.account))
            served = Served(MODEL, "emulator", frozenset(Kind), slots=SLOTS, prefill=1_000.0, decode=100.0)
            engine.connect(worker.id, [served], slots=SLOTS, memory_bytes=0, running=(), now=time.time())
        yield pool


async def _enrolled(store: Store, member: Member, number: int, now: float) -> EnrolledWorker:
    digest = f"{number:064x}"
    await store.create_join_token(member.id, digest=digest, uses=1, expires_at=now + 60, now=now)
    worker, _ = await store.enrol_worker(
        token_digest=digest,
        name=f"worker-{number}",
        receipt_key=bytes([number]) * 32,
        tls_key=bytes([number]) * 91,
        issue=lambda worker: Issued(pem=b"", serial=worker, not_before=now, not_after=now + 60),
        now=now,
    )
    return worker
