"""Uploads in parts: each part is kept as it comes, so that one that was cut goes on where it was."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final
from weakref import WeakValueDictionary

from coordinator.artifacts import PUT_CHUNK_BYTES_MAX
from coordinator.core.jobs import MemberId
from coordinator.files import DAY_S, FILES_MAX, Description, Files, too_large
from coordinator.ids import new_id
from coordinator.records import File
from coordinator.refusal import Refusal
from coordinator.store_errors import FilesTooMany, UploadEnded, UploadFull
from coordinator.uploads.upload import OPEN_MAX, PART_BYTES_MAX, Part, Upload, UploadState

KEPT_S: Final = DAY_S  # after its end, an upload still says what became of it


@dataclass(slots=True)
class Uploads:
    """What ends an upload takes a turn at it: two ends at once find one end."""

    files: Files
    _turns: WeakValueDictionary[str, asyncio.Lock] = field(default_factory=WeakValueDictionary)

    async def create(
        self, member: MemberId, said: Description, size_bytes: int, *, upload_id: str | None = None
    ) -> Upload:
        """`upload_id`: the same one finds the same upload. Nothing is kept but room in the member's quota.

        Raises Refusal: 403 over the quota, 409 the id is another one's, 413 too large, 429 too many open.
        """
        settings, now = self.files.settings, self.files.now()
        if upload_id is not None and (known := await self.files.store.upload(upload_id)) is not None:
            return self._again(known, said, size_bytes)
        if size_bytes > settings.file_bytes_max:
            raise too_large(settings.file_bytes_max, param="bytes")
        upload = Upload(
            id=upload_id or new_id("upload"),
            member=member,
            purpose=said.purpose,
            filename=said.filename,
            bytes=size_bytes,
            file_expires_s=said.expires_s,
            created_at=now,
            expires_at=now + settings.upload_s,
        )
        try:
            await self.files.store.add_upload(upload, files_max=FILES_MAX, bytes_max=settings.files_bytes_max)
        except FilesTooMany as error:
            raise self.files.over_quota(str(error), error.used, size_bytes) from None
        except UploadFull:
            message = f"A member may have {OPEN_MAX} uploads open. Complete or cancel one of them first."
            raise Refusal(429, "too_many_uploads", message, type="rate_limit_error") from None
        return upload

    async def get(self, member: MemberId, upload_id: str) -> Upload:
        """Raises Refusal 404; others' uploads look as if they were not there."""
        upload = await self.files.store.upload(upload_id)
        if upload is None or upload.member != member:
            raise Refusal(404, "upload_not_found", f"You have no upload {upload_id[:64]}.")
        return replace(upload, state=upload.at(self.files.now()))

    async def add(self, upload: Upload, chunks: AsyncIterator[bytes]) -> Part:
        """Keep a part; the same bytes again are the same part.

        Raises Refusal: 400 empty or beyond the file's bytes, 409 pending no more, 413, 429 too many at once,
        507.
        """
        _must_be_pending(upload)
        files, store = self.files, self.files.store
        with files.counted(upload.member):
            try:
                stored = await files.put(chunks, bytes_max=PART_BYTES_MAX)
            except Refusal as refusal:
                raise part_too_large() if refusal.status == 413 else refusal from None
        part = Part(
            id=new_id("part"),
            upload=upload.id,
            bytes=stored.size_bytes,
            sha256=stored.sha256,
            created_at=files.now(),
        )
        if not part.bytes:
            await files.release(part.sha256)
            raise Refusal(400, "empty_part", "data: the part is empty.", param="data")
        expires_at = part.created_at + files.settings.upload_s
        try:
            return await files.claim(part.sha256, lambda: store.add_part(part, expires_at=expires_at))
        except UploadFull as error:
            message = f"The part was not kept: {error}. Cancel the upload and begin again."
            raise Refusal(400, "upload_too_large", message, param="data") from None
        except UploadEnded:
            raise _ended(await self.get(upload.member, upload.id)) from None

    async def complete(self, upload: Upload, part_ids: Sequence[str], md5: str | None) -> tuple[Upload, File]:
        """Its parts in this order become a file. Again, it finds the same file.

        Raises Refusal: 400 if they are not its parts, not all of it, or not what its purpose can use; 404 if
        the file was deleted since; 409 if it was cancelled or has expired; 429, 507 as for a file.
        """
        async with self._turn(upload):
            upload = await self.get(upload.member, upload.id)
            if upload.state is UploadState.COMPLETED:
                return upload, await self.files.get(upload.member, str(upload.file))
            _must_be_pending(upload)
            parts = await self.files.store.upload_parts(upload.id)
            paths = self._in_order(upload, parts, part_ids)

            def check(path: Path) -> None:
                _refuse_md5(path, md5)
                self.files.validate(path, upload.purpose)

            with self.files.counted(upload.member):
                stored = await self.files.put(_bytes_of(paths), bytes_max=upload.bytes, check=check)
            said = Description(upload.purpose, upload.filename, upload.file_expires_s)
            file = self.files.record(upload.member, said, stored)
            await self.files.claim(stored.sha256, lambda: self.files.store.complete_upload(upload.id, file))
            await self._release(parts)
        return replace(upload, state=UploadState.COMPLETED, file=file.id), file

    async def cancel(self, upload: Upload) -> Upload:
        """One that is over already stays as it is. Raises Refusal 409 if it was completed."""
        async with self._turn(upload):
            upload = await self.get(upload.member, upload.id)
            if upload.state is UploadState.COMPLETED:
                raise _ended(upload)
            if upload.state is UploadState.PENDING:
                await self._end(upload, UploadState.CANCELLED)
                return replace(upload, state=UploadState.CANCELLED)
            return upload

    async def sweep(self) -> int:
        """End those whose time is over; how many. What ended long ago is forgotten."""
        now, store = self.files.now(), self.files.store
        ended = 0
        for upload in await store.expired_uploads(now):
            async with self._turn(upload):
                again = await store.upload(upload.id)
                if again is not None and again.state is UploadState.PENDING and again.expires_at <= now:
                    await self._end(upload, UploadState.EXPIRED)
                    ended += 1
        await store.forget_uploads(now - KEPT_S)
        return ended

    def _again(self, known: Upload, said: Description, size_bytes: int) -> Upload:
        before = (known.purpose, known.filename, known.file_expires_s, known.bytes)
        if before != (said.purpose, said.filename, said.expires_s, size_bytes):
            message = f"This Idempotency-Key was used for another request (upload {known.id})."
            raise Refusal(409, "idempotency_conflict", message, type="conflict_error")
        return replace(known, state=known.at(self.files.now()))

    async def _end(self, upload: Upload, state: UploadState) -> None:
        parts = await self.files.store.upload_parts(upload.id)
        await self.files.store.end_upload(upload.id, state)
        await self._release(parts)

    async def _release(self, parts: Sequence[Part]) -> None:
        for part in parts:
            await self.files.release(part.sha256)

    def _in_order(self, upload: Upload, parts: Sequence[Part], part_ids: Sequence[str]) -> list[Path]:
        """Where the bytes of each lie. Raises Refusal 400."""
        known = {part.id: part for part in parts}
        for part_id in part_ids:
            if part_id not in known:
                message = f"part_ids: {upload.id} has no part {part_id[:64]}."
                raise Refusal(400, "part_not_found", message, param="part_ids")
        found = sum(known[part_id].bytes for part_id in part_ids)
        if found != upload.bytes:
            message = (
                f"part_ids: these parts have {found:,} bytes, and the file shall have {upload.bytes:,}. Send"
                " what is missing; `GET /v1/uploads/{id}` lists the parts that are here."
            )
            raise Refusal(400, "upload_incomplete", message, param="part_ids")
        return [self.files.artifacts.path(known[part_id].sha256) for part_id in part_ids]

    @asynccontextmanager
    async def _turn(self, upload: Upload) -> AsyncIterator[None]:
        lock = self._turns.setdefault(upload.id, asyncio.Lock())
        async with lock:
            yield


