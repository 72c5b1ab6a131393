"""What workers say about training, checked against what was asked for, and handed on.

Looking at what a part made takes a while: meanwhile its worker's stream goes on, what it made is as good as
heard, and its receipt waits, since it cannot be judged before the attempt has ended.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import structlog

from coordinator import translate
from coordinator.core.engine import Engine
from coordinator.core.jobs import Job, JobId, WorkerId
from coordinator.core.messages import SendAck
from coordinator.pool import Pool
from coordinator.tick import Ticker
from coordinator.training_checks import Told, wrong_steps, wrong_trained
from coordinator.training_store import Holder
from potluck.pricing import Training
from potluck.receipts import ReceiptBody, ReceiptError
from potluck.v1 import session_pb2, work_pb2

KEPT_ALIVE_S: Final = 1.0

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class TrainingReports:
    """`_told`: of open parts. `_checking`: those whose end is looked at, each with the receipt that waits."""

    engine: Engine
    pool: Pool
    ticker: Ticker
    now: Callable[[], float]
    _told: dict[JobId, Told] = field(default_factory=dict)
    _checking: dict[Holder, list[session_pb2.Receipt]] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.pool.followers.append(self._ended)

    def _ended(self, job: Job) -> None:
        self._told.pop(job.id, None)

    def frame(self, worker: WorkerId, frame: session_pb2.Frame, now: float) -> bool:
        """Of an attempt that the worker holds. Whether it was taken."""
        job_id, number = translate.fence(frame.attempt)
        job = self.engine.lives[job_id].job
        fresh = self.engine.steps(worker, job_id, number, frame.sequence, now)
        if fresh and (why := self._wrong(job, number, frame)):
            self.engine.misbehaved(worker, job_id, number, why, now)
            fresh = False
        if self.engine.effects:
            self.ticker.wake()
        return fresh

    def _wrong(self, job: Job, number: int, frame: session_pb2.Frame) -> str:
        told = self._of(job.id, number)
        if frame.deltas or frame.HasField("prompt"):
            return "text beside the steps of a training"
        if why := wrong_steps(self.pool.works[job.id].training, frame.steps, told):
            return why
        told.add(frame.steps)
        return self.pool.training.steps(job, frame.steps)

    def _of(self, job_id: JobId, number: int) -> Told:
        told = self._told.get(job_id)
        if told is None or told.number != number:  # an earlier attempt's steps were for nothing
            told = self._told[job_id] = Told(number)
        return told

    def result(self, worker: WorkerId, result: session_pb2.Result, now: float) -> bool:
        """Of an attempt at a training that the worker holds. Whether it was news: it is acknowledged when it
        was looked at.
        """
        holder = Holder(worker, *translate.fence(result.attempt))
        if holder in self._checking:
            return False
        trained = result.completed.trained
        if why := self._wrong_end(holder, trained):
            self._end(holder, result.sequence, why, now)
            return False
        self._checking[holder] = []
        task = asyncio.create_task(self._check(holder, result.sequence, trained))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    def _wrong_end(self, holder: Holder, trained: work_pb2.Trained) -> str:
        told = self._of(holder.job, holder.number)
        if why := wrong_trained(self.pool.works[holder.job].training, trained, told):
            return why
        for artifact in (trained.adapter, trained.state):
            if artifact.sha256 and not self.pool.training_store.has(holder, artifact.sha256, artifact.bytes):
                return "it did not upload what it says that it made"
        return ""

    async def _check(self, holder: Holder, sequence: int, trained: work_pb2.Trained) -> None:
        job = self.engine.lives[holder.job].job
        looking = asyncio.ensure_future(self.pool.training.trained(job, trained))
        try:
            while not (await asyncio.wait({looking}, timeout=KEPT_ALIVE_S))[0]:
                self.engine.progress(*holder, "checking", self.now())
            self._end(holder, sequence, looking.result(), self.now())
        except Exception:  # a bug here costs the worker nothing; another may try
            fields = {"worker": holder.worker, "job": holder.job, "attempt": holder.number}
            log.exception("what was trained could not be looked at", action="training_unchecked", **fields)
            self._end(holder, sequence, None, self.now())
        finally:
            looking.cancel()
            waiting = self._checking.pop(holder)
        for receipt in waiting:
            await self.pool.receipts.receive(holder.worker, receipt)
            self.ticker.wake()

    def _end(self, holder: Holder, sequence: int, done: Training | str | None, now: float) -> None:
        """Whatever was found: `done`, what is wrong, or nothing at all. Stale if the attempt is over."""
        self.engine.effects.sends.append(SendAck(holder.worker, holder.job, holder.number, sequence))
        if isinstance(done, Training):
            self.engine.trained(*holder, done, now)
        elif isinstance(done, str):
            self.engine.misbehaved(*holder, done, now)
        else:
            why = "the coordinator could not look at what was trained; its log says why"
            self.engine.failed(*holder, "none", "not_checked", why, now)
        self.ticker.wake()

    def defers(self, worker: WorkerId, receipt: session_pb2.Receipt) -> bool:
        """Whether the receipt waits for the end of what it speaks of; `receive` gets it then."""
        if not self._checking:
            return False
        try:
            body = ReceiptBody.decode(receipt.body)
        except ReceiptError:
            return False
        waiting = self._checking.get(Holder(worker, JobId(body.job_id), body.attempt))
        if waiting is None:
            return False
        waiting[:] = [receipt]  # it may come again over another connection
        return True

    async def close(self) -> None:
        """What is looked at is dropped: its part is done again after the restart."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
