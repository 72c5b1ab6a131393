"""The open jobs, and the one place for each thing that can happen to one.

Whatever a worker says or time brings comes down to these: it waits, an attempt stops, it is tried again, it
ends. Retry or give up, whom to blame, what is paid: that is decided here.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from coordinator.core import details, entries, jobs
from coordinator.core.admission import Admission
from coordinator.core.fairness import class_of
from coordinator.core.fleet import LOADING
from coordinator.core.jobs import AttemptEvent, Job, JobEvent, JobId, MemberId, WorkerId
from coordinator.core.ledger import Bucket
from coordinator.core.live import FOREVER, Live
from coordinator.core.messages import SendCancel
from coordinator.core.output import Choice, Output
from coordinator.core.pace import Pace
from coordinator.core.pricing import Demand, charge_units, payments
from coordinator.core.schedule import impossible
from coordinator.core.wholes import Wholes


@dataclass(slots=True)
class OpenJobs(Wholes):
    lives: dict[JobId, Live] = field(default_factory=dict)
    queue: dict[JobId, None] = field(default_factory=dict)
    running: dict[MemberId, int] = field(default_factory=dict)
    names: dict[MemberId, str] = field(default_factory=dict)  # of members; the shell knows them
    pace: Pace = field(default_factory=Pace)
    admission: Admission = field(default_factory=Admission)
    _replan: bool = False

    def _live(
        self, job: Job, demand: Demand, count: Callable[[str], int], memory_bytes: int, now: float
    ) -> Live:
        output = Output([Choice() for _ in range(job.choices)], job.max_tokens, count)
        # Before a restart; what a worker gave back may have been nobody's fault, and is not held against it.
        given_back = (jobs.AttemptState.REFUSED, jobs.AttemptState.FAILED)
        failures = sum(a.state not in given_back for a in job.attempts)
        asker = self.names.get(job.member, "")
        return Live(job, demand, memory_bytes, output, waiting_since=now, failures=failures, asker=asker)

    def _enqueue(self, live: Live) -> None:
        self.lives[live.job.id] = live
        self.queue[live.job.id] = None
        self.line.enter(live.job)
        self.effects.jobs[live.job.id] = live.job
        self._replan = True

    def _change(self, live: Live, job: Job) -> None:
        live.job = job
        self.effects.jobs[job.id] = job

    def _stop_attempt(
        self, live: Live, event: AttemptEvent, why: str, now: float, *, tell: bool = False
    ) -> None:
        """End the running attempt, if there is one, and settle what it delivered."""
        holder, attempt = live.holder, live.job.attempt
        if holder is None or attempt is None:
            return
        if attempt.state is jobs.AttemptState.RUNNING and live.stage not in LOADING:
            live.waiting_since = now
        tokens = live.output.settle(attempt.number)
        note = attempt.why if event is AttemptEvent.SUCCEEDED else why
        ended = replace(jobs.move_attempt(attempt, event, now=now, why=note), tokens=tokens)
        live.job = jobs.with_attempt(live.job, ended)
        fence = live.job.id, attempt.number
        self.fleet.ended(self.fleet.workers[holder[0]], fence, class_of(live.job))
        telling = event in (AttemptEvent.SUCCEEDED, AttemptEvent.CANCELLED)
        lane = (live.job.kind, live.job.model), class_of(live.job)
        self.pace.ended(lane, now - attempt.assigned_at if telling else None)
        self.running[live.job.member] -= 1
        if not self.running[live.job.member]:
            del self.running[live.job.member]
        if tell:
            self.effects.sends.append(SendCancel(holder[0], live.job.id, attempt.number, why))
        self._replan = True

    def _succeed(self, live: Live, worker_id: WorkerId, now: float) -> None:
        assert live.job.attempt is not None
        finisher = live.job.attempt.number
        self.fleet.praise(self.fleet.workers[worker_id])
        self._stop_attempt(live, AttemptEvent.SUCCEEDED, "", now)
        self._close(live, JobEvent.SUCCEEDED, now, pay=True, finisher=finisher)

    def _lose(self, live: Live, why: str, now: float) -> None:
        """Fence the attempt; somebody else goes on from what was delivered."""
        self._stop_attempt(live, AttemptEvent.LOST, why, now, tell=True)
        self._retry(live, now, "worker_lost", why)

    def _after_fault(
        self,
        live: Live,
        worker_id: WorkerId,
        event: AttemptEvent,
        fault: str,
        code: str,
        why: str,
        now: float,
    ) -> None:
        """Attribute the failure, then try elsewhere or give up. Only a worker's own fault costs it."""
        self._stop_attempt(live, event, why, now)
        if fault == "none":
            live.pause(worker_id, now, self.rules)
        else:
            live.avoid[worker_id] = FOREVER
        if fault == "worker":
            self.fleet.blame(self.fleet.workers[worker_id])
        if fault == "job":
            live.job_faults += 1
            if live.job_faults >= self.rules.job_faults_max or self._impossible(live):
                self._close(live, JobEvent.GAVE_UP, now, why=why, code=code)
                return
        self._retry(live, now, code, why, counts=fault != "none")

    def _retry(self, live: Live, now: float, code: str, why: str, *, counts: bool = True) -> None:
        live.failures += counts
        tried = jobs.next_number(live.job) - 1
        if live.failures >= self.rules.attempts_max:
            why = f"{live.failures} attempts failed: {why}"
            self._close(live, JobEvent.GAVE_UP, now, why=why, code=code)
        elif tried >= self.rules.number_max:
            why = f"{tried} attempts were refused or failed: {why}"
            self._close(live, JobEvent.GAVE_UP, now, why=why, code=code)
        elif reason := self._impossible(live):
            self._close(live, JobEvent.GAVE_UP, now, why=f"{why}; {reason}", code=code)
        else:
            self._change(live, jobs.move(live.job, JobEvent.REQUEUED, now=now))
            self._enqueue(live)

    def _impossible(self, live: Live) -> str:
        """As `impossible`, of workers that are out for good; who is only busy may be asked again."""
        return impossible(live.waiting(math.nextafter(FOREVER, 0)), self.fleet, live.memory_bytes)

    def _close(
        self,
        live: Live,
        event: JobEvent,
        now: float,
        *,
        why: str = "",
        code: str = "",
        pay: bool = False,
        finisher: int | None = None,
    ) -> None:
        """The job's one end: pay or refund, by one entry, whatever happened behind."""
        tariff, segments = self.rules.tariff, live.output.segments
        job = replace(live.job, output_tokens=live.output.tokens)
        paid: list[entries.Payment] = []
        said = details.of_refund(job, why)
        if pay and job.hold:
            units = charge_units(live.demand, tariff, segments, finisher)
            paid = payments(units, job.attempts, job.account, tariff, self._bucket_of)
            said = details.of_work(job, live.demand, tariff, segments, finisher, paid)
        self._pay(job, paid, said)
        earned = {p.attempt: p for p in paid}
        self._credit(job, earned, now)
        job = replace(
            job,
            charge=sum(p.amount for p in paid),
            first_output_at=live.first_output_at,
            attempts=tuple(_paid(attempt, earned.get(attempt.number)) for attempt in job.attempts),
        )
        del self.lives[job.id]
        self.queue.pop(job.id, None)
        self.line.leave(job.id, job.charge)
        self.admission.left(job.id, now, served=False)
        self._remember(jobs.move(job, event, now=now, why=why, code=code))


def _paid(attempt: jobs.Attempt, payment: entries.Payment | None) -> jobs.Attempt:
    if payment is None:
        return attempt
    held = payment.bucket is Bucket.HELD
    return replace(attempt, paid=payment.amount - payment.fee, held=held)
