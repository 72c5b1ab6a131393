"""Recompute the books from their entries, and say what does not agree.

Everything is read in one transaction, so a coordinator may go on meanwhile; entries come in pages, so that
memory stays bounded whatever their number. Raw rows are judged, not the core's values: those assert that an
entry balances, and a damaged one must be reported rather than crash the check.
"""

import hashlib
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Row, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from coordinator import dialect, tables
from coordinator.batches.batch import ENDED as BATCHES_ENDED
from coordinator.core.jobs import JOB_ENDED
from coordinator.core.ledger import LINES, MONEY, Bucket, Code, Posting, canonical
from coordinator.database import Database
from coordinator.finetunes.finetune import ENDED as FINETUNES_ENDED
from coordinator.history import entry_rows, postings_between
from coordinator.records import Finding, Report
from coordinator.rows import entry_of
from coordinator.tables import table_of
from potluck import chain
from potluck.chain import GENESIS
from potluck.receipts import verify as signature_fits

FINDINGS_MAX: Final = 100
GLANCE_ENTRIES: Final = 1_000
_PAGE_ENTRIES: Final = 5_000

_ACCOUNTS = table_of(tables.Account)
_BATCHES = table_of(tables.Batch)
_ENTRIES = table_of(tables.Entry)
_FINETUNES = table_of(tables.Finetune)
_HEADS = table_of(tables.Head)
_JOBS = table_of(tables.Job)
_POSTINGS = table_of(tables.Posting)
_RECEIPTS = table_of(tables.Receipt)


@dataclass(slots=True)
class _Tally:
    """What the entries say so far."""

    public_key: bytes | None = None
    findings: list[Finding] = field(default_factory=list)
    number: int = 0
    hash: str = GENESIS
    sums: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    holds: dict[str, int] = field(default_factory=dict)  # by job, as they were made
    open_holds: dict[str, int] = field(default_factory=dict)  # what is left of each
    closed: set[str] = field(default_factory=set)
    receipts: int = 0
    heads: int = 0

    def blame(self, subject: str, message: str) -> None:
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(Finding(subject=subject, message=message))


class Audit(Database):
    async def verify(self) -> list[Finding]:
        """What is wrong with the books, at most FINDINGS_MAX findings; nothing wrong is an empty list."""
        return (await self.audit()).findings

    async def audit(self, public_key: bytes | None = None) -> Report:
        """All there is to say of the books. Without the pool's `public_key` no signature is checked."""
        tally = _Tally(public_key)
        async with self.reading() as connection:
            for damage in await dialect.damage(connection):
                tally.blame("database", damage)
            while rows := await entry_rows(connection, after=tally.number, limit=_PAGE_ENTRIES):
                postings = await postings_between(connection, after=tally.number, rows=rows)
                for row in rows:
                    theirs = postings.get(row.number, [])
                    if _check_entry(tally, row, theirs) and row.job_id is not None:
                        _check_hold(tally, row.number, row.job_id, Code(row.code), theirs)
            await _check_receipts(connection, tally)
            await _check_heads(connection, tally)
            await _check_accounts(connection, tally)
            await _check_jobs(connection, tally)
            await _check_wholes(connection, tally)
            await _check_charges(connection, tally)
        return Report(
            findings=tally.findings, entries=tally.number, receipts=tally.receipts, heads=tally.heads
        )

    async def glance(self) -> list[Finding]:
        """What is wrong at first sight, for a start: every account against its postings, which the database
        adds up, the newest GLANCE_ENTRIES entries, and whether every signed head lies on the chains.
        """
        tally = _Tally()
        async with self.reading() as connection:
            number, last_hash = _ENTRIES.c.number, _ENTRIES.c.hash
            last = (await connection.execute(select(func.max(number)))).scalar_one() or 0
            if last > GLANCE_ENTRIES:
                before = select(number, last_hash).where(number == last - GLANCE_ENTRIES)
                tally.number, tally.hash = (await connection.execute(before)).one()
            rows = await entry_rows(connection, after=tally.number, limit=GLANCE_ENTRIES)
            postings = await postings_between(connection, after=tally.number, rows=rows)
            for row in rows:
                _check_entry(tally, row, postings.get(row.number, []))
            account, bucket = _POSTINGS.c.account_id, _POSTINGS.c.bucket
            sums = select(account, bucket, func.sum(_POSTINGS.c.amount)).group_by(account, bucket)
            tally.sums.clear()
            for owner, kind, amount in (await connection.execute(sums)).all():
                tally.sums[owner, kind] = int(amount)
            await _check_heads(connection, tally)
            await _check_accounts(connection, tally)
        return tally.findings


