"""One coordinator per home and per database: a lock on a file that ends with the process that holds it.

The operating system releases it however the process ends, kill -9 included, so a lock file that lies around
means nothing. The file's text is the holder's process id, for the message to whoever comes second.
"""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from potluck.home import SECRET_MODE, make_folder

# Windows locks byte ranges, also against readers: one far behind the text keeps the text readable.
_LOCKED_BYTE: Final = 1 << 30
_PID_BYTES_MAX: Final = 32


class AlreadyRunning(Exception):  # noqa: N818 -- named for what happened
    """Another process holds the lock; the message says which, and what to do."""

    def __init__(self, path: Path, pid: int | None) -> None:
        who = "another process" if pid is None else f"process {pid}"
        super().__init__(
            f"{who} already runs a coordinator on {path.parent}. Stop it first, or give this one another"
            " POTLUCK_HOME and --database."
        )
        self.pid = pid


@dataclass(slots=True)
class FileLock:
    """Held from `acquire` until `release` or the end of the process."""

    path: Path
    _descriptor: int | None = field(default=None, repr=False)

    @classmethod
    def acquire(cls, path: Path) -> Self:
        """Raises AlreadyRunning at once, without waiting, if anybody (this process included) holds it."""
        make_folder(path.parent)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), SECRET_MODE)
        if not _try_lock(descriptor):
            pid = _read_pid(descriptor)
            os.close(descriptor)
            raise AlreadyRunning(path, pid)
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        return cls(path, descriptor)

    def release(self) -> None:
        """The file stays: deleting it could take the lock of one who has just opened it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _read_pid(descriptor: int) -> int | None:
    os.lseek(descriptor, 0, os.SEEK_SET)
    text = os.read(descriptor, _PID_BYTES_MAX).strip()
    return int(text) if text.isdigit() else None


if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> bool:
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_lock(descriptor: int) -> bool:
        # flock, not lockf: a POSIX record lock would vanish when any descriptor of the file is closed.
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
