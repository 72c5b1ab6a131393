"""Receipts have one spelling, and a signature belongs to exactly one of them."""

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from potluck.receipts import (
    INTEGER_MAX,
    ReceiptBody,
    ReceiptError,
    canonical_json,
    output_digest,
    sign,
    verify,
)

texts = st.text(min_size=1, max_size=40).filter(str.isprintable)
integers = st.integers(min_value=0, max_value=INTEGER_MAX)
bodies = st.builds(
    ReceiptBody,
    job_id=texts,
    attempt=integers,
    worker_id=texts,
    model=texts,
    engine=texts,
    prompt_tokens=integers,
    output_tokens=integers,
    started_at=integers,
    ended_at=integers,
    output_sha256=st.binary(min_size=32, max_size=32).map(bytes.hex),
)
changes = st.tuples(st.sampled_from(["job_id", "worker_id", "model", "engine"]), texts) | st.tuples(
    st.sampled_from(["attempt", "prompt_tokens", "output_tokens", "started_at", "ended_at"]), integers
)
EXAMPLE = ReceiptBody(
    job_id="job_a",
    attempt=2,
    worker_id="wrk_b",
    model="m",
    engine="torch",
    prompt_tokens=3,
    output_tokens=4,
    started_at=1_000,
    ended_at=2_000,
    output_sha256=output_digest([]),
)


def raw(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


@given(bodies)
def test_a_receipt_comes_back_from_its_bytes(body: ReceiptBody) -> None:
    encoded = body.encode()
    assert ReceiptBody.decode(encoded) == body
    assert encoded.isascii()


@given(bodies, st.data())
def test_any_other_spelling_of_the_same_object_is_refused(body: ReceiptBody, data: st.DataObject) -> None:
    value = asdict(body)
    names = data.draw(st.permutations(sorted(value)))
    spaced = json.dumps({name: value[name] for name in sorted(value)}).encode()
    with pytest.raises(ReceiptError, match="canonical"):
        ReceiptBody.decode(spaced)
    if list(names) != sorted(names):
        shuffled = json.dumps({name: value[name] for name in names}, separators=(",", ":")).encode()
        with pytest.raises(ReceiptError, match="canonical"):
            ReceiptBody.decode(shuffled)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_raise_nothing_but_receipt_error(data: bytes) -> None:
    with pytest.raises(ReceiptError):
        ReceiptBody.decode(data)


@given(bodies, changes)
def test_a_signature_fits_its_own_body_only(body: ReceiptBody, change: tuple[str, Any]) -> None:
    """One that differs in a single field is another; where the change changes nothing, it is the same."""
    other = replace(body, **dict([change]))
    key = Ed25519PrivateKey.generate()
    signature = sign(key, body.encode())
    assert verify(raw(key), body.encode(), signature)
    assert verify(raw(key), other.encode(), signature) == (other == body)
    assert not verify(raw(Ed25519PrivateKey.generate()), body.encode(), signature)


@given(st.binary(max_size=40), st.binary(max_size=80))
def test_a_malformed_key_or_signature_is_simply_no_signature(key: bytes, signature: bytes) -> None:
    assert not verify(key, EXAMPLE.encode(), signature)


@pytest.mark.parametrize(
    "change",
    [
        {"attempt": -1},
        {"attempt": INTEGER_MAX + 1},
        {"attempt": True},
        {"attempt": 1.0},
        {"attempt": "1"},
        {"job_id": ""},
        {"job_id": "x" * 257},
        {"job_id": "two\nlines"},
        {"job_id": "\ud800"},
        {"output_sha256": "A" * 64},
        {"output_sha256": "a" * 63},
    ],
)
def test_values_out_of_bounds_are_refused_when_built_and_when_read(change: dict[str, object]) -> None:
    with pytest.raises(ReceiptError):
        replace(EXAMPLE, **change)  # type: ignore[arg-type] # wrong types are what is tested
    with pytest.raises(ReceiptError):
        ReceiptBody.decode(
            json.dumps(asdict(EXAMPLE) | change, sort_keys=True, separators=(",", ":")).encode()
        )


@pytest.mark.parametrize("extra", [{"text": "hello"}, {"job_id": None}])
def test_unknown_and_missing_fields_are_refused(extra: dict[str, object]) -> None:
    """A receipt cannot be made to carry text: no field but the ten is read."""
    value = {name: item for name, item in (asdict(EXAMPLE) | extra).items() if item is not None}
    with pytest.raises(ReceiptError, match="exactly the fields"):
        ReceiptBody.decode(canonical_json(value))


def test_a_huge_body_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(ReceiptError, match="4096 bytes"):
        ReceiptBody.decode(b"[" * 1_000_000)


def test_the_bytes_of_a_known_receipt_are_fixed() -> None:
    """Receipts are kept for years: their spelling must never change."""
    assert EXAMPLE.encode() == (
        b'{"attempt":2,"ended_at":2000,"engine":"torch","job_id":"job_a","model":"m","output_sha256":'
        b'"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","output_tokens":4,'
        b'"prompt_tokens":3,"started_at":1000,"worker_id":"wrk_b"}'
    )
