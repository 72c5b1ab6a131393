"""Marks beside the files of a store, by which processes that share it know of each other.

A mark says that its process uses a file, and how many bytes of the disk are set aside for it: 0, or all of
the file while it is fetched. It is a lock, so that it ends with its process, however that ends.
"""

import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from potluck.lock import FileLock, Locked, holder

MARKS_MAX: Final = 1_024  # of one file, that are looked at
_MARK: Final = re.compile(r"[0-9a-f]{64}\.used-([0-9]{1,13})-[0-9a-f]{8}")


def mark(cache: Path, sha256: str, *, set_aside_bytes: int = 0) -> FileLock:
    """Held until it is released with `remove`. Raises OSError."""
    while True:
        try:
            return FileLock.acquire(cache / f"{sha256}.used-{set_aside_bytes}-{secrets.token_hex(4)}")
        except Locked:  # somebody looked at it between its making and its locking
            continue


@dataclass(frozen=True, slots=True)
class Marked:
    """What the marks on one file say together."""

    in_use: bool = False
    set_aside_bytes: int = 0  # several processes that want the same file want it once

    @classmethod
    def among(cls, paths: Iterable[Path]) -> Self:
        """Those of the paths that are marks; the ones that nobody holds any more are removed."""
        marks = [(path, found) for path in paths if (found := _MARK.fullmatch(path.name)) is not None]
        held = [int(found[1]) for path, found in marks[:MARKS_MAX] if holder(path) is not None]
        return cls(bool(held), max(held, default=0))
