"""An export is read in pages by other processes, in order, and here where there are none."""

import io
import os
import signal
from collections.abc import Iterator
from contextlib import closing

import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from potluck.proof import lines, pages
from potluck.proof.lines import HeadLine
from potluck.proof.pages import AHEAD, Keys, Page, blocks, page_of, wanted_processes
from potluck.receipts import verify

KEY = Ed25519PrivateKey.generate()
RAW = KEY.public_key().public_bytes_raw()
KEYS = Keys(RAW, {}, thorough=False)
HASH, AT = "ab" * 32, "2027-01-15T08:00:00.000Z"


def head(number: int, *, wrong: bool = False) -> bytes:
    said = HeadLine(number, HASH, 0, HASH, AT, b"")
    signature = bytes(64) if wrong else KEY.sign(said.signed)
    return (
        f'{{"type":"head","number":{number},"hash":"{HASH}","receipts_number":0,"receipts_hash":"{HASH}"'
        f',"at":"{AT}","signature":"{signature.hex()}"}}\n'
    ).encode()


def numbers(found: list[Page]) -> list[tuple[int, bool]]:
    return [
        (record.number, record.wrong is None)
        for page in found
        for record in page.records
        if isinstance(record, HeadLine)
    ]


@pytest.mark.parametrize("processes", [0, 1, 2])
def test_pages_come_in_order_and_say_which_record_is_wrong(processes: int) -> None:
    source = [
        b"".join(head(10 * page + n, wrong=(page, n) == (7, 3)) for n in range(10)) for page in range(12)
    ]
    found = list(pages.pages(source, KEYS, processes))
    assert numbers(found) == [(number, number != 73) for number in range(120)]
    assert [page.signatures for page in found] == [10] * 12
    assert all(page.fault is None for page in found)


def test_processes_that_are_killed_are_done_without() -> None:
    """What they had not answered is read here, and nothing is missed."""
    source = (head(number, wrong=number == 30) for number in range(60))
    before = set(psutil.Process().children(recursive=True))
    with closing(pages.pages(source, KEYS, 2)) as reading:
        found = [next(reading)]
        for process in set(psutil.Process().children(recursive=True)) - before:
            if "resource_tracker" not in " ".join(process.cmdline()):
                os.kill(process.pid, signal.SIGTERM)
        found += reading
    assert numbers(found) == [(number, number != 30) for number in range(60)]


def test_no_more_is_read_than_what_is_in_flight() -> None:
    taken: list[int] = []

    def source() -> Iterator[bytes]:
        for number in range(1_000):
            taken.append(number)
            yield head(number)

    with closing(pages.pages(source(), KEYS, 2)) as reading:
        next(reading)
        assert len(taken) == 2 * AHEAD + 1


def test_a_page_ends_at_the_first_line_that_is_none() -> None:
    page = page_of(head(1) + b"{}\n" + head(2), KEYS)
    assert numbers([page]) == [(1, True)]
    assert page.fault is not None
    assert (page.fault.kind, page.fault.number) == ("line", 2)


@given(
    st.lists(st.binary(max_size=40).map(lambda line: line.replace(b"\n", b"\r")), max_size=30),
    st.binary(max_size=9),
)
def test_blocks_are_whole_lines_and_nothing_is_lost(whole: list[bytes], rest: bytes) -> None:
    data = b"".join(line + b"\n" for line in whole) + rest
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "PAGE_BYTES", 16)
        found = list(blocks(io.BytesIO(data)))
    assert b"".join(found) == data
    assert all(block.endswith(b"\n") for block in found[:-1])


def test_a_line_without_an_end_is_not_read_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LINE_BYTES_MAX", 100)
    monkeypatch.setattr(pages, "PAGE_BYTES", 10)
    first = next(blocks(io.BytesIO(b"x" * 1_000_000)))
    assert len(first) <= 111
    page = page_of(first, KEYS)
    assert page.fault is not None
    assert str(page.fault) == "line 1: it is longer than 100 bytes"


def test_small_exports_are_read_alone() -> None:
    assert wanted_processes(1_000, 8) == 0
    assert wanted_processes(100 << 20, 8) == 8
    assert wanted_processes(100 << 20, 1) == 0
    assert wanted_processes(100 << 20, 1_000) == 16
    assert 0 <= wanted_processes(100 << 20) <= 16


@pytest.mark.parametrize("key", [b"", bytes(31), b"\xff" * 32])
def test_a_key_that_is_none_fits_no_signature(key: bytes) -> None:
    assert not verify(key, b"the books", KEY.sign(b"the books"))
    assert verify(RAW, b"the books", KEY.sign(b"the books"))