def _check_entry(tally: _Tally, row: Row[Any], postings: list[Posting]) -> bool:
    """Whether it balances."""
    if row.number != tally.number + 1:
        tally.blame(row.id, f"entry {row.number} follows entry {tally.number}: some are missing between")
    if row.previous != tally.hash:
        tally.blame(row.id, f"entry {row.number} does not carry the hash of the entry before")
    tally.number, tally.hash = row.number, row.hash
    for posting in postings:
        tally.sums[posting.account, posting.bucket.value] += posting.amount
    money = sum(posting.amount for posting in postings if posting.bucket in MONEY)
    lines = sum(posting.amount for posting in postings if posting.bucket not in MONEY)
    if len(postings) < 2 or money or lines:
        tally.blame(row.id, f"entry {row.number} does not balance")
        return False
    entry = entry_of(row, postings)
    if hashlib.sha256(canonical(row.number, row.at, entry, row.previous)).hexdigest() != row.hash:
        tally.blame(row.id, f"entry {row.number} is not what its hash was made of")
    return True


def _check_hold(tally: _Tally, number: int, job: str, code: Code, postings: list[Posting]) -> None:
    """A hold is opened once, paid out of along the way, and emptied by its close."""
    reserved = sum(posting.amount for posting in postings if posting.bucket is Bucket.RESERVED)
    if code is Code.HOLD:
        tally.open_holds[job] = tally.holds[job] = reserved
        return
    if job not in tally.open_holds:
        tally.blame(job, f"entry {number} closes a hold that was not open")
        return
    tally.open_holds[job] += reserved
    if code is Code.CLOSE:
        tally.closed.add(job)
        if left := tally.open_holds.pop(job):
            tally.blame(job, f"entry {number} closes the hold and leaves {left} of it")


async def _check_receipts(connection: AsyncConnection, tally: _Tally) -> None:
    number, previous, unsigned = 0, GENESIS, 0
    async for row in await connection.stream(select(_RECEIPTS).order_by(_RECEIPTS.c.number)):
        number += 1
        covered = chain.receipt_bytes(
            number=row.number,
            at=row.at,
            worker=row.worker_id,
            body=row.body,
            signature=row.signature,
            state=row.state,
            previous=row.previous,
        )
        made = chain.receipt_hash(covered, row.countersignature)
        if row.number != number or row.previous != previous or made != row.hash:
            tally.blame(row.job_id, f"receipt {row.number} is not the one that its chain was made of")
        number, previous = row.number, row.hash
        tally.receipts += 1
        # The oldest may have none: they are from before the pool signed them.
        unsigned += bool(number == unsigned + 1 and not row.countersignature)
        if tally.public_key is not None and number > unsigned:
            signed = chain.countersigned(chain.hash_of(covered))
            if not signature_fits(tally.public_key, signed, row.countersignature):
                tally.blame(row.job_id, f"receipt {row.number} is not countersigned by the pool's key")


async def _check_heads(connection: AsyncConnection, tally: _Tally) -> None:
    """Each is signed and lies on both chains, so that nothing before it was rewritten."""
    on_chains = (
        select(_HEADS, _ENTRIES.c.hash.label("entry_hash"), _RECEIPTS.c.hash.label("receipt_hash"))
        .outerjoin(_ENTRIES, _ENTRIES.c.number == _HEADS.c.number)
        .outerjoin(_RECEIPTS, _RECEIPTS.c.number == _HEADS.c.receipts_number)
        .order_by(_HEADS.c.number, _HEADS.c.receipts_number)
    )
    async for row in await connection.stream(on_chains):
        tally.heads += 1
        subject = f"head of {row.at}"
        here = row.entry_hash if row.number else GENESIS
        receipts_here = row.receipt_hash if row.receipts_number else GENESIS
        if here != row.hash:
            tally.blame(subject, f"it signs another entry {row.number} than the one here")
        if receipts_here != row.receipts_hash:
            tally.blame(subject, f"it signs another receipt {row.receipts_number} than the one here")
        signed = chain.head_bytes(
            number=row.number,
            hash=row.hash,
            receipts_number=row.receipts_number,
            receipts_hash=row.receipts_hash,
            at=row.at,
        )
        if tally.public_key is not None and not signature_fits(tally.public_key, signed, row.signature):
            tally.blame(subject, "it is not signed by the pool's key")


