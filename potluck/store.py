"""The model files of one machine: who uses them, what they take, and which give way when room is needed.

Several workers may share the folder. Who uses or fetches a file holds a mark beside it (potluck.marks); what
nobody marked gives way, the one first that was not used for longest. Room is set aside before anything is
fetched, so that workers which fetch at once stay within their quotas together. Whatever was made out of a
file (converted weights, names in folders) counts with it and goes with it.
"""

import asyncio
import contextlib
import os
import re
import shutil
import stat
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from potluck.catalogue import File, LocalPath, Wheel
from potluck.download import ArtifactSource, FetchError, Policy, Progress, sha256_of
from potluck.fetch import FetchBusy, fetch_all, not_kept
from potluck.folders import folder_of, in_folders, remove_folder
from potluck.lock import FileLock, Locked
from potluck.marks import Marked, mark

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_BESIDE: Final = re.compile(r"[0-9a-f]{64}\.(lock|verified|used-.*)")  # about a file, and no bytes of it
_DECIDING: Final = "room.lock"
RESERVE_BYTES: Final = 64 << 20  # stays free on the disk


class OverQuota(FetchError):  # noqa: N818 -- named for what happened
    """The owner's quota does not hold the files beside those that are in use."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file with what was made of it. `used_at`: seconds since the epoch; 0: it never was whole.

    `coming_bytes` are set aside for it and not here yet.
    """

    sha256: str
    size_bytes: int
    used_at: float
    in_use: bool
    coming_bytes: int = 0


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
        self._turn = asyncio.Lock()  # those of one process need not poll

    def entries(self) -> list[Entry]:
        """The one that was not used for longest first."""
        found = [self._entry(sha256, paths) for sha256, paths in self._found().items()]
        there = (entry for entry in found if entry.size_bytes or entry.coming_bytes)
        return sorted(there, key=lambda entry: (entry.used_at, entry.sha256))

    @contextmanager
    def using(self, files: Iterable[File]) -> Iterator[None]:
        """Inside, no process removes the files; one that is missing may still have to be fetched."""
        with ExitStack() as stack:
            for file in files:
                stack.callback(mark(self.cache, file.sha256).release, remove=True)
                stack.callback(self._touch, file.sha256)
            yield

    async def fetch(
        self,
        files: Sequence[File],
        *,
        named: bool = False,
        progress: Progress = lambda *_: None,
        artifacts: ArtifactSource | None = None,
        policy: Policy | None = None,
    ) -> list[Path]:
        """As `fetch_all`, with room made and set aside before.

        `named`: the paths are those of one folder in which the files have their names. They stay where they
        are for as long as somebody is `using` them. Raises OverQuota beside what `fetch_all` raises.
        """
        policy = policy or Policy()
        async with self._with_room(files, policy):
            paths = await fetch_all(files, self.cache, progress=progress, artifacts=artifacts, policy=policy)
            if named:
                folder = await asyncio.to_thread(folder_of, files, paths, self.cache)
                return [folder / file.name for file in files]
            return paths

    def set_aside(self, files: Iterable[File]) -> ExitStack:
        """Room for these files, until it is closed: what nobody uses was removed for the missing ones.

        Nothing is removed if that would not be enough for the quota. Whether the disk itself has the room is
        then asked by who downloads. Raises OverQuota; Locked while another one decides about room.
        """
        wanted = {file.sha256: file for file in files if not isinstance(file.source, LocalPath)}
        with FileLock.acquire(self.cache / _DECIDING), ExitStack() as marks:
            self._make_room(wanted)
            for sha256, file in wanted.items():
                held = mark(self.cache, sha256, set_aside_bytes=file.size_bytes)
                marks.callback(held.release, remove=True)
            return marks.pop_all()

    def remove(self, sha256: str) -> bool:
        """False: it is in use or being fetched, or was not there."""
        if not _DIGEST.fullmatch(sha256):
            return False
        try:
            lock = FileLock.acquire(self.cache / f"{sha256}.lock")
        except (Locked, OSError):
            return False
        try:
            paths = self._found().get(sha256, [])
            return not Marked.among(paths).in_use and self._remove(sha256, paths)
        except OSError:  # Windows does not remove what is open
            return False
        finally:
            lock.release(remove=True)

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

    @asynccontextmanager
    async def _with_room(self, files: Sequence[File], policy: Policy) -> AsyncIterator[None]:
        """Raises OverQuota, FetchError; FetchBusy if another process never ends deciding."""
        async with self._turn:
            since = asyncio.get_running_loop().time()
            while (held := await self._try_room(files)) is None:
                if asyncio.get_running_loop().time() - since > policy.stalled_s:
                    raise FetchBusy(
                        f"Another process makes room in {self.cache} and does not end. End it (it holds"
                        f" {self.cache / _DECIDING}), then try again."
                    )
                await policy.sleep(policy.poll_s)
        with held:
            yield

    async def _try_room(self, files: Sequence[File]) -> ExitStack | None:
        """None while another process decides. Raises OverQuota, FetchError."""
        taking = asyncio.ensure_future(asyncio.to_thread(self.set_aside, files))
        try:
            await asyncio.wait({taking})
            return taking.result()
        except asyncio.CancelledError:  # the thread goes on, and what it takes must not stay taken
            taking.add_done_callback(_give_back)
            raise
        except Locked:
            return None
        except OSError as error:
            raise not_kept("a model", self.cache, error) from error

    def _make_room(self, wanted: dict[str, File]) -> None:
        """Remove what nobody uses until the missing ones of these files fit. Raises OverQuota."""
        if all(self._here(sha256) >= file.size_bytes for sha256, file in wanted.items()):
            return
        entries = {entry.sha256: entry for entry in self.entries()}
        coming = {sha256: entry.coming_bytes for sha256, entry in entries.items()}
        missing = {
            sha256: max(0, file.size_bytes - self._here(sha256) - coming.get(sha256, 0))
            for sha256, file in wanted.items()
        }
        need, spoken_for = sum(missing.values()), sum(coming.values())
        if not need:  # another process fetches them already, within its own quota
            return
        beside = sum(missing[sha256] for sha256, file in wanted.items() if isinstance(file.source, Wheel))
        taken = sum(entry.size_bytes for entry in entries.values())
        over_quota = taken + spoken_for + need - self.quota_bytes if self.quota_bytes else 0
        over_disk = spoken_for + need + beside + RESERVE_BYTES - self._free_bytes(self.cache)
        spare = [entry for entry in entries.values() if not entry.in_use and entry.sha256 not in wanted]
        if over_quota > sum(entry.size_bytes for entry in spare):
            spare.clear()  # it would not be enough
        for entry in spare:
            if max(over_quota, over_disk) <= 0:
                return
            if self.remove(entry.sha256):
                over_quota, over_disk = over_quota - entry.size_bytes, over_disk - entry.size_bytes
        if over_quota > 0:
            raise OverQuota(
                f"{need / 1e9:.1f} GB more of model files would take more than the"
                f" {self.quota_bytes / 1e9:.1f} GB that worker.toml allows, and the others are in use."
                " Allow more, or serve fewer models."
            )

    def _found(self) -> dict[str, list[Path]]:
        """All that there is of and about each file, by its sha256."""
        found: dict[str, list[Path]] = defaultdict(list)
        for folder in (self.cache, self._derived):
            if folder is not None and folder.is_dir():
                for path in folder.iterdir():
                    if _DIGEST.fullmatch(path.name[:64]):
                        found[path.name[:64]].append(path)
        for sha256, path in in_folders(self.cache):
            found[sha256].append(path)
        return found

    def _entry(self, sha256: str, paths: list[Path]) -> Entry:
        marked = Marked.among(paths)
        return Entry(
            sha256,
            size_bytes=_bytes_of(path for path in paths if not _BESIDE.fullmatch(path.name)),
            used_at=_modified(self.cache / f"{sha256}.verified"),
            in_use=marked.in_use,
            coming_bytes=max(0, marked.set_aside_bytes - self._here(sha256)),
        )

    def _here(self, sha256: str) -> int:
        """Bytes of the file itself."""
        return max(_size(self.cache / sha256), _size(self.cache / f"{sha256}.partial"))

    def _remove(self, sha256: str, paths: list[Path]) -> bool:
        """With the file's lock held, and no mark on it: nobody reads any of these."""
        there = False
        # The file before its stamp: a name without a stamp would be verified once more.
        (self.cache / sha256).unlink(missing_ok=True)
        for path in paths:
            there = there or not _BESIDE.fullmatch(path.name)
            if path.parent not in (self.cache, self._derived):
                remove_folder(path.parent)  # without this file it is none that an engine could load
            elif path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.suffix != ".lock":
                path.unlink(missing_ok=True)
        return there

    def _touch(self, sha256: str) -> None:
        with contextlib.suppress(OSError):
            os.utime(self.cache / f"{sha256}.verified")


def _give_back(taking: "asyncio.Future[ExitStack]") -> None:
    if not taking.cancelled() and taking.exception() is None:
        taking.result().close()


def _bytes_of(paths: Iterable[Path]) -> int:
    """Of the disk, folders with all that is in them. A file under several names is there once."""
    sizes = {}
    for path in paths:
        for inner in (path, *path.rglob("*")):
            with contextlib.suppress(OSError):
                state = inner.lstat()
                if stat.S_ISREG(state.st_mode):
                    sizes[state.st_dev, state.st_ino] = state.st_size
    return sum(sizes.values())


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
