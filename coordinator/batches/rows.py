"""Batches in the database."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from sqlalchemy import Select, and_, delete, or_, select

from coordinator import dialect, tables
from coordinator.batches.batch import ENDED, Batch, BatchState, Failure, LineFault
from coordinator.core.jobs import Job, JobId, JobState, MemberId
from coordinator.database import Database
from coordinator.history import with_attempts
from coordinator.table_base import table_of

LISTED_MAX = 100
_BATCHES = table_of(tables.Batch)
_FAILURES = table_of(tables.BatchFailure)
_JOBS = table_of(tables.Job)
_REQUESTS = table_of(tables.StoredRequest)
_RESULTS = table_of(tables.StoredResult)


class Batches(Database):
    async def batch(self, batch_id: str) -> Batch | None:
        async with self.reading() as connection:
            found = select(_BATCHES).where(_BATCHES.c.id == batch_id)
            row = (await connection.execute(found)).one_or_none()
            return None if row is None else _batch_of(row)

    async def batch_of(self, job: JobId) -> Batch | None:
        """Whose whole the job is."""
        async with self.reading() as connection:
            row = (await connection.execute(select(_BATCHES).where(_BATCHES.c.job_id == job))).one_or_none()
            return None if row is None else _batch_of(row)

    async def batches(self, member: MemberId, *, limit: int, after: str | None = None) -> list[Batch]:
        """A member's, the newest first; `after` is the last one of the page before."""
        wanted = select(_BATCHES).where(_BATCHES.c.member_id == member)
        if after is not None:
            seam = select(_BATCHES.c.created_at).where(_BATCHES.c.id == after).scalar_subquery()
            same_moment = and_(_BATCHES.c.created_at == seam, _BATCHES.c.id < after)
            wanted = wanted.where(or_(_BATCHES.c.created_at < seam, same_moment))
        wanted = wanted.order_by(_BATCHES.c.created_at.desc(), _BATCHES.c.id.desc())
        wanted = wanted.limit(max(1, min(limit, LISTED_MAX + 1)))
        async with self.reading() as connection:
            return [_batch_of(row) for row in (await connection.execute(wanted)).all()]

    async def open_batches(self) -> list[Batch]:
        """All members', the oldest first."""
        wanted = select(_BATCHES).where(_BATCHES.c.state.not_in([state.value for state in ENDED]))
        async with self.reading() as connection:
            rows = (await connection.execute(wanted.order_by(_BATCHES.c.created_at, _BATCHES.c.id))).all()
            return [_batch_of(row) for row in rows]

    async def put_batch(self, batch: Batch) -> None:
        async with self.writing() as connection:
            await connection.execute(dialect.upsert(connection.dialect, _BATCHES), _values(batch))

    async def put_failure(self, batch_id: str, failure: Failure) -> None:
        """A later one of the same line replaces it."""
        values = {"batch_id": batch_id, **asdict(failure)}
        async with self.writing() as connection:
            await connection.execute(dialect.upsert(connection.dialect, _FAILURES), values)

    async def failures(self, batch_id: str) -> dict[int, Failure]:
        wanted = select(_FAILURES).where(_FAILURES.c.batch_id == batch_id)
        async with self.reading() as connection:
            rows = (await connection.execute(wanted)).all()
        return {row.line: Failure(row.line, row.status, row.code, row.message) for row in rows}

    async def parts(self, whole: JobId, *, after: int = 0, limit: int = 500) -> list[Job]:
        """In the order of their numbers, from the one after `after`."""
        wanted = select(_JOBS).where(_JOBS.c.whole_id == whole, _JOBS.c.part > after)
        async with self.reading() as connection:
            rows = (await connection.execute(wanted.order_by(_JOBS.c.part).limit(limit))).all()
            return await with_attempts(connection, rows)

    async def newest_parts(self, whole: JobId, *, limit: int, before: int | None = None) -> list[Job]:
        """The highest numbers first, below `before`."""
        wanted = select(_JOBS).where(_JOBS.c.whole_id == whole)
        if before is not None:
            wanted = wanted.where(_JOBS.c.part < before)
        async with self.reading() as connection:
            rows = (await connection.execute(wanted.order_by(_JOBS.c.part.desc()).limit(limit))).all()
            return await with_attempts(connection, rows)

    async def part_numbers(self, whole: JobId) -> dict[int, JobState]:
        wanted = select(_JOBS.c.part, _JOBS.c.state).where(_JOBS.c.whole_id == whole)
        async with self.reading() as connection:
            rows = (await connection.execute(wanted)).all()
        return {row.part: JobState(row.state) for row in rows}

    async def results(self, jobs: Iterable[JobId]) -> dict[JobId, bytes]:
        """Those that there are."""
        wanted = select(_RESULTS).where(_RESULTS.c.job_id.in_(list(jobs)))
        async with self.reading() as connection:
            rows = (await connection.execute(wanted)).all()
        return {JobId(row.job_id): row.result for row in rows}

    async def forget_texts(self, whole: JobId) -> None:
        """Requests and answers of the parts: they stand in files now."""
        await self._forget_texts(select(_JOBS.c.id).where(_JOBS.c.whole_id == whole))

    async def forget_ended_texts(self) -> None:
        """Those that a crash kept from being forgotten."""
        over = select(_BATCHES.c.job_id).where(_BATCHES.c.state.in_([state.value for state in ENDED]))
        await self._forget_texts(select(_JOBS.c.id).where(_JOBS.c.whole_id.in_(over)))

    async def _forget_texts(self, theirs: Select[Any]) -> None:
        async with self.writing() as connection:
            for texts in (_REQUESTS, _RESULTS):
                await connection.execute(delete(texts).where(texts.c.job_id.in_(theirs)))

    async def uses_file(self, file_id: str) -> str | None:
        """An open batch that reads the file."""
        wanted = select(_BATCHES.c.id).where(
            _BATCHES.c.input_file_id == file_id,
            _BATCHES.c.state.not_in([state.value for state in ENDED]),
        )
        async with self.reading() as connection:
            found: str | None = (await connection.execute(wanted.limit(1))).scalar_one_or_none()
            return found


