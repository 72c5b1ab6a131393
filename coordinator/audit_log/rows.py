"""The audit log in the database."""

import json
from typing import Any, Final

from sqlalchemy import func, select

from coordinator import tables
from coordinator.audit_log.event import Action, AuditEvent, Recorded, details_text
from coordinator.core.jobs import MemberId
from coordinator.database import Database
from coordinator.table_base import table_of

EVENTS_LISTED_MAX: Final = 200
_EVENTS = table_of(tables.AuditEvent)


class AuditEvents(Database):
    async def record_event(self, event: AuditEvent) -> int:
        """Write it at the end; its number."""
        async with self.writing() as connection:  # one writer at a time, so the number is free
            last = await connection.scalar(select(func.max(_EVENTS.c.number)))
            number = (last or 0) + 1
            values = {
                "number": number,
                "at": event.at,
                "member_id": event.member,
                "key_id": event.key,
                "action": event.action.value,
                "subject": event.subject,
                "details": details_text(event.details),
            }
            await connection.execute(_EVENTS.insert().values(**values))
        return number

    async def last_event(self) -> int:
        """Its number; 0 before the first."""
        async with self.reading() as connection:
            return await connection.scalar(select(func.max(_EVENTS.c.number))) or 0

    async def events(
        self,
        *,
        limit: int,
        before: int | None = None,
        member: MemberId | None = None,
        action: Action | None = None,
        subject: str | None = None,
    ) -> list[Recorded]:
        """The newest first, at most EVENTS_LISTED_MAX; `before`: the number of the last one before these."""
        statement = select(_EVENTS).order_by(_EVENTS.c.number.desc())
        if before is not None:
            statement = statement.where(_EVENTS.c.number < before)
        if member is not None:
            statement = statement.where(_EVENTS.c.member_id == member)
        if action is not None:
            statement = statement.where(_EVENTS.c.action == action.value)
        if subject is not None:
            statement = statement.where(_EVENTS.c.subject == subject)
        statement = statement.limit(max(1, min(limit, EVENTS_LISTED_MAX)))
        async with self.reading() as connection:
            return [_recorded(row) for row in (await connection.execute(statement)).all()]


def _recorded(row: Any) -> Recorded:
    return Recorded(
        number=row.number,
        at=row.at,
        member=None if row.member_id is None else MemberId(row.member_id),
        key=row.key_id,
        action=Action(row.action),
        subject=row.subject,
        details=json.loads(row.details),
    )
