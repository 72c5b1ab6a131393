"""The books on disk. `commit` and `load` are the tick's; the parts below serve everybody else.

The tick's path is SQLAlchemy Core, one transaction and one statement a table. Nothing is cached here: each
commit checks against the database itself that it continues the chain and that its sums are those of its
postings, so that a bug above this line, or a second writer, is refused instead of recorded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from coordinator import tables
from coordinator.audit import Audit
from coordinator.audit_log.rows import AuditEvents
from coordinator.batches.rows import Batches
from coordinator.community.rows import Communities
from coordinator.core.jobs import JobId, WorkerId
from coordinator.core.ledger import Recorded
from coordinator.core.standing import Standing
from coordinator.dashboard.rows import BrowserSessions
from coordinator.database import Database, database_url
from coordinator.enrolment import Enrolment
from coordinator.filing import Filing
from coordinator.finetunes.rows import Finetunes
from coordinator.history import History, with_attempts
from coordinator.invites import Invites
from coordinator.lately import Lately
from coordinator.leadership import Seat, Waiting
from coordinator.members import Members
from coordinator.movements import Movements
from coordinator.notices.rows import Notices
from coordinator.oidc.rows import Identities
from coordinator.pause_rows import PauseRows
from coordinator.presence import Sightings
from coordinator.proofs import Proofs
from coordinator.records import Batch, Loaded, RecordedReceipt
from coordinator.registry import Registry
from coordinator.rows import (
    account_of,
    attempt_values,
    entry_of,
    entry_values,
    job_values,
    posting_values,
    postings_of,
    receipt_values,
    standing_of,
    standing_values,
)
from coordinator.spending import Spending
from coordinator.standings import Standings
from coordinator.statements import BUCKETS, Statements, compile_statements
from coordinator.store_errors import StoreConflict, StoreError
from coordinator.tables import table_of
from coordinator.texts import Texts
from coordinator.totals import Totals
from coordinator.transaction import AlchemyTransaction, Transaction
from coordinator.tuned.rows import Tuned
from coordinator.uploads.rows import Uploads
from coordinator.webhooks.rows import WebhookRows
from coordinator.worker_history import WorkerHistory
from potluck.chain import GENESIS

_ACCOUNTS = table_of(tables.Account)
_ENTRIES = table_of(tables.Entry)
_JOBS = table_of(tables.Job)
_POSTINGS = table_of(tables.Posting)
_REQUESTS = table_of(tables.StoredRequest)
_ATTEMPTS = table_of(tables.Attempt)
_WORKERS = table_of(tables.Worker)


class Store(
    Members,
    BrowserSessions,
    Identities,
    AuditEvents,
    Standings,
    Invites,
    Enrolment,
    WorkerHistory,
    PauseRows,
    History,
    Texts,
    Lately,
    Movements,
    Totals,
    Communities,
    Notices,
    Registry,
    Sightings,
    Spending,
    Filing,
    Uploads,
    Proofs,
    Batches,
    Finetunes,
    Tuned,
    WebhookRows,
    Audit,
    Database,
):
    """One for each coordinator, for as long as it runs."""

    _statements: Statements | None = None  # compiled when first needed

    @classmethod
    async def open(
        cls,
        url: str,
        now: float,
        seat: Seat | None = None,
        waiting: Waiting | None = None,
    ) -> "Store":
        """Open the books when it is our turn, and found them if there are none. See `connect`.

        Raises AlreadyRunning, DatabaseNewer, StoreFull or StoreError, each with a sentence for people.
        """
        store = await cls.connect(url, seat, waiting)
        try:
            if await store.setting("created_at") is None:
                await store.put_setting("created_at", repr(now))
        except BaseException:
            await store.close()
            raise
        return store

    @classmethod
    async def open_existing(cls, url: str, now: float) -> "Store":
        """`open`, where a pool is already. Raises StoreError as well if there is none."""
        _check_there(url)
        return await cls.open(url, now)

    async def commit(self, batch: Batch) -> None:
        """Write the batch and wait until it is on the disk, or change nothing and raise.

        StoreFull: the same batch may be committed again. StoreConflict: it was recorded before, does not
        continue the chain, overdraws an account, or its sums are not those of its postings. The batch is
        read before the first wait. A caller that is cancelled does not tear it: the commit runs to its end.
        """
        statements = self._spoken()
        writes = _Writes.of(batch)
        await self.transact(lambda transaction: _write(transaction, writes, statements))

    async def holds(self, batch: Batch) -> bool:
        """Was it recorded, all of it, though the answer to `commit` was lost with the connection?

        False also for a batch without entries and receipts: that may be committed twice.
        """
        chains = ((batch.records, _ENTRIES), (batch.receipts, table_of(tables.Receipt)))
        async with self.reading() as connection:
            for records, table in chains:
                if records:
                    last = records[-1]
                    found = select(table.c.hash).where(table.c.number == last.number)
                    return (await connection.execute(found)).scalar() == last.hash
        return False

    def _spoken(self) -> Statements:
        if self._statements is None:
            self._statements = compile_statements(self._writer.dialect)
        return self._statements

    async def load(self) -> Loaded:
        """All that a starting coordinator needs, as of one moment."""
        async with self.reading() as connection:
            accounts = (await connection.execute(select(_ACCOUNTS).order_by(_ACCOUNTS.c.id))).all()
            spoken = self._spoken()
            number, last_hash = await connection.run_sync(_head_of, spoken.head)
            receipt_number, receipt_hash = await connection.run_sync(_head_of, spoken.receipts_head)
            unended = select(_JOBS).where(_JOBS.c.ended_at.is_(None)).order_by(_JOBS.c.created_at, _JOBS.c.id)
            jobs = await with_attempts(connection, (await connection.execute(unended)).all())
            open_ids = select(_JOBS.c.id).where(_JOBS.c.ended_at.is_(None))
            of_open = select(_ENTRIES).where(_ENTRIES.c.job_id.in_(open_ids)).order_by(_ENTRIES.c.number)
            entries = (await connection.execute(of_open)).all()
            numbers = select(_ENTRIES.c.number).where(_ENTRIES.c.job_id.in_(open_ids))
            theirs = select(_POSTINGS).where(_POSTINGS.c.entry_number.in_(numbers))
            theirs = theirs.order_by(_POSTINGS.c.entry_number, _POSTINGS.c.position)
            postings = postings_of((await connection.execute(theirs)).all())
            standings = await _standings(connection)
            wanted = select(_REQUESTS).where(_REQUESTS.c.job_id.in_(open_ids))
            requests = (await connection.execute(wanted)).all()
        return Loaded(
            accounts=tuple(account_of(row) for row in accounts),
            last_number=number,
            last_hash=last_hash,
            last_receipt_number=receipt_number,
            last_receipt_hash=receipt_hash,
            open_jobs=tuple(jobs),
            entries=tuple(entry_of(row, postings[row.number]) for row in entries),
            requests={JobId(row.job_id): row.request for row in requests},
            standings=standings,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Writes:
    """A batch as rows, taken at one moment: accounts go on changing in memory while the disk is busy."""

    records: tuple[Recorded, ...]
    chained: tuple[RecordedReceipt, ...]
    sums: dict[str, tuple[int, ...]]  # of each bucket
    jobs: list[tuple[Any, ...]]
    attempts: list[tuple[Any, ...]]
    entries: list[tuple[Any, ...]]
    postings: list[tuple[Any, ...]]
    receipts: list[tuple[Any, ...]]
    standings: list[tuple[Any, ...]]
    requests: list[tuple[Any, ...]]
    results: list[tuple[Any, ...]]
    moves: list[tuple[Any, ...]]

    @classmethod
    def of(cls, batch: Batch) -> "_Writes":
        """Raises StoreConflict if an account that moves is not given."""
        return cls(
            records=tuple(batch.records),
            chained=tuple(batch.receipts),
            sums={a.id: tuple(getattr(a, bucket) for bucket in BUCKETS) for a in batch.accounts},
            jobs=[job_values(job) for job in batch.jobs],
            attempts=[attempt_values(job.id, attempt) for job in batch.jobs for attempt in job.attempts],
            entries=[entry_values(recorded) for recorded in batch.records],
            postings=[row for recorded in batch.records for row in posting_values(recorded)],
            receipts=[receipt_values(receipt) for receipt in batch.receipts],
            standings=[standing_values(*pair) for pair in batch.standings.items()],
            requests=list(batch.requests.items()),
            results=list(batch.results.items()),
            moves=_moves(batch),
        )


def _check_there(url: str) -> None:
    """Opening a file that is not there would make one. Raises StoreError."""
    parsed = database_url(url)
    if parsed.get_backend_name() == "sqlite" and not Path(str(parsed.database)).exists():
        raise StoreError(f"there is no pool at {parsed.database}: `potluck coordinator start` makes one")


async def _standings(connection: AsyncConnection) -> dict[WorkerId, Standing]:
    """Of all workers. What is held of one's earnings is what its attempts were paid that way, until it is
    proven: then all of it was released.
    """
    held = select(_ATTEMPTS.c.worker_id, func.sum(_ATTEMPTS.c.paid).label("held"))
    held = held.where(_ATTEMPTS.c.held).group_by(_ATTEMPTS.c.worker_id)
    sums = {row.worker_id: int(row.held) for row in (await connection.execute(held)).all()}
    rows = (await connection.execute(select(_WORKERS))).all()
    return {
        WorkerId(row.id): standing_of(row, 0 if row.proven_at is not None else sums.get(row.id, 0))
        for row in rows
    }


def _moves(batch: Batch) -> list[tuple[Any, ...]]:
    """What the records add to each bucket of each account that they touch."""
    known = {account.id for account in batch.accounts}
    moves: dict[str, dict[str, int]] = {}
    for recorded in batch.records:
        for posting in recorded.entry.postings:
            if posting.account not in known:
                raise StoreConflict(
                    f"entry {recorded.entry.id} moves {posting.account}, whose new sums are not in the batch;"
                    " nothing was changed"
                )
            move = moves.setdefault(posting.account, dict.fromkeys(BUCKETS, 0))
            move[posting.bucket.value] += posting.amount
    return [(*move.values(), account) for account, move in moves.items()]


def _write(transaction: Transaction, writes: _Writes, statements: Statements) -> None:
    """One transaction's work, those referred to before those that refer."""
    if writes.records:
        _check_continues(transaction, statements.head, writes.records)
    if writes.chained:
        _check_continues(transaction, statements.receipts_head, writes.chained)
    transaction.write(statements.jobs, writes.jobs)
    transaction.write(statements.attempts, writes.attempts)
    transaction.write(statements.requests, writes.requests)
    transaction.write(statements.results, writes.results)
    transaction.write(statements.entries, writes.entries)
    transaction.write(statements.postings, writes.postings)
    transaction.write(statements.receipts, writes.receipts)
    transaction.write(statements.standings, writes.standings)
    transaction.write(statements.moves, writes.moves)
    _check_sums(transaction, statements, writes.sums)


