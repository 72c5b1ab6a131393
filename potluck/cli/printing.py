"""What the command prints: text for people, or JSON and nothing else on stdout.

In text mode stdout carries the result and stderr the remarks about it. In JSON mode there are no remarks, and
an error is one JSON object on stderr.
"""

import json
import sys
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from potluck import credits as amounts
from potluck.errors import PotluckError
from potluck.results import plain

CELL_CHARS_MAX = 100


class Output(StrEnum):
    TEXT = "text"
    JSON = "json"
    JSONL = "jsonl"


@dataclass(frozen=True, slots=True)
class Printer:
    output: Output = Output.TEXT
    micro: bool = False

    @property
    def text(self) -> bool:
        return self.output is Output.TEXT

    def show(self, data: Any, as_text: Callable[[], None]) -> None:
        """One result: a value for machines, or what `as_text` prints for people."""
        if self.text:
            as_text()
        else:
            self.json(data)

    def json(self, data: Any) -> None:
        """JSON: the whole value, indented. JSON Lines: a list's items or the one value, each on its line."""
        value = plain(data)
        if self.output is Output.JSONL:
            for item in value if isinstance(value, list) else [value]:
                print(_json(item), flush=True)
        else:
            print(_json(value, indent=2), flush=True)

    def line(self, text: str = "") -> None:
        """A line of a result, in text mode."""
        print(printable(text), flush=True)

    def note(self, text: str) -> None:
        """A remark beside the result: on stderr, and only for people."""
        if self.text:
            print(printable(text), file=sys.stderr, flush=True)

    def error(self, error: PotluckError) -> None:
        if self.text:
            print(f"potluck: {printable(error.message)}", file=sys.stderr, flush=True)
        else:
            print(_json(plain(error.body)), file=sys.stderr, flush=True)

    def amount(self, micro: int | None, *, aligned: bool = False) -> str:
        """Credits with sensible digits (`aligned`: with all), or microcredits where they were asked for."""
        if micro is None:
            return "-"
        if self.micro:
            return str(micro)
        return amounts.aligned(micro) if aligned else amounts.rounded(micro)

    @property
    def unit(self) -> str:
        return "microcredits" if self.micro else "credits"

    def table(
        self,
        headers: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        right: Sequence[int] = (),
        whole: Sequence[int] = (),
    ) -> None:
        """Aligned columns; those with an index in `right` end at the same place. In those in `whole` nothing
        is cut off.
        """
        cells = [[_cell(cell, whole=i in whole) for i, cell in enumerate(row)] for row in (headers, *rows)]
        widths = [max(map(columns, column)) for column in zip(*cells, strict=True)]
        for row in cells:
            padded = []
            for index, (cell, width) in enumerate(zip(row, widths, strict=True)):
                blanks = " " * (width - columns(cell))
                padded.append(blanks + cell if index in right else cell + blanks)
            self.line("  ".join(padded).rstrip())

    def facts(self, facts: Sequence[tuple[str, str]]) -> None:
        """Names and values below each other."""
        width = max((columns(name) for name, _ in facts), default=0)
        for name, value in facts:
            self.line(f"{name}{' ' * (width - columns(name))}  {value}")


def printable(text: str) -> str:
    """The text without what could move a terminal's cursor or recolour it: others wrote parts of it."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in {"Cc", "Cs"} else "�" for c in text)


def columns(text: str) -> int:
    """How many columns a terminal gives the text (Unicode annex 11; combining marks take none)."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )


def _json(value: Any, indent: int | None = None) -> str:
    """JSON on one line also for readers to whom more than a line feed ends a line (Unicode, section 5.8)."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029").replace("\x85", "\\u0085")


def _cell(text: str, *, whole: bool) -> str:
    line = " ".join(printable(text).split())
    return line if whole or len(line) <= CELL_CHARS_MAX else line[: CELL_CHARS_MAX - 1] + "…"
