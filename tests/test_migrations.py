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

from coordinator.migrations import configuration, migrate
from coordinator.store import Store
from coordinator.store_errors import DatabaseNewer
from coordinator.tables import Base


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
    assert "CONSTRAINT ck_accounts_floor CHECK (main >= -credit_line)" in found["table accounts"]
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
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.commit()
    with pytest.raises(DatabaseNewer, match=r"newer Potluck \(revision 9999; .* Upgrade Potluck"):
        await Store.open(url_in(tmp_path), NOW)
    assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == ("9999",)
    connection.close()
    connection = sqlite3.connect(tmp_path / "potluck.db")
    connection.execute("UPDATE alembic_version SET version_num = '0001'")
    connection.commit()
    connection.close()
    await (await Store.open(url_in(tmp_path), NOW)).close()  # the lock was let go
