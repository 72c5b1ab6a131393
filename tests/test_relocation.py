"""`migrate-database`: a lived-in pool goes from SQLite to PostgreSQL and back with every row, opens there, and what
cannot go leaves the new database empty."""

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fixtures_history import KEY, contents, revisions, write
from fixtures_pool import COMMAND
from fixtures_postgres import PASSWORD, Postgres
from sqlalchemy import inspect
from sqlalchemy.ext.asyncio import create_async_engine

from coordinator import dialect
from coordinator.app import coordinator, home_lock
from coordinator.ca import CertificateAuthority
from coordinator.check import check
from coordinator.clock import SteadyClock
from coordinator.database import database_url
from coordinator.relocation import relocate
from coordinator.settings import Settings
from coordinator.store_errors import StoreError

pytestmark = pytest.mark.processes

Rows = dict[str, list[tuple[Any, ...]]]


@pytest.fixture
def elsewhere(postgres: Postgres) -> Iterator[str]:
    """The name of an empty database."""
    with postgres.database() as name:
        yield name


@pytest.fixture
async def settings(tmp_path: Path) -> Settings:
    """Of a stopped coordinator whose books are in SQLite, with something in every table."""
    made = Settings.load({"home": tmp_path, "http": "127.0.0.1:0", "grpc": "127.0.0.1:0", "emulator": True})
    made.folder.mkdir()
    ca = CertificateAuthority.open(tmp_path, made.pool_name, SteadyClock().now())
    engine = create_async_engine(database_url(made.database_url))
    dialect.prepare_sqlite(engine.sync_engine, writer=True, references=False)
    async with engine.begin() as connection:
        await connection.run_sync(write, revisions()[-1], ca)
    await engine.dispose()
    return made


async def rows(url: str) -> Rows:
    """Of each table, in an order of their own; the two databases say yes and no differently."""
    engine = create_async_engine(database_url(url))
    async with engine.connect() as connection:
        found = await connection.run_sync(contents)
    await engine.dispose()
    return {
        table: sorted(
            (tuple(sorted((name, _plain(value)) for name, value in row.items())) for row in of), key=repr
        )
        for table, of in found.items()
        if table not in {"leader", "standbys"}
    }


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, bool) else value


async def tables(url: str) -> list[str]:
    engine = create_async_engine(database_url(url))
    async with engine.connect() as connection:
        found: list[str] = await connection.run_sync(lambda plain: inspect(plain).get_table_names())
    await engine.dispose()
    return found


def command(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "coordinator", "migrate-database", *arguments],
        env={**os.environ, "POTLUCK_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


async def test_a_pool_goes_to_postgresql_opens_there_and_comes_back(
    settings: Settings, postgres: Postgres, elsewhere: str
) -> None:
    before = await rows(settings.database_url)
    plain = postgres.variables(elsewhere)["POTLUCK_DATABASE"]
    password = str(postgres.folder / "password")
    done = await asyncio.to_thread(command, settings.home, "--to", plain, "--to-password-file", password)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Nothing is wrong with the copy" in done.stdout
    assert f'database = "{plain}"' in done.stdout
    assert PASSWORD not in done.stdout + done.stderr
    assert await rows(postgres.url(elsewhere)) == before == await rows(settings.database_url)

    there = settings.model_copy(update={"database": postgres.url(elsewhere)})
    report, signed = await check(there)
    assert (report.findings, signed) == ([], True)
    back = f"sqlite:///{settings.home / 'back.db'}"
    moved = await relocate(there, back, SteadyClock().now())
    assert moved.report.findings == []
    assert await rows(back) == before

    async with coordinator(there) as running:
        async with httpx2.AsyncClient(headers={"Authorization": f"Bearer {KEY}"}, verify=False) as client:
            status = await client.get(f"http://{running.http}/pool/v1/status")
        assert status.raise_for_status().json()["ledger_sum"] == 0
    report, _ = await check(there)
    assert report.findings == []


async def test_a_move_that_breaks_off_leaves_the_new_database_empty(
    settings: Settings, postgres: Postgres, elsewhere: str
) -> None:
    seen = []

    def interrupted(done: int, total: int) -> None:
        seen.append((done, total))
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await relocate(settings, postgres.url(elsewhere), SteadyClock().now(), interrupted)
    assert len(seen) > 1
    assert await tables(postgres.url(elsewhere)) == []
    moved = await relocate(settings, postgres.url(elsewhere), SteadyClock().now())
    assert (moved.report.findings, moved.signed) == ([], True)


async def test_what_must_not_be_moved_is_refused(
    settings: Settings, postgres: Postgres, elsewhere: str
) -> None:
    """Into what is in use, while a coordinator runs, to itself, or from where nothing is."""
    now, url = SteadyClock().now(), postgres.url(elsewhere)
    with pytest.raises(StoreError, match="there already"):
        await relocate(settings, settings.database_url, now)
    nowhere = settings.model_copy(update={"database": f"sqlite:///{settings.home / 'none.db'}"})
    with pytest.raises(StoreError, match="there is no pool"):
        await relocate(nowhere, url, now)
    lock = home_lock(settings)
    done = await asyncio.to_thread(command, settings.home, "--to", url)
    lock.release()
    assert done.returncode == 1
    assert "already runs a coordinator" in done.stderr
    postgres.ask("psql", "--command=CREATE TABLE recipes (id integer)", elsewhere)
    with pytest.raises(StoreError, match="not empty: it has a table 'recipes'"):
        await relocate(settings, url, now)
    assert await tables(url) == ["recipes"]
