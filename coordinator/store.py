"""The books on disk. `commit` and `load` are the tick's; the parts below serve everybody else.

The tick's path is SQLAlchemy Core, one transaction and one statement a table. Nothing is cached here: each
commit checks against the database itself that it continues the chain and that its sums are those of its
postings, so that a bug above this line, or a second writer, is refused instead of recorded.
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, Final

from sqlalchemy import bindparam, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from coordinator import dialect, tables
from coordinator.audit import Audit
from coordinator.core.jobs import JobId
from coordinator.core.ledger import GENESIS, Account, Recorded
from coordinator.database import Database
from coordinator.enrolment import Enrolment
from coordinator.history import History, with_attempts
from coordinator.members import Members
from coordinator.records import Batch, Loaded
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
)
from coordinator.store_errors import StoreConflict
from coordinator.tables import table_of

_IDS_MAX: Final = 500  # in one IN list; databases limit the parameters of a statement

_ACCOUNTS = table_of(tables.Account)
_ATTEMPTS = table_of(tables.Attempt)
_ENTRIES = table_of(tables.Entry)
_JOBS = table_of(tables.Job)
_POSTINGS = table_of(tables.Posting)
_RECEIPTS = table_of(tables.Receipt)
_REQUESTS = table_of(tables.StoredRequest)
_RESULTS = table_of(tables.StoredResult)
_MOVE = (
    update(_ACCOUNTS)
    .where(_ACCOUNTS.c.id == bindparam("account"))
    .values({b: _ACCOUNTS.c[b] + bindparam(f"by_{b}") for b in ("main", "reserved", "held")})
)


class Store(Members, Enrolment, History, Registry, Audit, Database):
    """One for each coordinator, for as long as it runs."""

    @classmethod
    async def open(cls, url: str, now: float) -> "Store":
        """Open the books, and found them if there are none.

        Raises AlreadyRunning, DatabaseNewer, StoreFull or StoreError, each with a sentence for people.
        """
        store = await cls.connect(url)
        if await store.setting("created_at") is None:
            await store.put_setting("created_at", repr(now))
        return store

    async def commit(self, batch: Batch) -> None:
        """Write the batch and wait until it is on the disk, or change nothing and raise.

        StoreFull: the same batch may be committed again. StoreConflict: it was recorded before, does not
        continue the chain, overdraws an account, or its sums are not those of its postings. A caller that is
        cancelled meanwhile does not tear the batch: the commit runs to its end.
        """
        if any((batch.records, batch.accounts, batch.jobs, batch.receipts, batch.requests, batch.results)):
            await asyncio.shield(asyncio.ensure_future(self._commit(batch)))

    async def _commit(self, batch: Batch) -> None:
        moves = _moves(batch.records, batch.accounts)
        async with self.writing() as connection:
            if batch.records:
                await _check_continues(connection, batch.records)
            await _write_jobs(connection, batch)
            if batch.records:
                await connection.execute(_ENTRIES.insert(), [entry_values(r) for r in batch.records])
                postings = [values for r in batch.records for values in posting_values(r)]
                await connection.execute(_POSTINGS.insert(), postings)
            if moves:
                await connection.execute(_MOVE, moves)
                await _check_sums(connection, batch.accounts)
            if batch.receipts:
                # A worker repeats a receipt until it is acknowledged; the first one stands.
                statement = dialect.insert_into(connection, _RECEIPTS).on_conflict_do_nothing()
                await connection.execute(statement, [receipt_values(r) for r in batch.receipts])

    async def load(self) -> Loaded:
        """All that a starting coordinator needs, as of one moment."""
        async with self.reading() as connection:
            accounts = (await connection.execute(select(_ACCOUNTS).order_by(_ACCOUNTS.c.id))).all()
            number, last_hash = await _head(connection)
            unended = select(_JOBS).where(_JOBS.c.ended_at.is_(None)).order_by(_JOBS.c.created_at, _JOBS.c.id)
            jobs = await with_attempts(connection, (await connection.execute(unended)).all())
            open_ids = select(_JOBS.c.id).where(_JOBS.c.ended_at.is_(None))
            of_open = select(_ENTRIES).where(_ENTRIES.c.job_id.in_(open_ids)).order_by(_ENTRIES.c.number)
            entries = (await connection.execute(of_open)).all()
            numbers = select(_ENTRIES.c.number).where(_ENTRIES.c.job_id.in_(open_ids))
            theirs = select(_POSTINGS).where(_POSTINGS.c.entry_number.in_(numbers))
            theirs = theirs.order_by(_POSTINGS.c.entry_number, _POSTINGS.c.position)
            postings = postings_of((await connection.execute(theirs)).all())
            wanted = select(_REQUESTS).where(_REQUESTS.c.job_id.in_(open_ids))
            requests = (await connection.execute(wanted)).all()
        return Loaded(
            accounts=tuple(account_of(row) for row in accounts),
            last_number=number,
            last_hash=last_hash,
            open_jobs=tuple(jobs),
            entries=tuple(entry_of(row, postings[row.number]) for row in entries),
            requests={JobId(row.job_id): row.request for row in requests},
        )


def _moves(records: Iterable[Recorded], accounts: Iterable[Account]) -> list[dict[str, Any]]:
    """What the records add to each account's buckets. Raises StoreConflict if an account is not given."""
    moves: dict[str, dict[str, Any]] = {}
    for account in accounts:
        moves[account.id] = {"account": account.id, "by_main": 0, "by_reserved": 0, "by_held": 0}
    for recorded in records:
        for posting in recorded.entry.postings:
            try:
                moves[posting.account][f"by_{posting.bucket.value}"] += posting.amount
            except KeyError:
                raise StoreConflict(
                    f"entry {recorded.entry.id} moves {posting.account}, whose new sums are not in the batch;"
                    " nothing was changed"
                ) from None
    return list(moves.values())


