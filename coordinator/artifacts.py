"""The pool's artifact store: immutable bytes under their sha256.

A name is a digest, matched strictly before it touches a path. What has a name is whole: bytes are written to
a temporary file, flushed to the disk and renamed only when their digest is known.
"""

import asyncio
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

from potluck.home import PUBLIC_MODE, make_folder, sync_folder

PUT_CHUNK_BYTES_MAX: Final = 4 << 20
ARTIFACT_BYTES_MAX: Final = 64 << 30
RESERVE_BYTES: Final = 256 << 20  # stays free: the ledger's database lies on the same disk
INCOMING: Final = ".incoming-"
_NAME = re.compile(r"[0-9a-f]{64}")


class ArtifactError(Exception):
    """The store refuses; the message says why."""


class NoSuchArtifact(ArtifactError):  # noqa: N818 -- named for what happened
    """No artifact has that name, or it is no name at all."""


class ArtifactTooLarge(ArtifactError):  # noqa: N818 -- named for what happened
    """More bytes came than were allowed; nothing of them is kept."""


class ArtifactMismatch(ArtifactError):  # noqa: N818 -- named for what happened
    """The bytes are not those that were announced; nothing of them is kept."""


class StoreFull(ArtifactError):  # noqa: N818 -- named for what happened
    """The disk has no room for them."""


@dataclass(frozen=True, slots=True)
class Stored:
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ArtifactStore:
    """One folder, one file for each artifact. `put` and downloads do their disk work in threads."""

    folder: Path
    bytes_max: int = ARTIFACT_BYTES_MAX
    free_bytes: Callable[[Path], int] = field(default=lambda folder: shutil.disk_usage(folder).free)

    async def put(
        self,
        chunks: AsyncIterator[bytes],
        *,
        bytes_max: int | None = None,
        sha256: str | None = None,
        check: Callable[[Path], None] | None = None,
    ) -> Stored:
        """Keep the stream's bytes; what is there already is not written twice.

        `sha256`: the digest they must have. `check` reads them, in a thread, before they have a name, and
        what it raises keeps them out. Raises ArtifactTooLarge, ArtifactMismatch, StoreFull, NoSuchArtifact
        for a digest that is none, OSError; nothing is left behind then.
        """
        if sha256 is not None:
            self.check_name(sha256)
        limit = self.bytes_max if bytes_max is None else min(bytes_max, self.bytes_max)
        await asyncio.to_thread(make_folder, self.folder)
        incoming = self.folder / f"{INCOMING}{secrets.token_hex(8)}"
        digest, size = hashlib.sha256(), 0
        try:
            with await asyncio.to_thread(_create, incoming) as file:
                async for chunk in chunks:
                    if len(chunk) > PUT_CHUNK_BYTES_MAX:
                        raise ArtifactTooLarge(
                            f"a piece of {len(chunk)} bytes; {PUT_CHUNK_BYTES_MAX} are allowed at once"
                        )
                    size += len(chunk)
                    if size > limit:
                        raise ArtifactTooLarge(f"more than {limit:,} bytes; that is the most allowed here")
                    if self.free_bytes(self.folder) - len(chunk) < RESERVE_BYTES:
                        raise StoreFull("The coordinator's disk is full. Ask whoever runs it to make room.")
                    await asyncio.to_thread(_append, file, digest, chunk)
                await asyncio.to_thread(_flush, file)
            found = digest.hexdigest()
            if sha256 not in (None, found):
                raise ArtifactMismatch(f"the bytes have the sha256 {found}, and {sha256} was announced")
            if check is not None:
                await asyncio.to_thread(check, incoming)
            await asyncio.to_thread(_rename, incoming, self._path(found))
        finally:
            incoming.unlink(missing_ok=True)
        return Stored(found, size)

    def adopt(self, path: Path, sha256: str) -> None:
        """A file of this folder whose digest is known to be right gets its name. Raises OSError."""
        with path.open("r+b") as file:
            _flush(file)
        _rename(path, self._path(sha256))
        path.unlink(missing_ok=True)  # the same was here already

    def check_name(self, sha256: str) -> None:
        """Raises NoSuchArtifact for what is no digest."""
        self._path(sha256)

    def path(self, sha256: str) -> Path:
        """The artifact's file, only to be read. Raises NoSuchArtifact."""
        path = self._path(sha256)
        if not path.is_file():
            raise NoSuchArtifact(f"no artifact {sha256}")
        return path

    def where(self, sha256: str) -> Path:
        """Its place, whether or not it is there. Raises NoSuchArtifact for what is no name."""
        return self._path(sha256)

    def open(self, sha256: str) -> BinaryIO:
        """Raises NoSuchArtifact. What is open can be read to its end, also when it is deleted meanwhile."""
        try:
            return self._path(sha256).open("rb")
        except FileNotFoundError as error:
            raise NoSuchArtifact(f"no artifact {sha256}") from error

    def size(self, sha256: str) -> int:
        """In bytes. Raises NoSuchArtifact."""
        return self.path(sha256).stat().st_size

    def delete(self, sha256: str) -> bool:
        """Was there one?"""
        try:
            self._path(sha256).unlink()
        except (FileNotFoundError, NoSuchArtifact):
            return False
        return True

    def names(self) -> list[str]:
        """The digests of all that is here."""
        paths = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(path.name for path in paths if _NAME.fullmatch(path.name))

    def sweep(self) -> int:
        """Remove what a crash left half written; how many. For the start, before anything is put."""
        leftovers = list(self.folder.glob(f"{INCOMING}*")) if self.folder.is_dir() else []
        for path in leftovers:
            path.unlink(missing_ok=True)
        return len(leftovers)

    def _path(self, sha256: str) -> Path:
        if not _NAME.fullmatch(sha256):
            raise NoSuchArtifact("an artifact's name is its sha256: 64 lower-case hex digits")
        return self.folder / sha256


def _create(path: Path) -> BinaryIO:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(path, flags, PUBLIC_MODE), "wb")


def _append(file: BinaryIO, digest: Any, chunk: bytes) -> None:
    file.write(chunk)
    digest.update(chunk)


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _rename(incoming: Path, path: Path) -> None:
    if path.exists():
        return  # the same bytes: keep the file that others may be reading (Windows could not replace it)
    incoming.replace(path)
    sync_folder(path.parent)
