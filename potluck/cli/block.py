"""A few lines on the terminal that are drawn anew in their place."""

import shutil
import sys
from collections.abc import Sequence
from typing import Self

from potluck.cli.printing import columns, printable
from potluck.cli.progress import CLEAR

UP = "\x1b[1A"


class Block:
    """A context manager; only a terminal sees it, and nothing of it stays."""

    def __init__(self, *, shown: bool) -> None:
        self.live = shown and sys.stderr.isatty()
        self._lines = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._draw([])

    def show(self, lines: Sequence[str]) -> None:
        width = shutil.get_terminal_size().columns - 1  # a line that wraps could not be taken back
        self._draw([fitted(line, width) for line in lines])

    def _draw(self, lines: Sequence[str]) -> None:
        if not self.live:
            return
        back = (CLEAR + UP) * self._lines + CLEAR
        sys.stderr.write(back + "".join(f"{line}\n" for line in lines))
        sys.stderr.flush()
        self._lines = len(lines)


def fitted(text: str, width: int) -> str:
    """As much of the text as so many columns hold, on one line."""
    line = " ".join(printable(text).split("\n"))
    if columns(line) <= width:
        return line
    kept = ""
    for character in line:
        if columns(kept) + columns(character) > width - 1:
            break
        kept += character
    return f"{kept}…"
