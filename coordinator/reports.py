"""What workers say, checked against what the pool knows, and handed to the core."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import grpc
import structlog

from coordinator import translate
from coordinator.core.engine import Engine
from coordinator.core.fleet import Served, Worker
from coordinator.core.jobs import JobId, Kind, WorkerId
from coordinator.core.live import Live
from coordinator.core.messages import SendAck
from coordinator.core.output import Piece
from coordinator.pool import Pool
from coordinator.receipts import Receipts
from coordinator.records import EnrolledWorker
from coordinator.store import Store
from coordinator.tick import Ticker
from coordinator.tokens import TokenCounter
from coordinator.training_reports import TrainingReports
from coordinator.unwelcome import Unwelcome
from potluck.v1 import session_pb2, work_pb2
from potluck.version import version

log = structlog.get_logger(__name__)

FRAME_BYTES_MAX = 256 * 1024
HEARTBEAT_BUSY_MS = 1_000
HEARTBEAT_IDLE_MS = 15_000
HEARTBEAT_S_MIN = 0.05  # more often, they are noise
FRAMES_MAX = 1_024  # in one message
BUNDLE_MAX = 1_024  # messages
VECTOR_VALUES_MAX = 65_536
RUNNING_MAX = 4_096
STAGES = {"downloading", "loading", "prefill", "decode", "training", "uploading"}


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
    receipts: Receipts
    coordinators: Callable[[], list[str]] = list  # where workers find the pool
    url: Callable[[], str] = str  # where they renew their certificates, if not where they joined
    beats: dict[WorkerId, float] = field(default_factory=dict)  # when each was last heard to beat
    training: TrainingReports = field(init=False)

    def __post_init__(self) -> None:
        self.training = TrainingReports(self.engine, self.pool, self.ticker, self.now)

    async def close(self) -> None:
        await self.training.close()

    async def enrolled(self, worker: WorkerId) -> EnrolledWorker:
        """Raises Unwelcome if the worker was shut out after its certificate was looked at."""
        row = await self.store.worker(worker)
        if row is None or row.revoked_at is not None:
            raise Unwelcome(
                grpc.StatusCode.PERMISSION_DENIED, "this worker was revoked; ask the pool's admin"
            )
        if row.member not in self.pool.names and (owner := await self.store.member(row.member)) is not None:
            self.pool.names[owner.id] = owner.name
        return row

    def hello(self, row: EnrolledWorker, hello: session_pb2.Hello) -> session_pb2.Welcome:
        """At once, without awaiting: what holds of the stream when this begins still holds at its end."""
        worker = row.id
        self.receipts.keys[worker] = row.receipt_key
        self.pool.accounts.know(row.account)
        self.engine.fleet.enrol(Worker(row.id, row.name, row.member, row.account))
        hardware, models = translate.hardware(hello.hardware), self._served(hello.models)
        memory = max([g.memory_bytes for g in hardware.gpus] or [hardware.memory_bytes])
        resumed = self.engine.connect(
            worker,
            models,
            slots=min(hello.slots, RUNNING_MAX),
            memory_bytes=memory,
            running=[translate.fence(r.attempt) for r in list(hello.running)[:RUNNING_MAX]],
            guests=translate.guests(hello.sharing),
            now=self.now(),
        )
        self.pool.hardware[worker] = hardware
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
            bundles=True,
            pause=self.pool.pauses.message(worker),
            coordinators=self.coordinators(),
            url=self.url(),
        )

    def uploading(self, worker: WorkerId, job_id: JobId, number: int) -> bool:
        """Bytes of what it made arrive, beside its stream: whether it still holds the attempt."""
        return self.engine.progress(worker, job_id, number, "uploading", self.now())

    def gone(self, worker: WorkerId) -> None:
        self.engine.disconnect(worker, self.now())
        self.pool.loads.pop(worker, None)
        self.ticker.wake()
        log.info("worker disconnected", action="worker_disconnected", worker=worker)

    async def receive(self, worker: WorkerId, message: session_pb2.WorkerMessage) -> int:
        """What it was worth: 1 if it was news, 0 for a sign of life, -1 for each part that was of no use."""
        body = message.WhichOneof("body")
        now = self.now()
        if body == "bundle":
            parts = message.bundle.messages
            if len(parts) > BUNDLE_MAX:
                return -len(parts)
            return sum([await self._about_attempt(worker, part, now) for part in parts])
        if body == "frames":
            frames = message.frames.frames
            if len(frames) > FRAMES_MAX:
                return -len(frames)
            return sum([_worth(self._frame(worker, frame, now)) for frame in frames])
        if body == "heartbeat":
            self.ticker.wake()
            if message.heartbeat.pause_lifted:
                await self.pool.pauses.lifted(worker, message.heartbeat.pause_lifted)
            return self._heartbeat(worker, message.heartbeat, now)
        return await self._about_attempt(worker, message, now)

    async def _about_attempt(self, worker: WorkerId, message: session_pb2.WorkerMessage, now: float) -> int:
        """As `receive`. What no bundle may carry is of no use here: one message means bounded work."""
        body = message.WhichOneof("body")
        if body == "frame":
            return _worth(self._frame(worker, message.frame, now))
        if body == "accepted":  # leads to nothing: no tick for it, while another's first token waits
            return _worth(self.engine.accepted(worker, *translate.fence(message.accepted.attempt), now))
        self.ticker.wake()
        if body == "receipt":
            if self.training.defers(worker, message.receipt):
                return 0
            return await self.receipts.receive(worker, message.receipt)
        if body == "refused":
            job_id, number = translate.fence(message.refused.attempt)
            fault, code, why = _failure(message.refused.reason)
            return _worth(self.engine.refused(worker, job_id, number, fault, code, why, now))
        if body == "progress":
            job_id, number = translate.fence(message.progress.attempt)
            stage = message.progress.stage if message.progress.stage in STAGES else ""
            return 0 if self.engine.progress(worker, job_id, number, stage, now) else -1
        if body == "result":
            return _worth(self._result(worker, message.result, now))
        return -1

    def _served(self, models: Iterable[session_pb2.ServedModel]) -> list[Served]:
        """What it says that it serves, of what the pool knows; their tokenizers are wanted from now on."""
        names = {entry.name for entry in self.pool.catalogue().entries}
        found = translate.served(models, names.__contains__)
        for model in found:
            self.pool.vocabularies.want(model.name)
        return found

    def _frame(self, worker: WorkerId, frame: session_pb2.Frame, now: float) -> bool:
        """Whether it was taken."""
        job_id, number = translate.fence(frame.attempt)
        if not self.engine.holds(worker, job_id, number):
            return False  # late, or another's: not worth a look
        live = self.engine.lives[job_id]
        if frame.ByteSize() > FRAME_BYTES_MAX:
            why = f"a frame of {frame.ByteSize()} bytes; {FRAME_BYTES_MAX} are allowed"
            return self._misbehaved(worker, frame, why, now)
        if frame.steps or self._trains(job_id):
            return self.training.frame(worker, frame, now)
        pieces = translate.pieces(frame.deltas)
        prompt = frame.prompt if frame.HasField("prompt") else None
        if why := self._wrong(live, frame, pieces):
            return self._misbehaved(worker, frame, why, now)
        first = live.prompt is None and not live.output.begun
        before, said = live.output.sequence, len(frame.prompt.ids)
        taken = self.engine.frame(
            worker, job_id, number, frame.sequence, pieces, prompt, now, prompt_tokens=said
        )
        if first and prompt is not None:
            self.pool.begin_transcript(live.job, prompt)
        self.pool.deliver(job_id, taken)
        if self.engine.effects:
            self.ticker.wake()
        return bool(taken) or live.output.sequence > before

    def _misbehaved(self, worker: WorkerId, frame: session_pb2.Frame, why: str, now: float) -> bool:
        self.engine.misbehaved(worker, *translate.fence(frame.attempt), why, now)
        self.ticker.wake()
        return False

    def _wrong(self, live: Live, frame: session_pb2.Frame, pieces: list[Piece]) -> str:
        """Empty, or what is wrong with the frame. Ids must decode to the text that comes with them."""
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
        """Whether it was news. That of a text never is: a text ends with its last frame."""
        job_id, number = translate.fence(result.attempt)
        holds = self.engine.holds(worker, job_id, number)
        if holds and result.completed.HasField("trained") and self._trains(job_id):
            return self.training.result(worker, result, now)
        # Acknowledged with the commit of what it led to; a stale one too, so that nobody keeps it.
        self.engine.effects.sends.append(SendAck(worker, job_id, number, result.sequence))
        if result.WhichOneof("outcome") != "completed":
            fault, code, why = _failure(result.failed)
            return self.engine.failed(worker, job_id, number, fault, code, why, now)
        if not holds:
            return False
        embedding = result.completed.embedding
        vectors = [list(e.values) for e in embedding.embeddings]
        if vectors and not _sound(vectors):
            self.engine.misbehaved(worker, job_id, number, "vectors that are no embeddings", now)
            return False
        counts = tuple(embedding.prompt_tokens)
        done = self.engine.completed(
            worker, job_id, number, vectors=len(vectors), now=now, prompt_tokens=counts
        )
        if done:
            self.pool.deliver_vectors(job_id, vectors)
        return done

    def _trains(self, job_id: JobId) -> bool:
        return self.engine.lives[job_id].job.kind is Kind.FINETUNE

    def _heartbeat(self, worker: WorkerId, beat: session_pb2.Heartbeat, now: float) -> int:
        often = now - self.beats.get(worker, -math.inf) < HEARTBEAT_S_MIN
        self.beats[worker] = now
        if beat.HasField("load"):
            self.pool.loads[worker] = translate.load(beat.load)
        self.engine.heartbeat(
            worker,
            served=self._served(beat.models),
            attempts=[translate.fence(r.attempt) for r in list(beat.attempts)[:RUNNING_MAX]],
            draining=beat.draining,
            state=translate.words(beat.state),
            why=translate.words(beat.why),
            next_change=translate.moment(beat.next_change_ms, now),
            guests=translate.guests(beat.sharing) if beat.HasField("sharing") else None,
            now=now,
        )
        return -1 if often else 0


def _failure(failure: work_pb2.Failure) -> tuple[str, str, str]:
    code = "".join(c for c in failure.code[:64] if c.isascii() and (c.isalnum() or c == "_"))
    fault = translate.FAULTS.get(failure.fault, "worker")
    return fault, code or "worker_failed", translate.words(failure.message)


def _worth(news: bool) -> int:  # noqa: FBT001 -- what happened, as a number
    return 1 if news else -1


def _sound(vectors: list[list[float]]) -> bool:
    size = len(vectors[0])
    return 0 < size <= VECTOR_VALUES_MAX and all(
        len(v) == size and all(math.isfinite(x) for x in v) for v in vectors
    )
