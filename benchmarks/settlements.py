"""Durable settlements per second: hold, close, job, attempt and receipt, committed in groups with FULL sync.

One settlement is one job: its hold and first assignment in one commit, its close, end and receipt in a later
one. Ledger, hash chain and SQL are the coordinator's own; the engine that decides is not in the loop.

    python benchmarks/settlements.py [--folder DIR] [--group 64] [--seconds 5] [--runs 5]
"""

import argparse
import asyncio
import importlib.metadata
import os
import platform
import sqlite3
import statistics
import tempfile
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.core import entries, ledger
from coordinator.core.jobs import (
    AccountId,
    Attempt,
    AttemptEvent,
    Job,
    JobEvent,
    JobId,
    Kind,
    WorkerId,
    move,
    move_attempt,
    with_attempt,
)
from coordinator.core.receipts import ReceiptState
from coordinator.ids import new_id
from coordinator.records import Batch, EnrolledWorker, Issued, Member, ReceiptRow, Role
from coordinator.store import Store
from coordinator.tick import ReceiptChain
from potluck.chain import GENESIS

MEMBERS = 64
WORKERS = 8
HOLD = 2_000_000
CHARGE = 1_234_567
CREDIT_LINE = 10**15


@dataclass(slots=True)
class Pool:
    store: Store
    members: list[Member]
    workers: list[EnrolledWorker]
    book: ledger.Book
    number: int = 0
    hash: str = GENESIS
    receipts: ReceiptChain = field(default_factory=lambda: ReceiptChain(Ed25519PrivateKey.generate().sign))

    def at(self) -> str:
        return datetime.now(UTC).isoformat(timespec="milliseconds")

    def record(self, entry: ledger.Entry) -> ledger.Recorded:
        self.book.post(entry)
        recorded = ledger.record(self.number + 1, self.at(), entry, self.hash)
        self.number, self.hash = recorded.number, recorded.hash
        return recorded


async def found_pool(folder: Path) -> Pool:
    """A new pool with members who may spend and workers who may earn."""
    now = time.time()
    store = await Store.open(f"sqlite:///{folder / 'potluck.db'}", now)
    await store.create_own_accounts(0)
    members = [
        (await store.create_member(f"member-{n}", Role.MEMBER, CREDIT_LINE, "key", now))[0]
        for n in range(MEMBERS)
    ]
    workers = []
    for n in range(WORKERS):
        digest = f"{n:064x}"
        await store.create_join_token(members[n].id, digest=digest, uses=1, expires_at=now + 60, now=now)
        worker, _ = await store.enrol_worker(
            token_digest=digest,
            name=f"worker-{n}",
            receipt_key=bytes([n]) * 32,
            tls_key=bytes([n]) * 91,
            issue=lambda worker: Issued(pem=b"", serial=worker, not_before=now, not_after=now + 60),
            now=now,
        )
        workers.append(worker)
    book = ledger.Book({account.id: account for account in (await store.load()).accounts})
    pool = Pool(store, members, workers, book)
    lines = [pool.record(entries.opening(*waiting)) for waiting in await store.unopened()]
    await store.commit(Batch(records=lines, accounts=list(book.accounts.values())))
    return pool


def start(pool: Pool, n: int) -> Job:
    """A job with its first attempt, as the tick writes it beside its hold."""
    member, worker = pool.members[n % MEMBERS], pool.workers[n % WORKERS]
    now = time.time()
    job = Job(
        id=JobId(new_id("job")),
        kind=Kind.CHAT,
        model="smollm2-135m-instruct",
        member=member.id,
        account=member.account,
        created_at=now,
        quote=HOLD,
        hold=HOLD,
        prompt_tokens=40,
        max_tokens=256,
    )
    attempt = Attempt(
        number=1, worker=WorkerId(worker.id), owner=worker.account, assigned_at=now, why="least busy"
    )
    return with_attempt(move(job, JobEvent.ASSIGNED, now=now), attempt)


