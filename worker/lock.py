"""A file lock that the operating system takes back when its process ends, however that happens."""

import os
import sys
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from potluck.home import SECRET_MODE, make_folder

_LOCKED_AT = 1 << 30  # Windows forbids reading locked bytes: lock one far behind the content


class Locked(Exception):  # noqa: N818 -- named for what happened
    """Another process holds the lock; `content` is what it wrote into the file."""

    def __init__(self, content: bytes) -> None:
        super().__init__("locked by another process")
        self.content = content


class FileLock:
    """Raises Locked at once if another process holds it; `content` tells others who we are."""

    def __init__(self, path: Path, content: bytes) -> None:
        self.path = path
        make_folder(path.parent)
        self._file = _open_locked(path)
        self._file.truncate(0)
        self._file.write(content)
        self._file.flush()

    def release(self, *, remove: bool = False) -> None:
        if self._file.closed:
            return
        if remove and sys.platform != "win32":  # removed while held: nobody else can lock what disappears
            self.path.unlink(missing_ok=True)
        self._file.close()
        if remove and sys.platform == "win32":  # an open file cannot be removed there
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


def holder(path: Path) -> bytes | None:
    """What the process that holds this lock wrote; None if nobody holds it (the file is then removed)."""
    try:
        file = _open_locked(path)
    except Locked as locked:
        return locked.content
    path.unlink(missing_ok=True)
    file.close()
    return None


def _open_locked(path: Path) -> IO[bytes]:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), SECRET_MODE)
        file = os.fdopen(descriptor, "r+b", buffering=0)
        try:
            _lock(descriptor)
        except OSError:
            content = file.read(4096)
            file.close()
            raise Locked(content) from None
        try:
            same = os.path.samestat(os.fstat(descriptor), path.stat())
        except FileNotFoundError:
            same = False
        if same:
            return file
        file.close()  # its last holder removed it between our opening and locking it


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, _LOCKED_AT, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
