"""A small pool on a real database: members, workers, a book, and the batches that a tick would write."""

import contextlib
import tempfile
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from coordinator.core import entries, ledger
from coordinator.core.jobs import (
    AccountId,
    Attempt,
    AttemptEvent,
    Job,
    JobEvent,
    JobId,
    Kind,
    MemberId,
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

NOW = 1_800_000_000.0
AT = "2027-01-15T08:00:00.000Z"
LINE = 1_000_000_000
OPENED = 4  # entries with which a world of three begins: the lines of the members and the commons


ELSEWHERE = "database-url"  # a file in the folder of a test whose database is in PostgreSQL


def url_in(folder: Path) -> str:
    """Of the test's database: in the folder, or where a file there says (fixtures_postgres.py)."""
    elsewhere = folder / ELSEWHERE
    return elsewhere.read_text() if elsewhere.exists() else f"sqlite:///{folder / 'potluck.db'}"


_EMPTY: list[bytes] = []


async def new_database(path: Path) -> None:
    """A database of the present shape and nothing in it, made once for each process: test_migrations.py proves how
    one is made, all others only need it. One in PostgreSQL is there already.
    """
    if (path.parent / ELSEWHERE).exists():
        return
    if not _EMPTY:
        with tempfile.TemporaryDirectory() as folder:
            await (await Store.connect(url_in(Path(folder)))).close()
            _EMPTY.append((Path(folder) / "potluck.db").read_bytes())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_EMPTY[0])  # noqa: ASYNC240 -- nothing else runs yet


@dataclass
class World:
    store: Store
    members: list[Member] = field(default_factory=list)
    workers: list[EnrolledWorker] = field(default_factory=list)
    book: ledger.Book = field(default_factory=ledger.Book)
    number: int = 0
    hash: str = GENESIS
    at: str = AT  # of what is recorded
    receipts: ReceiptChain = field(default_factory=lambda: ReceiptChain(lambda message: message[:64]))

    def record(self, entry: ledger.Entry) -> ledger.Recorded:
        self.book.post(entry)
        recorded = ledger.record(self.number + 1, self.at, entry, self.hash)
        self.number, self.hash = recorded.number, recorded.hash
        return recorded

    def job(self, member: int = 0, hold: int = 1_000, *, stored: bool = False) -> Job:
        who = self.members[member]
        return Job(
            id=JobId(new_id("job")),
            kind=Kind.CHAT,
            model="emulator-small",
            member=who.id,
            account=who.account,
            created_at=NOW,
            quote=hold,
            hold=hold,
            prompt_tokens=7,
            max_tokens=16,
            stored=stored,
            only=frozenset({WorkerId("wrk_b"), WorkerId("wrk_a")}),
        )

    def assigned(self, job: Job, worker: int = 0) -> Job:
        who = self.workers[worker]
        number = len(job.attempts) + 1
        attempt = Attempt(number=number, worker=who.id, owner=who.account, assigned_at=NOW + 1, why="free")
        return with_attempt(move(job, JobEvent.ASSIGNED, now=NOW + 1), attempt)

    def batch(self, records: Iterable[ledger.Recorded], jobs: Iterable[Job], **more: Any) -> Batch:
        records = list(records)
        touched = sorted({p.account for r in records for p in r.entry.postings})
        accounts = [replace(self.book.accounts[AccountId(a)]) for a in touched]
        return replace(Batch(records=records, accounts=accounts, jobs=list(jobs)), **more)

    def held(self, job: Job) -> Batch:
        """The batch that sets a job's hold aside."""
        return self.batch([self.record(entries.hold(job))], [job])

    def closed(self, job: Job, charge: int) -> tuple[Job, Batch]:
        """The job's end, paid to the owner of its newest attempt, and the batch that says so."""
        assert job.attempt is not None
        payment = entries.Payment(job.attempt.number, job.attempt.owner, charge, charge // 50)
        recorded = self.record(entries.close(job, [payment], '{"tokens": 3}'))
        attempt = replace(
            move_attempt(job.attempt, AttemptEvent.SUCCEEDED, now=NOW + 2), tokens=3, paid=charge
        )
        ended = move(with_attempt(job, attempt), JobEvent.SUCCEEDED, now=NOW + 2)
        ended = replace(ended, charge=charge, output_tokens=3)
        receipt = ReceiptRow(
            job_id=job.id,
            attempt=attempt.number,
            worker_id=attempt.worker,
            body=b'{"job":1}',
            signature=bytes(64),
            state=ReceiptState.MATCHED,
        )
        return ended, self.batch([recorded], [ended], receipts=self.receipts.extend([receipt], AT))

    async def open_lines(self) -> None:
        """The members' credit lines, as the coordinator lends them at its start."""
        waiting = await self.store.unopened()
        records = [self.record(entries.opening(account, line)) for account, line in waiting]
        if records:
            await self.store.commit(self.batch(records, []))


async def enrolled(store: Store, member: MemberId, name: str, seed: int) -> EnrolledWorker:
    digest = f"{seed:064x}"
    await store.create_join_token(member, digest=digest, uses=1, expires_at=NOW + 60, now=NOW)
    worker, _ = await store.enrol_worker(
        token_digest=digest,
        name=name,
        receipt_key=seed.to_bytes(32),
        tls_key=seed.to_bytes(91),
        issue=lambda worker: Issued(
            pem=b"pem", serial=f"{seed:x}-{worker}", not_before=NOW - 300, not_after=NOW + 604_800
        ),
        now=NOW,
    )
    return worker


@contextlib.asynccontextmanager
async def world(folder: Path, members: int = 3, line: int = LINE) -> AsyncIterator[World]:
    """A new pool of some members; the first two own a worker each."""
    await new_database(folder / "potluck.db")
    store = await Store.open(url_in(folder), NOW)
    pool = World(store)
    try:
        await store.create_own_accounts(line)
        for n in range(members):
            member, _ = await store.create_member(f"member-{n}", Role.MEMBER, line, "key", NOW)
            pool.members.append(member)
        for n in range(min(members, 2)):
            pool.workers.append(await enrolled(store, pool.members[n].id, f"worker-{n}", n + 1))
        pool.book.accounts = {account.id: account for account in (await store.load()).accounts}
        await pool.open_lines()
        yield pool
    finally:
        await pool.store.close()
