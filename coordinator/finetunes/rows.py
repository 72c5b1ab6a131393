"""Fine-tunes in the database."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, Final

from sqlalchemy import and_, delete, func, not_, or_, select

from coordinator import dialect, tables
from coordinator.core.jobs import JobId, MemberId
from coordinator.database import Database
from coordinator.finetunes.finetune import (
    ENDED,
    Checkpoint,
    Data,
    Event,
    Fault,
    Finetune,
    FinetuneState,
)
from coordinator.finetunes.plan import Plan, Wanted
from coordinator.records import FileId
from coordinator.table_base import table_of

LISTED_MAX: Final = 100
EVENTS_READ_MAX: Final = 1_000  # one more says that there are more
_FINETUNES = table_of(tables.Finetune)
_PROGRESS = table_of(tables.FinetuneProgress)
_EVENTS = table_of(tables.FinetuneEvent)
_CHECKPOINTS = table_of(tables.FinetuneCheckpoint)
_JOBS = table_of(tables.Job)
_RESULTS = table_of(tables.StoredResult)
_OPEN = _FINETUNES.c.state.not_in([state.value for state in ENDED])


class Finetunes(Database):
    async def finetune(self, finetune_id: str) -> Finetune | None:
        return await self._finetune_where(_FINETUNES.c.id == finetune_id)

    async def finetune_of(self, job: JobId) -> Finetune | None:
        """Whose whole the job is."""
        return await self._finetune_where(_FINETUNES.c.job_id == job)

    async def _finetune_where(self, condition: Any) -> Finetune | None:
        async with self.reading() as connection:
            row = (await connection.execute(select(_FINETUNES).where(condition))).one_or_none()
            return None if row is None else _finetune_of(row)

    async def finetunes(self, member: MemberId, *, limit: int, after: str | None = None) -> list[Finetune]:
        """A member's, the newest first; `after` is the last one of the page before."""
        wanted = select(_FINETUNES).where(_FINETUNES.c.member_id == member)
        if after is not None:
            seam = select(_FINETUNES.c.created_at).where(_FINETUNES.c.id == after).scalar_subquery()
            same_moment = and_(_FINETUNES.c.created_at == seam, _FINETUNES.c.id < after)
            wanted = wanted.where(or_(_FINETUNES.c.created_at < seam, same_moment))
        wanted = wanted.order_by(_FINETUNES.c.created_at.desc(), _FINETUNES.c.id.desc())
        wanted = wanted.limit(max(1, min(limit, LISTED_MAX + 1)))
        async with self.reading() as connection:
            return [_finetune_of(row) for row in (await connection.execute(wanted)).all()]

    async def open_finetunes(self) -> list[Finetune]:
        """All members', the oldest first."""
        wanted = select(_FINETUNES).where(_OPEN).order_by(_FINETUNES.c.created_at, _FINETUNES.c.id)
        async with self.reading() as connection:
            return [_finetune_of(row) for row in (await connection.execute(wanted)).all()]

    async def put_finetune(self, finetune: Finetune) -> None:
        async with self.writing() as connection:
            await connection.execute(dialect.upsert(connection.dialect, _FINETUNES), _values(finetune))

    async def open_finetune_named(self, result: str) -> str | None:
        """An open fine-tune whose model will be called that."""
        return await self._finetune_id_where(and_(_FINETUNES.c.result == result, _OPEN))

    async def finetune_uses_file(self, file_id: str) -> str | None:
        """An open fine-tune that reads the file."""
        reads = or_(_FINETUNES.c.training_file_id == file_id, _FINETUNES.c.validation_file_id == file_id)
        return await self._finetune_id_where(and_(reads, _OPEN))

    async def _finetune_id_where(self, condition: Any) -> str | None:
        async with self.reading() as connection:
            wanted = select(_FINETUNES.c.id).where(condition).limit(1)
            found: str | None = (await connection.execute(wanted)).scalar_one_or_none()
            return found

    # -- progress --------------------------------------------------------------------------------

    async def put_finetune_lengths(self, finetune_id: str, training: bytes, validation: bytes | None) -> None:
        values = {
            "finetune_id": finetune_id,
            "training": training,
            "validation": validation,
            "snapshot": "",
        }
        async with self.writing() as connection:
            await connection.execute(dialect.upsert(connection.dialect, _PROGRESS), values)

    async def finetune_lengths(self, finetune_id: str) -> tuple[bytes, bytes | None] | None:
        wanted = select(_PROGRESS.c.training, _PROGRESS.c.validation)
        async with self.reading() as connection:
            found = await connection.execute(wanted.where(_PROGRESS.c.finetune_id == finetune_id))
            row = found.one_or_none()
        return None if row is None else (row.training, row.validation)

    async def put_finetune_snapshot(self, finetune_id: str, snapshot: str) -> None:
        statement = _PROGRESS.update().where(_PROGRESS.c.finetune_id == finetune_id)
        async with self.writing() as connection:
            await connection.execute(statement.values(snapshot=snapshot))

    async def finetune_snapshot(self, finetune_id: str) -> str:
        """Empty before the first part."""
        wanted = select(_PROGRESS.c.snapshot).where(_PROGRESS.c.finetune_id == finetune_id)
        async with self.reading() as connection:
            return (await connection.execute(wanted)).scalar_one_or_none() or ""

    async def finetune_snapshots(self) -> list[str]:
        """Of all open fine-tunes."""
        async with self.reading() as connection:
            return list(await connection.scalars(select(_PROGRESS.c.snapshot)))

    async def forget_finetune(self, finetune_id: str, job: JobId) -> None:
        """What only an open one needs: its state, and what its parts have left."""
        await self._forget_finetunes(_FINETUNES.c.id == finetune_id, _FINETUNES.c.job_id == job)

    async def forget_ended_finetunes(self) -> None:
        """Of those that a crash kept from being forgotten."""
        await self._forget_finetunes(not_(_OPEN))

    async def _forget_finetunes(self, *conditions: Any) -> None:
        ids = select(_FINETUNES.c.id).where(*conditions)
        wholes = select(_FINETUNES.c.job_id).where(*conditions)
        parts = select(_JOBS.c.id).where(_JOBS.c.whole_id.in_(wholes))
        async with self.writing() as connection:
            await connection.execute(delete(_PROGRESS).where(_PROGRESS.c.finetune_id.in_(ids)))
            await connection.execute(delete(_RESULTS).where(_RESULTS.c.job_id.in_(parts)))

    # -- events ----------------------------------------------------------------------------------

    async def add_finetune_events(self, finetune_id: str, events: Sequence[Event], *, keep: int) -> None:
        """The next ones; of all of them the last `keep` stay."""
        if not events:
            return
        rows = [
            {
                "finetune_id": finetune_id,
                "number": event.number,
                "at": event.at,
                "level": event.level,
                "message": event.message,
                "data": "" if event.data is None else json.dumps(dict(event.data)),
            }
            for event in events
        ]
        old = and_(_EVENTS.c.finetune_id == finetune_id, _EVENTS.c.number <= events[-1].number - keep)
        async with self.writing() as connection:
            await connection.execute(dialect.upsert(connection.dialect, _EVENTS), rows)
            await connection.execute(delete(_EVENTS).where(old))

    async def finetune_events(
        self, finetune_id: str, *, limit: int, before: int | None = None, after: int | None = None
    ) -> list[Event]:
        """The newest first, older than `before`; or in their order, newer than `after`."""
        wanted = select(_EVENTS).where(_EVENTS.c.finetune_id == finetune_id)
        if before is not None:
            wanted = wanted.where(_EVENTS.c.number < before)
        if after is not None:
            wanted = wanted.where(_EVENTS.c.number > after).order_by(_EVENTS.c.number)
        else:
            wanted = wanted.order_by(_EVENTS.c.number.desc())
        async with self.reading() as connection:
            rows = (await connection.execute(wanted.limit(min(limit, EVENTS_READ_MAX + 1)))).all()
        return [_event_of(row) for row in rows]

    async def last_finetune_event(self, finetune_id: str) -> int:
        """Its number; 0 before the first."""
        wanted = select(func.max(_EVENTS.c.number)).where(_EVENTS.c.finetune_id == finetune_id)
        async with self.reading() as connection:
            return int((await connection.execute(wanted)).scalar() or 0)

    # -- checkpoints -----------------------------------------------------------------------------

    async def put_finetune_checkpoints(self, finetune_id: str, checkpoints: Iterable[Checkpoint]) -> None:
        """These are all that are listed from now on."""
        rows = [
            {
                "finetune_id": finetune_id,
                "number": one.number,
                "step": one.step,
                "at": one.at,
                "sha256": one.sha256,
                "bytes": one.bytes,
                "metrics": json.dumps(dict(one.metrics)),
            }
            for one in checkpoints
        ]
        async with self.writing() as connection:
            await connection.execute(delete(_CHECKPOINTS).where(_CHECKPOINTS.c.finetune_id == finetune_id))
            if rows:
                await connection.execute(_CHECKPOINTS.insert(), rows)

    async def finetune_checkpoints(self, finetune_id: str) -> list[Checkpoint]:
        """In their order."""
        wanted = select(_CHECKPOINTS).where(_CHECKPOINTS.c.finetune_id == finetune_id)
        async with self.reading() as connection:
            rows = (await connection.execute(wanted.order_by(_CHECKPOINTS.c.number))).all()
        return [
            Checkpoint(
                number=row.number,
                step=row.step,
                at=row.at,
                sha256=row.sha256,
                bytes=row.bytes,
                metrics=json.loads(row.metrics),
            )
            for row in rows
        ]

    async def checkpointed_finetunes(self) -> list[Finetune]:
        """All that have some."""
        some = select(_CHECKPOINTS.c.finetune_id)
        async with self.reading() as connection:
            rows = await connection.execute(select(_FINETUNES).where(_FINETUNES.c.id.in_(some)))
            return [_finetune_of(row) for row in rows.all()]

    async def forget_old_checkpoints(self, now: float) -> list[str]:
        """Of fine-tunes that have ended and whose time is over: these."""
        over = select(_FINETUNES.c.id).where(not_(_OPEN), _FINETUNES.c.expires_at <= now)
        theirs = _CHECKPOINTS.c.finetune_id.in_(over)
        async with self.writing() as connection:
            ids = list(await connection.scalars(select(_CHECKPOINTS.c.finetune_id).where(theirs).distinct()))
            await connection.execute(delete(_CHECKPOINTS).where(theirs))
        return ids

    async def checkpoint_digests(self) -> set[str]:
        async with self.reading() as connection:
            return set(await connection.scalars(select(_CHECKPOINTS.c.sha256).distinct()))


