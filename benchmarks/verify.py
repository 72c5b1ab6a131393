"""How long `potluck ledger verify` takes for an export of many jobs, made by the coordinator's own code.

Each job is a hold and a close with all its details, and a receipt that its worker signed and the pool
countersigned, committed to a real database and exported from there. What is timed is the command, from its
start to its end.

    python benchmarks/verify.py [--jobs 50000] [--runs 3] [--folder DIR] [--keep FILE]
"""

import argparse
import asyncio
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from coordinator.ca import CertificateAuthority
from coordinator.core import details, entries, ledger
from coordinator.core.jobs import Attempt, AttemptState, Job, JobEvent, JobId, Kind, move, with_attempt
from coordinator.core.pricing import Demand, Segment, Shape, Tariff, charge_units, payments, quote
from coordinator.core.receipts import ReceiptState
from coordinator.exports import exported
from coordinator.heads import Heads
from coordinator.ids import new_id
from coordinator.records import Batch, EnrolledWorker, Issued, Member, ReceiptRow, Role
from coordinator.store import Store
from coordinator.tick import Chain, ReceiptChain
from potluck.receipts import ReceiptBody

MEMBERS = 16
WORKERS = 4
GROUP = 500  # jobs in one commit
CREDIT_LINE = 10**15
SHAPE = Shape(active_parameters=134_515_008, head_parameters=28_311_552, attention=69_120)
TARIFF = Tariff()
PROMPT, TOKENS, TOKENS_MAX = 40, 200, 256
AT = "2027-01-15T08:00:00.000Z"
NOW = 1_800_000_000.0


@dataclass(slots=True)
class Pool:
    store: Store
    ca: CertificateAuthority
    members: list[Member]
    workers: list[EnrolledWorker]
    keys: list[Ed25519PrivateKey]
    book: ledger.Book
    chain: Chain = field(default_factory=Chain)
    receipts: ReceiptChain = field(init=False)

    def __post_init__(self) -> None:
        self.receipts = ReceiptChain(self.ca.sign)

    def record(self, entry: ledger.Entry) -> ledger.Recorded:
        self.book.post(entry)
        recorded = ledger.record(self.chain.number + 1, AT, entry, self.chain.hash)
        self.chain = Chain(recorded.number, recorded.hash)
        return recorded


async def found_pool(folder: Path) -> Pool:
    store = await Store.open(f"sqlite:///{folder / 'potluck.db'}", NOW)
    ca = CertificateAuthority.open(folder, "benchmark", NOW)
    await store.create_own_accounts(CREDIT_LINE)
    members = [
        (await store.create_member(f"member-{n}", Role.MEMBER, CREDIT_LINE, "key", NOW))[0]
        for n in range(MEMBERS)
    ]
    keys, workers = [Ed25519PrivateKey.generate() for _ in range(WORKERS)], []
    for n, key in enumerate(keys):
        digest = f"{n:064x}"
        await store.create_join_token(members[n].id, digest=digest, uses=1, expires_at=NOW + 60, now=NOW)
        worker, _ = await store.enrol_worker(
            token_digest=digest,
            name=f"worker-{n}",
            receipt_key=key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw),
            tls_key=bytes([n]) * 91,
            issue=lambda worker: Issued(pem=b"", serial=worker, not_before=NOW, not_after=NOW + 60),
            now=NOW,
        )
        workers.append(worker)
    book = ledger.Book({account.id: account for account in (await store.load()).accounts})
    pool = Pool(store, ca, members, workers, keys, book)
    lines = [pool.record(entries.opening(*waiting)) for waiting in await store.unopened()]
    await store.commit(Batch(records=lines, accounts=list(book.accounts.values())))
    return pool


