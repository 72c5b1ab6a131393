"""The one place with SQL that only SQLite or only PostgreSQL understands."""

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy import (
    DDL,
    BigInteger,
    ColumnElement,
    Connection,
    Dialect,
    Engine,
    FromClause,
    Table,
    Text,
    bindparam,
    case,
    cast,
    column,
    event,
    func,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import TypeEngine

BUSY_TIMEOUT_MS: Final = 5_000
_SQLITE_BEGIN: Final = "BEGIN IMMEDIATE"
_SQLITE_FULL: Final = 13  # SQLITE_FULL
_POSTGRES_FULL: Final = "53100"  # disk_full
_POSTGRES_TEXT: Final = frozenset({"22021", "22P05"})  # character_not_in_repertoire, untranslatable_character
_POSTGRES_RAISED: Final = "P0001"  # raise_exception, from a trigger of ours
_POSTGRES_TOO_LARGE: Final = "22003"  # numeric_value_out_of_range

# One view for the whole transaction, as SQLite gives it; by default each statement would have its own.
POSTGRES_READER: Final[Mapping[str, Any]] = {
    "isolation_level": "REPEATABLE READ",
    "postgresql_readonly": True,
}

# A process that was stopped in a transaction must not keep its locks, nor wait for ever on a dead line.
POSTGRES_WRITER: Final[Mapping[str, Any]] = {
    "timeout": 5,
    "command_timeout": 60,
    "server_settings": {"idle_in_transaction_session_timeout": "3000"},
}
POSTGRES_BEATS: Final[Mapping[str, Any]] = {**POSTGRES_WRITER, "command_timeout": None}

# INSERT OR REPLACE deletes without firing DELETE triggers, hence the third one.
_SQLITE_APPEND_ONLY: Final = (
    """CREATE TRIGGER {table}_no_update BEFORE UPDATE ON {table} BEGIN
  SELECT RAISE(ABORT, 'the {of} is append-only: {table} are never changed');
END""",
    """CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {table} BEGIN
  SELECT RAISE(ABORT, 'the {of} is append-only: {table} are never deleted');
END""",
    """CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table}
WHEN EXISTS (SELECT 1 FROM {table} WHERE {taken}) BEGIN
  SELECT RAISE(ABORT, 'the {of} is append-only: {table} are recorded once');
END""",
)
_POSTGRES_APPEND_ONLY: Final = (
    """CREATE FUNCTION {table}_append_only() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  RAISE EXCEPTION 'the {of} is append-only: {table} are never changed or deleted';
END $$""",
    """CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table}
FOR EACH STATEMENT EXECUTE FUNCTION {table}_append_only()""",
)


def append_only(table: Table, taken: str, *, of: str = "ledger") -> None:
    """Whoever creates the table creates the triggers that refuse UPDATE and DELETE in it.

    `taken` is the condition under which a NEW row would replace an old one; `of`: what the table is part of.
    """
    for name, statements in (("sqlite", _SQLITE_APPEND_ONLY), ("postgresql", _POSTGRES_APPEND_ONLY)):
        for statement in statements:
            text = statement.format(table=table.name, taken=taken, of=of)
            ddl = DDL(text)  # type: ignore[no-untyped-call]  # SQLAlchemy leaves it untyped
            event.listen(table, "after_create", ddl.execute_if(dialect=name))


def prepare_sqlite(engine: Engine, *, writer: bool, references: bool = True) -> None:
    """WAL, so that readers never wait for the writer nor it for them; FULL, so that a commit is on the disk.

    The driver's own transaction control begins too late (at the first write) and not at all before a SELECT,
    so it is switched off and BEGIN is ours: IMMEDIATE for the writer, which then can only fail at its start.
    `references`: whether foreign keys are watched, as they are except while tables are made anew.
    """

    def connected(connection: DBAPIConnection, _record: object) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute(f"PRAGMA foreign_keys = {'ON' if references else 'OFF'}")
        if not writer:
            cursor.execute("PRAGMA query_only = ON")
        cursor.close()

    def begun(connection: Connection) -> None:
        connection.exec_driver_sql(_SQLITE_BEGIN if writer else "BEGIN")

    event.listen(engine, "connect", connected)
    event.listen(engine, "begin", begun)


def prepare_postgres(engine: Engine) -> None:
    """A connection that the server has closed meanwhile is replaced before anybody uses it."""

    def checked_out(connection: DBAPIConnection, _record: object, _proxy: object) -> None:
        if connection.driver_connection.is_closed():
            raise DisconnectionError

    event.listen(engine, "checkout", checked_out)


@contextmanager
def writing(connection: sqlite3.Connection) -> Iterator[sqlite3.Cursor]:
    """A transaction on a writer's connection, committed at the end, rolled back by whatever is raised."""
    cursor = connection.cursor()
    cursor.execute(_SQLITE_BEGIN)
    try:
        yield cursor
        cursor.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # some errors roll back by themselves
            cursor.execute("ROLLBACK")
        raise


def prepare_reader(engine: Engine) -> None:
    """For connections that were opened read-only: one view for each transaction, and no change."""

    def connected(connection: DBAPIConnection, _record: object) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        cursor.execute("PRAGMA query_only = ON")
        cursor.close()

    def begun(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    event.listen(engine, "connect", connected)
    event.listen(engine, "begin", begun)


def given(spoken: Dialect, types: Mapping[str, TypeEngine[Any]]) -> Mapping[str, ColumnElement[Any]]:
    """A statement's parameters: with SQLite those of one row, with PostgreSQL the columns of many."""
    if spoken.name == "sqlite":
        return {name: bindparam(name) for name in types}
    lists = [bindparam(name, type_=postgresql.ARRAY(type_)) for name, type_ in types.items()]
    rows = func.unnest(*lists).table_valued(*(column(name, type_) for name, type_ in types.items()))
    rows = rows.render_derived()
    return {name: rows.c[name] for name in types}


def is_in(spoken: Dialect, value: ColumnElement[Any], name: str) -> ColumnElement[bool]:
    """Is it in the list that is the parameter? With SQLite the list is a text in JSON."""
    if spoken.name == "sqlite":
        return value.in_(select(func.json_each(bindparam(name)).table_valued("value").c.value))
    return value == func.any(bindparam(name, type_=postgresql.ARRAY(value.type)))


def insert_into(spoken: Dialect, table: Table) -> sqlite.Insert | postgresql.Insert:
    """An INSERT that knows ON CONFLICT in the dialect."""
    if spoken.name == "sqlite":
        return sqlite.insert(table)
    return postgresql.insert(table)


def insert_given(spoken: Dialect, table: Table) -> sqlite.Insert | postgresql.Insert:
    """The same of `given` parameters, one for each column."""
    statement = insert_into(spoken, table)
    if spoken.name == "sqlite":
        return statement
    rows = given(spoken, {column.name: column.type for column in table.columns})
    return statement.from_select(table.columns.keys(), select(*rows.values()))


def upsert(spoken: Dialect, table: Table) -> sqlite.Insert | postgresql.Insert:
    """Inserts a row, or sets all columns of the row with the same primary key."""
    return _or_set(insert_into(spoken, table), table)


def upsert_given(spoken: Dialect, table: Table) -> sqlite.Insert | postgresql.Insert:
    """The same of `given` parameters; none of the rows may have the key of another one of them."""
    return _or_set(insert_given(spoken, table), table)


def _or_set(statement: sqlite.Insert | postgresql.Insert, table: Table) -> sqlite.Insert | postgresql.Insert:
    keys = [column.name for column in table.primary_key]
    rest = (column.name for column in table.columns if column.name not in keys)
    return statement.on_conflict_do_update(
        index_elements=keys, set_={name: statement.excluded[name] for name in rest}
    )


def is_full(cause: BaseException | None) -> bool:
    """Did the driver fail for want of room?"""
    code = getattr(cause, "sqlite_errorcode", None)
    if isinstance(code, int):
        return code & 0xFF == _SQLITE_FULL  # extended codes keep the primary one in the low byte
    return getattr(cause, "sqlstate", None) == _POSTGRES_FULL


def is_unwritable(cause: BaseException | None) -> bool:
    """Was there a text with a NUL character, which SQLite takes and PostgreSQL does not?"""
    return getattr(cause, "sqlstate", None) in _POSTGRES_TEXT


def is_refused(cause: BaseException | None) -> bool:
    """Did one of our triggers refuse it? SQLite's driver has an error of its own for that."""
    return getattr(cause, "sqlstate", None) == _POSTGRES_RAISED


def is_too_large(cause: BaseException | None) -> bool:
    """Does a number not fit into its column? asyncpg may say so before PostgreSQL sees it."""
    while cause is not None:
        if isinstance(cause, OverflowError) or getattr(cause, "sqlstate", None) == _POSTGRES_TOO_LARGE:
            return True
        cause = cause.__cause__
    return False


async def damage(connection: AsyncConnection) -> list[str]:
    """What the database's own check finds; PostgreSQL has none that a client can run."""
    if connection.dialect.name != "sqlite":
        return []
    found = (await connection.exec_driver_sql("PRAGMA integrity_check")).scalars().all()
    return [str(line) for line in found if line != "ok"] + await orphans(connection)


async def orphans(connection: AsyncConnection) -> list[str]:
    """Rows that refer to nothing; PostgreSQL lets none be."""
    if connection.dialect.name != "sqlite":
        return []
    rows = (await connection.exec_driver_sql("PRAGMA foreign_key_check")).mappings().all()
    return [
        f"row {row['rowid']} of {row['table']} refers to a missing row of {row['parent']}" for row in rows
    ]


def text_at(spoken: Dialect, document: ColumnElement[str], name: str) -> ColumnElement[Any]:
    """A text in a JSON object that is kept as text."""
    if spoken.name == "sqlite":
        return func.json_extract(document, f"$.{name}")
    return func.jsonb_extract_path_text(cast(document, postgresql.JSONB), name)


def sum_at(spoken: Dialect, document: ColumnElement[str], name: str) -> ColumnElement[Any]:
    """The sum of a list of integers in a JSON object that is kept as text; NULL without one."""
    item = _items(spoken, document, name)
    value = item.c.value if spoken.name == "sqlite" else cast(item.c.value, Text)
    return select(func.sum(cast(value, BigInteger))).select_from(item).scalar_subquery()


def sum_in(
    spoken: Dialect, document: ColumnElement[str], name: str, field: str, account: str | None
) -> ColumnElement[Any]:
    """Of the objects in a list: the sum of their integers `field`, of those alone that are this account's if
    there are several; NULL without any.

    With SQLite a list of one, as nearly all are, is read without `json_each`, which costs ten times as much.
    """
    item = _items(spoken, document, name)
    found = select(func.sum(cast(_in_item(spoken, item, field), BigInteger))).select_from(item)
    if account is not None:
        found = found.where(_in_item(spoken, item, "account") == account)
    several = found.scalar_subquery()
    if spoken.name != "sqlite":
        return several
    only = func.json_extract(document, f"$.{name}[0].{field}")
    return case((func.json_array_length(document, f"$.{name}") > 1, several), else_=cast(only, BigInteger))


def _items(spoken: Dialect, document: ColumnElement[str], name: str) -> FromClause:
    if spoken.name == "sqlite":
        return func.json_each(document, f"$.{name}").table_valued("value")
    found = func.jsonb_extract_path(cast(document, postgresql.JSONB), name)
    return func.jsonb_array_elements(found).table_valued(column("value", postgresql.JSONB))


def _in_item(spoken: Dialect, item: FromClause, name: str) -> ColumnElement[Any]:
    if spoken.name == "sqlite":
        return func.json_extract(item.c.value, f"$.{name}")
    return func.jsonb_extract_path_text(item.c.value, name)
