"""A bar on the terminal that says how far a long piece of work is."""

import sys
import time
from collections.abc import Callable

from potluck.cli.progress import CLEAR

EVERY_S = 0.1
BAR_CHARS = 24


class Shown:
    """A context manager that gives the function to call with (done, total). Only a terminal sees it."""

    def __init__(self, what: str, *, shown: bool) -> None:
        self._what, self._next = what, time.monotonic() + EVERY_S
        self._shown = shown and sys.stderr.isatty()

    def __enter__(self) -> Callable[[int, int], None]:
        return self._show

    def __exit__(self, *_: object) -> None:
        if self._shown:
            sys.stderr.write(CLEAR)
            sys.stderr.flush()

    def _show(self, done: int, total: int) -> None:
        if self._shown and time.monotonic() >= self._next:
            self._next = time.monotonic() + EVERY_S
            sys.stderr.write(f"{CLEAR}{bar(done, total)} {done:,} of {total:,} {self._what}")
            sys.stderr.flush()


def bar(done: int, total: int) -> str:
    filled = BAR_CHARS * min(done, total) // max(1, total)
    return f"[{'#' * filled}{'.' * (BAR_CHARS - filled)}]"
