"""What stored jobs asked and were answered: kept as long as a file, so that nothing of it stays for ever.

A batch's and a fine-tune's own texts are no affair of this: they lie in files, and are needed until it ends.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sqlalchemy import delete, select

from coordinator import tables
from coordinator.database import Database
from coordinator.tables import table_of

DAY_S: Final = 86_400.0

_JOBS = table_of(tables.Job)
_TEXTS = table_of(tables.StoredRequest), table_of(tables.StoredResult)


class Texts(Database):
    async def forget_texts_of(self, ended_by: float) -> int:
        """Of stored jobs that had ended by then; of how many the answer went."""
        gone = 0
        async with self.writing() as connection:
            for texts in _TEXTS:  # they are few beside all jobs that ever were: the search begins with them
                over = select(texts.c.job_id).join(_JOBS, _JOBS.c.id == texts.c.job_id)
                over = over.where(_JOBS.c.whole_id.is_(None), _JOBS.c.ended_at <= ended_by)
                found = await connection.execute(delete(texts).where(texts.c.job_id.in_(over)))
                gone = int(found.rowcount)
        return gone


@dataclass(frozen=True, slots=True)
class StoredTexts:
    """For the chores."""

    store: Texts
    days: int
    now: Callable[[], float]

    async def sweep(self) -> int:
        return await self.store.forget_texts_of(self.now() - self.days * DAY_S)