def _values(batch: Batch) -> dict[str, Any]:
    return {
        "id": batch.id,
        "job_id": batch.job,
        "member_id": batch.member,
        "key_id": batch.key,
        "input_file_id": batch.input_file,
        "endpoint": batch.endpoint,
        "window_s": batch.window_s,
        "created_at": batch.created_at,
        "expires_at": batch.expires_at,
        "state": batch.state.value,
        "model": batch.model,
        "total": batch.total,
        "completed": batch.completed,
        "failed": batch.failed,
        "input_tokens": batch.input_tokens,
        "output_tokens": batch.output_tokens,
        "notes": json.dumps(dict(batch.metadata)),
        "faults": json.dumps([asdict(fault) for fault in batch.faults]),
        "output_file_id": batch.output_file,
        "error_file_id": batch.error_file,
        "moments": json.dumps(dict(batch.moments)),
    }


def _batch_of(row: Any) -> Batch:
    return Batch(
        id=row.id,
        job=JobId(row.job_id),
        member=MemberId(row.member_id),
        key=row.key_id,
        input_file=row.input_file_id,
        endpoint=row.endpoint,
        window_s=row.window_s,
        created_at=row.created_at,
        expires_at=row.expires_at,
        state=BatchState(row.state),
        model=row.model,
        total=row.total,
        completed=row.completed,
        failed=row.failed,
        input_tokens=row.input_tokens,
        output_tokens=row.output_tokens,
        metadata=json.loads(row.notes),
        faults=tuple(LineFault(**fault) for fault in json.loads(row.faults)),
        output_file=row.output_file_id,
        error_file=row.error_file_id,
        moments=json.loads(row.moments),
    )
