"""`verify` finds what somebody with the database file in hands has changed, and names it."""

import sqlite3
from pathlib import Path

import pytest
from fixtures_store import NOW, url_in, world
from sqlalchemy.ext.asyncio import create_async_engine

from coordinator.database import database_url
from coordinator.store import Store

pytestmark = pytest.mark.usefixtures("on_both")

REPLICA = "SET session_replication_role = replica"  # neither triggers nor references are looked at
NO_TRIGGERS = [
    f"DROP TRIGGER {table}_no_{what}"
    for table in ("entries", "postings", "receipts", "heads")
    for what in ("update", "delete", "replace")
]


async def books(folder: Path) -> list[str]:
    """Two jobs closed and one open; their ids."""
    async with world(folder) as pool:
        jobs = [pool.assigned(pool.job(n)) for n in range(3)]
        for job in jobs:
            await pool.store.commit(pool.held(job))
        for job in jobs[:2]:
            await pool.store.commit(pool.closed(job, 700)[1])
        assert await pool.store.verify() == []
    return [job.id for job in jobs]


async def findings(folder: Path) -> str:
    store = await Store.open(url_in(folder), NOW)
    try:
        found = await store.verify()
    finally:
        await store.close()
    return "\n".join(f"{f.subject}: {f.message}" for f in found)


async def tamper(folder: Path, statements: list[str]) -> None:
    """As somebody who owns the database can."""
    url = database_url(url_in(folder))
    sqlite = url.get_backend_name() == "sqlite"
    unwatched = [*NO_TRIGGERS, "PRAGMA foreign_keys = OFF"] if sqlite else [REPLICA]
    engine = create_async_engine(url, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        for statement in [*unwatched, *statements]:
            await connection.exec_driver_sql(statement)
    await engine.dispose()


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        (["UPDATE accounts SET main = main + 5 WHERE id = 'commons'"], ["commons: main is", "not to zero"]),
        (["UPDATE postings SET amount = amount + 1 WHERE entry_number = 6 AND position = 0"], ["entry 6 does not balance"]),
        (["UPDATE postings SET amount = amount * 2 WHERE entry_number = 5"], ["entry 5 is not what its hash"]),
        (["UPDATE entries SET details = '{}' WHERE number = 8"], ["entry 8 is not what its hash"]),
        (["UPDATE entries SET at = '2020-01-01T00:00:00Z' WHERE number = 7"], ["entry 7 is not what its hash"]),
        (["DELETE FROM postings WHERE entry_number = 9", "DELETE FROM entries WHERE number = 9"], ["its hold is still open"]),
        (["DELETE FROM postings WHERE entry_number = 6", "DELETE FROM entries WHERE number = 6"], ["entry 7 follows entry 5", "entry 7 does not carry the hash"]),
        (["UPDATE entries SET number = 99 WHERE number = 5", "UPDATE entries SET number = 5 WHERE number = 6", "UPDATE entries SET number = 6 WHERE number = 99"], ["entry 5 does not carry the hash"]),
        (["UPDATE jobs SET state = 'failed', ended_at = 1 WHERE ended_at IS NULL"], ["the job is failed, but its hold is still open"]),
        (["UPDATE jobs SET state = 'queued', ended_at = NULL WHERE ended_at IS NOT NULL"], ["the job is queued, but its hold was closed"]),
        (["UPDATE jobs SET hold = 999 WHERE ended_at IS NULL"], ["the hold is 1000, but the job says 999"]),
        (["UPDATE accounts SET credit_line = credit_line + 5 WHERE id = 'commons'"], ["commons: credit_line is", "all credit lines add up to 5"]),
        (["UPDATE receipts SET state = 'late' WHERE number = 2"], ["receipt 2 is not the one"]),
        (["DELETE FROM receipts WHERE number = 1"], ["receipt 2 is not the one"]),
        (["DELETE FROM accounts WHERE id = 'commons'"], ["does not exist", "not to zero"]),
    ],
)  # fmt: skip
async def test_a_change_behind_the_coordinators_back_is_named(
    tmp_path: Path, statements: list[str], expected: list[str]
) -> None:
    await books(tmp_path)
    await tamper(tmp_path, statements)
    found = await findings(tmp_path)
    for words in expected:
        assert words in found


@pytest.mark.sqlite
async def test_a_damaged_file_is_a_finding_not_a_crash(tmp_path: Path) -> None:
    """A row that refers to nothing is found by the database's own check."""
    await books(tmp_path)
    connection = sqlite3.connect(tmp_path / "potluck.db")
    connection.execute("INSERT INTO certificates VALUES ('ff', 'wrk_gone', 0, 1)")
    connection.commit()
    connection.close()
    assert "refers to a missing row of workers" in await findings(tmp_path)


async def test_findings_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await books(tmp_path)
    monkeypatch.setattr("coordinator.audit.FINDINGS_MAX", 3)
    monkeypatch.setattr("coordinator.audit._PAGE_ENTRIES", 2)
    await tamper(tmp_path, ["UPDATE entries SET details = 'x'"])
    found = await findings(tmp_path)
    assert found.count("is not what its hash was made of") == 3