def finish(pool: Pool, job: Job) -> tuple[Job, ledger.Recorded, ReceiptRow]:
    now = time.time()
    attempt = job.attempts[-1]
    payment = entries.Payment(1, AccountId(attempt.owner), CHARGE, CHARGE * 20 // 1000)
    details = '{"model":"smollm2-135m-instruct","prompt_tokens":40,"output_tokens":200}'
    recorded = pool.record(entries.close(job, [payment], details))
    attempt = replace(move_attempt(attempt, AttemptEvent.SUCCEEDED, now=now), tokens=200, paid=CHARGE)
    ended = replace(with_attempt(move(job, JobEvent.SUCCEEDED, now=now), attempt), charge=CHARGE)
    receipt = ReceiptRow(
        job_id=job.id,
        attempt=1,
        worker_id=attempt.worker,
        body=bytes(300),
        signature=bytes(64),
        state=ReceiptState.MATCHED,
    )
    return ended, recorded, receipt


async def run(pool: Pool, group: int, seconds: float) -> tuple[float, list[float]]:
    """Settlements per second, and how long each commit took, in seconds.

    Every commit carries the ends of one group and the beginnings of the next.
    """
    waits: list[float] = []
    running: list[Job] = []
    settled = 0
    began = time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds or running:
        ends = [finish(pool, job) for job in running]
        running = [start(pool, settled + n) for n in range(group)] if elapsed < seconds else []
        holds = [pool.record(entries.hold(job)) for job in running]
        records = [recorded for _, recorded, _ in ends] + holds
        touched = {posting.account for recorded in records for posting in recorded.entry.postings}
        asked = time.perf_counter()
        await pool.store.commit(
            Batch(
                records=records,
                accounts=[pool.book.accounts[account] for account in touched],
                jobs=[job for job, _, _ in ends] + running,
                receipts=pool.receipts.extend([receipt for _, _, receipt in ends], pool.at()),
            )
        )
        waits.append(time.perf_counter() - asked)
        pool.book.entries.clear()  # as the coordinator forgets closed jobs
        settled += len(ends)
    return settled / (time.perf_counter() - began), waits


async def measure(folder: Path, group: int, seconds: float, runs: int) -> None:
    with tempfile.TemporaryDirectory(dir=folder, prefix="settlements-") as name:
        pool = await found_pool(Path(name))
        try:
            await run(pool, group, 0.5)  # statements compiled, file grown
            cpu_s, before = time.process_time(), pool.number
            results = [await run(pool, group, seconds) for _ in range(runs)]
            cpu_s = (time.process_time() - cpu_s) / ((pool.number - before) / 2)
            findings = await pool.store.verify()
            print(f"entries {pool.number:,}, sum {pool.book.total()}, audit: {findings or 'nothing wrong'}")
        finally:
            await pool.store.close()
    rates = [rate for rate, _ in results]
    wait = statistics.median(wait for _, waits in results for wait in waits)
    print(
        f"group {group:>4}: {statistics.median(rates):,.0f} settlements/s"
        f" ({min(rates):,.0f} to {max(rates):,.0f}), commit p50 {wait * 1e3:.1f} ms,"
        f" {cpu_s * 1e6:,.0f} us of CPU each"
    )


def fsyncs(folder: Path) -> float:
    """How often this disk can be written and synced, per second: what an ungrouped commit is bounded by."""
    with tempfile.TemporaryFile(dir=folder) as file:
        began = time.perf_counter()
        for _ in range(200):
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
        return 200 / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="on a real disk, not tmpfs")
    parser.add_argument(
        "--group", type=int, nargs="+", default=[1, 16, 64, 256], help="settlements in one commit"
    )
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    versions = ", ".join(f"{n} {importlib.metadata.version(n)}" for n in ("sqlalchemy", "aiosqlite"))
    print(f"{platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {versions}")
    print(f"WAL, synchronous=FULL; this disk syncs 4 KiB {fsyncs(options.folder):,.0f} times/s")
    print(f"median of {options.runs} runs of {options.seconds} s")
    for group in options.group:
        asyncio.run(measure(options.folder, group, options.seconds, options.runs))


if __name__ == "__main__":
    main()
