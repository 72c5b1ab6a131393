"""Batches in an export: each line is settled once, by what its details cost, out of one hold."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fixtures_proof import Books, Line, again, of, open_books, write

from potluck.proof.lines import Fault
from potluck.proof.verify import Summary, verify


async def _lived(folder: Path) -> tuple[Books, list[Line], list[Line]]:
    """A batch of four lines, of which three were answered, out of their order; as its member and as another
    sees it.
    """
    async with open_books(folder) as books:
        whole = await books.whole(2, 4, 9)
        for number, tokens, worker in ((3, 5, 0), (1, 9, 1), (4, 2, 0)):
            whole = await books.part(whole, number, tokens, worker)
        await books.close_whole(whole)
        return books, await books.export(2), await books.export(0)


def checked(folder: Path, lines: list[Line], books: Books) -> Summary:
    return verify(write(folder / "export.jsonl", lines), key=books.ca.public_key)


def settlement(lines: list[Line], part: int) -> Line:
    return next(line for line in of(lines, "entry") if line["id"].endswith(f"/settle/{part}"))


async def test_a_batch_verifies_for_its_member_and_for_others(tmp_path: Path) -> None:
    """Each receipt is of a line, and each charge of a line is computed once more by whoever may see it."""
    books, mine, others = await _lived(tmp_path)
    own = checked(tmp_path, mine, books)
    assert (own.jobs_closed, own.charges_recomputed, own.charges_not_recomputed) == (1, 4, 0)
    for summary in (own, checked(tmp_path, others, books)):
        assert summary.receipts["matched"] == 3
        assert (summary.receipts_missing, summary.receipts_free, summary.receipts_unpaid) == (0, 0, 0)
        assert summary.charged > summary.fees > 0


def named(tail: str) -> Callable[[list[Line]], None]:
    def forge(lines: list[Line]) -> None:
        entry = settlement(lines, 4)
        entry["id"] = entry["id"].removesuffix("/4") + f"/{tail}"

    return forge


def dearer(lines: list[Line]) -> None:
    postings: list[list[Any]] = settlement(lines, 1)["postings"]
    postings[0][2] -= 10
    postings[1][2] += 10


def unreceipted(lines: list[Line]) -> None:
    lines.remove(of(lines, "receipt")[0])


@pytest.mark.parametrize(
    ("forge", "expected"),
    [
        (named("3"), "entry .*/settle/3 pays part 3 of its job a second time"),
        (named("04"), "does not follow from its cause: it should be JOB/settle/PART"),
        (named("0"), "does not follow from its cause"),
        (named("9999999999"), "does not follow from its cause"),
        (named("x"), "does not follow from its cause"),
        (dearer, "/settle/1 does not charge what its details cost: posting 1 moves 582"),
    ],
)
async def test_what_is_changed_in_a_settlement_is_named(
    tmp_path: Path, forge: Callable[[list[Line]], None], expected: str
) -> None:
    """Hashed and signed again by the pool itself."""
    books, lines, _ = await _lived(tmp_path)
    forge(lines)
    with pytest.raises(Fault, match=expected):
        checked(tmp_path, again(lines, books.ca.sign), books)


async def test_a_line_without_a_receipt_is_counted(tmp_path: Path) -> None:
    books, lines, _ = await _lived(tmp_path)
    unreceipted(lines)
    assert checked(tmp_path, again(lines, books.ca.sign), books).receipts_missing == 1
