"""The records of members' files. The bytes lie in a store of their own (`coordinator.files`)."""

from typing import Any

from sqlalchemy import Row, and_, func, or_, select, union
from sqlalchemy.ext.asyncio import AsyncConnection

from coordinator import file_tables as tables
from coordinator.core.jobs import MemberId
from coordinator.database import Database
from coordinator.records import File, FileId, Purpose
from coordinator.store_errors import FilesTooMany
from coordinator.table_base import table_of
from coordinator.uploads import tables as upload_tables
from coordinator.uploads.upload import UploadState

SWEPT_AT_ONCE = 1_000
_FILES = table_of(tables.File)
_UPLOADS = table_of(upload_tables.Upload)
_PARTS = table_of(upload_tables.UploadPart)


class Filing(Database):
    async def add_file(self, file: File, *, files_max: int | None, bytes_max: int | None) -> None:
        """Keep the record, if its member then has no more files and bytes than this. Raises FilesTooMany."""
        async with self.writing() as connection:
            count, used = await totals(connection, file.member, file.created_at)
            if files_max is not None and count >= files_max:
                raise FilesTooMany(f"a member has at most {files_max:,} files: delete some first", used)
            if bytes_max is not None and used + file.bytes > bytes_max:
                raise FilesTooMany(f"all files of a member may have {bytes_max:,} bytes together", used)
            await put_file(connection, file)

    async def file(self, file_id: FileId, *, member: MemberId | None = None) -> File | None:
        """With `member`, only one of that member."""
        wanted = _FILES.select().where(_FILES.c.id == file_id)
        if member is not None:
            wanted = wanted.where(_FILES.c.member_id == member)
        async with self.reading() as connection:
            row = (await connection.execute(wanted)).one_or_none()
            return None if row is None else _file_of(row)

    async def files(
        self,
        member: MemberId,
        *,
        now: float,
        limit: int,
        purpose: Purpose | None = None,
        after: File | None = None,
        oldest_first: bool = False,
    ) -> list[File]:
        """A page of those that `now` have not expired; `after` is the last file of the page before."""
        wanted = _FILES.select().where(_FILES.c.member_id == member, _FILES.c.expires_at > now)
        if purpose is not None:
            wanted = wanted.where(_FILES.c.purpose == purpose.value)
        if after is not None:
            at, same = _FILES.c.created_at, _FILES.c.created_at == after.created_at
            later = or_(at > after.created_at, and_(same, _FILES.c.id > after.id))
            earlier = or_(at < after.created_at, and_(same, _FILES.c.id < after.id))
            wanted = wanted.where(later if oldest_first else earlier)
        order = (_FILES.c.created_at, _FILES.c.id)
        wanted = wanted.order_by(*(order if oldest_first else (column.desc() for column in order)))
        async with self.reading() as connection:
            rows = await connection.execute(wanted.limit(max(1, limit)))
            return [_file_of(row) for row in rows]

    async def expired_files(self, now: float) -> list[File]:
        """Those whose time is over, the first first; at most SWEPT_AT_ONCE."""
        wanted = _FILES.select().where(_FILES.c.expires_at <= now).order_by(_FILES.c.expires_at, _FILES.c.id)
        async with self.reading() as connection:
            return [_file_of(row) for row in await connection.execute(wanted.limit(SWEPT_AT_ONCE))]

    async def forget_file(self, file_id: FileId) -> None:
        async with self.writing() as connection:
            await connection.execute(_FILES.delete().where(_FILES.c.id == file_id))

    async def bytes_of_files(self, member: MemberId, now: float) -> int:
        """With what open uploads have set aside."""
        async with self.reading() as connection:
            return (await totals(connection, member, now))[1]

    async def is_claimed(self, sha256: str) -> bool:
        """Has anybody's file these bytes, or a part of an upload?"""
        async with self.reading() as connection:
            for table in (_FILES, _PARTS):
                wanted = select(table.c.id).where(table.c.sha256 == sha256).limit(1)
                if (await connection.execute(wanted)).first() is not None:
                    return True
            return False

    async def claimed(self) -> set[str]:
        """The digests of everybody's files, and of the parts of uploads."""
        wanted = union(select(_FILES.c.sha256), select(_PARTS.c.sha256))
        async with self.reading() as connection:
            return set(await connection.scalars(wanted))


async def totals(connection: AsyncConnection, member: MemberId, now: float) -> tuple[int, int]:
    """How many files the member has and their bytes, those that open uploads will make included."""
    files = select(func.count(), func.coalesce(func.sum(_FILES.c.bytes), 0))
    coming = select(func.count(), func.coalesce(func.sum(_UPLOADS.c.bytes), 0))
    pending = (_UPLOADS.c.state == UploadState.PENDING.value, _UPLOADS.c.expires_at > now)
    here = (await connection.execute(files.where(_FILES.c.member_id == member))).one()
    aside = (await connection.execute(coming.where(_UPLOADS.c.member_id == member, *pending))).one()
    return here[0] + aside[0], int(here[1] + aside[1])


async def put_file(connection: AsyncConnection, file: File) -> None:
    """Within a transaction."""
    await connection.execute(_FILES.insert().values(**_values(file)))


def _values(file: File) -> dict[str, Any]:
    return {
        "id": file.id,
        "member_id": file.member,
        "purpose": file.purpose.value,
        "filename": file.filename,
        "bytes": file.bytes,
        "sha256": file.sha256,
        "created_at": file.created_at,
        "expires_at": file.expires_at,
    }


def _file_of(row: Row[Any]) -> File:
    return File(
        id=FileId(row.id),
        member=MemberId(row.member_id),
        purpose=Purpose(row.purpose),
        filename=row.filename,
        bytes=row.bytes,
        sha256=row.sha256,
        created_at=row.created_at,
        expires_at=row.expires_at,
    )
