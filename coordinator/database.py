"""How the database is reached: who writes, who reads, and errors in our own words.

All writing stands behind one lock. SQLite has one writer at a time anyway; with the lock the waiting happens
in the event loop and in order, instead of in threads that poll a busy file. Readers have connections of
their own, since one aiosqlite connection is one thread that does one thing after the other: a long listing
on the writer's connection would hold up the tick. In WAL mode a reader sees the last commit, and neither
waits for the writer nor makes it wait.

The tick's transactions go through `transact`: a plain function that runs compiled statements. With SQLite it
runs whole in a thread of its own, since through aiosqlite each of its dozen statements would change threads
four times, which costs more than all the writing. With PostgreSQL it runs on the async connection.
"""

import asyncio
import os
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final, Self, TypeVar

from sqlalchemy import URL, PoolProxiedConnection, create_engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlmodel.ext.asyncio.session import AsyncSession

from coordinator import dialect
from coordinator.leadership import Leadership, Seat, Waiting
from coordinator.lock import FileLock
from coordinator.migrations import check_revision, migrate
from coordinator.store_errors import (
    DISK_FULL,
    StoreConflict,
    StoreError,
    StoreFull,
    StoreUnavailable,
    Unwritable,
)
from coordinator.transaction import AlchemyTransaction, SqliteTransaction, Transaction
from potluck.home import SECRET_MODE, make_folder
from potluck.transport import reason_of

T = TypeVar("T")
READERS: Final = 4
_TOUCH: Final = "UPDATE settings SET value = value WHERE name = 'created_at' RETURNING name"
_ROOM_BYTES: Final = 1 << 16
_FULL_SENTENCE: Final = (
    "the disk that holds the database is full: nothing was changed. Free some space; the coordinator goes on"
    " by itself."
)
_TOO_LARGE: Final = "an amount does not fit into 64 bits; nothing was changed"
_DRIVERS: Final = {
    "sqlite": "sqlite+aiosqlite",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
    "postgresql+asyncpg": "postgresql+asyncpg",
}


