"""A lock on a file that the operating system takes back when its process ends, however that happens.

Kill -9 included: a lock file that lies around means nothing. What its holder wrote into it is for whoever
comes second. Nothing here waits; who wants to, asks again.
"""

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO, Final, Self

from potluck.home import SECRET_MODE, make_folder

CONTENT_BYTES_MAX: Final = 4_096
# Windows locks byte ranges, also against readers: one far behind the content keeps the content readable.
_LOCKED_BYTE: Final = 1 << 30


class Locked(Exception):  # noqa: N818 -- named for what happened
    """Somebody holds the lock; `content` is what they wrote into the file."""

    def __init__(self, path: Path, content: bytes) -> None:
        super().__init__(f"{path} is locked by another process")
        self.content = content


class FileLock:
    """Held from `acquire` until `release` or the end of the process."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path = path
        self._file = file

    @classmethod
    def acquire(cls, path: Path, content: bytes = b"") -> Self:
        """Raises Locked at once if anybody (this process included) holds it; OSError if it cannot be had.

        Without content nothing is written, so that a full disk does not matter.
        """
        make_folder(path.parent)
        file = _open_locked(path)
        try:
            file.truncate(0)
            if content:
                file.write(content)
        except BaseException:
            file.close()
            raise
        return cls(path, file)

    def release(self, *, remove: bool = False) -> None:
        """Once or more often. The file stays, unless it is removed: others may be about to lock it."""
        if not self._file.closed:
            _close(self._file, self.path, remove=remove)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def holder(path: Path) -> bytes | None:
    """What the process that holds this lock wrote; None if nobody holds it (the file is then removed)."""
    try:
        file = _open_locked(path)
    except Locked as locked:
        return locked.content
    _close(file, path, remove=True)
    return None


def _open_locked(path: Path) -> IO[bytes]:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), SECRET_MODE)
        file = os.fdopen(descriptor, "r+b", buffering=0)
        try:
            if not _try_lock(descriptor):
                raise Locked(path, file.read(CONTENT_BYTES_MAX))
            if _has_the_name(descriptor, path):
                return file
        except BaseException:
            file.close()
            raise
        file.close()  # its last holder removed it between our opening and locking it


if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> bool:
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)
        return True

    def _has_the_name(descriptor: int, path: Path) -> bool:
        del descriptor, path
        return True  # what is open cannot be removed there

    def _close(file: IO[bytes], path: Path, *, remove: bool) -> None:
        file.close()
        if remove:
            with suppress(OSError):  # somebody else has opened it meanwhile, and removes it later
                path.unlink()

else:
    import fcntl

    def _try_lock(descriptor: int) -> bool:
        # flock, not lockf: a POSIX record lock would vanish when any descriptor of the file is closed.
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _has_the_name(descriptor: int, path: Path) -> bool:
        with suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(descriptor), path.stat())
        return False

    def _close(file: IO[bytes], path: Path, *, remove: bool) -> None:
        if remove:  # while it is held: nobody else can lock what disappears
            path.unlink(missing_ok=True)
        file.close()
