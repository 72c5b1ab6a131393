"""A transaction in which compiled statements run, through SQLAlchemy or through SQLite's driver alone.

The tick's commit stands between a request and its first token, and around statements that are ready as text
SQLAlchemy costs as much as the database itself. Only PostgreSQL needs it there: its driver is asynchronous.
"""

import json
import sqlite3
from collections.abc import Sequence
from typing import Any, Protocol

from sqlalchemy import Connection

Row = Sequence[Any]


class Transaction(Protocol):
    def read(self, statement: str, parameters: tuple[Any, ...] = ()) -> Sequence[Row]:
        """All rows of one SELECT."""
        ...

    def read_of(self, statement: str, ids: Sequence[str]) -> Sequence[Row]:
        """All rows of a SELECT whose one parameter is a list (`dialect.is_in`)."""
        ...

    def write(self, statement: str, rows: list[tuple[Any, ...]]) -> None:
        """The statement with all rows (`dialect.given`); nothing to write is nothing to do."""
        ...


class AlchemyTransaction:
    """Writes to PostgreSQL, reads from both."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def read(self, statement: str, parameters: tuple[Any, ...] = ()) -> Sequence[Row]:
        return self._connection.exec_driver_sql(statement, parameters).all()

    def read_of(self, statement: str, ids: Sequence[str]) -> Sequence[Row]:
        return self.read(statement, (list(ids),))

    def write(self, statement: str, rows: list[tuple[Any, ...]]) -> None:
        if rows:
            columns = tuple(map(list, zip(*rows, strict=True)))
            self._connection.exec_driver_sql(statement, columns)


class SqliteTransaction:
    def __init__(self, cursor: sqlite3.Cursor) -> None:
        self._cursor = cursor

    def read(self, statement: str, parameters: tuple[Any, ...] = ()) -> Sequence[Row]:
        return self._cursor.execute(statement, parameters).fetchall()

    def read_of(self, statement: str, ids: Sequence[str]) -> Sequence[Row]:
        return self.read(statement, (json.dumps(list(ids)),))

    def write(self, statement: str, rows: list[tuple[Any, ...]]) -> None:
        if rows:
            self._cursor.executemany(statement, rows)
