"""What workers make in training, as it arrives: files by attempt and digest, whole ones by their digest.

A stream that broke goes on at the byte where it stopped, for as long as the worker holds the attempt: half a
file goes when the attempt does. Whole ones lie in an artifact store of their own until `sweep` is told what
is kept. After a restart every attempt is over, so what is remembered here need not be on the disk.
"""

import asyncio
import contextlib
import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from coordinator.artifacts import (
    INCOMING,
    PUT_CHUNK_BYTES_MAX,
    RESERVE_BYTES,
    ArtifactError,
    ArtifactMismatch,
    ArtifactStore,
    ArtifactTooLarge,
    NoSuchArtifact,
    Stored,
    StoreFull,
)
from coordinator.core.jobs import JobId, WorkerId
from coordinator.store_errors import DISK_FULL
from potluck.home import make_folder

FOLDER: Final = "training"
ARTIFACTS_MAX: Final = 2  # of one attempt: an adapter or what changed in it, and the optimizer's state
CLAIM_S: Final = 3_600.0  # what came since then is kept, whether or not anybody claims it yet


_FULL: Final = "The coordinator's disk is full: nothing was kept. Ask whoever runs it to make room."
_OVER: Final = "the attempt is over, or its file was refused"


class Over(ArtifactError):  # noqa: N818 -- named for what happened
    """The attempt has ended, or another stream brings the file: nothing more is taken on this one."""


class Incomplete(ArtifactError):  # noqa: N818 -- named for what happened
    """The stream ended before the file did; what is here stays for the next one."""


class Holder(NamedTuple):
    """An attempt and who has it."""

    worker: WorkerId
    job: JobId
    number: int


