"""How the database came to its present shape, and how an older one gets there: `migrate`."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from coordinator.store_errors import DatabaseNewer, StoreError


def configuration(connection: Connection) -> Config:
    """Alembic's settings without a file: the connection is handed over, so any engine will do."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def migrate(connection: Connection) -> bool:
    """Bring the database to the newest revision, inside the caller's transaction; whether anything was to do.

    Raises DatabaseNewer if a later version of Potluck has been here.
    """
    config = configuration(connection)
    known = ScriptDirectory.from_config(config)
    current = MigrationContext.configure(connection).get_current_revision()
    if current is not None and current not in {script.revision for script in known.walk_revisions()}:
        raise DatabaseNewer(
            f"this database was written by a newer Potluck (revision {current}; this one knows up to"
            f" {known.get_current_head()}). Upgrade Potluck, or restore a backup made with this version."
        )
    if current == known.get_current_head():
        return False
    command.upgrade(config, "head")
    return True


def check_revision(connection: Connection) -> None:
    """Raises StoreError unless the database has this version's shape; changes nothing."""
    head = ScriptDirectory.from_config(configuration(connection)).get_current_head()
    current = MigrationContext.configure(connection).get_current_revision()
    if current is None:
        raise StoreError("this is no database of a Potluck coordinator")
    if current != head:
        raise StoreError(
            f"this database has the shape of another version (revision {current}; this one knows {head})."
            " Start the coordinator of this version once to bring an older one forward, or use the version"
            " that wrote it."
        )
