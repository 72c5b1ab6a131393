"""Where training attempts work: a private folder for each, and a record of what must not stay behind it.

The record is a lock that ends with its process, however that ends, and holds the digests of the files that
were fetched for the attempt: a member's examples, and checkpoints of which there are many. What no living
process holds is removed at the next start of any worker that shares the model store.
"""

import contextlib
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from potluck.home import make_folder
from potluck.lock import CONTENT_BYTES_MAX, FileLock, Locked
from potluck.store import ModelStore

RECORD: Final = ".lock"
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, eq=False)
class Room:
    """Of one attempt. `passing`: fetched for it alone; `kept`: what the next attempt may need as well."""

    folder: Path
    lock: FileLock
    passing: frozenset[str]
    kept: frozenset[str]


class Workroom:
    """`parent`: beside the model store's files, so that every node of a site sees it. Methods about one room
    are called one after the other, in any thread.
    """

    def __init__(self, parent: Path, store: ModelStore) -> None:
        self._parent, self._store = parent, store
        self._rooms: list[Room] = []

    def open(self, passing: Iterable[str], kept: Iterable[str]) -> Room:
        """A new, empty folder. Raises OSError."""
        name = secrets.token_hex(8)
        digests = (frozenset(passing), frozenset(kept))
        record = "\n".join(sorted(digests[0] | digests[1])).encode()
        lock = FileLock.acquire(self._parent / f"{name}{RECORD}", record)
        room = Room(self._parent / name, lock, *digests)
        self._rooms.append(room)
        make_folder(room.folder)
        return room

    def leave(self, room: Room) -> None:
        """The attempt has ended: its folder goes, and what was fetched for it alone. Once or more often."""
        if room.folder.exists():
            shutil.rmtree(room.folder, ignore_errors=True)
            self._remove(room.passing)

    def close(self, room: Room) -> None:
        """Nor will another attempt need its files."""
        self.leave(room)
        if room in self._rooms:
            self._rooms.remove(room)
            needed = (other.kept | other.passing for other in list(self._rooms))
            self._remove(room.kept.difference(*needed))
            room.lock.release(remove=True)

    def sweep(self) -> int:
        """Remove what a process left that ended without a word; how many folders."""
        swept = 0
        for record in list(self._parent.glob(f"*{RECORD}")):
            with contextlib.suppress(Locked, OSError):
                digests = list(_digests(record))  # before it is locked, which empties it
                lock = FileLock.acquire(record)
                shutil.rmtree(record.with_suffix(""), ignore_errors=True)
                self._remove(digests)
                lock.release(remove=True)
                swept += 1
        return swept

    def _remove(self, digests: Iterable[str]) -> None:
        """From the store, unless somebody uses them."""
        for digest in digests:
            self._store.remove(digest)


def _digests(record: Path) -> Iterator[str]:
    with record.open("rb") as file:
        text = file.read(CONTENT_BYTES_MAX).decode(errors="replace")
    return (line for line in text.split("\n") if _DIGEST.fullmatch(line))
