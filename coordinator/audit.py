"""Recompute the books from their entries, and say what does not agree.

Everything is read in one transaction, so a coordinator may go on meanwhile; entries come in pages, so that
memory stays bounded whatever their number. Raw rows are judged, not the core's values: those assert that an
entry balances, and a damaged one must be reported rather than crash the check.
"""

import hashlib
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Row, select
from sqlalchemy.ext.asyncio import AsyncConnection

from coordinator import dialect, tables
from coordinator.core.jobs import JOB_ENDED
from coordinator.core.ledger import GENESIS, Code, Posting, canonical
from coordinator.database import Database
from coordinator.history import entry_rows, postings_between
from coordinator.records import Finding
from coordinator.rows import entry_of
from coordinator.tables import table_of

FINDINGS_MAX: Final = 100
_PAGE_ENTRIES: Final = 5_000

_ACCOUNTS = table_of(tables.Account)
_ENTRIES = table_of(tables.Entry)
_JOBS = table_of(tables.Job)


@dataclass(slots=True)
class _Tally:
    """What the entries say so far."""

    findings: list[Finding] = field(default_factory=list)
    number: int = 0
    hash: str = GENESIS
    sums: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    open_holds: dict[str, int] = field(default_factory=dict)  # by job
    closed: set[str] = field(default_factory=set)

    def blame(self, subject: str, message: str) -> None:
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(Finding(subject=subject, message=message))


class Audit(Database):
    async def verify(self) -> list[Finding]:
        """What is wrong with the books, at most FINDINGS_MAX findings; nothing wrong is an empty list."""
        tally = _Tally()
        async with self.reading() as connection:
            for damage in await dialect.damage(connection):
                tally.blame("database", damage)
            while rows := await entry_rows(connection, after=tally.number, limit=_PAGE_ENTRIES):
                postings = await postings_between(connection, after=tally.number, rows=rows)
                for row in rows:
                    _check_entry(tally, row, postings.get(row.number, []))
            await _check_accounts(connection, tally)
            await _check_jobs(connection, tally)
        return tally.findings


def _check_entry(tally: _Tally, row: Row[Any], postings: list[Posting]) -> None:
    if row.number != tally.number + 1:
        tally.blame(row.id, f"entry {row.number} follows entry {tally.number}: some are missing between")
    if row.previous != tally.hash:
        tally.blame(row.id, f"entry {row.number} does not carry the hash of the entry before")
    tally.number, tally.hash = row.number, row.hash
    for posting in postings:
        tally.sums[posting.account, posting.bucket.value] += posting.amount
    if len(postings) < 2 or sum(posting.amount for posting in postings) != 0:
        tally.blame(row.id, f"entry {row.number} does not balance")
        return
    entry = entry_of(row, postings)
    if hashlib.sha256(canonical(row.number, row.at, entry, row.previous)).hexdigest() != row.hash:
        tally.blame(row.id, f"entry {row.number} is not what its hash was made of")
    if entry.code is Code.HOLD and entry.job is not None:
        tally.open_holds[entry.job] = max(posting.amount for posting in postings)
    elif entry.code is Code.CLOSE and entry.job is not None:
        tally.closed.add(entry.job)
        if tally.open_holds.pop(entry.job, None) is None:
            tally.blame(entry.job, f"entry {row.number} closes a hold that was not open")


async def _check_accounts(connection: AsyncConnection, tally: _Tally) -> None:
    total = 0
    for row in (await connection.execute(select(_ACCOUNTS).order_by(_ACCOUNTS.c.id))).all():
        for bucket in ("main", "reserved", "held"):
            cached, posted = getattr(row, bucket), tally.sums.pop((row.id, bucket), 0)
            total += cached
            if cached != posted:
                tally.blame(row.id, f"{bucket} is {cached}, but its postings add up to {posted}")
        if row.main < -row.credit_line or row.reserved < 0 or row.held < 0:
            tally.blame(row.id, f"the account is below its floor of {-row.credit_line}")
    for (account, bucket), amount in tally.sums.items():
        tally.blame(account, f"postings of {amount} to {bucket} of an account that does not exist")
    if total != 0:
        tally.blame("accounts", f"all accounts add up to {total}, not to zero")


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
        if tally.open_holds.get(row.id, row.hold) != row.hold:
            tally.blame(row.id, f"the hold is {tally.open_holds[row.id]}, but the job says {row.hold}")