def _event_of(row: Any) -> Event:
    data = json.loads(row.data) if row.data else None
    return Event(number=row.number, at=row.at, level=row.level, message=row.message, data=data)


def _values(finetune: Finetune) -> dict[str, Any]:
    validation = finetune.validation
    return {
        "id": finetune.id,
        "job_id": finetune.job,
        "member_id": finetune.member,
        "key_id": finetune.key,
        "model": finetune.model,
        "result": finetune.result,
        "training_file_id": finetune.training.file,
        "training_sha256": finetune.training.sha256,
        "training_bytes": finetune.training.bytes,
        "validation_file_id": None if validation is None else validation.file,
        "validation_sha256": None if validation is None else validation.sha256,
        "validation_bytes": 0 if validation is None else validation.bytes,
        "wanted": json.dumps(asdict(finetune.wanted)),
        "plan": "" if finetune.plan is None else json.dumps(asdict(finetune.plan)),
        "created_at": finetune.created_at,
        "expires_at": finetune.expires_at,
        "notes": json.dumps(dict(finetune.metadata)),
        "state": finetune.state.value,
        "quote": finetune.quote,
        "charge": finetune.charge,
        "steps_done": finetune.steps_done,
        "trained_tokens": finetune.trained_tokens,
        "fault": "" if finetune.fault is None else json.dumps(asdict(finetune.fault)),
        "result_files": json.dumps(list(finetune.result_files)),
        "moments": json.dumps(dict(finetune.moments)),
    }