def part_too_large() -> Refusal:
    message = f"The part is larger than {PART_BYTES_MAX:,} bytes. Send smaller ones."
    return Refusal(413, "part_too_large", message, param="data")


async def _bytes_of(paths: Sequence[Path]) -> AsyncIterator[bytes]:
    for path in paths:
        with await asyncio.to_thread(path.open, "rb") as file:
            while chunk := await asyncio.to_thread(file.read, PUT_CHUNK_BYTES_MAX):
                yield chunk


def _refuse_md5(path: Path, md5: str | None) -> None:
    if md5 is None:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != md5.lower():
        message = f"md5: the bytes of the parts have {found}. Is a part missing, twice, or in another place?"
        raise Refusal(400, "md5_mismatch", message, param="md5")


def _must_be_pending(upload: Upload) -> None:
    if upload.state is not UploadState.PENDING:
        raise _ended(upload)


def _ended(upload: Upload) -> Refusal:
    why = {
        UploadState.COMPLETED: f"was completed: its file is {upload.file}",
        UploadState.CANCELLED: "was cancelled",
        UploadState.EXPIRED: "has expired",
        UploadState.PENDING: "has just been ended",
    }[upload.state]
    message = f"The upload {upload.id} {why}. Begin a new one for other bytes."
    return Refusal(409, f"upload_{upload.state.value}", message, type="conflict_error")
