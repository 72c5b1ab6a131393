"""All fine-tunes of the pool: one task for each that is open, taken up again after a restart."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import structlog

from coordinator.core.jobs import Job, JobId, MemberId
from coordinator.core.pricing import Training
from coordinator.files import DAY_S, Files
from coordinator.finetunes import ending
from coordinator.finetunes.base import Bases
from coordinator.finetunes.check import Checked, Checks
from coordinator.finetunes.disk import Disk
from coordinator.finetunes.finetune import DAYS, ENDED, Data, Finetune, FinetuneState
from coordinator.finetunes.journal import Journal
from coordinator.finetunes.lengths import method_of
from coordinator.finetunes.plan import Wanted
from coordinator.finetunes.progress import Progress, finished
from coordinator.finetunes.run import Run
from coordinator.ids import new_id
from coordinator.parts import Parts
from coordinator.pool import Pool
from coordinator.records import ApiKey, FileId, Member, Purpose
from coordinator.refusal import Refusal
from coordinator.store import Store
from coordinator.trainings import NONE_HERE
from coordinator.translate import digests
from coordinator.tuned.model import MARK
from coordinator.tuned.registry import TunedModels
from potluck.training_data import ExampleError
from potluck.v1 import work_pb2

OPEN_MAX: Final = 8  # of one member
SUFFIX_CHARS: Final = 8  # of the one that is made up

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a member asks for. `model`: the base's name in the catalogue."""

    model: str
    training_file: str
    validation_file: str | None
    suffix: str | None
    wanted: Wanted
    metadata: Mapping[str, str]


def _ended(finetune: Finetune) -> Refusal:
    was = "was" if finetune.state is FinetuneState.CANCELLED else "has"
    return Refusal(409, "finetune_ended", f"{finetune.id} has ended: it {was} {finetune.state.value}.")


