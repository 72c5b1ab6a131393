"""The model files of one machine: who uses them, what they take, and which give way when room is needed.

Several workers may share the folder. A process that uses a file holds a mark beside it, a lock that ends with
the process. What nobody uses goes first if it was not used for longest. Whatever was made out of a file
(converted weights) counts with it and goes with it.
"""

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from potluck.catalogue import File, LocalPath, Wheel
from potluck.download import FetchError, sha256_of
from potluck.home import make_folder
from potluck.lock import FileLock, Locked, holder

_NAME: Final = re.compile(r"[0-9a-f]{64}")
FOLDERS: Final = "folders"
RESERVE_BYTES: Final = 64 << 20  # stays free on the disk
MARKS_MAX: Final = 1_024


class OverQuota(FetchError):  # noqa: N818 -- named for what happened
    """The owner's quota does not hold the files beside those that are in use."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file with what was made of it. `used_at`: seconds since the epoch; 0: it never was whole."""

    sha256: str
    size_bytes: int
    used_at: float
    in_use: bool


class ModelStore:
    """`derived`: where folders named `<sha256>-...` were made out of files. A quota of 0 bytes is none."""

    def __init__(
        self,
        cache: Path,
        *,
        derived: Path | None = None,
        quota_bytes: int = 0,
        free_bytes: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
    ) -> None:
        self.cache, self._derived, self.quota_bytes = cache, derived, quota_bytes
        self._free_bytes = free_bytes

    def entries(self) -> list[Entry]:
        """The one that was not used for longest first."""
        names: set[str] = set()
        if self.cache.is_dir():
            names = {path.name[:64] for path in self.cache.iterdir() if _NAME.fullmatch(path.name[:64])}
        found = [self._entry(name) for name in names]
        return sorted((e for e in found if e.size_bytes), key=lambda entry: (entry.used_at, entry.sha256))

    @contextmanager
    def using(self, files: Iterable[File]) -> Iterator[None]:
        """Inside, no process removes the files; one that is missing may still have to be fetched."""
        digests = [file.sha256 for file in files if not isinstance(file.source, LocalPath)]
        with ExitStack() as stack:
            for digest in digests:
                mark = self.cache / f"{digest}.used-{os.getpid()}-{secrets.token_hex(4)}"
                lock = _mark(mark)
                stack.callback(lock.release, remove=True)
                stack.callback(self._touch, digest)
            yield

    def make_room(self, files: Iterable[File]) -> None:
        """Remove what nobody uses until the missing ones of these files fit. Raises OverQuota.

        Nothing is removed if that would not be enough for the quota. Whether the disk itself has the room is
        then asked by who downloads.
        """
        wanted = [file for file in files if not isinstance(file.source, LocalPath)]
        make_folder(self.cache)
        entries, kept = self.entries(), {file.sha256 for file in wanted}
        need = sum(self._missing(file) for file in wanted)
        if not need:
            return
        beside = sum(self._missing(file) for file in wanted if isinstance(file.source, Wheel))  # its wheel
        over_quota = sum(e.size_bytes for e in entries) + need - self.quota_bytes if self.quota_bytes else 0
        over_disk = need + beside + RESERVE_BYTES - self._free_bytes(self.cache)
        spare = [e for e in entries if not e.in_use and e.sha256 not in kept]
        if over_quota > sum(e.size_bytes for e in spare):
            raise OverQuota(
                f"{need / 1e9:.1f} GB more of model files would take more than the"
                f" {self.quota_bytes / 1e9:.1f} GB that worker.toml allows, and the others are in use."
                " Allow more, or serve fewer models."
            )
        over = max(over_quota, over_disk)
        for entry in spare:
            if over <= 0:
                return
            if self.remove(entry.sha256):
                over -= entry.size_bytes

    def remove(self, sha256: str) -> bool:
        """False: it is in use or being fetched, or was not there."""
        if not _NAME.fullmatch(sha256):
            return False
        try:
            with FileLock.acquire(self.cache / f"{sha256}.lock"):
                return not self._in_use(sha256) and self._remove(sha256)
        except (Locked, OSError):  # Windows does not remove what is open
            return False

    def damaged(self) -> list[Path]:
        """Reads everything: files whose bytes are no longer what their name says.

        They are checked, and fetched again, when they are next needed.
        """
        found = []
        for entry in self.entries():
            path = self.cache / entry.sha256
            with contextlib.suppress(OSError):
                if path.exists() and sha256_of(path) != entry.sha256:
                    path.with_name(f"{entry.sha256}.verified").unlink(missing_ok=True)
                    found.append(path)
        return found

    def _entry(self, sha256: str) -> Entry:
        files = [self.cache / sha256, self.cache / f"{sha256}.partial"]
        made = [path for folder in self._made(sha256) for path in folder.rglob("*")]
        return Entry(
            sha256,
            size_bytes=sum(_size(path) for path in (*files, *made)),
            used_at=_modified(self.cache / f"{sha256}.verified"),
            in_use=self._in_use(sha256),
        )

    def _in_use(self, sha256: str) -> bool:
        marks = sorted(self.cache.glob(f"{sha256}.used-*"))[:MARKS_MAX]
        return any(holder(mark) is not None for mark in marks)

    def _made(self, sha256: str) -> list[Path]:
        return [] if self._derived is None else list(self._derived.glob(f"{sha256}-*"))

    def _links(self, path: Path) -> list[Path]:
        """The same file under other names, in the folders that engines read (worker.folders)."""
        links = (self.cache / FOLDERS).glob("*/*")
        return [link for link in links if path.exists() and link.exists() and link.samefile(path)]

    def _missing(self, file: File) -> int:
        here = max(_size(self.cache / file.sha256), _size(self.cache / f"{file.sha256}.partial"))
        return max(0, file.size_bytes - here)

    def _remove(self, sha256: str) -> bool:
        path = self.cache / sha256
        there = path.exists() or (self.cache / f"{sha256}.partial").exists()
        for link in self._links(path):  # else a hard one would keep the bytes
            link.unlink(missing_ok=True)
        path.unlink(missing_ok=True)  # first: a name without its stamp is only verified once more
        for suffix in (".partial", ".verified"):
            (self.cache / f"{sha256}{suffix}").unlink(missing_ok=True)
        for folder in self._made(sha256):
            shutil.rmtree(folder, ignore_errors=True)
        return there

    def _touch(self, sha256: str) -> None:
        with contextlib.suppress(OSError):
            os.utime(self.cache / f"{sha256}.verified")


def _mark(path: Path) -> FileLock:
    while True:
        try:
            return FileLock.acquire(path)
        except Locked:  # somebody looked at it between its making and its locking
            continue


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