async def _head(connection: AsyncConnection) -> tuple[int, str]:
    """Number and hash of the last entry; 0 and GENESIS before the first."""
    last = select(func.max(_ENTRIES.c.number)).scalar_subquery()
    statement = select(_ENTRIES.c.number, _ENTRIES.c.hash).where(_ENTRIES.c.number == last)
    row = (await connection.execute(statement)).one_or_none()
    return (0, GENESIS) if row is None else (row.number, row.hash)


async def _check_continues(connection: AsyncConnection, records: Sequence[Recorded]) -> None:
    number, last_hash = await _head(connection)
    for recorded in records:
        if recorded.number <= number and recorded is records[0]:
            raise StoreConflict(
                f"entry {recorded.number} ({recorded.entry.id}) was recorded before; the last is {number};"
                " nothing was changed"
            )
        if recorded.number != number + 1 or recorded.previous != last_hash:
            raise StoreConflict(
                f"entry {recorded.number} ({recorded.entry.id}) does not follow entry {number}; nothing was"
                " changed"
            )
        number, last_hash = recorded.number, recorded.hash


async def _write_jobs(connection: AsyncConnection, batch: Batch) -> None:
    if batch.jobs:
        jobs = [job_values(job) for job in batch.jobs]
        await connection.execute(dialect.upsert(connection, _JOBS), jobs)
    if attempts := [attempt_values(job.id, attempt) for job in batch.jobs for attempt in job.attempts]:
        await connection.execute(dialect.upsert(connection, _ATTEMPTS), attempts)
    if batch.requests:
        requests = [{"job_id": job, "request": body} for job, body in batch.requests.items()]
        await connection.execute(_REQUESTS.insert(), requests)
    if batch.results:
        results = [{"job_id": job, "result": body} for job, body in batch.results.items()]
        await connection.execute(dialect.upsert(connection, _RESULTS), results)


async def _check_sums(connection: AsyncConnection, accounts: Sequence[Account]) -> None:
    """The sums that the postings made must be those that memory holds."""
    expected = {account.id: account for account in accounts}
    ids = list(expected)
    found = 0
    for start in range(0, len(ids), _IDS_MAX):
        chosen = select(_ACCOUNTS).where(_ACCOUNTS.c.id.in_(ids[start : start + _IDS_MAX]))
        for row in (await connection.execute(chosen)).all():
            found += 1
            account = expected[row.id]
            if (row.main, row.reserved, row.held) != (account.main, account.reserved, account.held):
                raise StoreConflict(
                    f"account {row.id} would hold {row.main}, {row.reserved} reserved and {row.held} held by"
                    f" its postings, but {account.main}, {account.reserved} and {account.held} by the batch;"
                    " nothing was changed"
                )
    if found != len(expected):
        raise StoreConflict("the batch names an account that does not exist; nothing was changed")
