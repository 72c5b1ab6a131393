"""Terms and the announcement in the database."""

import json
from typing import Any, Final

from sqlalchemy import func, select

from coordinator import dialect, tables
from coordinator.core.jobs import MemberId
from coordinator.notices.notice import Announcement, Level, Terms
from coordinator.registry import Registry
from coordinator.table_base import table_of

_ANNOUNCEMENT: Final = "announcement"  # the setting's name
_TERMS = table_of(tables.Terms)
_ACCEPTANCES = table_of(tables.TermsAcceptance)


class Notices(Registry):
    async def terms(self, version: int | None = None) -> Terms | None:
        """One version, or the one that holds."""
        found = select(_TERMS).order_by(_TERMS.c.version.desc()).limit(1)
        if version is not None:
            found = found.where(_TERMS.c.version == version)
        async with self.reading() as connection:
            row = (await connection.execute(found)).one_or_none()
            return None if row is None else _terms_of(row)

    async def put_terms(self, text: str, by: MemberId, now: float) -> Terms:
        """A further version."""
        async with self.writing() as connection:
            last = await connection.scalar(select(func.max(_TERMS.c.version)))
            values = {"version": (last or 0) + 1, "text": text, "at": now, "member_id": by}
            await connection.execute(_TERMS.insert().values(**values))
        return Terms(version=(last or 0) + 1, text=text, at=now, by=by)

    async def accepted(self) -> dict[MemberId, int]:
        """The newest version that each member accepted."""
        newest = select(_ACCEPTANCES.c.member_id, func.max(_ACCEPTANCES.c.version))
        async with self.reading() as connection:
            rows = (await connection.execute(newest.group_by(_ACCEPTANCES.c.member_id))).all()
            return {MemberId(member): int(version) for member, version in rows}

    async def accept_terms(self, member: MemberId, version: int, now: float) -> None:
        """Again changes nothing but the time."""
        async with self.writing() as connection:
            statement = dialect.upsert(connection.dialect, _ACCEPTANCES)
            await connection.execute(statement, {"member_id": member, "version": version, "at": now})

    async def announcement(self) -> Announcement | None:
        written = await self.setting(_ANNOUNCEMENT)
        if not written:
            return None
        found = json.loads(written)
        return Announcement(**found | {"level": Level(found["level"])})

    async def put_announcement(self, announcement: Announcement | None) -> None:
        if announcement is None:
            await self.put_setting(_ANNOUNCEMENT, "")
            return
        facts = {
            "text": announcement.text,
            "level": announcement.level.value,
            "at": announcement.at,
            "expires_at": announcement.expires_at,
        }
        await self.put_setting(_ANNOUNCEMENT, json.dumps(facts))


def _terms_of(row: Any) -> Terms:
    return Terms(version=row.version, text=row.text, at=row.at, by=MemberId(row.member_id))
