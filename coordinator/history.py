"""What happened, to be read: jobs with their attempts, receipts, results, entries."""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import BigInteger, Row, and_, cast, func, literal, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from coordinator import dialect, tables
from coordinator.core.jobs import WHOLES, Attempt, Job, JobId, JobState, Kind, MemberId, WorkerId
from coordinator.core.ledger import Recorded
from coordinator.database import Database
from coordinator.records import RecordedReceipt
from coordinator.rows import attempt_of, job_of, postings_of, receipt_of, recorded_of
from coordinator.tables import table_of

JOBS_LISTED_MAX = 200
ENTRIES_READ_MAX = 5_000
_IDS_MAX = 500  # in one IN list; databases limit the parameters of a statement

_JOBS = table_of(tables.Job)
_ATTEMPTS = table_of(tables.Attempt)
_RECEIPTS = table_of(tables.Receipt)
_ENTRIES = table_of(tables.Entry)
_POSTINGS = table_of(tables.Posting)
_REQUESTS = table_of(tables.StoredRequest)
_RESULTS = table_of(tables.StoredResult)


class History(Database):
    async def job(self, job_id: JobId) -> Job | None:
        async with self.reading() as connection:
            row = (await connection.execute(select(_JOBS).where(_JOBS.c.id == job_id))).one_or_none()
            if row is None:
                return None
            return (await with_attempts(connection, [row]))[0]

    async def jobs(
        self,
        *,
        member: MemberId | None = None,
        state: JobState | None = None,
        kind: Kind | None = None,
        limit: int = 50,
        before: JobId | None = None,
    ) -> list[Job]:
        """The newest first, at most JOBS_LISTED_MAX; `before` is the last job of the page before. Parts are
        left out: their whole stands for them.

        An unknown `before` gives nothing: the page after the end.
        """
        statement = select(_JOBS).where(_JOBS.c.whole_id.is_(None))
        statement = statement.order_by(_JOBS.c.created_at.desc(), _JOBS.c.id.desc())
        if member is not None:
            statement = statement.where(_JOBS.c.member_id == member)
        if state is not None:
            statement = statement.where(_JOBS.c.state == state.value)
        if kind is not None:
            statement = statement.where(_JOBS.c.kind == kind.value)
        if before is not None:
            seam = select(_JOBS.c.created_at).where(_JOBS.c.id == before).scalar_subquery()
            same_moment = and_(_JOBS.c.created_at == seam, _JOBS.c.id < before)
            statement = statement.where(or_(_JOBS.c.created_at < seam, same_moment))
        statement = statement.limit(max(1, min(limit, JOBS_LISTED_MAX)))
        async with self.reading() as connection:
            return await with_attempts(connection, (await connection.execute(statement)).all())

    async def attempts(self, job_id: JobId) -> tuple[Attempt, ...]:
        job = await self.job(job_id)
        return () if job is None else job.attempts

    async def tokens_by_minute(self, since: float) -> list[tuple[float, int]]:
        """(end of the minute, tokens of the jobs that ended in it), oldest first; only minutes with some."""
        minute = (cast(_JOBS.c.ended_at, BigInteger) // literal(60)).label("minute")
        statement = select(minute, func.sum(_JOBS.c.output_tokens)).where(_JOBS.c.ended_at >= since)
        # A whole's are those of its parts.
        counted = or_(_JOBS.c.whole_id.is_not(None), _JOBS.c.kind.not_in([kind.value for kind in WHOLES]))
        statement = statement.where(_JOBS.c.output_tokens > 0, counted).group_by(minute).order_by(minute)
        async with self.reading() as connection:
            rows = (await connection.execute(statement)).all()
            return [((int(at) + 1) * 60.0, int(tokens)) for at, tokens in rows]

    async def receipts_of(self, job_id: JobId) -> list[RecordedReceipt]:
        statement = select(_RECEIPTS).where(_RECEIPTS.c.job_id == job_id)
        statement = statement.order_by(_RECEIPTS.c.attempt, _RECEIPTS.c.worker_id)
        async with self.reading() as connection:
            return [receipt_of(row) for row in (await connection.execute(statement)).all()]

    async def receipt(self, job_id: JobId, attempt: int, worker: WorkerId) -> RecordedReceipt | None:
        """What is recorded of this worker's word on this attempt."""
        found = select(_RECEIPTS).where(
            _RECEIPTS.c.job_id == job_id, _RECEIPTS.c.attempt == attempt, _RECEIPTS.c.worker_id == worker
        )
        async with self.reading() as connection:
            row = (await connection.execute(found)).one_or_none()
            return None if row is None else receipt_of(row)

    async def entry(self, entry_id: str) -> Recorded | None:
        found = select(_ENTRIES).where(_ENTRIES.c.id == entry_id)
        async with self.reading() as connection:
            row = (await connection.execute(found)).one_or_none()
            if row is None:
                return None
            postings = await postings_between(connection, after=row.number - 1, rows=[row])
            return recorded_of(row, postings[row.number])

    async def put_result(self, job_id: JobId, result: bytes) -> None:
        """Keep the answer of a stored job; a later one replaces it."""
        async with self.writing() as connection:
            await connection.execute(
                dialect.upsert(connection.dialect, _RESULTS), {"job_id": job_id, "result": result}
            )

    async def result(self, job_id: JobId) -> bytes | None:
        statement = select(_RESULTS.c.result).where(_RESULTS.c.job_id == job_id)
        async with self.reading() as connection:
            found: bytes | None = (await connection.execute(statement)).scalar_one_or_none()
            return found

    async def request(self, job_id: JobId) -> bytes | None:
        """What a stored job asked for."""
        statement = select(_REQUESTS.c.request).where(_REQUESTS.c.job_id == job_id)
        async with self.reading() as connection:
            found: bytes | None = (await connection.execute(statement)).scalar_one_or_none()
            return found

    async def recorded(self, *, after: int = 0, limit: int = ENTRIES_READ_MAX) -> list[Recorded]:
        """Entries in their order, from the one after `after`; at most ENTRIES_READ_MAX."""
        async with self.reading() as connection:
            rows = await entry_rows(connection, after=after, limit=min(limit, ENTRIES_READ_MAX))
            postings = await postings_between(connection, after=after, rows=rows)
            return [recorded_of(row, postings.get(row.number, [])) for row in rows]


async def with_attempts(connection: AsyncConnection, rows: Iterable[Row[Any]]) -> list[Job]:
    """The jobs of these rows, each with its attempts, in the rows' order."""
    jobs = list(rows)
    attempts: dict[str, list[Attempt]] = {row.id: [] for row in jobs}
    ids = list(attempts)
    for start in range(0, len(ids), _IDS_MAX):
        chosen = _ATTEMPTS.c.job_id.in_(ids[start : start + _IDS_MAX])
        statement = select(_ATTEMPTS).where(chosen).order_by(_ATTEMPTS.c.job_id, _ATTEMPTS.c.number)
        for row in (await connection.execute(statement)).all():
            attempts[row.job_id].append(attempt_of(row))
    return [job_of(row, attempts[row.id]) for row in jobs]


async def entry_rows(connection: AsyncConnection, *, after: int, limit: int) -> list[Row[Any]]:
    statement = select(_ENTRIES).where(_ENTRIES.c.number > after).order_by(_ENTRIES.c.number).limit(limit)
    return list((await connection.execute(statement)).all())


async def postings_between(
    connection: AsyncConnection, *, after: int, rows: list[Row[Any]]
) -> dict[int, list[Any]]:
    """The postings of these neighbouring entries, by the entry's number."""
    if not rows:
        return {}
    between = and_(_POSTINGS.c.entry_number > after, _POSTINGS.c.entry_number <= rows[-1].number)
    statement = select(_POSTINGS).where(between).order_by(_POSTINGS.c.entry_number, _POSTINGS.c.position)
    return dict(postings_of((await connection.execute(statement)).all()))
