"""What members and keys spent, from the books: budgets go on after a restart where they were."""

from collections.abc import Iterable

from sqlalchemy import case, func, select

from coordinator import tables
from coordinator.bounds import limits_of
from coordinator.core.budgets import Budgets, Limit, Spent, period_begins
from coordinator.core.jobs import Job
from coordinator.database import Database
from coordinator.tables import table_of

_JOBS = table_of(tables.Job)
_KEYS = table_of(tables.ApiKey)


class Spending(Database):
    async def budgets(self, open_jobs: Iterable[Job], now: float) -> Budgets:
        """Charges of the jobs that ended since the month began, and the holds of those that are open.

        Tokens of the last minute are not remembered: whoever restarts a coordinator takes longer.
        """
        lineage = await self._lineage()
        budgets = Budgets()
        for member, key, day, month in await self._spent(now):
            for subject in _subjects(member, key, lineage):
                budgets.load(subject, Spent(day, month), now)
        for job in open_jobs:
            if job.whole is None:  # what a part may take is reserved for its whole
                budgets.reserve(job.id, _subjects(job.member, job.key, lineage), 0, job.hold, now)
        return budgets

    async def _spent(self, now: float) -> list[tuple[str, str, int, int]]:
        """(member, key, microcredits of this day, of this month)."""
        charge, ended_at = _JOBS.c.charge, _JOBS.c.ended_at
        today = func.sum(case((ended_at >= period_begins(Limit.DAY, now), charge), else_=0))
        statement = (
            select(_JOBS.c.member_id, _JOBS.c.key_id, today, func.sum(charge))
            .where(ended_at >= period_begins(Limit.MONTH, now), charge > 0, _JOBS.c.whole_id.is_(None))
            .group_by(_JOBS.c.member_id, _JOBS.c.key_id)
        )
        async with self.reading() as connection:
            rows = (await connection.execute(statement)).all()
        return [(member, key, int(day), int(month)) for member, key, day, month in rows]

    async def _lineage(self) -> dict[str, list[str]]:
        """The limited keys that each key was made with."""
        limited = select(_KEYS.c.id, _KEYS.c.limits).where(_KEYS.c.limits != "{}")
        async with self.reading() as connection:
            rows = (await connection.execute(limited)).all()
        return {row.id: [ancestor.id for ancestor in limits_of(row.limits)[1]] for row in rows}


def _subjects(member: str, key: str, lineage: dict[str, list[str]]) -> list[str]:
    """Under which names a job counts; jobs from before keys were noted name none."""
    return [member, *([key] if key else ()), *lineage.get(key, ())]
