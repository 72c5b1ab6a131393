"""The tick's SQL, compiled once for the database at hand.

SQLAlchemy looks at every parameter of every row on its way to the driver, which costs the event loop more
than the database needs to write the row. So Core writes the statements, once, and the tick hands tuples in
the order of the tables' columns straight to the driver. SQLite runs a statement once for each row
(`executemany`). PostgreSQL gets all rows of a table at once, as one list for each column: to begin and end a
statement costs it several times as much as one row more.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Dialect, Executable, Table, func, select, update

from coordinator import dialect, tables
from coordinator.core.ledger import Bucket
from coordinator.tables import table_of

BUCKETS: Final = tuple(bucket.value for bucket in Bucket)
STANDING: Final = ("good_jobs", "first_job_at", "proven_at")


@dataclass(frozen=True, slots=True, kw_only=True)
class Statements:
    jobs: str
    attempts: str
    entries: str
    postings: str
    receipts: str
    requests: str
    results: str
    standings: str  # parameters: good jobs, first job, proven, and the worker
    moves: str  # parameters: what to add to each bucket, and the account
    head: str  # number and hash of the last entry
    receipts_head: str  # the same of the last receipt
    sums: str  # id and buckets of the accounts in a list (`Transaction.read_of`)


def compile_statements(spoken: Dialect) -> Statements:
    """In the words and with the parameter style of the dialect."""

    def upsert(model: type[tables.Base]) -> str:
        table = table_of(model)
        return _compiled(dialect.upsert_given(spoken, table), spoken, table.columns.keys())

    def insert(model: type[tables.Base]) -> str:
        table = table_of(model)
        return _compiled(dialect.insert_given(spoken, table), spoken, table.columns.keys())

    def change(
        model: type[tables.Base], names: Sequence[str], new: Callable[[str, ColumnElement[Any]], object]
    ) -> str:
        """Of the row whose id comes last: what `new` makes of each parameter that comes before it."""
        table = table_of(model)
        given = {f"new_{name}": table.c[name].type for name in names} | {"row": table.c.id.type}
        values = dialect.given(spoken, given)
        changed = update(table).where(table.c.id == values["row"])
        changed = changed.values({name: new(name, values[f"new_{name}"]) for name in names})
        return _compiled(changed, spoken, list(given))

    accounts = table_of(tables.Account)
    sums = select(accounts.c.id, *(accounts.c[bucket] for bucket in BUCKETS))
    return Statements(
        jobs=upsert(tables.Job),
        attempts=upsert(tables.Attempt),
        entries=insert(tables.Entry),
        postings=insert(tables.Posting),
        receipts=insert(tables.Receipt),
        requests=upsert(tables.StoredRequest),
        results=upsert(tables.StoredResult),
        moves=change(tables.Account, BUCKETS, lambda name, by: accounts.c[name] + by),
        standings=change(tables.Worker, STANDING, lambda _, value: value),
        head=_compiled(_last(table_of(tables.Entry)), spoken, []),
        receipts_head=_compiled(_last(table_of(tables.Receipt)), spoken, []),
        sums=_compiled(sums.where(dialect.is_in(spoken, accounts.c.id, "ids")), spoken, ["ids"]),
    )


def _last(chain: Table) -> Executable:
    """Number and hash of a chain's last record."""
    last = select(func.max(chain.c.number)).scalar_subquery()
    return select(chain.c.number, chain.c.hash).where(chain.c.number == last)


def _compiled(statement: Executable, spoken: Dialect, order: Sequence[str]) -> str:
    compiled = statement.compile(dialect=spoken)  # type: ignore[attr-defined]  # every construct has it
    assert (compiled.positiontup or []) == list(order), (
        "tuples are given in another order than the SQL asks for"
    )
    return str(compiled)
