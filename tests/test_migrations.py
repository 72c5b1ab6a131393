"""The migrated database is the one that the tables describe, and a newer one is left alone."""

import re
import sqlite3
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from fixtures_store import NOW, url_in
from sqlalchemy import Connection, create_engine

from coordinator.core.ledger import LINES
from coordinator.migrations import configuration, migrate
from coordinator.store import Store
from coordinator.store_errors import DatabaseNewer
from coordinator.tables import Base

DATA = Path(__file__).parent / "data"


def normal(sql: str) -> str:
    """One statement without the accidents of spelling: blanks, quotes, order of constraints."""
    head, _, body = re.sub(r"\s+", " ", sql.replace('"', "")).partition("(")
    if not head.startswith("CREATE TABLE"):
        return f"{head}({body}"
    parts = re.split(r", (?=CONSTRAINT|[a-z_]+ [A-Z]+)", body.strip().removesuffix(")").strip())
    return f"{head.strip()}({', '.join(sorted(part.strip() for part in parts))})"


def schema(connection: Connection) -> dict[str, str]:
    """Tables, indexes and triggers with their SQL."""
    rows = connection.exec_driver_sql("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL").all()
    return {f"{row[0]} {row[1]}": normal(row[2]) for row in rows if row[1] != "alembic_version"}


def test_migrations_make_what_the_tables_say(tmp_path: Path) -> None:
    """Columns, keys, CHECKs, UNIQUEs, indexes and triggers, word for word."""
    migrated = create_engine(f"sqlite:///{tmp_path / 'migrated.db'}")
    described = create_engine(f"sqlite:///{tmp_path / 'described.db'}")
    with migrated.begin() as connection:
        migrate(connection)
        found = schema(connection)
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    with described.begin() as connection:
        Base.metadata.create_all(connection)
        expected = schema(connection)
    assert found == expected
    assert "trigger entries_no_update" in found
    assert (
        "CONSTRAINT ck_accounts_floor CHECK (id = 'lines' OR main >= -credit_line)" in found["table accounts"]
    )
    migrated.dispose()
    described.dispose()


def test_there_is_one_line_of_revisions(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'x.db'}")
    with engine.begin() as connection:
        script = ScriptDirectory.from_config(configuration(connection))
        assert len(script.get_heads()) == 1
        migrate(connection)
        migrate(connection)  # the second time nothing is to do
    engine.dispose()


async def test_a_newer_database_is_left_alone(tmp_path: Path) -> None:
    """The sentence says which revision, and what to do."""
    await (await Store.open(url_in(tmp_path), NOW)).close()
    connection = sqlite3.connect(tmp_path / "potluck.db")
    (head,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.commit()
    with pytest.raises(DatabaseNewer, match=r"newer Potluck \(revision 9999; .* Upgrade Potluck"):
        await Store.open(url_in(tmp_path), NOW)
    assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == ("9999",)
    connection.close()
    connection = sqlite3.connect(tmp_path / "potluck.db")
    connection.execute("UPDATE alembic_version SET version_num = ?", (head,))
    connection.commit()
    connection.close()
    await (await Store.open(url_in(tmp_path), NOW)).close()  # the lock was let go


async def test_a_database_of_the_first_shape_is_brought_forward(tmp_path: Path) -> None:
    """Nothing is lost, credit lines have become entries, receipts a chain, and the books still add up."""
    connection = sqlite3.connect(tmp_path / "potluck.db")
    connection.executescript((DATA / "revision_0001.sql").read_text())
    before = dict(connection.execute("SELECT id, credit_line FROM accounts").fetchall())
    spent = dict(connection.execute("SELECT id, main FROM accounts").fetchall())
    entries = connection.execute("SELECT number, hash FROM entries").fetchall()
    receipts = connection.execute("SELECT job_id, body, signature FROM receipts").fetchall()
    connection.close()
    store = await Store.open(url_in(tmp_path), NOW)
    try:
        assert await store.verify() == []
        assert await store.unopened() == []
        loaded = await store.load()
        accounts = {account.id: account for account in loaded.accounts}
        assert accounts.pop(LINES).credit_line == -sum(before.values())
        assert {account.id: account.credit_line for account in accounts.values()} == before
        assert {account.id: account.main for account in accounts.values()} == spent
        recorded = await store.recorded()
        assert [(r.number, r.hash) for r in recorded][: len(entries)] == entries
        assert len(recorded) == len(entries) + len(before)
        assert loaded.last_receipt_number == len(receipts) > 1
        assert await store.setting("marker") == "kept"
        (waiting,) = loaded.open_jobs
        assert (waiting.key, waiting.settled) == ("", 0)
        kept = [(r.receipt.job_id, r.receipt.body, r.receipt.signature) for row in receipts
                for r in await store.receipts_of(row[0])]  # fmt: skip
        assert kept == receipts
    finally:
        await store.close()
