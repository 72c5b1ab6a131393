"""Pauses that were asked for from afar, in the database: at most one for each worker."""

from sqlalchemy import delete, select

from coordinator import dialect, tables
from coordinator.core.jobs import MemberId, WorkerId
from coordinator.core.pauses import AskedPause
from coordinator.database import Database
from coordinator.tables import table_of

_PAUSES = table_of(tables.WorkerPause)


class PauseRows(Database):
    async def put_pause(self, worker: WorkerId, pause: AskedPause) -> None:
        """In the place of the one before."""
        values = {
            "worker_id": worker,
            "number": pause.number,
            "member_id": pause.member,
            "by_owner": pause.by_owner,
            "until": pause.until,
            "why": pause.why,
        }
        async with self.writing() as connection:
            await connection.execute(dialect.upsert(connection.dialect, _PAUSES), values)

    async def drop_pause(self, worker: WorkerId, number: int) -> None:
        """That one; a newer one stays."""
        async with self.writing() as connection:
            await connection.execute(
                delete(_PAUSES).where(_PAUSES.c.worker_id == worker, _PAUSES.c.number == number)
            )

    async def asked_pauses(self) -> dict[WorkerId, AskedPause]:
        async with self.reading() as connection:
            rows = (await connection.execute(select(_PAUSES))).all()
        return {
            WorkerId(row.worker_id): AskedPause(
                number=row.number,
                member=MemberId(row.member_id),
                by_owner=row.by_owner,
                until=row.until,
                why=row.why,
            )
            for row in rows
        }
