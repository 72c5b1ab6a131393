"""The ledger as JSON lines for one member: all of it, with others' details as digests (design, section 6).

Account ids are random and stand for nobody's name; what a member may see in clear is what concerns the own
account, and grants. `potluck.proof` reads these lines; their shape is format 1.
"""

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, Final

import orjson
from sqlalchemy import Row

from coordinator.clock import rfc3339
from coordinator.core.jobs import AccountId
from coordinator.core.ledger import Code, Posting
from coordinator.heads import Heads
from coordinator.proofs import View
from coordinator.records import Head
from coordinator.store import Store
from potluck.chain import digest

FORMAT: Final = 1


async def exported(
    store: Store, heads: Heads, *, pool: str, public_key: bytes, account: AccountId
) -> AsyncIterator[bytes]:
    """Pages of lines, each a bounded part of what was on the disk when the first was asked for.

    No transaction stays open between pages, however slowly they are read: the chains only grow, so that up
    to the ends seen at first they stay what they were.
    """
    view = await store.view()
    ends = view.ends
    yield _lines([_pool_line(view, pool, public_key, account, rfc3339(heads.now()))])
    yield _lines(
        {"type": "worker", "id": worker, "account": owner, "receipt_key": key.hex()}
        for worker, owner, key in view.workers
    )
    number = 0
    while number < ends.number:
        page = await store.entries_page(number, ends.number)
        yield _lines(entry_line(row, postings, account) for row, postings in page)
        number = page[-1][0].number
    number = 0
    while number < ends.receipts_number:
        receipts = await store.receipts_page(number, ends.receipts_number)
        yield _lines(_receipt_line(row) for row in receipts)
        number = receipts[-1].number
    after = (-1, -1)
    while kept := await store.heads_page(after, ends):
        yield _lines(head_line(head) for head in kept)
        after = (kept[-1].number, kept[-1].receipts_number)
    yield _lines([head_line(heads.made(ends)) | {"reason": "export"}])


def head_line(head: Head) -> dict[str, Any]:
    return {
        "type": "head",
        "number": head.number,
        "hash": head.hash,
        "receipts_number": head.receipts_number,
        "receipts_hash": head.receipts_hash,
        "at": head.at,
        "reason": head.reason.value,
        "signature": head.signature.hex(),
    }


def _pool_line(view: View, pool: str, public_key: bytes, account: str, at: str) -> dict[str, Any]:
    counts = {
        "workers": len(view.workers),
        "entries": view.ends.number,
        "receipts": view.ends.receipts_number,
        "heads": view.heads + 1,  # and the one of this export
    }
    return {
        "type": "pool",
        "format": FORMAT,
        "name": pool,
        "public_key": public_key.hex(),
        "exported_at": at,
        "account": account,
        "counts": counts,
    }


def entry_line(row: Row[Any], postings: Sequence[Posting], account: AccountId) -> dict[str, Any]:
    """What this account may see of an entry."""
    line = {
        "type": "entry",
        "number": row.number,
        "at": row.at,
        "id": row.id,
        "code": row.code,
        "job": row.job_id,
        "postings": [[p.account, p.bucket.value, p.amount] for p in postings],
        "details_sha256": digest(row.details),
        "previous": row.previous,
        "hash": row.hash,
    }
    if row.code == Code.GRANT or any(p.account == account for p in postings):
        line["details"] = row.details
    return line


def _receipt_line(row: Row[Any]) -> dict[str, Any]:
    return {
        "type": "receipt",
        "number": row.number,
        "at": row.at,
        "worker": row.worker_id,
        "body": row.body.decode("ascii", "backslashreplace"),
        "signature": row.signature.hex(),
        "state": row.state,
        "previous": row.previous,
        "hash": row.hash,
        "countersignature": row.countersignature.hex(),
    }


def _lines(values: Iterable[dict[str, Any]]) -> bytes:
    return b"".join(orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE) for value in values)