class Database:
    """The parts of the store inherit the ways to read and write."""

    def __init__(
        self, writer: AsyncEngine, reader: AsyncEngine, books: "_Books | None", lock: FileLock | None
    ) -> None:
        self._writer = writer
        self._reader = reader
        self._books = books  # with SQLite only
        self._lock = lock
        self.leadership: Leadership | None = None  # with PostgreSQL only
        self._beats: AsyncEngine | None = None
        self._writing = asyncio.Lock()

    @classmethod
    async def connect(cls, url: str, seat: Seat | None = None, waiting: Waiting | None = None) -> Self:
        """Open the database, for one coordinator alone, and bring it to the newest shape.

        With PostgreSQL, `waiting` is told who leads the pool until it is our turn; without it, and with
        SQLite, a coordinator that runs is refused. Raises AlreadyRunning, DatabaseNewer, StoreFull or
        StoreError.
        """
        parsed = database_url(url)
        sqlite = parsed.get_backend_name() == "sqlite"
        lock = _claim(parsed) if sqlite else None
        more = {} if sqlite else {"connect_args": dialect.POSTGRES_WRITER}
        writer = create_async_engine(parsed, pool_size=1, max_overflow=0, **more)
        reader = create_async_engine(parsed, pool_size=READERS, max_overflow=0)
        if sqlite:
            dialect.prepare_sqlite(writer.sync_engine, writer=True)
            dialect.prepare_sqlite(reader.sync_engine, writer=False)
        else:
            dialect.prepare_postgres(writer.sync_engine)
            dialect.prepare_postgres(reader.sync_engine)
            reader = reader.execution_options(**dialect.POSTGRES_READER)
        database = cls(writer, reader, _Books(parsed) if sqlite else None, lock)
        try:
            if sqlite:
                await _migrate(parsed)
            else:
                await database._lead(parsed, seat or Seat(), waiting)
        except BaseException:
            await database.close()
            raise
        return database

    async def _lead(self, url: URL, seat: Seat, waiting: Waiting | None) -> None:
        """On connections of its own: a beat waits for no write."""

        def another() -> AsyncEngine:
            return create_async_engine(url, pool_size=1, max_overflow=0, connect_args=dialect.POSTGRES_BEATS)

        self._beats = another()
        with translated():
            self.leadership = await Leadership.claim(another, self._beats, seat, waiting)

    @classmethod
    async def inspect(cls, url: str) -> Self:
        """Open the database to read and nothing else, while a coordinator runs on it or not.

        No lock is taken and nothing is brought forward. Raises StoreError, also if the database has another
        shape than this version knows.
        """
        parsed = database_url(url)
        if parsed.get_backend_name() == "sqlite":
            engine = create_async_engine(_read_only(parsed), pool_size=1, max_overflow=0)
            dialect.prepare_reader(engine.sync_engine)
        else:
            engine = create_async_engine(parsed, pool_size=1, max_overflow=0)
            engine = engine.execution_options(**dialect.POSTGRES_READER)
        database = cls(engine, engine, None, None)
        try:
            with translated():
                async with engine.connect() as connection:
                    await connection.run_sync(check_revision)
        except BaseException:
            await database.close()
            raise
        return database

    def coordinators(self) -> list[str]:
        """HOST:PORT where workers find the pool, or will: the leader first. Empty with SQLite."""
        if self.leadership is None:
            return []
        return [address for address in (self.leadership.seat.grpc, *self.leadership.others) if address]

    def url(self) -> str:
        """Where members find this leader of several; empty where there is but one, or it cannot be known."""
        return "" if self.leadership is None else self.leadership.seat.http

    async def close(self) -> None:
        """Waits for the write that runs, then lets go of the database."""
        async with self._writing:
            if self.leadership is not None:
                await self.leadership.resign()
            if self._beats is not None:
                await self._beats.dispose()
            await self._reader.dispose()
            await self._writer.dispose()
            if self._books is not None:
                await self._books.close()
            if self._lock is not None:
                self._lock.release()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """One consistent view of the last commit."""
        with translated():
            async with self._reader.begin() as connection:
                yield connection

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that is committed at the end of the block, or rolled back by any exception in it.

        Raises LeadershipLost if another coordinator leads the pool.
        """
        async with self._writing:
            with translated():
                async with self._writer.begin() as connection:
                    if self.leadership is not None:
                        await self.leadership.fence(connection)
                    yield connection

    async def transact(self, work: Callable[[Transaction], T]) -> T:
        """Run the function in a transaction of its own. If the caller is cancelled, it runs to its end."""
        if self._books is None:
            return await asyncio.shield(asyncio.ensure_future(self._alchemy(work)))
        await self._writing.acquire()
        with translated():
            return await self._books.begin(work, self._writing.release)

    async def _alchemy(self, work: Callable[[Transaction], T]) -> T:
        async with self.writing() as connection:
            return await connection.run_sync(lambda plain: work(AlchemyTransaction(plain)))

    async def probe(self) -> None:
        """Write what is there once more, as a commit would. Raises StoreFull or StoreError."""
        await self.transact(lambda transaction: transaction.read(_TOUCH))
        if self._books is not None:  # its journal may have had room for so little
            with translated():
                await asyncio.to_thread(_take_room, str(self._writer.url.database))

    @asynccontextmanager
    async def viewing(self) -> AsyncIterator[AsyncSession]:
        """`reading`, with models instead of rows."""
        async with self.reading() as connection, AsyncSession(bind=connection) as session:
            yield session

    @asynccontextmanager
    async def changing(self) -> AsyncIterator[AsyncSession]:
        """`writing`, with models instead of rows; what was added is flushed at the end."""
        async with self.writing() as connection, AsyncSession(bind=connection) as session:
            yield session
            await session.flush()


async def _migrate(url: URL) -> None:
    """On an engine of its own: SQLite makes tables anew only where it does not watch what refers to them."""
    migrator = create_async_engine(url, pool_size=1, max_overflow=0)
    dialect.prepare_sqlite(migrator.sync_engine, writer=True, references=False)
    try:
        with translated():
            async with migrator.begin() as connection:
                changed = await connection.run_sync(migrate)
                if changed and (damage := await dialect.orphans(connection)):
                    raise StoreError(f"the database cannot be brought to its new shape: {damage[0]}")
    finally:
        await migrator.dispose()


class _Books:
    """A connection to SQLite that lives in a thread of its own.

    Its results come back by one call into the loop and no task, shield or future more: under load each of
    those is another turn of the loop, and the first token waits for the hold.
    """

    def __init__(self, url: URL) -> None:
        self._engine = create_engine(url.set(drivername="sqlite"), pool_size=1, max_overflow=0)
        dialect.prepare_sqlite(self._engine, writer=True)
        self._connection: PoolProxiedConnection | None = None  # opened by the first transaction
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="books")

    def begin(self, work: Callable[[Transaction], T], ended: Callable[[], None]) -> "asyncio.Future[T]":
        """What the function returned or raised. `ended` is called in the loop when the transaction is over,
        also if nobody waits for the future any more: a cancelled one stops nothing.
        """
        loop = asyncio.get_running_loop()
        told: asyncio.Future[T] = loop.create_future()

        def tell(outcome: Future[T]) -> None:
            ended()
            if told.cancelled():
                return
            if (error := outcome.exception()) is not None:
                told.set_exception(error)
            else:
                told.set_result(outcome.result())

        submitted = self._thread.submit(self._transaction, work)
        submitted.add_done_callback(lambda outcome: loop.call_soon_threadsafe(tell, outcome))
        return told

    def _transaction(self, work: Callable[[Transaction], T]) -> T:
        with dialect.writing(self._driver()) as cursor:
            return work(SqliteTransaction(cursor))

    def _driver(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = self._engine.raw_connection()
        driver = self._connection.driver_connection
        assert isinstance(driver, sqlite3.Connection)
        return driver

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._dispose)
        self._thread.shutdown()

    def _dispose(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._engine.dispose()


def database_url(url: str) -> URL:
    """The URL with the driver that we use. Raises StoreError for a database that Potluck does not know."""
    try:
        parsed = make_url(url)
        driver = _DRIVERS[parsed.drivername]
    except (ArgumentError, NoSuchModuleError, KeyError, ValueError):
        raise StoreError(
            "this database cannot be used: give sqlite:////path/to/file or postgresql://user@host/name"
        ) from None
    if driver.startswith("sqlite") and parsed.database in {None, "", ":memory:"}:
        raise StoreError("a coordinator's books belong on a disk: give sqlite:////path/to/file")
    return parsed.set(drivername=driver)


def _read_only(url: URL) -> URL:
    """The file, which SQLite then neither creates nor changes. Raises StoreError if there is none."""
    path = Path(str(url.database)).absolute()
    if not path.is_file():
        raise StoreError(f"there is no database at {path}")
    return url.set(database=path.as_uri(), query={"mode": "ro", "uri": "true"})


def _claim(url: URL) -> FileLock:
    """Lock the file against a second coordinator, and make it ours alone before SQLite creates it."""
    path = Path(str(url.database)).absolute()
    try:
        make_folder(path.parent)
        lock = FileLock.acquire(path.with_name(path.name + ".lock"))
        # The journals that SQLite puts beside it get its mode.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, SECRET_MODE))
    except OSError as error:
        raise StoreError(f"the database {path} cannot be opened: {error.strerror or error}") from error
    return lock


@contextmanager
def claimed(url: URL) -> Iterator[None]:
    """The file belongs to us inside the block. Raises AlreadyRunning or StoreError."""
    lock = _claim(url) if url.get_backend_name() == "sqlite" else None
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


@contextmanager
def translated() -> Iterator[None]:
    """Errors of drivers and of the system become StoreErrors."""
    try:
        yield
    except (DBAPIError, sqlite3.Error) as error:
        raise translate(error) from error
    except OSError as error:  # asyncpg's own, from a server that is not there; or a probe's
        if error.errno in DISK_FULL:
            raise StoreFull(_FULL_SENTENCE) from error
        raise StoreUnavailable(
            f"the database cannot be reached: {reason_of(error)}; nothing was changed"
        ) from error
    except OverflowError as error:  # sqlite3 says so before SQL sees the number
        raise StoreConflict(_TOO_LARGE) from error


def _take_room(database: str) -> None:
    """Beside it, for a moment. Raises OSError."""
    with tempfile.TemporaryFile(dir=Path(database).absolute().parent) as file:
        file.write(bytes(_ROOM_BYTES))


def translate(error: DBAPIError | sqlite3.Error) -> StoreError:
    """The driver's error in words that can be shown; the original stays as its cause."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if dialect.is_full(cause):
        return StoreFull(_FULL_SENTENCE)
    if dialect.is_unwritable(cause):
        return Unwritable("a text has a character that cannot be kept; nothing was changed")
    if dialect.is_too_large(cause):
        return StoreConflict(_TOO_LARGE)
    reason = str(cause).splitlines()[0] if str(cause or "") else type(error).__name__
    if isinstance(error, (IntegrityError, sqlite3.IntegrityError)) or dialect.is_refused(cause):
        return StoreConflict(f"the books refuse this: {reason}; nothing was changed")
    return StoreUnavailable(f"the database failed: {reason}; nothing was changed")
