"""Fine-tunes in an export: each part is settled by what its details say was trained, and by nothing else."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fixtures_proof import Books, Line, again, of, open_books, write

from coordinator.core.pricing import Training
from potluck.proof.lines import Fault
from potluck.proof.verify import Summary, verify

SEGMENT = Training("sft", 1_000, 500, 20_000)
EVALUATION = Training("sft", 1_000, 0, 0, 100, 3_000)
PAIRS = Training("dpo", 1_000, 300, 9_000, 50, 800)


async def _lived(folder: Path) -> tuple[Books, list[Line], list[Line]]:
    """A fine-tune of a segment, an evaluation and a segment of pairs; as its member and as another sees it."""
    async with open_books(folder) as books:
        whole = await books.fine_tune(2, [SEGMENT, EVALUATION, PAIRS])
        for number, done, worker in ((1, SEGMENT, 0), (2, EVALUATION, 1), (3, PAIRS, 1)):
            whole = await books.trained(whole, number, done, worker)
        await books.close_whole(whole)
        return books, await books.export(2), await books.export(0)


def checked(folder: Path, lines: list[Line], books: Books) -> Summary:
    return verify(write(folder / "export.jsonl", lines), key=books.ca.public_key)


async def test_a_fine_tune_verifies_for_its_member_and_for_others(tmp_path: Path) -> None:
    """Whoever may see the details computes the charges once more; an evaluation is paid without a trained token."""
    books, mine, others = await _lived(tmp_path)
    own = checked(tmp_path, mine, books)
    assert (own.jobs_closed, own.charges_recomputed, own.charges_not_recomputed) == (1, 4, 0)
    for summary in (own, checked(tmp_path, others, books)):
        assert summary.receipts["matched"] == 3
        assert (summary.receipts_missing, summary.receipts_free, summary.receipts_unpaid) == (0, 0, 0)


def details(part: int, change: Callable[[Any], object]) -> Callable[[list[Line]], None]:
    """A forger changes the details of a settlement, and nothing of what was paid."""

    def forge(lines: list[Line]) -> None:
        entry = next(line for line in of(lines, "entry") if line["id"].endswith(f"/settle/{part}"))
        said = json.loads(entry["details"])
        change(said)
        entry["details"] = json.dumps(said, sort_keys=True, separators=(",", ":"))

    return forge


def training(part: int, **changes: Any) -> Callable[[list[Line]], None]:
    return details(part, lambda said: said["training"].update(changes))


@pytest.mark.parametrize(
    ("forge", "expected"),
    [
        (training(1, tokens=499), "trains 499 tokens, of which its segments are no one piece"),
        (training(1, square_tokens=19_000), "pays attempt 1 20033 microcredits where the formula gives"),
        (training(1, adapter_parameters=0), "where the formula gives"),
        (training(1, method="dpo"), "where the formula gives"),
        (training(1, method="full"), "whose `training` does not say method, adapter_parameters"),
        (training(1, extra=1), "whose `training` does not say method"),
        (training(1, square_tokens=32_001), "trains 500 tokens in sequences that would be longer than 64"),
        (training(2, valid_square_tokens=6_401), "reads 100 tokens in sequences that would be longer"),
        (training(2, valid_tokens=99), "where the formula gives"),
        (training(2, tokens=1), "trains 1 tokens, of which its segments are no one piece"),
        (training(3, method="sft"), "where the formula gives"),
        (training(3, tokens=-1), "whose `training` are not the whole numbers"),
        (training(3, tokens=True), "whose `training` are not the whole numbers"),
        (details(1, lambda said: said.pop("training")), "has details of a finetune without `training`"),
        (details(1, lambda said: said.update(kind="chat")), "has details of a chat with `training`"),
        (details(1, lambda said: said.update(training=7)), "whose `training` does not say method"),
        (details(1, lambda said: said.update(segments=[[1, 0, 0, 250], [1, 0, 250, 250]])), "no one piece"),
        (details(1, lambda said: said.update(finisher=None)), "no one piece"),
        (details(2, lambda said: said.update(finisher=None)), "pays attempt 1 .* where the formula gives 0"),
    ],
)
async def test_what_is_changed_in_what_was_trained_is_named(
    tmp_path: Path, forge: Callable[[list[Line]], None], expected: str
) -> None:
    """Hashed and signed again by the pool itself."""
    books, lines, _ = await _lived(tmp_path)
    forge(lines)
    with pytest.raises(Fault, match=expected):
        checked(tmp_path, again(lines, books.ca.sign), books)
