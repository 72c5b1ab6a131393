"""The records of members' files. The bytes lie in a store of their own (`coordinator.files`)."""

from typing import Any

from sqlalchemy import Row, Select, and_, func, or_, select

from coordinator import file_tables as tables
from coordinator.core.jobs import MemberId
from coordinator.database import Database
from coordinator.records import File, FileId, Purpose
from coordinator.store_errors import FilesTooMany
from coordinator.table_base import table_of

SWEPT_AT_ONCE = 1_000
_FILES = table_of(tables.File)


class Filing(Database):
    async def add_file(self, file: File, *, files_max: int | None, bytes_max: int | None) -> None:
        """Keep the record, if its member then has no more files and bytes than this. Raises FilesTooMany."""
        async with self.writing() as connection:
            count, used = tuple((await connection.execute(_totals(file.member))).one())
            if files_max is not None and count >= files_max:
                raise FilesTooMany(f"a member has at most {files_max:,} files: delete some first", used)
            if bytes_max is not None and used + file.bytes > bytes_max:
                raise FilesTooMany(f"all files of a member may have {bytes_max:,} bytes together", used)
            await connection.execute(_FILES.insert().values(**_values(file)))

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

    async def bytes_of_files(self, member: MemberId) -> int:
        async with self.reading() as connection:
            return int((await connection.execute(_totals(member))).one()[1])

    async def is_claimed(self, sha256: str) -> bool:
        """Does anybody's file have these bytes?"""
        wanted = select(_FILES.c.id).where(_FILES.c.sha256 == sha256).limit(1)
        async with self.reading() as connection:
            return (await connection.execute(wanted)).first() is not None

    async def claimed(self) -> set[str]:
        """The digests of everybody's files."""
        async with self.reading() as connection:
            return set(await connection.scalars(select(_FILES.c.sha256).distinct()))


def _totals(member: MemberId) -> Select[Any]:
    size = func.coalesce(func.sum(_FILES.c.bytes), 0)
    return select(func.count(), size).where(_FILES.c.member_id == member)


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
