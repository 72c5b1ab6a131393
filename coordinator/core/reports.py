"""What workers say: they come and go, beat, and report on their attempts.

A message that names an attempt which is not current is stale, and `_current` is the one place where it is
ignored.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from coordinator.core import jobs
from coordinator.core.fleet import Fence, Guests, Served
from coordinator.core.jobs import AttemptEvent, JobId, Kind, WorkerId
from coordinator.core.live import FOREVER, Live
from coordinator.core.messages import SendCancel
from coordinator.core.open_jobs import OpenJobs
from coordinator.core.output import Misbehaviour, Piece
from coordinator.core.pricing import Training

TEXTLESS = {Kind.EMBEDDING: "an embedding", Kind.FINETUNE: "a fine-tune"}


@dataclass(slots=True)
class Reports(OpenJobs):
    def connect(
        self,
        worker_id: WorkerId,
        served: Iterable[Served],
        *,
        slots: int,
        memory_bytes: int,
        running: Sequence[Fence],
        now: float,
        guests: Guests | None = None,
    ) -> list[tuple[Fence, int]]:
        """A stream opened. Which of the attempts it still runs go on, and from which sequence."""
        worker = self.fleet.workers[worker_id]
        worker.slots, worker.memory_bytes = max(1, slots), memory_bytes
        self.fleet.opened(worker)
        self.fleet.says(worker, draining=False, state="sharing", why="")
        worker.guests = guests or Guests()
        self.fleet.serve(worker, {s.name: s for s in served})
        resumed = []
        for fence in sorted(worker.running):
            live = self.lives[fence[0]]
            if fence in running:
                live.heard_at = live.progressed_at = now
                resumed.append((fence, live.output.sequence))
            else:
                self._lose(live, "the worker came back without it", now)
        self.fleet.heard(worker, now)
        self._replan = True
        return resumed

    def disconnect(self, worker_id: WorkerId, now: float) -> None:
        """The stream closed. Said twice, the first time counts."""
        if (worker := self.fleet.workers.get(worker_id)) is not None:
            self.fleet.closed(worker, now)

    def remove(self, worker_id: WorkerId, now: float) -> None:
        """The worker was revoked: it is fenced at once."""
        worker = self.fleet.workers.get(worker_id)
        for job_id, _number in sorted(worker.running) if worker else ():
            self.lives[job_id].avoid[worker_id] = FOREVER
            self._lose(self.lives[job_id], "the worker was removed from the pool", now)
        self.fleet.remove(worker_id)

    def heartbeat(
        self,
        worker_id: WorkerId,
        *,
        served: Iterable[Served],
        attempts: Iterable[Fence],
        draining: bool,
        state: str,
        why: str,
        now: float,
        next_change: float | None = None,
        guests: Guests | None = None,
    ) -> None:
        """`next_change`: when its state changes by itself; `guests` None: as it said last."""
        worker = self.fleet.workers.get(worker_id)
        if worker is None:
            return  # removed while its words were on their way
        self.fleet.heard(worker, now)
        self.fleet.says(worker, draining=draining, state=state or "sharing", why=why, next_change=next_change)
        worker.guests = worker.guests if guests is None else guests
        if models := {s.name: s for s in served}:
            self.fleet.serve(worker, models)
        for job_id, number in attempts:
            live = self._current(worker_id, job_id, number, now)
            if live is None:
                self.effects.sends.append(SendCancel(worker_id, job_id, number, "not yours any more"))
        self._replan = True

    def accepted(self, worker_id: WorkerId, job_id: JobId, number: int, now: float) -> bool:
        """Whether this was news; as in the methods below."""
        live = self._current(worker_id, job_id, number, now)
        if live is not None:
            self.fleet.workers[worker_id].unheard = 0
        return live is not None and live.begin(now)

    def refused(
        self, worker_id: WorkerId, job_id: JobId, number: int, fault: str, code: str, why: str, now: float
    ) -> bool:
        live = self._current(worker_id, job_id, number, now)
        if live is None or live.job.attempt is None:
            return False
        began = live.job.attempt.state is jobs.AttemptState.RUNNING
        event = AttemptEvent.FAILED if began else AttemptEvent.REFUSED
        self._after_fault(live, worker_id, event, fault, code, why, now)
        return True

    def failed(
        self, worker_id: WorkerId, job_id: JobId, number: int, fault: str, code: str, why: str, now: float
    ) -> bool:
        """The worker says that the attempt ended without success. `fault` is job, worker or none."""
        live = self._current(worker_id, job_id, number, now)
        if live is None:
            return False
        self._after_fault(live, worker_id, AttemptEvent.FAILED, fault, code, why, now)
        return True

    def misbehaved(self, worker_id: WorkerId, job_id: JobId, number: int, why: str, now: float) -> None:
        """The shell found the message wrong: ids that do not decode to the text, vectors that are none."""
        if (live := self._current(worker_id, job_id, number, now)) is not None:
            self.effects.sends.append(SendCancel(worker_id, job_id, number, why))
            self._disputed(self.fleet.workers[worker_id])
            self._after_fault(live, worker_id, AttemptEvent.FAILED, "worker", "protocol", why, now)

    def progress(self, worker_id: WorkerId, job_id: JobId, number: int, stage: str, now: float) -> bool:
        """A sign of life before the first output: from then on only output shows progress.

        A step of training may take minutes, and what was made is sent after the last one: there, each step
        is a beginning.
        """
        live = self._current(worker_id, job_id, number, now)
        if live is None or live.job.attempt is None:
            return False
        live.begin(now)
        longest = self.rules.stored_start_s_max if live.job.stored else self.rules.start_s_max
        trains = live.job.kind is Kind.FINETUNE
        if (trains or not live.output.sequence) and now < live.delivered_at + longest:
            live.stage, live.progressed_at = stage, now
        return True

    def frame(
        self,
        worker_id: WorkerId,
        job_id: JobId,
        number: int,
        sequence: int,
        pieces: Sequence[Piece],
        prompt: Any,
        now: float,
        prompt_tokens: int = 0,
    ) -> Sequence[Piece]:
        """Take output. What is to be relayed to the member: nothing, if the frame is stale or was seen.

        `prompt_tokens`: the worker's count of its rendered `prompt`; 0 if it says none.
        """
        live = self._current(worker_id, job_id, number, now)
        if live is None:
            return ()
        try:
            if live.job.kind in TEXTLESS:
                raise Misbehaviour(f"text for {TEXTLESS[live.job.kind]}")
            fresh = live.output.take(sequence, pieces)
        except Misbehaviour as wrong:
            self.misbehaved(worker_id, job_id, number, str(wrong), now)
            return ()
        if not fresh:
            return ()
        live.begin(now)
        live.delivered("decode", now)
        if live.first_output_at is None:
            live.first_output_at = now
        if live.prompt is None and prompt is not None:
            live.prompt = prompt
            live.believe((prompt_tokens,))
        if live.output.finished:
            self._succeed(live, worker_id, now)
        return pieces

    def completed(
        self,
        worker_id: WorkerId,
        job_id: JobId,
        number: int,
        *,
        vectors: int,
        now: float,
        prompt_tokens: Sequence[int] = (),
    ) -> bool:
        """The worker says that it is done. True: take its vectors; text ends with its last frame already.

        `prompt_tokens`: its count of each input; empty if it says none.
        """
        live = self._current(worker_id, job_id, number, now)
        if live is None:
            return False
        if live.job.kind is not Kind.EMBEDDING:
            why = "vectors for a fine-tune" if live.demand.training else "done before every choice had ended"
            self.misbehaved(worker_id, job_id, number, why, now)
            return False
        if vectors != len(live.demand.prompts):
            why = f"{vectors} vectors for {len(live.demand.prompts)} inputs"
            self.misbehaved(worker_id, job_id, number, why, now)
            return False
        live.begin(now)
        live.believe(prompt_tokens)
        self._succeed(live, worker_id, now)
        return True

    def steps(self, worker_id: WorkerId, job_id: JobId, number: int, sequence: int, now: float) -> bool:
        """Steps of a training were done. True: they are the next, and new."""
        live = self._trains(worker_id, job_id, number, "training steps", now)
        if live is None:
            return False
        try:
            fresh = live.output.take(sequence, ())
        except Misbehaviour as wrong:
            self.misbehaved(worker_id, job_id, number, str(wrong), now)
            return False
        if fresh:
            live.begin(now)
            live.delivered("training", now)
        return fresh

    def trained(self, worker_id: WorkerId, job_id: JobId, number: int, done: Training, now: float) -> bool:
        """The worker's part of a training is done, and what it made is here and was looked at.

        Its counts are believed up to what was quoted.
        """
        live = self._trains(worker_id, job_id, number, "something trained", now)
        if live is None:
            return False
        live.begin(now)
        live.train(done)
        self._succeed(live, worker_id, now)
        return True

    def _trains(self, worker_id: WorkerId, job_id: JobId, number: int, what: str, now: float) -> Live | None:
        """As `_current`, of a training; None also if the worker sent it for another kind of job."""
        live = self._current(worker_id, job_id, number, now)
        if live is None or live.demand.training is not None:
            return live
        self.misbehaved(worker_id, job_id, number, f"{what} for a job of kind {live.job.kind}", now)
        return None

    def unsent(self, worker_id: WorkerId, job_id: JobId, number: int, now: float) -> None:
        """The assignment could not be put on the worker's stream: as if it had never been made."""
        live = self.lives.get(job_id)
        if live is not None and (worker_id, number) == live.holder:
            why = "the worker's stream was gone"
            self._stop_attempt(live, AttemptEvent.LOST, why, now, tell=True)
            live.pause(worker_id, now, self.rules)  # or the same would be planned again
            self._retry(live, now, "worker_lost", why, counts=False)

    def holds(self, worker_id: WorkerId, job_id: JobId, number: int) -> bool:
        """Whether this attempt is current and the worker's."""
        live = self.lives.get(job_id)
        return live is not None and live.holder == (worker_id, number)

    def _current(self, worker_id: WorkerId, job_id: JobId, number: int, now: float) -> Live | None:
        """The open job that this worker holds by this attempt; None: stale, and changes nothing."""
        live = self.lives.get(job_id)
        if live is None or live.holder != (worker_id, number):
            return None
        live.heard_at = now
        self.fleet.heard(self.fleet.workers[worker_id], now)
        return live
