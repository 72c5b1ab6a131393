"""The books moved into another kind of database, as they are: SQLite to PostgreSQL, or back.

Everything is copied in one transaction of the new database, in which its tables are made as well: a move that
breaks off leaves it as empty as it was. Ids, numbers, hashes and times are values like all others, so that
the chain in the new database is the old one. In the old database nothing is changed.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Select, Table, func, inspect, literal, select
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from coordinator import dialect
from coordinator.check import public_key
from coordinator.database import claimed, database_url, translated
from coordinator.migrations import migrate
from coordinator.records import Report
from coordinator.settings import Settings
from coordinator.store import Store
from coordinator.store_errors import StoreError
from coordinator.tables import Base

_ROWS_AT_ONCE: Final = 1_000
# All but who leads and who waits.
_TABLES: Final = tuple(t for t in Base.metadata.sorted_tables if t.name not in {"leader", "standbys"})

Progress = Callable[[int, int], None]  # rows done, rows in all


@dataclass(frozen=True, slots=True)
class Relocated:
    """`rows` by table. `report`: what a check of the new books found; `signed`: with their signatures."""

    rows: dict[str, int]
    report: Report
    signed: bool


async def relocate(
    settings: Settings, to: str, now: float, progress: Progress = lambda *_: None
) -> Relocated:
    """Copy the books of a stopped coordinator into the empty database `to`, and check the copy.

    The caller holds the home's lock. Raises StoreError, AlreadyRunning or CertificateError; the new database
    then is as it was before.
    """
    if database_url(to) == database_url(settings.database_url):
        raise StoreError("the books are there already")
    key = public_key(settings)
    source = await Store.open_existing(settings.database_url, now)
    try:
        async with source.reading() as reading, _empty(to) as writing:
            await writing.run_sync(migrate)
            for table in reversed(_TABLES):
                if await _count(writing, table):  # what a new pool begins with; ours has its own
                    await writing.execute(table.delete())
            rows = await _copy(reading, writing, progress)
    finally:
        await source.close()
    copy = await Store.inspect(to)
    try:
        return Relocated(rows, await copy.audit(key), key is not None)
    finally:
        await copy.close()


@asynccontextmanager
async def _empty(to: str) -> AsyncIterator[AsyncConnection]:
    """The transaction in which the new database is filled. Raises StoreError if anything is in it."""
    url = database_url(to)
    with claimed(url):
        engine = create_async_engine(url, pool_size=1, max_overflow=0)
        if url.get_backend_name() == "sqlite":
            dialect.prepare_sqlite(engine.sync_engine, writer=True)
        try:
            with translated():
                async with engine.begin() as connection:
                    if found := await connection.run_sync(_tables):
                        raise StoreError(
                            f"the new database is not empty: it has a table {found[0]!r}. Nothing was"
                            " changed; make a new one, for instance with `createdb`."
                        )
                    yield connection
        finally:
            await engine.dispose()


def _tables(connection: Connection) -> list[str]:
    return inspect(connection).get_table_names()


async def _copy(reading: AsyncConnection, writing: AsyncConnection, progress: Progress) -> dict[str, int]:
    """All rows, those referred to before those that refer. Raises StoreError if one did not arrive."""
    counts = {table.name: await _count(reading, table) for table in _TABLES}
    done, total = 0, sum(counts.values())
    for table in _TABLES:
        result = await reading.stream(_ordered(table))
        async for rows in result.mappings().partitions(_ROWS_AT_ONCE):
            await writing.execute(table.insert(), [dict(row) for row in rows])
            progress(done := done + len(rows), total)
        if (arrived := await _count(writing, table)) != counts[table.name]:
            raise StoreError(
                f"of {counts[table.name]} rows of {table.name} only {arrived} can be copied: see what"
                " `potluck coordinator check` says of the old database. Nothing was changed."
            )
    return counts


async def _count(connection: AsyncConnection, table: Table) -> int:
    counted = await connection.execute(select(func.count()).select_from(table))
    return int(counted.scalar_one())


def _ordered(table: Table) -> Select[Any]:
    """All rows. Where some refer to others of the same table, those come first."""
    own = next((key.parent for key in table.foreign_keys if key.column.table is table), None)
    if own is None:
        return select(table)
    depth = select(table.c.id, literal(0).label("depth")).where(own.is_(None)).cte("depths", recursive=True)
    deeper = select(table.c.id, depth.c.depth + 1).where(own == depth.c.id)
    depth = depth.union_all(deeper)
    return select(table).join(depth, depth.c.id == table.c.id).order_by(depth.c.depth, table.c.id)
