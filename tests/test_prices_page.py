"""The page about credits says what the program computes; its entries balance and follow from the formulas."""

import asyncio
import re
import sys
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from math import ceil
from pathlib import Path

import pytest
from fixtures_models import smollm2_path

from coordinator.tokens import TokenCounter
from potluck.catalogue import Catalogue, File
from potluck.credits import parse, rounded
from potluck.v1 import work_pb2

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import prices  # noqa: E402 -- a program beside the package, found by the line above

__all__ = ["smollm2_path"]

PAGE = ROOT / "docs" / "credits.md"
PLACES = ("main", "reserved", "bob", "alice", "commons")  # the first two of carol


def entries() -> Iterator[tuple[str, list[int]]]:
    """Of all tables of the page: an entry's id, and what it moves in each place, in microcredits."""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if (row := re.fullmatch(r"\| `(\w+/[\w/]+)` \|(.+)\| (\S+) \|", line)) is not None:
            amounts = [parse(cell) if cell.strip() else 0 for cell in row[2].split("|")]
            assert parse(row[3]) == 0
            yield row[1], amounts


def test_the_pages_tables_are_what_the_command_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["prices.py"])
    prices.main()
    printed = capsys.readouterr().out
    page = PAGE.read_text(encoding="utf-8")
    assert prices.written(page) == page, "run: python benchmarks/prices.py --write docs"
    assert all(made() in printed and made() in page for made in prices.EXAMPLES_OF.values())


def test_every_entry_on_the_page_has_a_sum_of_zero() -> None:
    found = list(entries())
    assert [name for name, _ in found] == [
        *("job/hold", "job/close", "job/close"),
        *("batch/hold", "batch/settle/1", "batch/settle/2", "batch/close"),
        *("tune/hold", "tune/settle/1", "tune/settle/2", "tune/settle/3", "tune/close"),
    ]
    for name, amounts in found:
        assert len(amounts) == len(PLACES)
        assert sum(amounts) == 0, name


def test_the_chat_costs_what_the_formulas_say_token_by_token() -> None:
    """Without the pool's own functions: a quarter of the prompt's work, then each token at its position."""
    entry = Catalogue.builtin().get(prices.MODEL)
    assert entry is not None
    n, h, a = entry.shape.active_parameters, entry.shape.head_parameters, entry.shape.attention
    prompt = Fraction(2 * (n - h) * 36 + Fraction(a * 36**2, 2), 4)
    flops = prompt + sum(2 * n + a * (36 + index) for index in range(135))
    hold, alone, shared = (dict(zip(PLACES, amounts, strict=True)) for _, amounts in islice(entries(), 3))
    charge = ceil(flops / 1_000_000)
    assert hold["main"] == -hold["reserved"] == alone["reserved"] == shared["reserved"] < -charge
    assert alone["main"] + alone["reserved"] == shared["main"] + shared["reserved"] == -charge
    assert alone["bob"] == charge - charge * 20 // 1_000
    assert alone["alice"] == 0
    assert shared["bob"] + shared["alice"] + shared["commons"] == charge
    assert 0 < shared["bob"] < shared["alice"], "60 and 75 tokens"


@pytest.mark.engine
def test_the_commands_on_the_page_would_print_what_stands_there(smollm2_path: Path, tmp_path: Path) -> None:
    """The prompt is counted by the real model's tokenizer, as a coordinator does."""
    page = PAGE.read_text(encoding="utf-8")
    asked = re.search(
        r'potluck quote "(.+)" --max-tokens (\d+)\n\n +At most (\S+) credits: (\d+) tokens in', page
    )
    answered = re.search(r"\[(\d+) tokens in, (\d+) out · (\S+) credits · (\S+)\]", page)
    assert asked is not None
    assert answered is not None
    catalogue = Catalogue.builtin()
    counter, entry = TokenCounter(tmp_path, lambda: catalogue), catalogue.get(answered[4])
    assert entry is not None

    async def obtain(_: File) -> Path:
        return smollm2_path

    asyncio.run(counter.prepare(entry, obtain))
    counted = counter.count_chat(entry.name, [work_pb2.ChatMessage(role="user", content=asked[1])])
    assert counted == int(asked[4]) == int(answered[1]) == prices.PROMPT_TOKENS
    assert (int(asked[2]), int(answered[2])) == (prices.MAX_TOKENS, prices.OUTPUT_TOKENS)
    hold, close = (dict(zip(PLACES, amounts, strict=True)) for _, amounts in islice(entries(), 2))
    assert asked[3] == rounded(hold["reserved"])
    assert answered[3] == rounded(-close["main"] - close["reserved"])
