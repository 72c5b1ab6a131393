"""Attempts as the daemon sees them: events in, instructions out; no clock, no I/O, no chance.

Five rules hold everything up:

* An attempt is *running* while its engine works, then *ended* until its result is acknowledged, then gone.
  Whatever is said about an attempt that is not here changes nothing: `_find` is the one place where late
  and repeated messages die.
* What was produced and not acknowledged is kept, within bounds, so that a connection that comes back goes
  on from the last acknowledged sequence. Sequences start at 1, have no gaps and are never used twice.
* A welcome decides: attempts it does not name are fenced and stop. Without a welcome, an attempt stops when
  its lease is certainly over: the coordinator has then given the job to another worker.
* The owner comes first: a pause ends every attempt at once, as nobody's fault, and what was produced until
  then is told before.
* A receipt claims what was delivered: all of a completed attempt, and of any other only what the coordinator
  acknowledged, so that an honest worker never claims more than was counted.
"""

from dataclasses import dataclass
from typing import assert_never

from worker.attempt import RunningAttempt
from worker.messages import (
    Acknowledged,
    Assigned,
    AttemptId,
    Cancelled,
    Close,
    CloseEngines,
    Completed,
    Congested,
    Connected,
    Disconnected,
    DrainAsked,
    EngineFailed,
    EngineFinished,
    EngineProduced,
    EngineStarted,
    Event,
    Failure,
    Fault,
    ForgetReceipt,
    Instruction,
    ModelOffered,
    ModelsChanged,
    ModelWithdrawn,
    OpenEngines,
    Paused,
    Piece,
    Prompt,
    ReceiptAcknowledged,
    ReceiptKept,
    Reconnect,
    Resumed,
    SendAccepted,
    SendHeartbeat,
    SendReceipt,
    SendRefused,
    SendResult,
    SignReceipt,
    StartEngine,
    StopEngine,
    Ticked,
)
from worker.offers import Offer, Offers
from worker.outstanding import OutstandingReceipts
from worker.policy import Guests


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The limits of a worker. The lease is the pool's; a welcome brings the pool's heartbeats."""

    lease_s: float = 4.0  # silence after which the coordinator gives an attempt away
    lease_margin_s: float = 1.0  # a lease is certainly over this much later
    silence_s: float = 4.0  # frames unanswered for so long mean a dead connection
    coalesce_s: float = 0.010
    coalesce_from_attempts: int = 4  # with fewer running, every piece leaves at once
    heartbeat_busy_s: float = 1.0
    heartbeat_idle_s: float = 15.0
    farewell_s: float = 5.0  # a drained worker waits so long for the last acknowledgements
    frame_bytes_max: int = 256 * 1024
    result_bytes_max: int = 16 * 1024 * 1024
    buffer_bytes_max: int = 8 * 1024 * 1024  # not acknowledged, for each attempt
    buffer_frames_max: int = 8192
    attempts_max: int = 256
    choices_max: int = 128
    ended_max: int = 4096  # remembered, so that a repeated assignment is not run twice
    receipts_max: int = 10_000
    receipts_in_flight_max: int = 64


class Core:
    """The state of one daemon. `handle` is the only way in."""

    def __init__(self, *, worker_id: str, policy: Policy, guests: Guests | None = None) -> None:
        self.worker_id = worker_id
        self.policy = policy
        self.attempts: dict[AttemptId, RunningAttempt] = {}
        self.connected = False
        self.tokens_delivered = 0
        self._offers = Offers(guests or Guests(), policy.attempts_max)
        self._ended: dict[AttemptId, None] = {}  # insertion order: the oldest is forgotten first
        self._receipts = OutstandingReceipts(policy.receipts_max, policy.receipts_in_flight_max)
        self._lost_at: float | None = None
        self._heard_at = 0.0
        self._beat_at = 0.0
        self._flush_at: float | None = None
        self._drain_until: float | None = None
        self._farewell_until: float | None = None
        self._congested = False
        self._closed = False
        self._frame_bytes_max = policy.frame_bytes_max
        self._beat_busy_s = policy.heartbeat_busy_s
        self._beat_idle_s = policy.heartbeat_idle_s
        self._lease_s = policy.lease_s + policy.lease_margin_s  # after which a lease is certainly over

    # --- what others may ask ---

    @property
    def draining(self) -> str:
        """Why, or empty; as is `paused`."""
        return self._offers.draining

    @property
    def paused(self) -> str:
        return self._offers.paused

    def running(self) -> list[tuple[AttemptId, int]]:
        """For Hello and Heartbeat: each attempt that is not yet acknowledged to its end, and its sequence."""
        return [(attempt.id, attempt.sequence) for attempt in self.attempts.values()]

    def busy(self) -> int:
        """Attempts whose engine works."""
        return sum(not attempt.ended for attempt in self.attempts.values())

    def tokens_produced(self) -> int:
        """Since the start: what is acknowledged, and what the running attempts have beyond that."""
        ahead = (attempt.tokens - attempt.tokens_acknowledged for attempt in self.attempts.values())
        return self.tokens_delivered + sum(ahead)

    def wake_at(self) -> float | None:
        """When `Ticked` is due at the latest."""
        times = [self._flush_at, self._drain_until, self._farewell_until, self._lease_until()]
        if self.connected:
            times.append(self._beat_at)
        return min((at for at in times if at is not None), default=None)

    # --- the one way in ---

    def handle(self, event: Event, now: float) -> list[Instruction]:
        out: list[Instruction] = []
        match event:
            case Connected():
                self._connect(event, now, out)
            case Disconnected():
                self._disconnect(now)
            case Assigned():
                self._assign(event, now, out)
            case Acknowledged(attempt, sequence):
                self._heard_at = now
                self._acknowledge(attempt, sequence)
            case Cancelled(attempt, why):
                self._heard_at = now
                self._give_up(attempt, why or "cancelled", now, out)
            case DrainAsked(why, limit_s):
                self._drain(why, limit_s, now)
            case Paused() | Resumed():
                self._heed(event, now, out)
            case ModelOffered(model, engine, slots):
                self._offers.models[model] = Offer(engine, slots)
                self._beat_at = min(self._beat_at, now)
            case ModelWithdrawn(model, _):
                self._offers.models.pop(model, None)
                self._beat_at = min(self._beat_at, now)
            case ModelsChanged():
                self._beat_at = min(self._beat_at, now)
            case EngineStarted(attempt, prompt):
                self._started(attempt, prompt)
            case EngineProduced(attempt, pieces):
                self._produced(attempt, pieces, now, out)
            case EngineFinished(attempt, completed):
                self._finished(attempt, completed, now, out)
            case EngineFailed(attempt, failure):
                self._failed(attempt, failure, now, out)
            case ReceiptKept(attempt):
                self._keep_receipt(attempt, out)
            case ReceiptAcknowledged(attempt, _):
                self._heard_at = now
                self._receipts.acknowledge(attempt)
                out.append(ForgetReceipt(attempt))
                self._send_receipts(out)
                self._known_to_its_end(attempt)
            case Congested(on):
                self._congested = on
            case Ticked():
                self._tick(now, out)
            case _:
                assert_never(event)
        self._close_if_done(now, out)
        return out

    # --- the connection ---

    def _connect(self, event: Connected, now: float, out: list[Instruction]) -> None:
        self.connected, self._congested, self._lost_at = True, False, None
        self._heard_at = now
        self._frame_bytes_max = event.frame_bytes_max or self.policy.frame_bytes_max
        self._beat_busy_s = event.heartbeat_busy_s or self.policy.heartbeat_busy_s
        self._beat_idle_s = event.heartbeat_idle_s or self.policy.heartbeat_idle_s
        self._beat_at = now
        resumed = dict(event.resumed)
        for attempt in list(self.attempts.values()):
            if attempt.id in resumed:
                self._resume(attempt, resumed.pop(attempt.id), now, out)
            else:
                self._give_up(attempt.id, "the coordinator gave it to another worker", now, out)
        for unknown, acknowledged in resumed.items():
            lost = Failure(Fault.NONE, "unknown_attempt", "this worker no longer runs the attempt")
            out.append(SendResult(unknown, acknowledged + 1, lost))
        self._receipts.land()
        self._send_receipts(out)

    def _resume(self, attempt: RunningAttempt, acknowledged: int, now: float, out: list[Instruction]) -> None:
        if not attempt.acknowledged <= acknowledged <= attempt.sequence:
            # Its memory went back behind what it acknowledged before, or it speaks of another life of ours.
            lost = Failure(Fault.NONE, "frames_forgotten", "the frames it asks for are no longer here")
            self._give_up(attempt.id, lost.message, now, out)
            out.append(SendResult(attempt.id, acknowledged + 1, lost))
            return
        if acknowledged == 0:
            out.append(SendAccepted(attempt.id))  # the first may have been lost
        self._acknowledge(attempt.id, acknowledged)
        out += attempt.resend(now)
        if not attempt.ended:
            self._flush(attempt, now, out)

    def _disconnect(self, now: float) -> None:
        self.connected, self._congested, self._flush_at = False, False, None
        if self._lost_at is None:
            self._lost_at = now

    def _lease_until(self) -> float | None:
        """When the lease of what runs is certainly over; None while connected or idle."""
        if self.connected or self._lost_at is None or not self.attempts:
            return None
        return self._lost_at + self._lease_s

    # --- assignments ---

    def _assign(self, event: Assigned, now: float, out: list[Instruction]) -> None:
        self._heard_at = now
        attempt = event.attempt
        if attempt in self.attempts:
            out.append(SendAccepted(attempt))
            return
        others = [other for other in self.attempts if other.job_id == attempt.job_id]
        if attempt in self._ended or any(other.number > attempt.number for other in others):
            return
        for other in others:
            self._give_up(other, "a newer attempt of the job was assigned", now, out)
        reason = self._offers.refusal(event, self.attempts.values())
        if reason is not None:
            self._remember(attempt)
            out.append(SendRefused(attempt, reason))
            return
        self.attempts[attempt] = RunningAttempt(event, self._offers.models[event.model].engine, now)
        self._beat_at = min(self._beat_at, now + self._beat_busy_s)
        out += [SendAccepted(attempt), StartEngine(event)]

    # --- what the engine says ---

    def _find(self, attempt: AttemptId) -> RunningAttempt | None:
        """The attempt if its engine is still listened to; late words of an engine end here."""
        found = self.attempts.get(attempt)
        return None if found is None or found.ended else found

    def _started(self, attempt_id: AttemptId, prompt: Prompt | None) -> None:
        attempt = self._find(attempt_id)
        if attempt is None or prompt is None:
            return
        attempt.prompt_tokens = prompt.tokens
        # Text too long for a frame is left out: a later attempt then renders it again.
        if not attempt.assigned.goes_on and attempt.sequence == 0:
            attempt.prompt = prompt if prompt.size_bytes <= self._frame_bytes_max else prompt.bare

    def _produced(
        self, attempt_id: AttemptId, pieces: tuple[Piece, ...], now: float, out: list[Instruction]
    ) -> None:
        attempt = self._find(attempt_id)
        if attempt is None:
            return
        attempt.produce(pieces)
        if any(piece.choice >= self.policy.choices_max for piece in pieces):
            endless = Failure(Fault.WORKER, "engine_error", "the engine counts choices without end")
            self._break_off(attempt, endless, now, out)
        elif (
            attempt.pending_bytes + attempt.unacknowledged_bytes > self.policy.buffer_bytes_max
            or len(attempt.unacknowledged) >= self.policy.buffer_frames_max
        ):
            unheard = Failure(Fault.NONE, "not_acknowledged", "the output found no taker within its bounds")
            attempt.forget_pending()
            self._break_off(attempt, unheard, now, out)
        elif self.connected and not self._congested and self._at_once(attempt):
            self._flush(attempt, now, out)
        elif self.connected and self._flush_at is None:
            self._flush_at = now + self.policy.coalesce_s

    def _break_off(
        self, attempt: RunningAttempt, failure: Failure, now: float, out: list[Instruction]
    ) -> None:
        out.append(StopEngine(attempt.id, attempt.assigned.model, failure.message))
        self._end(attempt, failure, now, out)

    def _at_once(self, attempt: RunningAttempt) -> bool:
        return attempt.sequence == 0 or len(self.attempts) < self.policy.coalesce_from_attempts

    def _finished(
        self, attempt_id: AttemptId, completed: Completed, now: float, out: list[Instruction]
    ) -> None:
        attempt = self._find(attempt_id)
        if attempt is None:
            return
        attempt.prompt_tokens = completed.prompt_tokens or attempt.prompt_tokens
        if completed.size_bytes > self.policy.result_bytes_max:
            large = f"the result has {completed.size_bytes} bytes, {self.policy.result_bytes_max} are allowed"
            self._end(attempt, Failure(Fault.JOB, "result_too_large", large), now, out)
            return
        self._end(attempt, completed, now, out)

    def _failed(self, attempt_id: AttemptId, failure: Failure, now: float, out: list[Instruction]) -> None:
        attempt = self._find(attempt_id)
        if attempt is not None:
            self._end(attempt, failure, now, out)

    def _end(
        self, attempt: RunningAttempt, outcome: Completed | Failure, now: float, out: list[Instruction]
    ) -> None:
        self._flush(attempt, now, out)
        result = attempt.end(outcome, now)
        if self.connected:
            out.append(result)
        self._sign(attempt, outcome, now, out)

    def _flush(self, attempt: RunningAttempt, now: float, out: list[Instruction]) -> None:
        frames = attempt.flush(now, frame_bytes_max=self._frame_bytes_max)
        if self.connected:
            out += frames

    def _acknowledge(self, attempt_id: AttemptId, sequence: int) -> None:
        attempt = self.attempts.get(attempt_id)
        if attempt is None:
            return
        self.tokens_delivered += attempt.acknowledge(sequence)
        if attempt.done:
            self._drop(attempt)

    def _known_to_its_end(self, attempt_id: AttemptId) -> None:
        """The coordinator judged the receipt: it has the end, whether or not it acknowledged that, too."""
        attempt = self.attempts.get(attempt_id)
        if attempt is not None and attempt.ended:
            self._acknowledge(attempt_id, attempt.sequence)

    # --- the end of an attempt ---

    def _give_up(self, attempt_id: AttemptId, why: str, now: float, out: list[Instruction]) -> None:
        """The coordinator no longer wants the attempt (or does not know us any more)."""
        attempt = self.attempts.get(attempt_id)
        if attempt is None:
            return
        if not attempt.ended:
            out.append(StopEngine(attempt.id, attempt.assigned.model, why))
            self._sign(attempt, None, now, out)
        self._drop(attempt)

    def _drop(self, attempt: RunningAttempt) -> None:
        del self.attempts[attempt.id]
        self._remember(attempt.id)

    def _remember(self, attempt: AttemptId) -> None:
        self._ended[attempt] = None
        while len(self._ended) > self.policy.ended_max:
            del self._ended[next(iter(self._ended))]

    # --- receipts ---

    def _sign(
        self,
        attempt: RunningAttempt,
        outcome: Completed | Failure | None,
        now: float,
        out: list[Instruction],
    ) -> None:
        body = attempt.receipt(self.worker_id, outcome, now)
        if body is not None:
            self._receipts.signing.add(attempt.id)
            out.append(SignReceipt(attempt.id, body))

    def _keep_receipt(self, attempt: AttemptId, out: list[Instruction]) -> None:
        forgotten = self._receipts.keep(attempt)
        if forgotten is not None:
            out.append(ForgetReceipt(forgotten))
        self._send_receipts(out)

    def _send_receipts(self, out: list[Instruction]) -> None:
        if self.connected:
            out += [SendReceipt(attempt) for attempt in self._receipts.take_off()]

    # --- time ---

    def _tick(self, now: float, out: list[Instruction]) -> None:
        lease_until = self._lease_until()
        if lease_until is not None and now >= lease_until:
            for attempt in list(self.attempts):
                self._give_up(attempt, "its lease ended while the coordinator was out of reach", now, out)
        if self._flush_at is not None and now >= self._flush_at:
            self._flush_all(now, out)
        if self._drain_until is not None and now >= self._drain_until:
            self._hand_over(now, out)
        if self.connected and now >= self._beat_at:
            self._beat_at = now + (self._beat_busy_s if self.attempts else self._beat_idle_s)
            out.append(SendHeartbeat())
            self._listen(now, out)
            self._forget_old_ends(now)

    def _flush_all(self, now: float, out: list[Instruction]) -> None:
        if self._congested:
            self._flush_at = now + self.policy.coalesce_s
            return
        self._flush_at = None
        for attempt in self.attempts.values():
            if attempt.pending:
                self._flush(attempt, now, out)

    def _listen(self, now: float, out: list[Instruction]) -> None:
        """A connection on which frames stay unanswered is dead, whatever the operating system believes."""
        running = [attempt for attempt in self.attempts.values() if not attempt.ended]
        sent = [attempt.unacknowledged[0].at for attempt in running if attempt.unacknowledged]
        if sent and now - max(min(sent), self._heard_at) >= self.policy.silence_s and self._lost_at is None:
            self._lost_at = min(sent)
            out.append(Reconnect("the coordinator does not answer"))

    def _forget_old_ends(self, now: float) -> None:
        """An end that was told a lease ago is known, or came too late: nobody will ask for it again."""
        for attempt in list(self.attempts.values()):
            if attempt.ended and now - attempt.unacknowledged[-1].at >= self._lease_s:
                self._drop(attempt)

    # --- its owner ---

    def _heed(self, event: Paused | Resumed, now: float, out: list[Instruction]) -> None:
        """The pause is said before anything else, so that what is handed over does not come back at once."""
        before = self.paused
        self._offers.paused = event.why if isinstance(event, Paused) else ""
        self._beat_at = min(self._beat_at, now)
        if self.paused and not before:
            if self.connected:
                out.append(SendHeartbeat())
            self._yield(Failure(Fault.NONE, "yielded", f"its owner needs it: {self.paused}"), now, out)
            out.append(CloseEngines(self.paused))
        elif before and not self.paused:
            out.append(OpenEngines())

    def _drain(self, why: str, limit_s: float, now: float) -> None:
        self._offers.draining = self.draining or why
        until = now + limit_s
        if self._farewell_until is None:
            self._drain_until = until if self._drain_until is None else min(until, self._drain_until)
        self._beat_at = min(self._beat_at, now)

    def _hand_over(self, now: float, out: list[Instruction]) -> None:
        """The time for finishing is over: what still runs goes on elsewhere, from what it produced."""
        self._drain_until = None
        self._yield(Failure(Fault.NONE, "draining", f"this worker stops: {self.draining}"), now, out)

    def _yield(self, failure: Failure, now: float, out: list[Instruction]) -> None:
        for attempt in list(self.attempts.values()):
            if not attempt.ended:
                self._break_off(attempt, failure, now, out)

    def _close_if_done(self, now: float, out: list[Instruction]) -> None:
        if not self.draining or self._closed or self.busy():
            return
        if self._farewell_until is None:
            self._farewell_until, self._drain_until = now + self.policy.farewell_s, None
        # Receipts that a coordinator out of reach has not acknowledged are safe on disk.
        told = (
            not self.attempts and not self._receipts.signing and not (self.connected and self._receipts.kept)
        )
        if told or now >= self._farewell_until:
            self._closed, self._farewell_until = True, None
            out.append(Close(self.draining))
