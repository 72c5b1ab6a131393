"""The bytes that hashes and signatures cover are canonical JSON, letter for letter, whatever the values."""

import json
from hashlib import sha256
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from potluck import chain

texts = st.text(max_size=20)
numbers = st.integers(-(2**63), 2**63 - 1)
postings = st.lists(st.tuples(texts, texts, numbers), max_size=4)


def canonical(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


@given(numbers, texts, texts, texts, st.none() | texts, postings, texts, texts)
def test_an_entry(
    number: int,
    at: str,
    entry_id: str,
    code: str,
    job: str | None,
    moved: list[tuple[str, str, int]],
    details: str,
    previous: str,
) -> None:
    given_ = {"number": number, "at": at, "id": entry_id, "code": code, "job": job, "previous": previous}
    made = chain.entry_bytes(**given_, postings=moved, details_sha256=details)  # type: ignore[arg-type]  # of several types
    assert made == canonical({**given_, "postings": moved, "details": details})


@given(numbers, texts, texts, st.binary(max_size=20), st.binary(max_size=64), texts, texts)
def test_a_receipt_and_its_countersignature(
    number: int, at: str, worker: str, body: bytes, signature: bytes, state: str, previous: str
) -> None:
    made = chain.receipt_bytes(
        number=number, at=at, worker=worker, body=body, signature=signature, state=state, previous=previous
    )
    said = {"number": number, "at": at, "worker": worker, "state": state, "previous": previous}
    said |= {"body": sha256(body).hexdigest(), "signature": signature.hex()}
    assert made == canonical(said)
    assert chain.countersigned(previous) == canonical({"potluck": "receipt", "hash": previous})
    assert chain.receipt_hash(made, signature) == sha256(canonical(said) + signature).hexdigest()


@given(numbers, texts, numbers, texts, texts)
def test_a_head(number: int, hash_: str, receipts_number: int, receipts_hash: str, at: str) -> None:
    given_ = {"number": number, "hash": hash_, "receipts_number": receipts_number}
    given_ |= {"receipts_hash": receipts_hash, "at": at}
    assert chain.head_bytes(**given_) == canonical({**given_, "potluck": "head"})  # type: ignore[arg-type]  # as above
