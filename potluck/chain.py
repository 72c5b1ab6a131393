"""How the pool's records are chained and signed: the bytes that hashes and signatures cover.

Two chains, of ledger entries and of receipts. Each record carries the hash of the one before, so that a
record that is changed, taken out or put in shows in every hash after it. A head is the end of both chains at
a moment, signed by the pool. The coordinator writes these bytes and `potluck ledger verify` reads them; what
is here may never change, or old exports would no longer verify.

All are compact JSON with sorted keys in ASCII, hashes lower-case hex sha256, signatures Ed25519 (RFC 8032).
"""

import json
from collections.abc import Sequence
from hashlib import sha256
from typing import Any, Final

GENESIS: Final = "0" * 64  # what the first record of a chain names as the one before


def digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def entry_bytes(
    *,
    number: int,
    at: str,
    id: str,  # noqa: A002 -- the field's name in the export
    code: str,
    job: str | None,
    postings: Sequence[tuple[str, str, int]],
    details_sha256: str,
    previous: str,
) -> bytes:
    """A ledger entry. `postings`: (account, bucket, microcredits). Details are covered by their digest only,
    so that an entry can be shown to others without them.
    """
    return _canonical(
        {
            "number": number,
            "at": at,
            "id": id,
            "code": code,
            "job": job,
            "postings": [list(posting) for posting in postings],
            "details": details_sha256,
            "previous": previous,
        }
    )


def receipt_bytes(
    *, number: int, at: str, worker: str, body: bytes, signature: bytes, state: str, previous: str
) -> bytes:
    """A receipt as it came from `worker`, and what the coordinator made of it."""
    return _canonical(
        {
            "number": number,
            "at": at,
            "worker": worker,
            "body": sha256(body).hexdigest(),
            "signature": signature.hex(),
            "state": state,
            "previous": previous,
        }
    )


def countersigned(receipt_hash: str) -> bytes:
    """What the pool signs of a receipt in its place in the chain."""
    return _canonical({"potluck": "receipt", "hash": receipt_hash})


def head_bytes(*, number: int, hash: str, receipts_number: int, receipts_hash: str, at: str) -> bytes:  # noqa: A002 -- as above
    """What the pool signs of the ends of both chains."""
    return _canonical(
        {
            "potluck": "head",
            "number": number,
            "hash": hash,
            "receipts_number": receipts_number,
            "receipts_hash": receipts_hash,
            "at": at,
        }
    )


def hash_of(record: bytes) -> str:
    return sha256(record).hexdigest()


_ENCODER: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _canonical(value: dict[str, Any]) -> bytes:
    return _ENCODER.encode(value).encode("ascii")
