"""What all tables share: one metadata, and the ways in which their columns are written down."""

from collections.abc import Iterable
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, MetaData, Table, Text
from sqlmodel import Field, SQLModel


def one_of(column: str, words: Iterable[StrEnum]) -> CheckConstraint:
    listed = ", ".join(f"'{word.value}'" for word in words)
    return CheckConstraint(f"{column} IN ({listed})", name=column)


def check(condition: str, name: str) -> CheckConstraint:
    return CheckConstraint(condition, name=name)


def key(**more: Any) -> Any:
    return Field(primary_key=True, **more)


def integer() -> Any:
    return Field(sa_type=BigInteger)


def text_column() -> Any:
    return Field(sa_type=Text)


class Base(SQLModel):
    """All tables share one metadata, whose names are the same in every dialect."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


def table_of(model: type[Base]) -> Table:
    """The table behind a model, for Core statements."""
    table = Base.metadata.tables[str(model.__tablename__)]
    assert isinstance(table, Table)
    return table