def _head(transaction: Transaction, statement: str) -> tuple[int, str]:
    """Number and hash of a chain's last record; 0 and GENESIS before the first."""
    for number, last_hash in transaction.read(statement):
        return number, last_hash
    return 0, GENESIS


def _head_of(connection: Connection, statement: str) -> tuple[int, str]:
    return _head(AlchemyTransaction(connection), statement)


def _check_continues(
    transaction: Transaction, head: str, records: Sequence[Recorded] | Sequence[RecordedReceipt]
) -> None:
    number, last_hash = _head(transaction, head)
    for recorded in records:
        if recorded.number <= number and recorded is records[0]:
            raise StoreConflict(
                f"{_named(recorded)} was recorded before; the last is {number}; nothing was changed"
            )
        if recorded.number != number + 1 or recorded.previous != last_hash:
            raise StoreConflict(f"{_named(recorded)} does not follow number {number}; nothing was changed")
        number, last_hash = recorded.number, recorded.hash


def _named(recorded: Recorded | RecordedReceipt) -> str:
    if isinstance(recorded, Recorded):
        return f"entry {recorded.number} ({recorded.entry.id})"
    return f"receipt {recorded.number} ({recorded.receipt.job_id})"


def _check_sums(
    transaction: Transaction, statements: Statements, sums: Mapping[str, tuple[int, ...]]
) -> None:
    """The sums that the postings made must be those that memory holds."""
    found = 0
    for account, *made in transaction.read_of(statements.sums, list(sums)) if sums else ():
        found += 1
        if tuple(made) != sums[account]:
            raise StoreConflict(
                f"{', '.join(BUCKETS)} of account {account} would be {tuple(made)} by its postings, but"
                f" {sums[account]} by the batch; nothing was changed"
            )
    if found != len(sums):
        raise StoreConflict("the batch names an account that does not exist; nothing was changed")
