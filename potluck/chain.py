"""How the pool's records are chained and signed: the bytes that hashes and signatures cover.

Two chains, of ledger entries and of receipts. Each record carries the hash of the one before, so that a
record that is changed, taken out or put in shows in every hash after it. A head is the end of both chains at
a moment, signed by the pool. The coordinator writes these bytes and `potluck ledger verify` reads them; what
is here may never change, or old exports would no longer verify.

All are compact JSON with sorted keys in ASCII, written out by hand, since a verifier makes hundreds of
thousands of them and a general encoder takes several times as long. Hashes are lower-case hex sha256,
signatures Ed25519 (RFC 8032).
"""

from collections.abc import Sequence
from hashlib import sha256
from json.encoder import encode_basestring_ascii as _text
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
    postings: Sequence[Sequence[Any]],
    details_sha256: str,
    previous: str,
) -> bytes:
    """A ledger entry. `postings`: (account, bucket, microcredits). Details are covered by their digest only,
    so that an entry can be shown to others without them.
    """
    moved = ",".join([f"[{_text(account)},{_text(bucket)},{amount}]" for account, bucket, amount in postings])
    whose = "null" if job is None else _text(job)
    return (
        f'{{"at":{_text(at)},"code":{_text(code)},"details":{_text(details_sha256)},"id":{_text(id)}'
        f',"job":{whose},"number":{number},"postings":[{moved}],"previous":{_text(previous)}}}'
    ).encode("ascii")


def receipt_bytes(
    *, number: int, at: str, worker: str, body: bytes, signature: bytes, state: str, previous: str
) -> bytes:
    """A receipt as it came from `worker`, and what the coordinator made of it."""
    return (
        f'{{"at":{_text(at)},"body":"{sha256(body).hexdigest()}","number":{number}'
        f',"previous":{_text(previous)},"signature":"{signature.hex()}","state":{_text(state)}'
        f',"worker":{_text(worker)}}}'
    ).encode("ascii")


def countersigned(receipt_hash: str) -> bytes:
    """What the pool signs of a receipt in its place in the chain."""
    return f'{{"hash":{_text(receipt_hash)},"potluck":"receipt"}}'.encode("ascii")


def receipt_hash(covered: bytes, countersignature: bytes) -> str:
    """The hash of a receipt in its place covers the pool's signature of it, too: whoever knows that the end
    of the chain is the pool's knows it of each countersignature on the way.
    """
    return hash_of(covered + countersignature)


def head_bytes(*, number: int, hash: str, receipts_number: int, receipts_hash: str, at: str) -> bytes:  # noqa: A002 -- as above
    """What the pool signs of the ends of both chains."""
    return (
        f'{{"at":{_text(at)},"hash":{_text(hash)},"number":{number},"potluck":"head"'
        f',"receipts_hash":{_text(receipts_hash)},"receipts_number":{receipts_number}}}'
    ).encode("ascii")


def hash_of(record: bytes) -> str:
    return sha256(record).hexdigest()
