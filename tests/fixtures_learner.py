"""A worker's side of training, written by hand: what it sends is of the right form, and learned from nothing."""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from fixtures_api import Said, Stand
from fixtures_sessions import RawWorker, frame, result

from coordinator.core.jobs import JobId, WorkerId
from coordinator.pool import Pool
from coordinator.training_store import Holder, TrainingStore
from potluck import deltas, shuffle, tensors
from potluck.tensors import Array
from potluck.v1 import session_pb2, work_pb2

TOKENS = 7  # of each example of test_finetunes.py, by words

Tensors = dict[str, Array]


async def uploaded(store: TrainingStore, holder: Holder, data: bytes) -> work_pb2.Artifact:
    """As the wire takes it in."""
    sha256 = hashlib.sha256(data).hexdigest()
    upload, turn = await store.begin(holder, sha256, len(data))
    if not upload.whole:  # another attempt made the same
        await store.append(upload, turn, data[upload.size_bytes :])
    await store.finish(upload, turn)
    return work_pb2.Artifact(sha256=sha256, bytes=len(data))


def moved(adapter: Tensors, work: work_pb2.TrainingWork, steps: int) -> Tensors:
    """Each number by half a learning rate a step, another way for each part."""
    generator = np.random.default_rng([work.first_step, *work.leased])
    by = 0.5 * work.plan.learning_rate * steps
    return {
        name: (array + by * generator.choice([-1.0, 1.0], array.shape)).astype("<f4")
        for name, array in adapter.items()
    }


def state(adapter: Tensors) -> Tensors:
    return {f"{name}.{moment}": np.abs(array) for name, array in adapter.items() for moment in ("m", "v")}


def step_of(step: int, tokens: int, **more: Any) -> session_pb2.Frame:
    said = work_pb2.TrainingStep(
        step=step,
        train_loss=2.0 / (1 + 0.1 * step),
        train_accuracy=0.5,
        tokens=tokens,
        target_tokens=tokens // 2,
        gradient_norm=1.0,
        learning_rate=1e-4,
    )
    said.MergeFrom(work_pb2.TrainingStep(**more))
    return session_pb2.Frame(steps=[said])


@dataclass
class Learner:
    """Answers every part of a fine-tune; a segment ends after `steps`.

    `spoil`, `spoil_state` and `end` may change what it sends; `before` is asked before each part, and what it
    gives is the answer, if it is any.
    """

    pool: Callable[[], Pool]
    worker: WorkerId
    steps: int = 10_000
    seen: list[session_pb2.Assign] = field(default_factory=list)
    spoil: Callable[[Tensors], Tensors | bytes] = lambda made: made
    spoil_state: Callable[[Tensors], Tensors] = lambda made: made
    end: Callable[[work_pb2.Trained], work_pb2.Trained] = lambda trained: trained
    before: Callable[[session_pb2.Assign], Awaitable[work_pb2.Failure | None]] | None = None
    valid_loss: Callable[[int], float] = lambda number: 2.0 / (1 + number)
    looked: int = 0

    async def __call__(self, assign: session_pb2.Assign) -> AsyncIterator[Said]:
        self.seen.append(assign)
        if self.before is not None and (failure := await self.before(assign)) is not None:
            yield failure
            return
        work = assign.work.training
        steps = min(work.last_step - work.first_step, self.steps)
        trained = work_pb2.Trained(first_step=work.first_step, steps=steps)
        lines = _lines(work, steps)
        for number, some in enumerate(lines):
            yield step_of(work.first_step + number, TOKENS * len(some))
        count = sum(map(len, lines))
        trained.tokens, trained.square_tokens = TOKENS * count, TOKENS * TOKENS * count
        if steps:
            await self._upload(assign, trained)
        if work.validate:
            self.looked += 1
            looked = len(work.validated) or 10
            trained.valid_loss, trained.valid_accuracy = self.valid_loss(self.looked), 0.75
            trained.valid_tokens, trained.valid_target_tokens = TOKENS * looked, looked
            trained.valid_square_tokens = TOKENS * TOKENS * looked
        yield self.end(trained)

    @property
    def trained(self) -> list[work_pb2.TrainingWork]:
        """What it was given to train, in its order."""
        works = (assign.work.training for assign in self.seen)
        return [work for work in works if work.last_step > work.first_step]

    async def _upload(self, assign: session_pb2.Assign, trained: work_pb2.Trained) -> None:
        store, work = self.pool().training_store, assign.work.training
        holder = Holder(self.worker, JobId(assign.attempt.job_id), assign.attempt.number)
        adapter = tensors.read(store.path(work.adapter.sha256).read_bytes())[0]
        made = moved(adapter, work, trained.steps)
        if work.delta:
            made = {name: adapter[name] - made[name] for name in made}
        spoiled = self.spoil(made)
        if isinstance(spoiled, bytes):
            data = spoiled
        else:
            data = deltas.encode(spoiled) if work.delta else tensors.write(spoiled)
        trained.adapter.CopyFrom(await uploaded(store, holder, data))
        if not work.delta:
            moments = tensors.write(self.spoil_state(state(made)))
            trained.state.CopyFrom(await uploaded(store, holder, moments))


def _lines(work: work_pb2.TrainingWork, steps: int) -> list[Sequence[int]]:
    """Of each step."""
    plan = work.plan
    if work.leased:
        size = plan.batch_size
        return [list(work.leased[n * size : (n + 1) * size]) for n in range(steps)]
    return [
        shuffle.examples_of(plan.seed, plan.examples, plan.batch_size, step)
        for step in range(work.first_step, work.first_step + steps)
    ]


def learner_of(stand: Stand, **more: Any) -> Learner:
    """At once at work; whatever else is asked of its worker is answered as always."""
    learner, answer = Learner(lambda: stand.context.pool, stand.worker, **more), stand.bench.script

    def script(assign: session_pb2.Assign) -> AsyncIterator[Said]:
        return learner(assign) if assign.work.HasField("training") else answer(assign)

    stand.bench.script = script
    return learner


async def learns(worker: RawWorker, learner: Learner) -> None:
    """Until its stream ends, one part after the other."""
    while isinstance(message := await worker.call.read(), session_pb2.CoordinatorMessage):
        if message.HasField("assign"):
            sequence = 0
            async for said in learner(message.assign):
                sequence += 1
                await worker.send(_message(message.assign, sequence, said))


def _message(assign: session_pb2.Assign, sequence: int, said: Said) -> session_pb2.WorkerMessage:
    if isinstance(said, work_pb2.Failure):
        return result(assign, sequence, failed=said)
    if isinstance(said, work_pb2.Trained):
        return result(assign, sequence, completed=session_pb2.Completed(trained=said))
    assert isinstance(said, session_pb2.Frame), "that is all that it says"
    return frame(assign, sequence, steps=said.steps)
