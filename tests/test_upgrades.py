"""A database of every earlier revision comes forward with all that was in it, and its pool goes on, on SQLite and on
PostgreSQL; one of a later revision is left alone."""

import asyncio
import os
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fixtures_history import ADMINS, KEY, MEMBERS, OWNERS, contents, revisions, write
from fixtures_pool import COMMAND
from fixtures_postgres import Postgres
from fixtures_store import NOW
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine

from coordinator import dialect
from coordinator.app import coordinator
from coordinator.ca import CertificateAuthority
from coordinator.check import check
from coordinator.clock import SteadyClock
from coordinator.database import database_url
from coordinator.settings import Settings
from coordinator.store import Store
from coordinator.store_errors import DatabaseNewer

pytestmark = pytest.mark.processes

EARLIER = revisions()
Rows = dict[str, list[dict[str, Any]]]


@pytest.fixture(params=["sqlite", "postgresql"])
def home(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Of a coordinator, with an empty database."""
    monkeypatch.setenv("POTLUCK_HOME", str(tmp_path))
    (tmp_path / "coordinator").mkdir()
    if request.param == "postgresql":
        server: Postgres = request.getfixturevalue("postgres")
        with server.database() as name:
            for variable, value in server.variables(name).items():
                monkeypatch.setenv(variable, value)
            yield tmp_path
        return
    yield tmp_path


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Any]:
    """A transaction in the database as it lies there."""
    url = database_url(settings.database_url)
    engine = create_async_engine(url)
    if url.get_backend_name() == "sqlite":
        dialect.prepare_sqlite(engine.sync_engine, writer=True, references=False)
    try:
        async with engine.begin() as connection:
            yield connection
    finally:
        await engine.dispose()


def load(home: Path) -> Settings:
    return Settings.load({"home": home, "http": "127.0.0.1:0", "grpc": "127.0.0.1:0", "emulator": True})


def same(before: Rows, after: Rows, first: bool) -> None:
    """Every row is there, in all columns that it had; what was added is known."""
    lines = sum(row["credit_line"] > 0 for row in before["accounts"])
    added = {"accounts": 1, "entries": lines, "postings": 2 * lines} if first else {}
    for table, rows in before.items():
        if table == "leader":  # says who has just opened the database
            continue
        assert rows, f"nothing in {table} shows what becomes of it: tests/fixtures_history.py"
        changed = {"at"} if first and table == "receipts" else set()  # became a text, as in entries
        columns = sorted(set(rows[0]) - changed)
        found = Counter(tuple(row[column] for column in columns) for row in after[table])
        missing = Counter(tuple(row[column] for column in columns) for row in rows) - found
        assert not missing, table
        assert len(after[table]) == len(rows) + added.get(table, 0), table
    for table in after.keys() - before.keys() - {"leader"}:
        assert not after[table], f"{table} is new and should be empty"


@pytest.mark.parametrize("revision", EARLIER)
async def test_nothing_is_lost_and_the_pool_goes_on(home: Path, revision: str) -> None:
    settings, clock = load(home), SteadyClock()
    ca = CertificateAuthority.open(home, settings.pool_name, clock.now())
    async with opened(settings) as connection:
        await connection.run_sync(write, revision, ca)
    async with opened(settings) as connection:
        before: Rows = await connection.run_sync(contents)
    store = await Store.open(settings.database_url, NOW)
    await store.probe()
    assert await store.glance() == []
    await store.close()
    async with opened(settings) as connection:
        same(before, await connection.run_sync(contents), revision == EARLIER[0])
    report, signed = await check(settings)
    assert (report.findings, signed) == ([], True)

    async with coordinator(settings) as running:
        client = httpx2.AsyncClient(
            base_url=f"http://{running.http}", headers={"Authorization": f"Bearer {KEY}"}, verify=False
        )
        async with client:
            status = (await client.get("/pool/v1/status")).raise_for_status().json()
            assert status["ledger_sum"] == 0
            for path, methods in running.api.openapi()["paths"].items():
                if "get" in methods and "{" not in path and not path.startswith("/pool/v1/ledger/export"):
                    answer = await client.get(path)
                    assert answer.status_code < 400, f"{path}: {answer.text}"
        accounts = running.pool.engine.book.accounts
        kept = {row["id"]: row for row in before["accounts"]}
        for account in (ADMINS, OWNERS, MEMBERS, "commons"):
            assert accounts[account].balance == kept[account]["main"] + kept[account]["reserved"]  # type: ignore[index]  # ids are text
            assert accounts[account].credit_line == kept[account]["credit_line"]  # type: ignore[index]  # as above
        assert all(account.reserved == 0 for account in accounts.values()), "holds of what ran have returned"
    report, _ = await check(settings)
    assert report.findings == []


async def test_a_later_revision_is_left_alone(home: Path) -> None:
    """The store refuses it, and whoever starts the coordinator reads why and what to do."""
    settings = load(home)
    ca = CertificateAuthority.open(home, settings.pool_name, SteadyClock().now())

    def later(connection: Connection) -> None:
        write(connection, EARLIER[-1], ca)
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")

    async with opened(settings) as connection:
        await connection.run_sync(later)
    async with opened(settings) as connection:
        before = await connection.run_sync(contents)
    with pytest.raises(DatabaseNewer):
        await Store.open(settings.database_url, NOW)
    started = await asyncio.to_thread(
        subprocess.run,
        [*COMMAND, "coordinator", "start", "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert started.returncode == 1
    wanted = (
        f"written by a newer Potluck (revision 9999; this one knows up to {EARLIER[-1]}). Upgrade Potluck"
    )
    assert wanted in started.stderr
    assert "Traceback" not in started.stderr
    async with opened(settings) as connection:
        assert await connection.run_sync(contents) == before
