"""Receipts that the coordinator has not yet acknowledged, on disk: they survive kill -9 of the daemon.

One SQLite file with full synchronisation; what arrives while a commit runs is committed together. A file
that cannot be read is set aside with a warning, since a worker that does not start earns nothing. When the
disk is full, receipts live in memory until they are acknowledged. They hold no text of any job.
"""

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from potluck.home import make_folder
from potluck.receipts import BODY_BYTES_MAX, SIGNATURE_BYTES, ReceiptBody, ReceiptError
from worker.messages import AttemptId

SCHEMA_VERSION: Final = 1
RECEIPTS_MAX: Final = 10_000
WAITING_MAX: Final = 20_000
SET_ASIDE_MAX: Final = 100

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS receipts (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  job_id TEXT NOT NULL, attempt INTEGER NOT NULL,
  body BLOB NOT NULL, signature BLOB NOT NULL,
  UNIQUE (job_id, attempt)
)"""


@dataclass(frozen=True, slots=True)
class SignedReceipt:
    attempt: AttemptId
    body: bytes
    signature: bytes


class JournalError(Exception):
    """The file cannot be read or written."""


class Journal:
    """The file. Blocking; used by one thread at a time."""

    def __init__(self, path: Path) -> None:
        """Raises JournalError if the file is no journal of ours, or damaged."""
        make_folder(path.parent)
        try:
            self._connection = sqlite3.connect(path, check_same_thread=False, timeout=5.0)
        except sqlite3.Error as error:
            raise JournalError(str(error)) from None
        try:
            self._prepare()
        except (sqlite3.Error, JournalError) as error:
            self._connection.close()
            raise JournalError(str(error)) from None

    def _prepare(self) -> None:
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        [(version,)] = self._connection.execute("PRAGMA user_version").fetchall()
        if version not in {0, SCHEMA_VERSION}:
            raise JournalError(f"it was written by another version (schema {version})")
        with self._connection:
            self._connection.execute(_SCHEMA)
            self._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        [(found,)] = self._connection.execute("PRAGMA quick_check(1)").fetchall()
        if found != "ok":
            raise JournalError(str(found))

    @classmethod
    def open(cls, path: Path) -> tuple["Journal", str]:
        """The journal, and a warning if an unreadable file had to be set aside. Raises JournalError."""
        try:
            return cls(path), ""
        except JournalError as error:
            aside = _set_aside(path)
            warning = f"the receipts in {path} cannot be read ({error}); the file was kept as {aside.name}"
            return cls(path), warning

    def load(self) -> list[SignedReceipt]:
        """All receipts, oldest first; rows that are no receipts are left out. Raises JournalError."""
        try:
            rows = self._connection.execute(
                "SELECT job_id, attempt, body, signature FROM receipts ORDER BY number LIMIT ?",
                (RECEIPTS_MAX,),
            ).fetchall()
        except sqlite3.Error as error:
            raise JournalError(str(error)) from None
        kept = (
            SignedReceipt(AttemptId(job_id, attempt), body, signature)
            for job_id, attempt, body, signature in rows
        )
        return [receipt for receipt in kept if _is_whole(receipt)]

    def apply(self, kept: list[SignedReceipt], forgotten: list[AttemptId]) -> None:
        """Both in one transaction; on disk when this returns. Raises JournalError."""
        try:
            with self._connection:
                self._connection.executemany(
                    "INSERT OR IGNORE INTO receipts (job_id, attempt, body, signature) VALUES (?, ?, ?, ?)",
                    [(r.attempt.job_id, r.attempt.number, r.body, r.signature) for r in kept],
                )
                self._connection.executemany(
                    "DELETE FROM receipts WHERE job_id = ? AND attempt = ?",
                    [(attempt.job_id, attempt.number) for attempt in forgotten],
                )
        except sqlite3.Error as error:
            raise JournalError(str(error)) from None

    def close(self) -> None:
        self._connection.close()


def _is_whole(receipt: SignedReceipt) -> bool:
    if len(receipt.body) > BODY_BYTES_MAX or len(receipt.signature) != SIGNATURE_BYTES:
        return False
    try:
        body = ReceiptBody.decode(receipt.body)
    except ReceiptError:
        return False
    return (body.job_id, body.attempt) == (receipt.attempt.job_id, receipt.attempt.number)


def _set_aside(path: Path) -> Path:
    for number in range(SET_ASIDE_MAX):
        aside = path.with_name(f"{path.name}.unreadable-{number}")
        if not aside.exists():
            break
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        path.replace(aside)
    return aside


class ReceiptKeeper:
    """The journal beside the event loop: `on_kept` hears of each receipt once it is safe.

    `receipts` holds what is kept, for sending.
    """

    def __init__(self, journal: Journal, on_kept: Callable[[AttemptId], None]) -> None:
        self._journal = journal
        self._on_kept = on_kept
        self._log = structlog.get_logger("worker.journal")
        self._waiting: list[SignedReceipt | AttemptId] = []
        self._wake = asyncio.Event()
        self.receipts: dict[AttemptId, SignedReceipt] = {}

    def keep(self, receipt: SignedReceipt) -> None:
        self.receipts[receipt.attempt] = receipt
        self._queue(receipt)

    def forget(self, attempt: AttemptId) -> None:
        if self.receipts.pop(attempt, None) is not None:
            self._queue(attempt)

    def _queue(self, item: SignedReceipt | AttemptId) -> None:
        if len(self._waiting) < WAITING_MAX:  # beyond, the disk stands still: memory must not grow with it
            self._waiting.append(item)
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled; what waits then is still written by `close`."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._commit()

    async def close(self) -> None:
        await self._commit()
        self._journal.close()

    async def _commit(self) -> None:
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        kept = [item for item in waiting if isinstance(item, SignedReceipt)]
        forgotten = [item for item in waiting if isinstance(item, AttemptId)]
        try:
            await asyncio.shield(asyncio.to_thread(self._journal.apply, kept, forgotten))
        except JournalError as error:
            self._log.warning("receipts are kept in memory only", action="journal_failed", why=str(error))
        for receipt in kept:
            if receipt.attempt in self.receipts:
                self._on_kept(receipt.attempt)
