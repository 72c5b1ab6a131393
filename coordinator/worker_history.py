"""What workers did, to be read: what each earned, in all and by day, and its attempts lately."""

from dataclasses import dataclass

from sqlalchemy import BigInteger, cast, func, literal, select

from coordinator import tables
from coordinator.core.jobs import Attempt, JobId, Kind, WorkerId
from coordinator.database import Database
from coordinator.rows import attempt_of
from coordinator.tables import table_of

TRIED_MAX = 100
DAY_S = 86_400

_ATTEMPTS = table_of(tables.Attempt)
_JOBS = table_of(tables.Job)
_MEMBERS = table_of(tables.Member)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """An attempt that has ended, and at what; `member` is who asked, by name."""

    job: JobId
    kind: Kind
    model: str
    member: str
    attempt: Attempt


class WorkerHistory(Database):
    async def earned(self) -> dict[WorkerId, int]:
        """Microcredits of all attempts of each worker; read from an index alone."""
        sums = select(_ATTEMPTS.c.worker_id, func.sum(_ATTEMPTS.c.paid)).group_by(_ATTEMPTS.c.worker_id)
        async with self.reading() as connection:
            rows = (await connection.execute(sums)).all()
        return {WorkerId(worker): int(earned) for worker, earned in rows if earned}

    async def earned_by_day(self, worker: WorkerId, since: float) -> dict[int, int]:
        """Microcredits by the day on which attempts ended, in days since the epoch (UTC)."""
        day = (cast(_ATTEMPTS.c.ended_at, BigInteger) // literal(DAY_S)).label("day")
        sums = select(day, func.sum(_ATTEMPTS.c.paid)).group_by(day).order_by(day)
        sums = sums.where(_ATTEMPTS.c.worker_id == worker, _ATTEMPTS.c.ended_at >= since)
        async with self.reading() as connection:
            rows = (await connection.execute(sums)).all()
        return {int(when): int(earned) for when, earned in rows if earned}

    async def tried(self, worker: WorkerId, limit: int) -> list[Tried]:
        """Its attempts that ended, the newest first, at most TRIED_MAX."""
        newest = (
            select(_ATTEMPTS, _JOBS.c.kind, _JOBS.c.model, _MEMBERS.c.name.label("member"))
            .join(_JOBS, _JOBS.c.id == _ATTEMPTS.c.job_id)
            .join(_MEMBERS, _MEMBERS.c.id == _JOBS.c.member_id)
            .where(_ATTEMPTS.c.worker_id == worker, _ATTEMPTS.c.ended_at.is_not(None))
            .order_by(_ATTEMPTS.c.ended_at.desc(), _ATTEMPTS.c.job_id.desc())
            .limit(max(1, min(limit, TRIED_MAX)))
        )
        async with self.reading() as connection:
            rows = (await connection.execute(newest)).all()
        return [
            Tried(
                job=JobId(row.job_id),
                kind=Kind(row.kind),
                model=row.model,
                member=row.member,
                attempt=attempt_of(row),
            )
            for row in rows
        ]
