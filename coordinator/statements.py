"""The tick's SQL, compiled once for the database at hand.

SQLAlchemy looks at every parameter of every row on its way to the driver, which costs the event loop more
than the database needs to write the row. So Core writes the statements, once, and the tick hands tuples in
the order of the tables' columns straight to the driver's `executemany`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Dialect, Executable, Table, bindparam, func, or_, select, update

from coordinator import dialect, tables
from coordinator.core.ledger import Bucket
from coordinator.tables import table_of

BUCKETS: Final = tuple(bucket.value for bucket in Bucket)
STANDING: Final = ("good_jobs", "first_job_at", "proven_at")
ACCOUNTS_AT_ONCE: Final = 16  # a fixed number of parameters, so that the statement is always the same


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
    sums: str  # id and buckets of ACCOUNTS_AT_ONCE accounts


def compile_statements(spoken: Dialect) -> Statements:
    """In the words and with the parameter style of the dialect."""

    def upsert(model: type[tables.Base]) -> str:
        table = table_of(model)
        return _compiled(dialect.upsert(spoken, table), spoken, table.columns.keys())

    def insert(model: type[tables.Base]) -> str:
        table = table_of(model)
        return _compiled(table.insert(), spoken, table.columns.keys())

    accounts, workers = table_of(tables.Account), table_of(tables.Worker)
    move = update(accounts).where(accounts.c.id == bindparam("account"))
    move = move.values({bucket: accounts.c[bucket] + bindparam(f"by_{bucket}") for bucket in BUCKETS})
    asked = [f"id_{n}" for n in range(ACCOUNTS_AT_ONCE)]
    sums = select(accounts.c.id, *(accounts.c[bucket] for bucket in BUCKETS))
    sums = sums.where(or_(*(accounts.c.id == bindparam(name) for name in asked)))
    standing = update(workers).where(workers.c.id == bindparam("worker"))
    standing = standing.values({name: bindparam(f"new_{name}") for name in STANDING})
    return Statements(
        jobs=upsert(tables.Job),
        attempts=upsert(tables.Attempt),
        entries=insert(tables.Entry),
        postings=insert(tables.Posting),
        receipts=insert(tables.Receipt),
        requests=upsert(tables.StoredRequest),
        results=upsert(tables.StoredResult),
        moves=_compiled(move, spoken, [*(f"by_{bucket}" for bucket in BUCKETS), "account"]),
        standings=_compiled(standing, spoken, [*(f"new_{name}" for name in STANDING), "worker"]),
        head=_compiled(_last(table_of(tables.Entry)), spoken, []),
        receipts_head=_compiled(_last(table_of(tables.Receipt)), spoken, []),
        sums=_compiled(sums, spoken, asked),
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