@dataclass(slots=True)
class Upload:
    """One file of one attempt, as far as it is here. `turn` counts the streams that brought it."""

    sha256: str
    bytes_total: int
    path: Path
    size_bytes: int = 0
    whole: bool = False
    over: bool = False
    turn: int = 0
    digest: Any = field(default_factory=hashlib.sha256)
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(slots=True)
class TrainingStore:
    """`now`: seconds on any clock that does not go back."""

    artifacts: ArtifactStore
    now: Callable[[], float] = time.monotonic
    _expected: dict[JobId, int] = field(default_factory=dict)
    _uploads: dict[Holder, dict[str, Upload]] = field(default_factory=dict)
    _came_at: dict[str, float] = field(default_factory=dict)

    # -- who may bring what ------------------------------------------------------------------------

    def expect(self, job: JobId, bytes_max: int) -> None:
        """The attempts of this part may bring so many bytes each, all files of one together."""
        self._expected[job] = bytes_max

    def ended(self, job: JobId) -> None:
        """The part has ended: nothing of it is taken any more."""
        self._expected.pop(job, None)
        self.prune(lambda _worker, other, _number: other != job)

    def prune(self, holds: Callable[[WorkerId, JobId, int], bool]) -> None:
        """Attempts that are over: what of theirs is half here goes."""
        for holder in [holder for holder in self._uploads if not holds(*holder)]:
            for upload in self._uploads.pop(holder).values():
                self._drop(upload)

    def has(self, holder: Holder, sha256: str, size_bytes: int) -> bool:
        """Whether this attempt has brought this file, and it is whole."""
        upload = self._uploads.get(holder, {}).get(sha256)
        return upload is not None and upload.whole and upload.bytes_total == size_bytes

    # -- as it arrives -----------------------------------------------------------------------------

    async def begin(self, holder: Holder, sha256: str, bytes_total: int) -> tuple[Upload, int]:
        """The file as far as it is here, and the turn of the stream that brings the rest.

        An older stream of the same file is over. Raises NoSuchArtifact, ArtifactTooLarge, StoreFull, OSError.
        """
        there = await asyncio.to_thread(self._look, sha256)
        upload = self._uploads.get(holder, {}).get(sha256) or self._new(holder, sha256, bytes_total, there)
        if upload.bytes_total != bytes_total:
            raise ArtifactTooLarge(f"it was announced with {upload.bytes_total:,} bytes before")
        upload.turn += 1
        turn = upload.turn
        async with upload.writing:  # what an older stream is just writing counts
            return upload, turn

    def _new(self, holder: Holder, sha256: str, bytes_total: int, there: int | None) -> Upload:
        if (bytes_max := self._expected.get(holder.job)) is None:
            raise NoSuchArtifact(f"nothing is to be uploaded for {holder.job}")
        known = self._uploads.get(holder, {})
        if len(known) >= ARTIFACTS_MAX:
            raise ArtifactTooLarge(f"an attempt brings {ARTIFACTS_MAX} files at most")
        taken = sum(upload.bytes_total for upload in known.values())
        if not 0 < bytes_total <= bytes_max - taken:
            raise ArtifactTooLarge(f"{bytes_total:,} bytes beside {taken:,}; {bytes_max:,} are allowed")
        path = self.artifacts.folder / f"{INCOMING}{secrets.token_hex(8)}"
        upload = Upload(sha256, bytes_total, path)
        if there == bytes_total:  # the same was made before: by another attempt at the same work
            upload.whole, upload.size_bytes = True, there
            self._came_at[sha256] = self.now()
        else:
            self._room(bytes_total)
        self._uploads.setdefault(holder, {})[sha256] = upload
        return upload

    async def append(self, upload: Upload, turn: int, data: bytes) -> None:
        """The next bytes. Raises Over, ArtifactTooLarge, StoreFull, OSError: of what was too much, nothing
        is kept, what came before included.
        """
        if len(data) > PUT_CHUNK_BYTES_MAX:
            raise ArtifactTooLarge(f"a piece of {len(data)} bytes; {PUT_CHUNK_BYTES_MAX} are allowed at once")
        async with upload.writing:
            _current(upload, turn)
            if upload.size_bytes + len(data) > upload.bytes_total:
                self._drop(upload)
                raise ArtifactTooLarge(f"more came than the {upload.bytes_total:,} bytes that were announced")
            try:
                self._room(len(data))
                await _to_the_end(_append, upload, data)
            except FileNotFoundError:
                raise Over(_OVER) from None  # it went while this was on its way
            except (StoreFull, OSError) as error:
                self._drop(upload)
                if isinstance(error, OSError) and error.errno in DISK_FULL:
                    raise StoreFull(_FULL) from None
                raise

    async def finish(self, upload: Upload, turn: int) -> None:
        """The stream has ended. Raises Over, Incomplete, ArtifactMismatch (nothing is kept then), OSError."""
        async with upload.writing:
            _current(upload, turn)
            if upload.whole:
                return
            if upload.size_bytes < upload.bytes_total:
                here = f"{upload.size_bytes:,} of {upload.bytes_total:,} bytes are here"
                raise Incomplete(f"{here}: begin again, and go on from there")
            if (found := upload.digest.hexdigest()) != upload.sha256:
                self._drop(upload)
                raise ArtifactMismatch(
                    f"the bytes have the sha256 {found}, and {upload.sha256} was announced"
                )
            try:
                await _to_the_end(self.artifacts.adopt, upload.path, upload.sha256)
            except FileNotFoundError:
                raise Over(_OVER) from None
            upload.whole = True
            self._came_at[upload.sha256] = self.now()

    # -- what is here ------------------------------------------------------------------------------

    async def put(self, data: bytes) -> Stored:
        """What the pool itself made of it. Raises StoreFull, OSError."""

        async def once() -> AsyncIterator[bytes]:
            for start in range(0, len(data), PUT_CHUNK_BYTES_MAX):
                yield data[start : start + PUT_CHUNK_BYTES_MAX]

        stored = await self.artifacts.put(once())
        self._came_at[stored.sha256] = self.now()
        return stored

    def path(self, sha256: str) -> Path:
        """Its file, only to be read. Raises NoSuchArtifact."""
        return self.artifacts.path(sha256)

    async def drop(self, names: AbstractSet[str]) -> None:
        """Delete what nobody needs any more, however lately it came; not what an open attempt brings."""
        open_now = {name for uploads in self._uploads.values() for name in uploads}
        for name in sorted(names - open_now):
            self._came_at.pop(name, None)
            await asyncio.to_thread(self.artifacts.delete, name)

    async def sweep(self, keep: AbstractSet[str]) -> int:
        """Delete all that nobody keeps, except what came lately or is an open attempt's; how many."""
        since = self.now() - CLAIM_S
        self._came_at = {name: at for name, at in self._came_at.items() if at > since}
        open_now = {name for uploads in self._uploads.values() for name in uploads}
        deleted = 0
        for name in await asyncio.to_thread(self.artifacts.names):
            if name not in keep and name not in self._came_at and name not in open_now:
                deleted += await asyncio.to_thread(self.artifacts.delete, name)
        return deleted

    def _look(self, sha256: str) -> int | None:
        """Its size; None: it is not here. Raises NoSuchArtifact for a name that is no digest, OSError."""
        self.artifacts.check_name(sha256)
        make_folder(self.artifacts.folder)
        try:
            return self.artifacts.size(sha256)
        except NoSuchArtifact:
            return None

    def _room(self, wanted_bytes: int) -> None:
        """Raises StoreFull."""
        if wanted_bytes and self.artifacts.free_bytes(self.artifacts.folder) - wanted_bytes < RESERVE_BYTES:
            raise StoreFull(_FULL)

    def _drop(self, upload: Upload) -> None:
        """A stream that comes again begins anew; one that is under way learns that it is over."""
        upload.over = True
        for uploads in self._uploads.values():
            if uploads.get(upload.sha256) is upload:
                del uploads[upload.sha256]
        if not upload.whole:
            with contextlib.suppress(OSError):  # Windows keeps what is being written; the next start sweeps
                upload.path.unlink(missing_ok=True)


def _current(upload: Upload, turn: int) -> None:
    if upload.over:
        raise Over(_OVER)
    if upload.turn != turn:
        raise Over("another stream brings this file now")


def _append(upload: Upload, data: bytes) -> None:
    """Opened for each piece: a stream that hangs holds no file."""
    with upload.path.open("r+b" if upload.size_bytes else "xb") as file:
        file.seek(upload.size_bytes)
        file.write(data)
    upload.digest.update(data)
    upload.size_bytes += len(data)


async def _to_the_end(function: Callable[..., object], *arguments: object) -> None:
    """In a thread. Returns when that is through, also when cancelled meanwhile: another stream may follow."""
    working = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.gather(working, return_exceptions=True)  # nobody is left to hear what it failed with
        raise
