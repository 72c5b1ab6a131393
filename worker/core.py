"""Attempts as the daemon sees them: events in, instructions out; no clock, no I/O, no chance.

Five rules hold everything up:

* An attempt is *running* while its engine works, then *ended* until its result is acknowledged, then gone.
  Whatever is said about an attempt that is not here changes nothing: `Attempts` is the one place where
  late and repeated messages die.
* What was produced and not acknowledged is kept, within bounds, so that a connection that comes back goes
  on from the last acknowledged sequence. Sequences start at 1, have no gaps and are never used twice.
* A welcome decides: attempts it does not name are fenced and stop. Without a welcome, an attempt stops when
  its lease is certainly over: the coordinator has then given the job to another worker.
* The owner comes first: a pause ends every attempt at once, as nobody's fault, and what was produced until
  then is told before.
* A receipt claims what was delivered: all of a completed attempt, and of any other only what the coordinator
  acknowledged, so that an honest worker never claims more than was counted.
"""

from typing import assert_never

from worker.attempt import RunningAttempt
from worker.attempts import Attempts
from worker.farewell import Farewell
from worker.limits import Limits
from worker.liveness import Liveness
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
    Output,
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


class Core:
    """The state of one daemon. `handle` is the only way in."""

    def __init__(self, *, worker_id: str, limits: Limits, guests: Guests | None = None) -> None:
        self.worker_id = worker_id
        self.limits = limits
        self.attempts = Attempts(limits.ended_max)
        self._offers = Offers(guests or Guests(), limits.attempts_max)
        self._receipts = OutstandingReceipts(limits.receipts_max, limits.receipts_in_flight_max)
        self._liveness = Liveness(limits)
        self._farewell = Farewell(limits.farewell_s)
        self._flush_at: float | None = None

    # --- what others may ask ---

    @property
    def draining(self) -> str:
        """Why, or empty; as is `paused`."""
        return self._offers.draining

    @property
    def paused(self) -> str:
        return self._offers.paused

    @property
    def connected(self) -> bool:
        return self._liveness.connected

    def running(self) -> list[tuple[AttemptId, int]]:
        """For Hello and Heartbeat: each attempt that is not yet acknowledged to its end, and its sequence."""
        return [(attempt.id, attempt.sequence) for attempt in self.attempts]

    def busy(self) -> int:
        """Attempts whose engine works."""
        return len(self.attempts.running())

    def wake_at(self) -> float | None:
        """When `Ticked` is due at the latest."""
        lease_until = self._liveness.lease_until if self.attempts else None
        times = (self._flush_at, self._farewell.wake_at, lease_until, self._liveness.beat_at)
        return min((at for at in times if at is not None), default=None)

    # --- the one way in ---

    def handle(self, event: Event, now: float) -> list[Instruction]:
        out: list[Instruction] = []
        match event:
            case Connected():
                self._connect(event, now, out)
            case Disconnected():
                self._liveness.disconnect(now)
                self._flush_at = None
            case Assigned():
                self._assign(event, now, out)
            case Acknowledged(attempt, sequence):
                self._liveness.hear(now)
                self.attempts.acknowledge(attempt, sequence)
            case Cancelled(attempt, why):
                self._liveness.hear(now)
                self._give_up(attempt, why or "cancelled", now, out)
            case DrainAsked(why, limit_s):
                self._drain(why, limit_s, now)
            case Paused() | Resumed():
                self._heed(event, now, out)
            case ModelOffered(model, engine, slots, role):
                self._offers.models[model, role] = Offer(engine, slots)
                self._liveness.beat_soon(now)
            case ModelWithdrawn(model, _, role):
                self._offers.models.pop((model, role), None)
                self._liveness.beat_soon(now)
            case ModelsChanged():
                self._liveness.beat_soon(now)
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
                self._liveness.hear(now)
                self._receipts.acknowledge(attempt)
                out.append(ForgetReceipt(attempt))
                self._send_receipts(out)
                self.attempts.end_known(attempt)
            case Congested(on):
                self._liveness.congested = on
            case Ticked():
                self._tick(now, out)
            case _:
                assert_never(event)
        self._close_if_done(now, out)
        return out

    # --- the connection ---

    def _connect(self, event: Connected, now: float, out: list[Instruction]) -> None:
        self._liveness.connect(event, now)
        resumed = dict(event.resumed)
        for attempt in self.attempts:
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
        self.attempts.acknowledge(attempt.id, acknowledged)
        out += attempt.resend(now)
        if not attempt.ended:
            self._flush(attempt, now, out)

    # --- assignments ---

    def _assign(self, event: Assigned, now: float, out: list[Instruction]) -> None:
        self._liveness.hear(now)
        attempt = event.attempt
        if self.attempts.get(attempt) is not None:
            out.append(SendAccepted(attempt))
            return
        others = [other.id for other in self.attempts if other.id.job_id == attempt.job_id]
        if self.attempts.is_gone(attempt) or any(other.number > attempt.number for other in others):
            return
        for other in others:
            self._give_up(other, "a newer attempt of the job was assigned", now, out)
        reason = self._offers.refusal(event, self.attempts)
        if reason is not None:
            self.attempts.remember(attempt)
            out.append(SendRefused(attempt, reason))
            return
        self.attempts.add(RunningAttempt(event, self._offers.engine_of(event), now))
        self._liveness.beat_as_busy(now)
        out += [SendAccepted(attempt), StartEngine(event)]

    # --- what the engine says ---

    def _started(self, attempt_id: AttemptId, prompt: Prompt | None) -> None:
        attempt = self.attempts.find(attempt_id)
        if attempt is None or prompt is None:
            return
        attempt.prompt_tokens = prompt.tokens
        # Text too long for a frame is left out: a later attempt then renders it again.
        if not attempt.assigned.goes_on and attempt.sequence == 0:
            attempt.prompt = prompt if prompt.size_bytes <= self._liveness.frame_bytes_max else prompt.bare

    def _produced(
        self, attempt_id: AttemptId, pieces: tuple[Output, ...], now: float, out: list[Instruction]
    ) -> None:
        attempt = self.attempts.find(attempt_id)
        if attempt is None:
            return
        attempt.produce(pieces)
        if any(isinstance(piece, Piece) and piece.choice >= self.limits.choices_max for piece in pieces):
            endless = Failure(Fault.WORKER, "engine_error", "the engine counts choices without end")
            self._break_off(attempt, endless, now, out)
        elif (
            attempt.pending_bytes + attempt.unacknowledged_bytes > self.limits.buffer_bytes_max
            or len(attempt.unacknowledged) >= self.limits.buffer_frames_max
        ):
            unheard = Failure(Fault.NONE, "not_acknowledged", "the output found no taker within its bounds")
            attempt.forget_pending()
            self._break_off(attempt, unheard, now, out)
        elif self.connected and not self._liveness.congested and self._at_once(attempt):
            self._flush(attempt, now, out)
        elif self.connected and self._flush_at is None:
            self._flush_at = now + self.limits.coalesce_s

    def _break_off(
        self, attempt: RunningAttempt, failure: Failure, now: float, out: list[Instruction]
    ) -> None:
        out.append(StopEngine(attempt.id, attempt.assigned.model, failure.message))
        self._end(attempt, failure, now, out)

    def _at_once(self, attempt: RunningAttempt) -> bool:
        return attempt.sequence == 0 or len(self.attempts) < self.limits.coalesce_from_attempts

    def _finished(
        self, attempt_id: AttemptId, completed: Completed, now: float, out: list[Instruction]
    ) -> None:
        attempt = self.attempts.find(attempt_id)
        if attempt is None:
            return
        attempt.prompt_tokens = completed.prompt_tokens or attempt.prompt_tokens
        if completed.size_bytes > self.limits.result_bytes_max:
            large = f"the result has {completed.size_bytes} bytes, {self.limits.result_bytes_max} are allowed"
            self._end(attempt, Failure(Fault.JOB, "result_too_large", large), now, out)
            return
        self._end(attempt, completed, now, out)

    def _failed(self, attempt_id: AttemptId, failure: Failure, now: float, out: list[Instruction]) -> None:
        attempt = self.attempts.find(attempt_id)
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
        frames = attempt.flush(now, frame_bytes_max=self._liveness.frame_bytes_max)
        if self.connected:
            out += frames

    # --- the end of an attempt ---

    def _give_up(self, attempt_id: AttemptId, why: str, now: float, out: list[Instruction]) -> None:
        """The coordinator no longer wants the attempt (or does not know us any more)."""
        attempt = self.attempts.get(attempt_id)
        if attempt is None:
            return
        if not attempt.ended:
            out.append(StopEngine(attempt.id, attempt.assigned.model, why))
            self._sign(attempt, None, now, out)
        self.attempts.drop(attempt)

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
        lease_until = self._liveness.lease_until
        if lease_until is not None and now >= lease_until:
            for attempt in self.attempts:
                self._give_up(attempt.id, "its lease ended while the coordinator was out of reach", now, out)
        if self._flush_at is not None and now >= self._flush_at:
            self._flush_all(now, out)
        if self._farewell.hands_over(now):
            self._yield(Failure(Fault.NONE, "draining", f"this worker stops: {self.draining}"), now, out)
        beat_at = self._liveness.beat_at
        if beat_at is not None and now >= beat_at:
            self._liveness.beaten(now, busy=bool(self.attempts))
            out.append(SendHeartbeat())
            self._listen(now, out)
            self.attempts.drop_told(now, self._liveness.lease_s)

    def _flush_all(self, now: float, out: list[Instruction]) -> None:
        if self._liveness.congested:
            self._flush_at = now + self.limits.coalesce_s
            return
        self._flush_at = None
        for attempt in self.attempts:
            if attempt.pending:
                self._flush(attempt, now, out)

    def _listen(self, now: float, out: list[Instruction]) -> None:
        running = self.attempts.running()
        sent = [attempt.unacknowledged[0].at for attempt in running if attempt.unacknowledged]
        if sent and self._liveness.is_dead(min(sent), now):
            out.append(Reconnect("the coordinator does not answer"))

    # --- its owner ---

    def _heed(self, event: Paused | Resumed, now: float, out: list[Instruction]) -> None:
        """The pause is said before anything else, so that what is handed over does not come back at once."""
        before = self.paused
        self._offers.paused = event.why if isinstance(event, Paused) else ""
        self._liveness.beat_soon(now)
        if self.paused and not before:
            if self.connected:
                out.append(SendHeartbeat())
            self._yield(Failure(Fault.NONE, "yielded", f"its owner needs it: {self.paused}"), now, out)
            out.append(CloseEngines(self.paused))
        elif before and not self.paused:
            out.append(OpenEngines())

    def _drain(self, why: str, limit_s: float, now: float) -> None:
        self._offers.draining = self.draining or why
        self._farewell.ask(limit_s, now)
        self._liveness.beat_soon(now)

    def _yield(self, failure: Failure, now: float, out: list[Instruction]) -> None:
        for attempt in self.attempts.running():
            self._break_off(attempt, failure, now, out)

    def _close_if_done(self, now: float, out: list[Instruction]) -> None:
        if not self.draining or self.busy():
            return
        # Receipts that a coordinator out of reach has not acknowledged are safe on disk.
        told = (
            not self.attempts and not self._receipts.signing and not (self.connected and self._receipts.kept)
        )
        if self._farewell.closes(now, told=told):
            out.append(Close(self.draining))
