"""What an export of the ledger is made of, and the signed heads of its chains."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Row, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from coordinator import tables
from coordinator.core.jobs import AccountId, WorkerId
from coordinator.core.ledger import Posting
from coordinator.database import Database
from coordinator.history import entry_rows, postings_between
from coordinator.records import Ends, Head, HeadReason
from coordinator.tables import table_of
from potluck.chain import GENESIS

PAGE_RECORDS: Final = 250  # read and written at once: a page holds up the event loop for some milliseconds

_ACCOUNTS = table_of(tables.Account)
_ENTRIES = table_of(tables.Entry)
_HEADS = table_of(tables.Head)
_RECEIPTS = table_of(tables.Receipt)
_WORKERS = table_of(tables.Worker)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One moment of the books. Both chains only grow, so that what is read later up to `ends` is the same."""

    ends: Ends
    workers: Sequence[tuple[WorkerId, AccountId, bytes]]  # all that ever were: id, owner's account, key
    heads: int  # that were signed until then


class Proofs(Database):
    async def ends(self) -> Ends:
        """The last entry and receipt that are on the disk."""
        async with self.reading() as connection:
            return await _ends(connection)

    async def last_head(self, reason: HeadReason | None = None) -> Head | None:
        """The newest, of all or of one kind."""
        statement = select(_HEADS).order_by(_HEADS.c.number.desc(), _HEADS.c.receipts_number.desc()).limit(1)
        if reason is not None:
            statement = statement.where(_HEADS.c.reason == reason.value)
        async with self.reading() as connection:
            row = (await connection.execute(statement)).one_or_none()
            return None if row is None else head_of(row)

    async def put_head(self, head: Head) -> None:
        """Keep it for ever. Raises StoreConflict if these ends have one already."""
        values = {column.name: getattr(head, column.name) for column in _HEADS.columns}
        async with self.writing() as connection:
            await connection.execute(_HEADS.insert().values(**values | {"reason": head.reason.value}))

    async def view(self) -> View:
        owners = select(_WORKERS.c.id, _ACCOUNTS.c.id.label("account"), _WORKERS.c.receipt_key)
        owners = owners.join(_ACCOUNTS, _ACCOUNTS.c.member_id == _WORKERS.c.member_id)
        async with self.reading() as connection:
            ends = await _ends(connection)
            rows = (await connection.execute(owners.order_by(_WORKERS.c.created_at, _WORKERS.c.id))).all()
            within = (_HEADS.c.number <= ends.number) & (_HEADS.c.receipts_number <= ends.receipts_number)
            heads = await connection.scalar(select(func.count()).select_from(_HEADS).where(within))
        workers = [(WorkerId(row.id), AccountId(row.account), row.receipt_key) for row in rows]
        return View(ends=ends, workers=workers, heads=heads or 0)

    async def entries_page(self, after: int, until: int) -> list[tuple[Row[Any], list[Posting]]]:
        """Rows of entries with their postings, in order, PAGE_RECORDS at most."""
        async with self.reading() as connection:
            rows = await entry_rows(connection, after=after, limit=min(PAGE_RECORDS, until - after))
            postings = await postings_between(connection, after=after, rows=rows)
        return [(row, postings.get(row.number, [])) for row in rows]

    async def receipts_page(self, after: int, until: int) -> Sequence[Row[Any]]:
        chosen = select(_RECEIPTS).where(_RECEIPTS.c.number > after, _RECEIPTS.c.number <= until)
        async with self.reading() as connection:
            statement = chosen.order_by(_RECEIPTS.c.number).limit(PAGE_RECORDS)
            return (await connection.execute(statement)).all()

    async def heads_page(self, after: tuple[int, int], until: Ends) -> list[Head]:
        """`after`: the numbers of entry and receipt of the last head of the page before."""
        number, receipts_number = _HEADS.c.number, _HEADS.c.receipts_number
        later = (number > after[0]) | ((number == after[0]) & (receipts_number > after[1]))
        within = (number <= until.number) & (receipts_number <= until.receipts_number)
        statement = select(_HEADS).where(later, within).order_by(number, receipts_number).limit(PAGE_RECORDS)
        async with self.reading() as connection:
            return [head_of(row) for row in (await connection.execute(statement)).all()]

    async def newest_heads(self, limit: int) -> list[Head]:
        """The newest first."""
        newest = select(_HEADS).order_by(_HEADS.c.number.desc(), _HEADS.c.receipts_number.desc())
        async with self.reading() as connection:
            return [head_of(row) for row in (await connection.execute(newest.limit(limit))).all()]


def head_of(row: Row[Any]) -> Head:
    return Head(
        number=row.number,
        hash=row.hash,
        receipts_number=row.receipts_number,
        receipts_hash=row.receipts_hash,
        at=row.at,
        reason=HeadReason(row.reason),
        signature=row.signature,
    )


async def _ends(connection: AsyncConnection) -> Ends:
    found = []
    for table in (_ENTRIES, _RECEIPTS):
        last = select(table.c.number, table.c.hash).order_by(table.c.number.desc()).limit(1)
        row = (await connection.execute(last)).one_or_none()
        found.append((0, GENESIS) if row is None else (row.number, row.hash))
    (number, last_hash), (receipts_number, receipts_hash) = found
    return Ends(number=number, hash=last_hash, receipts_number=receipts_number, receipts_hash=receipts_hash)