def served(pool: Pool, n: int) -> tuple[Job, list[ledger.Recorded], ReceiptRow]:
    """One job from its hold to its receipt; its worker is another member's."""
    member, place = pool.members[WORKERS + n % (MEMBERS - WORKERS)], n % WORKERS
    worker, demand = pool.workers[place], Demand(Kind.CHAT, SHAPE, (PROMPT,), TOKENS_MAX)
    worst = quote(demand, TARIFF)
    job = Job(
        id=JobId(new_id("job")),
        kind=Kind.CHAT,
        model="smollm2-135m-instruct",
        member=member.id,
        account=member.account,
        created_at=NOW,
        quote=worst,
        hold=worst,
        prompt_tokens=PROMPT,
        max_tokens=TOKENS_MAX,
    )
    hold = pool.record(entries.hold(job, details.of_hold(job)))
    attempt = Attempt(
        number=1,
        worker=worker.id,
        owner=worker.account,
        assigned_at=NOW,
        state=AttemptState.SUCCEEDED,
        ended_at=NOW,
        tokens=TOKENS,
    )
    job = with_attempt(move(job, JobEvent.ASSIGNED, now=NOW), attempt)
    segments = [Segment(1, 0, 0, TOKENS)]
    paid = payments(charge_units(demand, TARIFF, segments, 1), job.attempts, job.account, TARIFF)
    said = details.of_work(job, demand, TARIFF, segments, 1, paid)
    close = pool.record(entries.close(job, paid, said))
    ended = replace(move(job, JobEvent.SUCCEEDED, now=NOW), charge=paid[0].amount, output_tokens=TOKENS)
    body = ReceiptBody(
        job_id=job.id,
        attempt=1,
        worker_id=worker.id,
        model=job.model,
        engine="torch",
        prompt_tokens=PROMPT,
        output_tokens=TOKENS,
        started_at=1,
        ended_at=2,
        output_sha256="0" * 64,
    ).encode()
    row = ReceiptRow(
        job_id=job.id,
        attempt=1,
        worker_id=worker.id,
        body=body,
        signature=pool.keys[place].sign(body),
        state=ReceiptState.MATCHED,
    )
    return ended, [hold, close], row


async def make(folder: Path, jobs: int) -> tuple[Path, bytes]:
    """The export, as the member sees it whose workers served a quarter of all; and the pool's key."""
    pool = await found_pool(folder)
    try:
        began = time.perf_counter()
        for start in range(0, jobs, GROUP):
            done = [served(pool, n) for n in range(start, min(start + GROUP, jobs))]
            records = [recorded for _, two, _ in done for recorded in two]
            touched = {posting.account for recorded in records for posting in recorded.entry.postings}
            await pool.store.commit(
                Batch(
                    records=records,
                    accounts=[pool.book.accounts[account] for account in touched],
                    jobs=[job for job, _, _ in done],
                    receipts=pool.receipts.extend([row for _, _, row in done], AT),
                )
            )
            pool.book.entries.clear()
        made_s, began = time.perf_counter() - began, time.perf_counter()
        path, key = folder / "export.jsonl", pool.ca.public_key
        heads = Heads(pool.store, pool.ca.sign, time.time)
        account = pool.members[0].account
        with path.open("wb") as file:
            async for page in exported(pool.store, heads, pool="benchmark", public_key=key, account=account):
                file.write(page)
        export_s = time.perf_counter() - began
    finally:
        await pool.store.close()
    size = path.stat().st_size
    print(
        f"{jobs:,} jobs made in {made_s:.1f} s, exported in {export_s:.1f} s"
        f" ({2 * jobs / export_s:,.0f} entries/s), {size / 1e6:.0f} MB"
    )
    return path, key


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--jobs", type=int, default=50_000, help="two entries and one receipt each")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path.cwd())
    parser.add_argument("--keep", type=Path, help="keep the export in this file")
    options = parser.parse_args()
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="verify-") as name:
        path, key = asyncio.run(make(Path(name), options.jobs))
        if options.keep:
            shutil.copy(path, options.keep)
        command = [
            sys.executable,
            "-m",
            "potluck",
            "ledger",
            "verify",
            str(path),
            "--key",
            key.hex(),
            "-o",
            "json",
        ]
        times = []
        for _ in range(options.runs):
            load, began = os.getloadavg()[0], time.perf_counter()
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            times.append(time.perf_counter() - began)
            print(f"verified in {times[-1]:.2f} s (load before: {load:.1f})")
    median, summary = statistics.median(times), json.loads(done.stdout)
    print(
        f"median {median:.2f} s: {summary['entries'] / median:,.0f} entries/s;"
        f" {summary['entries']:,} entries, {sum(summary['receipts'].values()):,} receipts,"
        f" {summary['signatures']:,} signatures, {summary['charges_recomputed']:,} own charges recomputed"
    )


if __name__ == "__main__":
    main()
