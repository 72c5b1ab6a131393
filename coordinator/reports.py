"""What workers say, checked against what the pool knows, and handed to the core."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from coordinator import translate
from coordinator.core.engine import Engine, Live
from coordinator.core.fleet import Worker
from coordinator.core.jobs import Job, JobId, WorkerId
from coordinator.core.messages import SendAck
from coordinator.core.output import Piece
from coordinator.core.receipts import ReceiptState, Verdict, judge
from coordinator.pool import Pool
from coordinator.records import ReceiptRow
from coordinator.store import Store
from coordinator.tick import Ticker
from coordinator.tokens import TokenCounter
from potluck.receipts import ReceiptBody, ReceiptError, verify
from potluck.v1 import session_pb2, work_pb2
from potluck.version import version

log = structlog.get_logger(__name__)

FRAME_BYTES_MAX = 256 * 1024
HEARTBEAT_BUSY_MS = 1_000
HEARTBEAT_IDLE_MS = 15_000
VECTOR_VALUES_MAX = 65_536
RUNNING_MAX = 4_096
EXACT_SAMPLERS = {"torch", "emulator"}  # engines whose token counts come from ids


@dataclass(slots=True)
class WorkerReports:
    """The shell's half of a session: no decision about jobs is taken here."""

    engine: Engine
    pool: Pool
    store: Store
    ticker: Ticker
    counter: TokenCounter
    now: Callable[[], float]
    pool_name: str
    catalogue_json: Callable[[], bytes]
    receipt_keys: dict[WorkerId, bytes] = field(default_factory=dict)  # of those that are or were here

    async def hello(self, worker: WorkerId, hello: session_pb2.Hello) -> session_pb2.Welcome:
        row = await self.store.worker(worker)
        assert row is not None, "identified a moment ago"
        self.receipt_keys[worker] = row.receipt_key
        self.pool.know_account(row.account)
        if row.member not in self.pool.names and (owner := await self.store.member(row.member)) is not None:
            self.pool.names[owner.id] = owner.name
        self.engine.fleet.enrol(Worker(row.id, row.name, row.member, row.account))
        hardware = hello.hardware
        memory = max([g.memory_bytes for g in hardware.gpus] or [hardware.memory_bytes])
        resumed = self.engine.connect(
            worker,
            translate.served(hello.models),
            slots=min(hello.slots, RUNNING_MAX),
            memory_bytes=memory,
            running=[translate.fence(r.attempt) for r in list(hello.running)[:RUNNING_MAX]],
            now=self.now(),
        )
        self.pool.hardware[worker] = hardware
        for model in hello.models:
            self.pool.vocabularies.want(model.name)
        self.ticker.wake()
        log.info("worker connected", action="worker_connected", worker=worker, resumed=len(resumed))
        return session_pb2.Welcome(
            protocol=1,
            worker_id=worker,
            pool=self.pool_name,
            version=version(),
            resume=[
                session_pb2.Resume(attempt=translate.attempt(*fence), acknowledged_sequence=sequence)
                for fence, sequence in resumed
            ],
            heartbeat_busy_ms=HEARTBEAT_BUSY_MS,
            heartbeat_idle_ms=HEARTBEAT_IDLE_MS,
            frame_bytes_max=FRAME_BYTES_MAX,
            catalogue=self.catalogue_json(),
        )

    def gone(self, worker: WorkerId) -> None:
        self.engine.disconnect(worker, self.now())
        self.ticker.wake()
        log.info("worker disconnected", action="worker_disconnected", worker=worker)

    async def receive(self, worker: WorkerId, message: session_pb2.WorkerMessage) -> bool:
        """Whether the message was of any use."""
        body = message.WhichOneof("body")
        now = self.now()
        if body == "frames":
            worth = [self._frame(worker, frame, now) for frame in message.frames.frames]
            return any(worth)
        if body == "frame":
            return self._frame(worker, message.frame, now)
        self.ticker.wake()
        if body == "heartbeat":
            self._heartbeat(worker, message.heartbeat, now)
        elif body == "receipt":
            await self._receipt(worker, message.receipt, now)
        elif body == "accepted":
            self.engine.accepted(worker, *translate.fence(message.accepted.attempt), now)
        elif body == "refused":
            reason = message.refused.reason
            job_id, number = translate.fence(message.refused.attempt)
            fault, code, why = _failure(reason)
            self.engine.refused(worker, job_id, number, fault, code, why, now)
        elif body == "progress":
            job_id, number = translate.fence(message.progress.attempt)
            self.engine.progress(worker, job_id, number, message.progress.stage, now)
        elif body == "result":
            return self._result(worker, message.result, now)
        else:
            return False
        return True

    def _frame(self, worker: WorkerId, frame: session_pb2.Frame, now: float) -> bool:
        job_id, number = translate.fence(frame.attempt)
        live = self.engine.lives.get(job_id)
        pieces = translate.pieces(frame.deltas)
        prompt = frame.prompt if frame.HasField("prompt") else None
        if live is not None and (why := self._wrong(live, frame, pieces)):
            self.engine.misbehaved(worker, job_id, number, why, now)
            self.ticker.wake()
            return False
        taken = self.engine.frame(worker, job_id, number, frame.sequence, pieces, prompt, now)
        self.pool.deliver(job_id, taken)
        if self.engine.effects:
            self.ticker.wake()
        return bool(taken) or prompt is not None

    def _wrong(self, live: Live, frame: session_pb2.Frame, pieces: list[Piece]) -> str:
        """Empty, or what is wrong with the frame. Ids must decode to the text that comes with them."""
        if frame.ByteSize() > FRAME_BYTES_MAX:
            return f"a frame of {frame.ByteSize()} bytes; {FRAME_BYTES_MAX} are allowed"
        if frame.sequence <= live.output.sequence:
            return ""
        if not pieces and not frame.HasField("prompt"):
            return "an empty frame"
        seen: dict[int, list[int]] = {}
        for piece in pieces:
            if not piece.token_ids or not 0 <= piece.choice < len(live.output.choices):
                continue
            previous = seen.setdefault(piece.choice, live.output.choices[piece.choice].token_ids[-32:])
            final = piece.finish_reason == "stop"
            if not self.counter.check_ids(live.job.model, previous, piece.token_ids, piece.text, final=final):
                return "token ids that do not decode to the text"
            seen[piece.choice] = [*previous, *piece.token_ids][-32:]
        return ""

    def _result(self, worker: WorkerId, result: session_pb2.Result, now: float) -> bool:
        job_id, number = translate.fence(result.attempt)
        # Acknowledged with the commit of what it led to; a stale one too, so that nobody keeps it.
        self.engine.effects.sends.append(SendAck(worker, job_id, number, result.sequence))
        if result.WhichOneof("outcome") != "completed":
            fault, code, why = _failure(result.failed)
            self.engine.failed(worker, job_id, number, fault, code, why, now)
            return True
        vectors = [list(e.values) for e in result.completed.embedding.embeddings]
        if vectors and not _sound(vectors):
            self.engine.misbehaved(worker, job_id, number, "vectors that are no embeddings", now)
            return False
        live = self.engine.lives.get(job_id)
        if live is None:
            return True  # text ends with its last frame; its result is a formality
        if self.engine.completed(worker, job_id, number, vectors=len(vectors), now=now):
            self.pool.deliver_vectors(job_id, vectors)
        return True

    def _heartbeat(self, worker: WorkerId, beat: session_pb2.Heartbeat, now: float) -> None:
        for model in beat.models:
            self.pool.vocabularies.want(model.name)
        self.engine.heartbeat(
            worker,
            served=translate.served(beat.models),
            attempts=[translate.fence(r.attempt) for r in list(beat.attempts)[:RUNNING_MAX]],
            draining=beat.draining,
            state=translate.words(beat.state),
            why=translate.words(beat.why),
            now=now,
        )

    async def _receipt(self, worker: WorkerId, receipt: session_pb2.Receipt, now: float) -> None:
        """Judge, keep, acknowledge: always, so that no worker carries one for ever."""
        try:
            body = ReceiptBody.decode(receipt.body)
        except ReceiptError as error:
            log.warning("receipt unreadable", action="receipt_unreadable", worker=worker, why=str(error))
            return
        verdict = await self._judge(worker, body, receipt)
        if verdict.blame and worker in self.engine.fleet.workers:
            self.engine.fleet.workers[worker].faults += 1
        self.ticker.extras.receipts.append(
            ReceiptRow(
                job_id=JobId(body.job_id),
                attempt=body.attempt,
                worker_id=worker,
                body=receipt.body,
                signature=receipt.signature,
                state=verdict.state,
                why=verdict.why,
                at=now,
            )
        )

    async def _judge(self, worker: WorkerId, body: ReceiptBody, receipt: session_pb2.Receipt) -> Verdict:
        if body.worker_id != worker:
            return Verdict(ReceiptState.REFUSED, "it names another worker", blame=True)
        if not verify(self.receipt_keys[worker], receipt.body, receipt.signature):
            return Verdict(ReceiptState.REFUSED, "its signature is not the worker's", blame=True)
        job = await self._job(JobId(body.job_id))
        exact = body.engine in EXACT_SAMPLERS
        return judge(job, worker, body.attempt, body.output_tokens, exact=exact)

    async def _job(self, job_id: JobId) -> Job | None:
        if (live := self.engine.lives.get(job_id)) is not None:
            return live.job
        return self.engine.recent.get(job_id) or await self.store.job(job_id)


def _failure(failure: work_pb2.Failure) -> tuple[str, str, str]:
    code = "".join(c for c in failure.code[:64] if c.isalnum() or c == "_") or "worker_failed"
    return translate.FAULTS.get(failure.fault, "worker"), code, translate.words(failure.message)


def _sound(vectors: list[list[float]]) -> bool:
    size = len(vectors[0])
    return 0 < size <= VECTOR_VALUES_MAX and all(
        len(v) == size and all(math.isfinite(x) for x in v) for v in vectors
    )
