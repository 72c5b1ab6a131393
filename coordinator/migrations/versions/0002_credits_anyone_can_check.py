"""Credits that anyone can check: credit lines with two sides, receipts in a chain, signed heads, invitations.

SQLite cannot alter constraints, so each table that changes is copied, made anew and filled again, on both
databases alike. Credit lines become entries of the ledger; receipts get their places in a chain, without a
countersignature, since no key is at hand here.
"""

import json
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import sqlalchemy as sa
from alembic import op

from coordinator.migrations.shape_0002 import create_tables

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_GENESIS = "0" * 64
_REPLACED = {  # when a NEW row would replace an old one
    "entries": "number = NEW.number OR id = NEW.id",
    "postings": "entry_number = NEW.entry_number AND position = NEW.position",
    "receipts": (
        "number = NEW.number OR (job_id = NEW.job_id AND attempt = NEW.attempt AND worker_id = NEW.worker_id)"
    ),
    "heads": "number = NEW.number AND receipts_number = NEW.receipts_number",
}
_ADDED: dict[str, dict[str, str]] = {  # what the new columns of rows that were there hold, as SQL
    "members": {"state": "'active'", "why": "''", "limits": "'{}'"},
    "accounts": {"opening_line": "credit_line", "lender_id": "NULL", "lent": "0"},
    "api_keys": {"scopes": "'[]'", "models": "'[]'", "limits": "'{}'"},
    "workers": {"good_jobs": "0", "first_job_at": "NULL", "proven_at": "NULL"},
    "jobs": {"key_id": "''", "settled": "0", "settlements": "0"},
    "attempts": {"held": "FALSE"},
    "entries": {},
    "postings": {},
}
_REFERENCES = {  # from tables that stay, to tables that are made anew
    "join_tokens": ("member_id", "members"),
    "models": ("added_by", "members"),
    "certificates": ("worker_id", "workers"),
    "stored_requests": ("job_id", "jobs"),
    "stored_results": ("job_id", "jobs"),
}


def upgrade() -> None:
    changed = [*_ADDED, "receipts"]
    for table in changed:
        op.execute(f"CREATE TABLE old_{table} AS SELECT * FROM {table}")  # noqa: S608 -- literals of this file
    for table in reversed(changed):
        op.execute(f"DROP TABLE {table}" + (" CASCADE" if _spoken() == "postgresql" else ""))
    create_tables()
    for table, added in _ADDED.items():
        _fill(table, added)
    _chain_receipts()
    _lend()
    for table in changed:
        op.execute(f"DROP TABLE old_{table}")
    if _spoken() == "postgresql":
        for table, (column, referred) in _REFERENCES.items():
            op.create_foreign_key(f"fk_{table}_{column}", table, referred, [column], ["id"])
    for table in _REPLACED:
        _append_only(table)


def _spoken() -> str:
    return op.get_bind().dialect.name


def _fill(table: str, added: dict[str, str]) -> None:
    old = [column["name"] for column in sa.inspect(op.get_bind()).get_columns(f"old_{table}")]
    names, values = ", ".join([*old, *added]), ", ".join([*old, *added.values()])
    op.execute(
        f"INSERT INTO {table} ({names}) SELECT {values} FROM old_{table}"  # noqa: S608 -- names of columns
    )


def _canonical(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def _rfc3339(seconds: float) -> str:
    moment = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return moment.replace("+00:00", "Z")


def _table(name: str, columns: str) -> sa.TableClause:
    return sa.table(name, *(sa.column(column) for column in columns.split(", ")))


def _chain_receipts() -> None:
    """In the order in which they came."""
    bind, previous = op.get_bind(), _GENESIS
    columns = "job_id, attempt, worker_id, body, signature, state, why, at"
    rows = bind.exec_driver_sql("SELECT * FROM old_receipts ORDER BY at, job_id, attempt, worker_id").all()
    receipts = _table("receipts", f"{columns}, number, previous, hash, countersignature")
    for number, row in enumerate(rows, 1):
        at = _rfc3339(row.at)
        covered = {
            "number": number,
            "at": at,
            "worker": row.worker_id,
            "body": sha256(bytes(row.body)).hexdigest(),
            "signature": bytes(row.signature).hex(),
            "state": row.state,
            "previous": previous,
        }
        digest = sha256(_canonical(covered)).hexdigest()
        values = {**row._asdict(), "at": at, "number": number, "previous": previous, "hash": digest}
        bind.execute(receipts.insert().values(**values, countersignature=b""))
        previous = digest


def _lend() -> None:
    """Each credit line there is becomes an entry, from the account that lends for the pool."""
    bind = op.get_bind()
    bind.exec_driver_sql(
        "INSERT INTO accounts (id, opening_line, lent, credit_line, main, reserved, held)"
        " SELECT 'lines', 0, 0, -COALESCE(SUM(credit_line), 0), 0, 0, 0 FROM accounts"
    )
    last = bind.exec_driver_sql("SELECT number, hash FROM entries ORDER BY number DESC LIMIT 1").one_or_none()
    after, previous = (0, _GENESIS) if last is None else (last.number, last.hash)
    lines = bind.exec_driver_sql(
        "SELECT id, credit_line FROM accounts WHERE credit_line > 0 ORDER BY id"
    ).all()
    entries = _table("entries", "number, id, at, code, details, previous, hash")
    postings = _table("postings", "entry_number, position, account_id, bucket, amount")
    at = _rfc3339(datetime.now(UTC).timestamp())
    for number, row in enumerate(lines, after + 1):
        cause = f"{row.id}/open/line"
        moved = [["lines", "credit_line", -row.credit_line], [row.id, "credit_line", row.credit_line]]
        covered = {
            "number": number,
            "at": at,
            "id": cause,
            "code": "line",
            "job": None,
            "postings": moved,
            "details": sha256(b"{}").hexdigest(),
            "previous": previous,
        }
        digest = sha256(_canonical(covered)).hexdigest()
        entry = {"number": number, "id": cause, "at": at, "code": "line", "details": "{}"}
        bind.execute(entries.insert().values(**entry, previous=previous, hash=digest))
        for position, (account, bucket, amount) in enumerate(moved):
            where = {"entry_number": number, "position": position}
            bind.execute(postings.insert().values(**where, account_id=account, bucket=bucket, amount=amount))
        previous = digest


def _append_only(table: str) -> None:
    if _spoken() == "sqlite":
        op.execute(f"""CREATE TRIGGER {table}_no_update BEFORE UPDATE ON {table} BEGIN
  SELECT RAISE(ABORT, 'the ledger is append-only: {table} are never changed');
END""")
        op.execute(f"""CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {table} BEGIN
  SELECT RAISE(ABORT, 'the ledger is append-only: {table} are never deleted');
END""")
        op.execute(f"""CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table}
WHEN EXISTS (SELECT 1 FROM {table} WHERE {_REPLACED[table]}) BEGIN
  SELECT RAISE(ABORT, 'the ledger is append-only: {table} are recorded once');
END""")  # noqa: S608 -- the names are literals of this file
        return
    op.execute(f"""CREATE OR REPLACE FUNCTION {table}_append_only() RETURNS trigger LANGUAGE plpgsql
AS $$ BEGIN
  RAISE EXCEPTION 'the ledger is append-only: {table} are never changed or deleted';
END $$""")
    op.execute(f"""CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table}
FOR EACH STATEMENT EXECUTE FUNCTION {table}_append_only()""")
