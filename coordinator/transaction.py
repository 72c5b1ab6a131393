"""A transaction in which compiled statements run, through SQLAlchemy or through SQLite's driver alone.

The tick's commit stands between a request and its first token, and around statements that are ready as text
SQLAlchemy costs as much as the database itself. Only PostgreSQL needs it there: its driver is asynchronous.
"""

import sqlite3
from collections.abc import Sequence
from typing import Any, Protocol

from sqlalchemy import Connection

Row = Sequence[Any]


class Transaction(Protocol):
    def read(self, statement: str, parameters: tuple[Any, ...] = ()) -> Sequence[Row]:
        """All rows of one SELECT."""
        ...

    def write(self, statement: str, rows: list[tuple[Any, ...]]) -> None:
        """The statement once for each row; nothing to write is nothing to do."""
        ...


class AlchemyTransaction:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def read(self, statement: str, parameters: tuple[Any, ...] = ()) -> Sequence[Row]:
        return self._connection.exec_driver_sql(statement, parameters).all()

    def write(self, statement: str, rows: list[tuple[Any, ...]]) -> None:
        if rows:
            self._connection.exec_driver_sql(statement, rows)


class SqliteTransaction:
    def __init__(self, cursor: sqlite3.Cursor) -> None:
        self._cursor = cursor

    def read(self, statement: str, parameters: tuple[Any, ...] = ()) -> Sequence[Row]:
        return self._cursor.execute(statement, parameters).fetchall()

    def write(self, statement: str, rows: list[tuple[Any, ...]]) -> None:
        if rows:
            self._cursor.executemany(statement, rows)
