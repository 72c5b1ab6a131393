"""Whatever stands in a file that is said to be an export, the answer is a sentence."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potluck.proof import lines
from potluck.proof.lines import Fault
from potluck.proof.verify import read_head, verify

ZERO = "0" * 64
COUNTS = {"workers": 0, "entries": 0, "receipts": 0, "heads": 1}
POOL: dict[str, Any] = {
    "type": "pool",
    "format": 1,
    "name": "kitchen",
    "public_key": "ab" * 32,
    "exported_at": "2027-01-15T08:00:00.000Z",
    "account": "acc_1",
    "counts": COUNTS,
}
ENTRY: dict[str, Any] = {
    "type": "entry",
    "number": 1,
    "at": "2027-01-15T08:00:00.000Z",
    "id": "x/transfer",
    "code": "transfer",
    "job": None,
    "postings": [["a", "main", -1], ["b", "main", 1]],
    "details_sha256": ZERO,
    "previous": ZERO,
    "hash": ZERO,
}
FIRST = json.dumps(POOL).encode() + b"\n"


def line(**changes: Any) -> bytes:
    return json.dumps({**ENTRY, **changes}).encode() + b"\n"


def fault_of(folder: Path, data: bytes) -> str:
    path = folder / "export.jsonl"
    path.write_bytes(data)
    with pytest.raises(Fault) as found:
        verify(path)
    return str(found.value)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "line 1: an export begins with the line of its pool"),
        (b"\n", "line 1: it is no JSON"),
        (b"GIF89a\x00\xff\n", "line 1: it is no"),
        (b"\xff\xfe\n", "line 1: it is no"),
        (b"[]\n", "line 1: it is no JSON object"),
        (b"{}\n", "line 1: an export begins with the line of its pool"),
        (b'{"type": "pool", "format": 2}\n', "line 1: the export's format is 2; this version knows 1"),
        (json.dumps({**POOL, "counts": {}}).encode() + b"\n", "line 1: `counts` must give"),
        (json.dumps({**POOL, "public_key": "k"}).encode() + b"\n", "line 1: `public_key` must be 64 lower-case hex"),
        (json.dumps({**POOL, "name": "\x1b[2J"}).encode() + b"\n", "line 1: `name` must be printable text"),
        (FIRST[:-1], "line 1: it has no end: the file was cut off"),
        (FIRST + line()[:30], "line 2: it has no end: the file was cut off"),
        (FIRST + b'{"type": "entry", "number": NaN}\n', "line 2: NaN is no whole number"),
        (FIRST + b'{"type": "entry", "number": 1.0}\n', "line 2: 1.0 is no whole number"),
        (FIRST + b'{"type": "entry", "number": 1, "number": 2}\n', "line 2: a name stands twice in one object"),
        (FIRST + b'{"type": "entry", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", "line 2: it is nested too deeply"),
        (FIRST + b'{"type": "entry", "number": ' + b"9" * 5_000 + b"}\n", "line 2: Exceeds the limit"),
        (FIRST + b"7\n", "line 2: it is no JSON object"),
        (FIRST + b'{"type": ["entry"]}\n', "line 2: its type is none of worker, entry, receipt, head"),
        (FIRST + b'{"type": "pool"}\n', "line 2: its type is none of"),
        (FIRST + line(number="1"), "entry 1: `number` must be an integer from 0"),
        (FIRST + line(number=True), "entry 1: `number` must be an integer from 0"),
        (FIRST + line(number=2**63), "entry 1: `number` must be an integer from 0"),
        (FIRST + line(at="now"), "entry 1: `at` must be a time like"),
        (FIRST + line(id=""), "entry 1: `id` must be printable text"),
        (FIRST + line(job=7), "entry 1: `job` must be printable text"),
        (FIRST + line(details=7), "entry 1: `details` must be text"),
        (FIRST + line(postings=[["a", "main"]]), "entry 1: `postings` must be a list of"),
        (FIRST + line(postings=[["a", "main", True]]), "entry 1: `postings` must be a list of"),
        (FIRST + line(postings=[["a", "main", 2**63]]), "entry 1: `postings` must be a list of"),
        (FIRST + line(postings={}), "entry 1: `postings` must be a list of"),
        (FIRST + line(hash="A" * 64), "entry 1: `hash` must be 64 lower-case hex digits"),
        (FIRST + line(), "entry 1: it is not what its hash was made of"),
        (FIRST + line(type="receipt", worker="w", body=7), "receipt 1: `body` must be text"),
        (FIRST + line(type="receipt", worker="w", body="", signature="xy"), "receipt 1: `signature` must be hex"),
        (FIRST + line(type="head", receipts_number=-1), "head 1: `receipts_number` must be an integer from 0"),
        (FIRST + line(type="worker", account="a"), "line 2: `receipt_key` must be 64"),
        (FIRST + line(type="head") + line(), "head 1: `receipts_number`"),
        (FIRST, "head 1: the first line promises 1 heads, and 0 are here"),
    ],
    ids=range(39),
)  # fmt: skip
def test_a_malformed_file_is_refused_with_a_sentence(tmp_path: Path, data: bytes, expected: str) -> None:
    assert fault_of(tmp_path, data).startswith(expected)


def test_a_huge_line_is_refused_and_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LINE_BYTES_MAX", 10_000)
    said = fault_of(tmp_path, FIRST + line(details="x" * 20_000))
    assert said == "line 2: it is longer than 10000 bytes"


def test_a_key_that_is_no_point_on_the_curve_is_simply_no_signature(tmp_path: Path) -> None:
    """An empty ledger with a head that nobody signed."""
    head = {"number": 0, "hash": ZERO, "receipts_number": 0, "receipts_hash": ZERO, "signature": "00" * 64}
    said = fault_of(tmp_path, FIRST + line(type="head", **head))
    assert said == "head 1: it is not signed by the pool's key"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "it is no JSON"),
        (b"[1]", "holds no head"),
        (b"{}", "does not name its pool's public key"),
        (b"x" * 70_000, "is longer than 65536 bytes"),
        (b'{"public_key": "' + b"ab" * 32 + b'", "number": -1}', "`number` must be an integer from 0"),
        (b"\xff", "it is no"),
    ],
    ids=range(6),
)
def test_a_saved_head_that_is_none_is_refused_with_a_sentence(
    tmp_path: Path, data: bytes, expected: str
) -> None:
    path = tmp_path / "head.json"
    path.write_bytes(data)
    with pytest.raises(Fault, match=expected):
        read_head(path)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just(ZERO) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
changed = st.dictionaries(st.sampled_from(sorted({*ENTRY, "details", "body", "worker", "signature"})), values)


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=200),
    st.lists(changed, max_size=3),
    st.sampled_from(["entry", "receipt", "head", "worker"]),
)
def test_no_file_raises_anything_but_a_fault(
    tmp_path_factory: pytest.TempPathFactory, tail: bytes, changes: list[dict[str, Any]], kind: str
) -> None:
    middle = b"".join(json.dumps({**ENTRY, "type": kind, **change}).encode() + b"\n" for change in changes)
    folder = tmp_path_factory.getbasetemp()
    assert fault_of(folder, FIRST + middle + tail)
    assert fault_of(folder, tail)