@dataclass(slots=True)
class Finetunes:
    parts: Parts
    store: Store
    files: Files
    bases: Bases
    checks: Checks
    tuned: TunedModels
    runs: dict[str, Run] = field(default_factory=dict)
    followers: list[Callable[[Finetune], None]] = field(default_factory=list)  # told of each one's end
    resumed: bool = False
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.files.users.append(self._user)

    async def quote(self, member: Member, key: ApiKey, order: Order) -> Checked:
        """What it would cost, and what is in the files. Nothing is made. Raises Refusal."""
        base = await self.bases.get(order.model)
        self.bases.refuse_impossible(base, member, key, order.wanted)
        training, validation = await self._data(member, order)
        return await self.checks.check(base, order.wanted, training, validation)

    async def create(
        self, member: Member, key: ApiKey, order: Order, *, finetune_id: str | None = None
    ) -> Finetune:
        """`finetune_id`: derived from the request's Idempotency-Key. Raises Refusal."""
        self.parts.pool.accounts.check_open()
        base = await self.bases.get(order.model)
        weights_bytes = base.weights_bytes(order.wanted)
        # Until it runs: the files are not deleted, the name is not taken, and the same request that comes
        # again finds it.
        async with self.files.deciding:
            made_id = finetune_id or new_id("ftjob").replace("_", "-", 1)
            finetune = self._new(made_id, member, key, order)
            if finetune_id is not None and (known := await self.store.finetune(finetune_id)) is not None:
                return self._again(known, finetune, order)
            self.bases.refuse_impossible(base, member, key, order.wanted)
            count = sum(run.member.id == member.id for run in self.runs.values())
            self.tuned.refuse_full(member.id, count + 1, weights_bytes)
            if count >= OPEN_MAX:
                message = f"You have {OPEN_MAX} open fine-tunes, the most at once. Wait for one to end."
                raise Refusal(429, "too_many_finetunes", message, type="rate_limit_error")
            training, validation = await self._data(member, order)
            await self._refuse_taken(finetune.result)
            finetune = replace(
                finetune, training=training[0], validation=None if validation is None else validation[0]
            )
            await self.store.put_finetune(finetune)
            self._start(finetune, member, key, training[1], None if validation is None else validation[1])
        return finetune

    def _new(self, finetune_id: str, member: Member, key: ApiKey, order: Order) -> Finetune:
        job, now = JobId("job_" + finetune_id.removeprefix("ftjob-")), self.parts.pool.now()
        return Finetune(
            id=finetune_id,
            job=job,
            member=member.id,
            key=key.id,
            model=order.model,
            result=f"{order.model}{MARK}{order.suffix or job[-SUFFIX_CHARS:]}",
            training=Data(FileId(order.training_file), "", 0),
            validation=None,
            wanted=order.wanted,
            created_at=now,
            expires_at=now + DAYS * DAY_S,
            metadata=order.metadata,
            moments={FinetuneState.VALIDATING.value: now},
        )

    def _again(self, known: Finetune, asked: Finetune, order: Order) -> Finetune:
        validation = None if known.validation is None else known.validation.file
        before = known.model, known.result, known.training.file, known.wanted, dict(known.metadata)
        now = asked.model, asked.result, asked.training.file, asked.wanted, dict(asked.metadata)
        if before != now or validation != order.validation_file:
            message = f"This Idempotency-Key was used for another request (fine-tune {known.id})."
            raise Refusal(409, "idempotency_conflict", message)
        return self.now(known)

    async def _data(self, member: Member, order: Order) -> tuple[tuple[Data, Path], tuple[Data, Path] | None]:
        """Both files, of the purpose and of the kind that the method reads. Raises Refusal 400, 404."""
        training = await self._one(member.id, order.training_file, order.wanted.method, "training_file")
        if order.validation_file is None:
            return training, None
        other = await self._one(member.id, order.validation_file, order.wanted.method, "validation_file")
        if other[0].sha256 == training[0].sha256:
            message = "validation_file: it holds what the training file does, and would prove nothing."
            raise Refusal(400, "invalid_value", message, param="validation_file")
        return training, other

    async def _one(self, member: MemberId, file_id: str, method: str, param: str) -> tuple[Data, Path]:
        try:
            file = await self.files.get(member, file_id)
            path = self.files.path(file)
        except Refusal as refusal:
            refusal.param = param
            raise
        if file.purpose is not Purpose.FINE_TUNE:
            message = (
                f"{param}: {file.id} was uploaded for {file.purpose.value}; the purpose fine-tune is needed."
            )
            raise Refusal(400, "wrong_purpose", message, param=param)
        try:
            found = await asyncio.to_thread(method_of, path)
        except ExampleError as error:
            message = f"{param}: the file {file.id} cannot be used: {error}."
            raise Refusal(400, "invalid_file", message, param=param) from None
        if found != method:
            has = {"sft": "examples to imitate", "dpo": "preference pairs"}
            message = f"{param}: {file.id} holds {has[found]}, and this method needs {has[method]}."
            raise Refusal(400, "wrong_file_kind", message, param=param)
        return Data(file.id, file.sha256, file.bytes), path

    async def _refuse_taken(self, result: str) -> None:
        if result in self.tuned.models or await self.store.open_finetune_named(result) is not None:
            message = f"suffix: the name {result} is taken. Choose another, or delete that model first."
            raise Refusal(409, "name_taken", message, type="conflict_error", param="suffix")

    def now(self, finetune: Finetune) -> Finetune:
        """As it is at the moment: of one that runs, memory is ahead of the disk."""
        run = self.runs.get(finetune.id)
        return finetune if run is None else run.now

    def progress(self, finetune: Finetune) -> Progress:
        run = self.runs.get(finetune.id)
        return finished(finetune) if run is None else run.progress()

    def journal(self, finetune: Finetune) -> Journal:
        """Of one that has ended, nothing more is to come."""
        run = self.runs.get(finetune.id)
        if run is not None:
            return run.journal
        return Journal(finetune.id, self.store, self.parts.pool.now, closed=True)

    # -- what workers say ------------------------------------------------------------------------

    def steps(self, job: Job, steps: Sequence[work_pb2.TrainingStep]) -> str:
        """As `Trainings` has it."""
        run = self._run_of(job)
        return NONE_HERE if run is None else run.steps(job, steps)

    async def trained(self, job: Job, trained: work_pb2.Trained) -> Training | str:
        """As `Trainings` has it."""
        run = self._run_of(job)
        return NONE_HERE if run is None else await run.trained(job, trained)

    def _run_of(self, job: Job) -> Run | None:
        return next((run for run in self.runs.values() if run.finetune.job == job.whole), None)

    # -- what members do -------------------------------------------------------------------------

    async def cancel(self, finetune: Finetune, why: str) -> Finetune:
        """Raises Refusal 409 if it has ended."""
        run = self.runs.get(finetune.id)
        if run is None or not await run.cancel(why):
            raise _ended(finetune if run is None else run.finetune)
        return run.now

    async def pause(self, finetune: Finetune) -> Finetune:
        """Raises Refusal 409 unless it is under way."""
        run = self._running(finetune)
        await run.pause()
        return run.now

    async def go_on(self, finetune: Finetune) -> Finetune:
        """Raises Refusal 409 unless it is paused."""
        run = self._running(finetune)
        await run.go_on()
        return run.now

    def _running(self, finetune: Finetune) -> Run:
        """Raises Refusal 409 if it has ended."""
        if (run := self.runs.get(finetune.id)) is None:
            raise _ended(finetune)
        return run

    async def resume(self) -> None:
        """Go on where the coordinator stopped."""
        await self.store.forget_ended_finetunes()
        members = {member.id: member for member in await self.store.members()}
        for finetune in await self.store.open_finetunes():
            member = members[finetune.member]
            keys = {key.id: key for key in await self.store.list_keys(member.id)}
            paths = [
                None if data is None else self.files.artifacts.where(data.sha256)
                for data in (finetune.training, finetune.validation)
            ]
            assert paths[0] is not None, "there is a training file; who reads it finds out whether it is gone"
            self._start(finetune, member, keys[finetune.key], paths[0], paths[1])
        for finetune in await self.store.checkpointed_finetunes():
            await self._show_checkpoints(finetune)
        self.resumed = True

    async def _show_checkpoints(self, finetune: Finetune) -> None:
        """They may be asked again, if their base is still in the catalogue."""
        if (entry := self.parts.pool.catalogue().get(finetune.model)) is not None:
            listed = await self.store.finetune_checkpoints(finetune.id)
            pool, disk = self.parts.pool, Disk(finetune.id)
            models = await ending.checkpoint_models(pool, disk, finetune, entry, listed)
            self.tuned.list_checkpoints(finetune.id, models)

    async def sweep(self) -> int:
        """Remove what was made in training and is of no more use; how much."""
        if not self._knows_all():
            return 0
        for finetune_id in await self.store.forget_old_checkpoints(self.parts.pool.now()):
            self.tuned.list_checkpoints(finetune_id, ())
        keep = await self.store.checkpoint_digests() | self._needed()
        return await self.parts.pool.training_store.sweep(keep)

    def _knows_all(self) -> bool:
        """Whether every open fine-tune has found out what it goes on from."""
        return self.resumed and all(run.settled for run in self.runs.values())

    def _needed(self) -> set[str]:
        """Digests of what models, open fine-tunes and open jobs need."""
        works = self.parts.pool.works.values()
        return self.tuned.digests().union(
            *(run.artifacts for run in self.runs.values()), *(digests(work) for work in works)
        )

    async def _release(self, artifacts: set[str]) -> None:
        """A segment leaves hundreds of megabytes: what it went on from goes when the next one is noted."""
        if artifacts and self._knows_all():
            try:
                await self.parts.pool.training_store.drop(artifacts - self._needed())
            except OSError as error:  # somebody reads it, on Windows: swept later
                log.info("an artifact stays for now", action="artifact_stays", why=str(error))

    async def close(self) -> None:
        """Stop; nothing is lost."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _user(self, file_id: FileId) -> str | None:
        finetune = await self.store.finetune_uses_file(file_id)
        return None if finetune is None else f"the fine-tune {finetune}"

    def _start(
        self, finetune: Finetune, member: Member, key: ApiKey, training: Path, validation: Path | None
    ) -> None:
        run = Run(
            finetune,
            member,
            key,
            training,
            validation,
            self.parts,
            self.store,
            self.files,
            self.bases,
            self.checks,
            self.tuned,
            self._release,
        )
        self.runs[finetune.id] = run
        task = asyncio.create_task(self._watched(run))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watched(self, run: Run) -> None:
        """A bug in one ends that one, with its parts paid as they are, and nothing else."""
        try:
            await run.run()
        except Exception:
            log.exception("a fine-tune broke", action="finetune_broke", finetune=run.finetune.id)
            run.break_off()
            await run.disk.insist(lambda: self.store.put_finetune(run.finetune))
        finally:
            self.runs.pop(run.finetune.id, None)
            run.over()
        if run.finetune.state in ENDED:
            for follow in self.followers:
                follow(run.finetune)


def keeper(pool: Pool, store: Store, files: Files, tuned: TunedModels) -> Finetunes:
    """All fine-tunes of the pool."""
    return Finetunes(Parts(pool), store, files, Bases(pool), Checks(pool), tuned)
