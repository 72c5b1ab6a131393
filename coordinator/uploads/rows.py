"""Uploads in parts in the database."""

from typing import Any

from sqlalchemy import Row, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from coordinator.core.jobs import MemberId
from coordinator.database import Database
from coordinator.filing import put_file, totals
from coordinator.records import File, FileId, Purpose
from coordinator.store_errors import FilesTooMany, UploadEnded, UploadFull
from coordinator.table_base import table_of
from coordinator.uploads import tables
from coordinator.uploads.upload import OPEN_MAX, PARTS_MAX, Part, Upload, UploadState

SWEPT_AT_ONCE = 1_000
_PENDING = UploadState.PENDING.value
_UPLOADS = table_of(tables.Upload)
_PARTS = table_of(tables.UploadPart)


class Uploads(Database):
    async def add_upload(self, upload: Upload, *, files_max: int, bytes_max: int) -> None:
        """Keep it, and set its bytes aside. Raises FilesTooMany as for a file, UploadFull for too many."""
        ours = _UPLOADS.c.member_id == upload.member
        open_ones = select(func.count()).where(
            ours, _UPLOADS.c.state == _PENDING, _UPLOADS.c.expires_at > upload.created_at
        )
        async with self.writing() as connection:
            if int((await connection.execute(open_ones)).scalar_one()) >= OPEN_MAX:
                raise UploadFull(f"a member may have {OPEN_MAX} open uploads")
            count, used = await totals(connection, upload.member, upload.created_at)
            if count >= files_max:
                raise FilesTooMany(f"a member has at most {files_max:,} files: delete some first", used)
            if used + upload.bytes > bytes_max:
                raise FilesTooMany(f"all files of a member may have {bytes_max:,} bytes together", used)
            await connection.execute(_UPLOADS.insert().values(**_values(upload)))

    async def upload(self, upload_id: str) -> Upload | None:
        async with self.reading() as connection:
            found = await connection.execute(select(_UPLOADS).where(_UPLOADS.c.id == upload_id))
            row = found.one_or_none()
            return None if row is None else _upload_of(row)

    async def upload_parts(self, upload_id: str) -> list[Part]:
        """In the order in which they came."""
        wanted = select(_PARTS).where(_PARTS.c.upload_id == upload_id)
        async with self.reading() as connection:
            rows = await connection.execute(wanted.order_by(_PARTS.c.created_at, _PARTS.c.id))
            return [_part_of(row) for row in rows]

    async def add_part(self, part: Part, *, expires_at: float) -> Part:
        """Keep it, or find the one with the same bytes; the upload then lasts until `expires_at`.

        Raises UploadEnded if the upload is pending no more, UploadFull for too many bytes or parts.
        """
        theirs = _PARTS.c.upload_id == part.upload
        async with self.writing() as connection:
            found = await connection.execute(select(_UPLOADS).where(_UPLOADS.c.id == part.upload))
            row = found.one_or_none()
            if row is None or row.state != _PENDING:
                raise UploadEnded(f"{part.upload} is pending no more")
            same = select(_PARTS).where(theirs, _PARTS.c.sha256 == part.sha256)
            known = (await connection.execute(same)).one_or_none()
            if known is None:
                size = func.coalesce(func.sum(_PARTS.c.bytes), 0)
                sums = (await connection.execute(select(func.count(), size).where(theirs))).one()
                if sums[1] + part.bytes > row.bytes:
                    raise UploadFull(
                        f"its parts would have {sums[1] + part.bytes:,} bytes, and the file shall have"
                        f" {row.bytes:,}"
                    )
                if sums[0] >= PARTS_MAX:
                    raise UploadFull(f"an upload has at most {PARTS_MAX:,} parts")
                await connection.execute(_PARTS.insert().values(**_part_values(part)))
            longer = update(_UPLOADS).where(_UPLOADS.c.id == part.upload)
            await connection.execute(longer.values(expires_at=expires_at))
            return part if known is None else _part_of(known)

    async def end_upload(self, upload_id: str, state: UploadState) -> None:
        """Its parts are forgotten. Raises UploadEnded if it was pending no more."""
        async with self.writing() as connection:
            await _end(connection, upload_id, state)

    async def complete_upload(self, upload_id: str, file: File) -> None:
        """The file takes the place of what was set aside for it. Raises UploadEnded."""
        async with self.writing() as connection:
            await _end(connection, upload_id, UploadState.COMPLETED, file.id)
            await put_file(connection, file)

    async def expired_uploads(self, now: float) -> list[Upload]:
        """Pending ones whose time is over, the first first; at most SWEPT_AT_ONCE."""
        wanted = select(_UPLOADS).where(_UPLOADS.c.state == _PENDING, _UPLOADS.c.expires_at <= now)
        async with self.reading() as connection:
            rows = await connection.execute(wanted.order_by(_UPLOADS.c.expires_at).limit(SWEPT_AT_ONCE))
            return [_upload_of(row) for row in rows]

    async def forget_uploads(self, before: float) -> None:
        """Those that ended, and would have expired before this."""
        over = _UPLOADS.delete().where(_UPLOADS.c.state != _PENDING, _UPLOADS.c.expires_at < before)
        async with self.writing() as connection:
            await connection.execute(over)


async def _end(
    connection: AsyncConnection, upload_id: str, state: UploadState, file: FileId | None = None
) -> None:
    pending = update(_UPLOADS).where(_UPLOADS.c.id == upload_id, _UPLOADS.c.state == _PENDING)
    ended = await connection.execute(pending.values(state=state.value, file_id=file))
    if not ended.rowcount:
        raise UploadEnded(f"{upload_id} is pending no more")
    await connection.execute(_PARTS.delete().where(_PARTS.c.upload_id == upload_id))


def _values(upload: Upload) -> dict[str, Any]:
    return {
        "id": upload.id,
        "member_id": upload.member,
        "purpose": upload.purpose.value,
        "filename": upload.filename,
        "bytes": upload.bytes,
        "file_expires_s": upload.file_expires_s,
        "created_at": upload.created_at,
        "expires_at": upload.expires_at,
        "state": upload.state.value,
        "file_id": upload.file,
    }


def _upload_of(row: Row[Any]) -> Upload:
    return Upload(
        id=row.id,
        member=MemberId(row.member_id),
        purpose=Purpose(row.purpose),
        filename=row.filename,
        bytes=row.bytes,
        file_expires_s=row.file_expires_s,
        created_at=row.created_at,
        expires_at=row.expires_at,
        state=UploadState(row.state),
        file=None if row.file_id is None else FileId(row.file_id),
    )


def _part_values(part: Part) -> dict[str, Any]:
    return {
        "id": part.id,
        "upload_id": part.upload,
        "bytes": part.bytes,
        "sha256": part.sha256,
        "created_at": part.created_at,
    }


def _part_of(row: Row[Any]) -> Part:
    return Part(
        id=row.id, upload=row.upload_id, bytes=row.bytes, sha256=row.sha256, created_at=row.created_at
    )