def _finetune_of(row: Any) -> Finetune:
    validation = None
    if row.validation_file_id is not None:
        validation = Data(FileId(row.validation_file_id), row.validation_sha256, row.validation_bytes)
    return Finetune(
        id=row.id,
        job=JobId(row.job_id),
        member=MemberId(row.member_id),
        key=row.key_id,
        model=row.model,
        result=row.result,
        training=Data(FileId(row.training_file_id), row.training_sha256, row.training_bytes),
        validation=validation,
        wanted=_wanted_of(json.loads(row.wanted)),
        plan=Plan(**_with_targets(json.loads(row.plan))) if row.plan else None,
        created_at=row.created_at,
        expires_at=row.expires_at,
        metadata=json.loads(row.notes),
        state=FinetuneState(row.state),
        quote=row.quote,
        charge=row.charge,
        steps_done=row.steps_done,
        trained_tokens=row.trained_tokens,
        fault=Fault(**json.loads(row.fault)) if row.fault else None,
        result_files=tuple(json.loads(row.result_files)),
        moments=json.loads(row.moments),
    )


def _wanted_of(values: dict[str, Any]) -> Wanted:
    only = values["only"]
    return Wanted(**_with_targets(values) | {"only": tuple(only) if isinstance(only, list) else only})


def _with_targets(values: dict[str, Any]) -> dict[str, Any]:
    return {**values, "targets": tuple(values["targets"])}
