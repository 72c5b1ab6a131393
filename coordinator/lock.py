"""One coordinator per home and per database. The lock file's text is the holder's process id."""

import os
from pathlib import Path
from typing import Self

from potluck import lock


class AlreadyRunning(Exception):  # noqa: N818 -- named for what happened
    """Another process holds the lock; the message says which, and what to do."""

    def __init__(self, path: Path, pid: int | None) -> None:
        who = "another process" if pid is None else f"process {pid}"
        super().__init__(
            f"{who} already runs a coordinator on {path.parent}. Stop it first, or give this one another"
            " POTLUCK_HOME and --database."
        )
        self.pid = pid


class FileLock(lock.FileLock):
    @classmethod
    def acquire(cls, path: Path, content: bytes = b"") -> Self:
        """Raises AlreadyRunning if anybody holds it; OSError. `content`: the process id, unless given."""
        try:
            return super().acquire(path, content or f"{os.getpid()}\n".encode())
        except lock.Locked as locked:
            text = locked.content.strip()
            raise AlreadyRunning(path, int(text) if text.isdigit() else None) from None