async def _check_accounts(connection: AsyncConnection, tally: _Tally) -> None:
    totals = dict.fromkeys(Bucket, 0)
    for row in (await connection.execute(select(_ACCOUNTS).order_by(_ACCOUNTS.c.id))).all():
        for bucket in Bucket:
            cached, posted = getattr(row, bucket.value), tally.sums.pop((row.id, bucket.value), 0)
            totals[bucket] += cached
            if cached != posted:
                tally.blame(row.id, f"{bucket} is {cached}, but its postings add up to {posted}")
        below = row.id != LINES and row.main < -row.credit_line
        if below or row.reserved < 0 or row.held < 0:
            tally.blame(row.id, f"the account is below its floor of {-row.credit_line}")
    for (account, kind), amount in tally.sums.items():
        tally.blame(account, f"postings of {amount} to {kind} of an account that does not exist")
    if total := sum(totals[bucket] for bucket in MONEY):
        tally.blame("accounts", f"all accounts add up to {total}, not to zero")
    if lent := totals[Bucket.CREDIT_LINE]:
        tally.blame("accounts", f"all credit lines add up to {lent}, not to zero")


async def _check_jobs(connection: AsyncConnection, tally: _Tally) -> None:
    """An open hold belongs to an open job, and a closed one to a job that ended."""
    held = select(_JOBS.c.id, _JOBS.c.state, _JOBS.c.hold).where(
        _JOBS.c.id.in_(select(_ENTRIES.c.job_id).where(_ENTRIES.c.code == Code.HOLD.value))
    )
    ended = {state.value for state in JOB_ENDED}
    result = await connection.stream(held)
    async for row in result:
        if row.state in ended and row.id in tally.open_holds:
            tally.blame(row.id, f"the job is {row.state}, but its hold is still open")
        elif row.state not in ended and row.id in tally.closed:
            tally.blame(row.id, f"the job is {row.state}, but its hold was closed")
        if tally.holds.get(row.id, row.hold) != row.hold:
            tally.blame(row.id, f"the hold is {tally.holds[row.id]}, but the job says {row.hold}")


async def _check_wholes(connection: AsyncConnection, tally: _Tally) -> None:
    """A batch or a fine-tune that has ended has a job that has, too; and so have the parts of such a job."""
    for table, over in ((_BATCHES, BATCHES_ENDED), (_FINETUNES, FINETUNES_ENDED)):
        ended = table.c.state.in_([state.value for state in over])
        open_jobs = select(table.c.id, table.c.state, _JOBS.c.id.label("job")).join(
            _JOBS, _JOBS.c.id == table.c.job_id
        )
        for row in (await connection.execute(open_jobs.where(ended, _JOBS.c.ended_at.is_(None)))).all():
            tally.blame(row.id, f"it is {row.state}, but its job {row.job} is still open")
    whole = _JOBS.alias("wholes")
    parts = select(_JOBS.c.id, _JOBS.c.state).join(whole, whole.c.id == _JOBS.c.whole_id)
    left = parts.where(_JOBS.c.ended_at.is_(None), whole.c.ended_at.is_not(None))
    for part in (await connection.execute(left)).all():
        tally.blame(part.id, f"the part is {part.state}, but its whole has ended")


async def _check_charges(connection: AsyncConnection, tally: _Tally) -> None:
    """What a fine-tune says that it cost is what its job did."""
    ended = _FINETUNES.c.state.in_([state.value for state in FINETUNES_ENDED])
    told = select(_FINETUNES.c.id, _FINETUNES.c.charge, _JOBS.c.charge.label("of_job")).join(
        _JOBS, _JOBS.c.id == _FINETUNES.c.job_id
    )
    wrong = told.where(ended, _FINETUNES.c.charge != _JOBS.c.charge)
    for row in (await connection.execute(wrong)).all():
        tally.blame(row.id, f"it says that it cost {row.charge}, and its job {row.of_job}")
