"""Members' files: bytes under their digest in a store of their own, and who they belong to in the books.

The same bytes are stored once, and deleted when the last file that has them goes. Only this module puts bytes
there, so that what no file claims is what a crash has left.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self, TypeVar

import structlog

from coordinator.artifacts import (
    ArtifactError,
    ArtifactStore,
    ArtifactTooLarge,
    NoSuchArtifact,
    Stored,
    StoreFull,
)
from coordinator.core.jobs import MemberId
from coordinator.ids import new_file_id
from coordinator.records import MADE_BY_POOL, File, FileId, Purpose
from coordinator.refusal import Refusal
from coordinator.settings import Settings
from coordinator.store import Store
from coordinator.store_errors import DISK_FULL, FilesTooMany
from potluck import training_data
from potluck.jsonl import PROBLEMS_MAX, Problem

FOLDER: Final = "files"
FILES_MAX: Final = 10_000  # of one member
UPLOADS_AT_ONCE: Final = 4  # of one member
DAY_S: Final = 86_400.0

T = TypeVar("T")
Validator = Callable[[Path], list[Problem]]
User = Callable[[FileId], Awaitable[str | None]]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Description:
    """What an upload says of itself. `expires_s`: after it was made."""

    purpose: Purpose
    filename: str
    expires_s: float | None = None


@dataclass(slots=True)
class Files:
    """`validators`: what reads a file of that purpose before it is taken, in a thread.

    `users`: each says what of its own is open and uses the file, in words, or None. Whoever begins to use a
    file holds `deciding` from where it gets the file to where its own row is written: no file goes meanwhile.
    """

    store: Store
    artifacts: ArtifactStore
    settings: Settings
    now: Callable[[], float]
    validators: dict[Purpose, Validator] = field(
        default_factory=lambda: {Purpose.FINE_TUNE: training_data.check}
    )
    users: list[User] = field(default_factory=list)
    deciding: asyncio.Lock = field(default_factory=asyncio.Lock)
    _uploading: Counter[MemberId] = field(default_factory=Counter)

    @classmethod
    async def open(cls, store: Store, settings: Settings, now: Callable[[], float]) -> Self:
        """For the start, before anybody is let in: what a crash left is removed."""
        files = cls(store, ArtifactStore(settings.folder / FOLDER), settings, now)
        await asyncio.to_thread(files.artifacts.sweep)
        claimed = await store.claimed()
        for name in await asyncio.to_thread(files.artifacts.names):
            if name not in claimed:
                await asyncio.to_thread(files.artifacts.delete, name)
        return files

    async def get(self, member: MemberId, file_id: str) -> File:
        """Raises Refusal 404; others' files look as if they were not there."""
        found = await self.store.file(FileId(file_id), member=member)
        if found is None or found.expires_at <= self.now():
            raise Refusal(404, "file_not_found", f"You have no file {file_id[:64]}.")
        return found

    def path(self, file: File) -> Path:
        """Its bytes, only to be read. Raises Refusal 404 if it was deleted meanwhile."""
        try:
            return self.artifacts.path(file.sha256)
        except NoSuchArtifact:
            raise Refusal(404, "file_not_found", f"The file {file.id} was deleted.") from None

    async def put(
        self,
        chunks: AsyncIterator[bytes],
        *,
        bytes_max: int | None = None,
        check: Callable[[Path], None] | None = None,
    ) -> Stored:
        """Keep bytes, which then want a record by `add`. Raises Refusal 413, 507; nothing is left then."""
        limit = self.settings.file_bytes_max if bytes_max is None else bytes_max
        try:
            return await self.artifacts.put(chunks, bytes_max=limit, check=check)
        except ArtifactTooLarge:
            raise too_large(limit) from None
        except (StoreFull, OSError) as error:
            if isinstance(error, OSError) and error.errno not in DISK_FULL:
                raise
            log.warning("no room for a file", action="files_full")
            message = (
                "The pool's disk is full: nothing was kept. Ask whoever runs the coordinator to make room."
            )
            raise Refusal(507, "storage_full", message, type="server_error") from None

    async def add(
        self,
        member: MemberId,
        purpose: Purpose,
        filename: str,
        stored: Stored,
        *,
        expires_s: float | None = None,
        file_id: FileId | None = None,
    ) -> File:
        """The record of bytes that `put` has kept. What the pool itself made is never refused for a quota.

        `file_id`: derived from its cause, so that what is made again after a crash is there once.
        Raises Refusal 403 if the member's files would be too many or too large, 503 if the bytes are gone.
        """
        if file_id is not None and (known := await self.store.file(file_id, member=member)) is not None:
            return known
        file = self.record(member, Description(purpose, filename, expires_s), stored, file_id)
        free = purpose in MADE_BY_POOL
        most = None if free else self.settings.files_bytes_max
        try:
            await self.claim(
                stored.sha256,
                lambda: self.store.add_file(file, files_max=None if free else FILES_MAX, bytes_max=most),
            )
        except FilesTooMany as error:
            raise self.over_quota(str(error), error.used, file.bytes) from None
        return file

    def record(
        self, member: MemberId, said: Description, stored: Stored, file_id: FileId | None = None
    ) -> File:
        """A new one, made now, which is written nowhere yet."""
        now, longest = self.now(), self.settings.file_days * DAY_S
        return File(
            id=file_id or FileId(new_file_id()),
            member=member,
            purpose=said.purpose,
            filename=said.filename,
            bytes=stored.size_bytes,
            sha256=stored.sha256,
            created_at=now,
            expires_at=now + (longest if said.expires_s is None else min(said.expires_s, longest)),
        )

    async def claim(self, sha256: str, write: Callable[[], Awaitable[T]]) -> T:
        """Write down who has bytes that `put` has kept; if that fails, those that nobody has are removed.

        Raises Refusal 503 if they were deleted since, and what `write` raises.
        """
        async with self.deciding:
            if not await asyncio.to_thread(self._has, sha256):
                message = "The same bytes were deleted in this moment. Send them again."
                raise Refusal(503, "file_gone", message, type="server_error", retry_after_s=1)
            try:
                return await write()
            except BaseException:
                await self._discard(sha256)
                raise

    async def release(self, sha256: str) -> None:
        """Remove bytes that nobody has any more."""
        async with self.deciding:
            await self._discard(sha256)

    async def upload(
        self, member: MemberId, chunks: AsyncIterator[bytes], described: Callable[[], Description]
    ) -> File:
        """Take a member's file. `described` is asked when the last byte has come, and may raise.

        Raises Refusal: 400 invalid, 403 over the quota, 413 too large, 429 too many at once, 507 disk full.
        """
        with self.counted(member):
            used = await self.store.bytes_of_files(member, self.now())
            left = self.settings.files_bytes_max - used
            if left <= 0:
                raise self.over_quota("no room is left for files of yours", used, 0)

            most = min(left, self.settings.file_bytes_max)
            try:
                stored = await self.put(
                    chunks, bytes_max=most, check=lambda path: self.validate(path, described().purpose)
                )
            except Refusal as refusal:
                if refusal.status == 413 and left < self.settings.file_bytes_max:
                    sentence = f"the file is larger than the {left:,} bytes that are left for files of yours"
                    raise self.over_quota(sentence, used, None) from None
                raise
            said = described()
            return await self.add(member, said.purpose, said.filename, stored, expires_s=said.expires_s)

    def validate(self, path: Path, purpose: Purpose) -> None:
        """For a thread. Raises Refusal 400 if its purpose could not use it."""
        if (validator := self.validators.get(purpose)) is not None:
            refuse_problems(validator(path))

    async def delete(self, file: File) -> None:
        """Raises Refusal 409 while something open uses it."""
        async with self.deciding:
            if (user := await self.in_use(file.id)) is not None:
                message = f"The file {file.id} is used by {user}. Wait for its end, or cancel it first."
                raise Refusal(409, "file_in_use", message, type="conflict_error")
            await self._forget(file)

    async def sweep(self) -> int:
        """Delete the files whose time is over and that nothing uses; how many."""
        deleted = 0
        for file in await self.store.expired_files(self.now()):
            async with self.deciding:
                if await self.in_use(file.id) is None:
                    await self._forget(file)
                    deleted += 1
        return deleted

    async def in_use(self, file_id: FileId) -> str | None:
        """What uses it, in words."""
        for user in self.users:
            if (said := await user(file_id)) is not None:
                return said
        return None

    async def _forget(self, file: File) -> None:
        await self.store.forget_file(file.id)
        await self._discard(file.sha256)

    async def _discard(self, sha256: str) -> None:
        if not await self.store.is_claimed(sha256):
            await asyncio.to_thread(self.artifacts.delete, sha256)

    def _has(self, sha256: str) -> bool:
        try:
            self.artifacts.path(sha256)
        except ArtifactError:
            return False
        return True

    @contextmanager
    def counted(self, member: MemberId) -> Iterator[None]:
        """One of the few uploads that a member may have at once. Raises Refusal 429."""
        if self._uploading[member] >= UPLOADS_AT_ONCE:
            message = f"A member may upload {UPLOADS_AT_ONCE} files at once. Wait for one of them to end."
            raise Refusal(429, "too_many_uploads", message, type="rate_limit_error", retry_after_s=5)
        self._uploading[member] += 1
        try:
            yield
        finally:
            self._uploading[member] -= 1
            if not self._uploading[member]:
                del self._uploading[member]

    def over_quota(self, sentence: str, used: int, wanted: int | None) -> Refusal:
        limit = self.settings.files_bytes_max
        message = (
            f"{sentence[:1].upper()}{sentence[1:]}. You have {used:,} of {limit:,} bytes in use, open uploads"
            " included: `potluck files list` shows your files, `potluck files delete ID` makes room."
        )
        extra = {"potluck": {"used": used, "limit": limit, "bytes": wanted}}
        return Refusal(403, "file_quota_exceeded", message, type="permission_error", extra=extra)


def too_large(bytes_max: int, *, param: str = "file") -> Refusal:
    message = (
        f"The file is larger than {bytes_max:,} bytes, this pool's limit. Split it, or ask the pool's admin."
    )
    return Refusal(413, "file_too_large", message, param=param)


def refuse_problems(problems: list[Problem]) -> None:
    """Raises Refusal 400 that names all of them."""
    if not problems:
        return
    some = " (the first ones)" if len(problems) >= PROBLEMS_MAX else ""
    listed = "; ".join(str(problem) for problem in problems)
    data = [{"line": p.line, "column": p.column, "problem": p.text} for p in problems]
    message = f"The file cannot be used{some}: {listed}."
    raise Refusal(400, "invalid_file", message, param="file", extra={"potluck": {"problems": data}})
