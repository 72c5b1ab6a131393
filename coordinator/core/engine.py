"""The stateful middle: members' requests and workers' reports in, effects out.

It owns the open jobs, the book and the fleet, and it is the only place that changes them. No clock and no
sockets: every method gets `now`. What is decided is collected in `Effects`; `tick` plans, and hands the
effects over to be committed, sent and told, in that order. A message that names an attempt which is not
current is stale, and `_current` is the one place where it is ignored.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from coordinator.core import details, entries, jobs, ledger
from coordinator.core.fairness import class_of
from coordinator.core.fleet import LOADING, Fence, Fleet, LoadMark, Served, Worker, load_of
from coordinator.core.jobs import (
    AttemptEvent,
    Job,
    JobEvent,
    JobId,
    JobState,
    Kind,
    Loading,
    MemberId,
    WorkerId,
)
from coordinator.core.line import Line
from coordinator.core.messages import Effects, SendAck, SendAssign, SendCancel
from coordinator.core.output import Choice, Misbehaviour, Output, Piece
from coordinator.core.pricing import Demand, Tariff, charge_units, payments
from coordinator.core.schedule import Policy, Waiting, impossible, plan
from coordinator.core.standing import Proof, Standing

FOREVER = math.inf
NOBODY: frozenset[WorkerId] = frozenset()


@dataclass(frozen=True, slots=True)
class Rules:
    """The pool's settings that the core needs. Times in seconds."""

    tariff: Tariff = field(default_factory=Tariff)
    proof: Proof = field(default_factory=Proof)
    policy: Policy = field(default_factory=Policy)
    attempts_max: int = 12  # that failed or were lost; a refusal that is nobody's fault does not count
    number_max: int = 1_000  # of any attempt: bounds the rows of a stored job that is refused for hours
    job_faults_max: int = 2  # workers that must call a job impossible before it is believed
    wait_s: float = 60.0  # of an interactive job, for a worker or for a model that loads
    refused_pause_s: float = 1.0  # before a busy worker is asked again for the same job; doubles each time
    refused_pause_s_max: float = 60.0
    sweep_s: float = 0.25
    prove_s: float = 60.0  # how often it is looked whether time alone has proven a worker
    start_s_max: float = 1_800.0  # signs of life keep an attempt without output that long, no longer
    stored_start_s_max: float = 21_600.0  # as above, of a stored job, for which a model may be downloaded
    recent_max: int = 20_000  # closed jobs remembered for receipts


class Impossible(Exception):  # noqa: N818 -- named for what happened
    """No worker of the pool could ever run this job; the message says why."""


@dataclass(slots=True)
class Live:
    """An open job with what only memory knows of it."""

    job: Job
    demand: Demand
    memory_bytes: int
    output: Output
    waiting_since: float  # without anybody who works on it
    heard_at: float = 0.0  # of the running attempt
    progressed_at: float = 0.0
    acknowledged: int = 0
    stage: str = ""
    load_began: LoadMark | None = None  # of the model on the running attempt's worker
    prompt: Any = None  # as the first attempt rendered it; opaque
    numerics: str = ""
    avoid: dict[WorkerId, float] = field(default_factory=dict)
    refusals: dict[WorkerId, int] = field(default_factory=dict)  # that were nobody's fault
    failures: int = 0  # attempts that count towards the limit
    job_faults: int = 0

    def waiting(self, now: float) -> Waiting:
        job = self.job
        longest = max(self.demand.prompts, default=0)
        return Waiting(
            id=job.id,
            kind=job.kind,
            model=job.model,
            account=job.account,
            context_tokens=longest + job.max_tokens,
            own_only=job.own_only,
            only=job.only,
            refused_by=frozenset(w for w, t in self.avoid.items() if t > now) if self.avoid else NOBODY,
            numerics=self.numerics if self.output.begun else "",
        )


@dataclass(slots=True)
class Engine:
    rules: Rules
    book: ledger.Book
    fleet: Fleet
    lives: dict[JobId, Live] = field(default_factory=dict)
    recent: dict[JobId, Job] = field(default_factory=dict)
    queue: dict[JobId, None] = field(default_factory=dict)
    running: dict[MemberId, int] = field(default_factory=dict)
    effects: Effects = field(default_factory=Effects)
    line: Line = field(default_factory=Line)
    _swept_at: float = 0.0
    _proven_at: float = 0.0
    _replan: bool = False

    # -- members ---------------------------------------------------------------------------------

    def submit(
        self, job: Job, demand: Demand, *, count: Callable[[str], int], memory_bytes: int, now: float
    ) -> None:
        """Set the worst case aside and queue the job. Raises Impossible or Overdrawn and changes nothing."""
        assert job.id not in self.lives, "job ids are random"
        live = self._live(job, demand, count, memory_bytes, now)
        if why := self._impossible(live):
            raise Impossible(why)
        if job.hold:
            self._post(entries.hold(job, details.of_hold(job)))
        self._enqueue(live)

    def restore(
        self, job: Job, demand: Demand, *, count: Callable[[str], int], memory_bytes: int, now: float
    ) -> None:
        """Go on with a stored job after a restart: its hold stands, what was running is queued again."""
        live = self._live(job, demand, count, memory_bytes, now)
        if job.state is JobState.RUNNING:
            assert job.attempt is not None
            ended = jobs.move_attempt(
                job.attempt, AttemptEvent.LOST, now=now, why="the coordinator restarted"
            )
            live.job = jobs.move(jobs.with_attempt(job, ended), JobEvent.REQUEUED, now=now)
        self.lives[job.id] = live
        if live.job.state is JobState.QUEUED:
            self._enqueue(live)

    def abandon(self, job: Job, now: float) -> None:
        """Return the hold of an interactive job that a crash of the coordinator cut off."""
        if job.attempt is not None and job.attempt.state not in jobs.ATTEMPT_ENDED:
            job = jobs.with_attempt(
                job,
                jobs.move_attempt(job.attempt, AttemptEvent.LOST, now=now, why="the coordinator restarted"),
            )
        why = "the coordinator restarted while it ran; nothing was charged"
        if job.hold:
            self._post(entries.close(job, [], details.of_refund(job, why)))
        job = replace(job, charge=job.settled)
        self._remember(jobs.move(job, JobEvent.GAVE_UP, now=now, why=why, code="coordinator_restarted"))

    def cancel(self, job_id: JobId, now: float, why: str) -> bool:
        """End the job and charge what was delivered. False: it had ended already."""
        live = self.lives.get(job_id)
        if live is None:
            return False
        self._stop_attempt(live, AttemptEvent.CANCELLED, why, now, tell=True)
        self._close(live, JobEvent.CANCELLED, now, why=why, code="cancelled", pay=True)
        return True

    def give_up(self, job_id: JobId, now: float, why: str, code: str) -> None:
        """The pool itself cannot go on with the job: it ends, and costs nothing."""
        if (live := self.lives.get(job_id)) is not None:
            self._stop_attempt(live, AttemptEvent.CANCELLED, why, now, tell=True)
            self._close(live, JobEvent.GAVE_UP, now, why=why, code=code)

    def post(self, entry: ledger.Entry) -> ledger.Posted:
        """An entry that belongs to no job. Raises Overdrawn, IdConflict or UnknownAccount."""
        assert entry.job is None, "jobs post their own"
        return self._post(entry)

    def settle(self, job_id: JobId, payments: Sequence[entries.Payment], details: str = "{}") -> bool:
        """Pay a part of a long job along the way. False: the job has ended."""
        if (live := self.lives.get(job_id)) is None:
            return False
        self._post(entries.settle(live.job, payments, details))
        paid = sum(p.amount for p in payments)
        job = replace(live.job, settled=live.job.settled + paid, settlements=live.job.settlements + 1)
        self._change(live, job)
        return True

    def prove(self, worker_id: WorkerId, now: float, why: str = "") -> bool:
        """The worker is trusted from now on: what was held of its earnings is free. False: it was before.

        One that has left may be, too, for what it earned until then.
        """
        worker = self.fleet.departed.pop(worker_id, None) or self.fleet.workers[worker_id]
        if worker.standing.proven_at is not None:
            return False
        if held := worker.standing.held:
            said = details.written(worker=worker.id, name=worker.name, why=why)
            self._post(entries.release(worker.id, worker.account, held, said))
        worker.standing.held, worker.standing.proven_at = 0, now
        self.effects.standings[worker.id] = replace(worker.standing)
        return True

    def forfeit(self, worker_id: WorkerId, now: float) -> None:
        """Its owner's account is closed: what was held of its earnings goes with it, and is never freed."""
        worker = self.fleet.departed.pop(worker_id, None) or self.fleet.workers.get(worker_id)
        standing = worker.standing if worker is not None else Standing()
        standing.held, standing.proven_at = 0, standing.proven_at or now
        self.effects.standings[worker_id] = replace(standing)

    def dispute(self, worker_id: WorkerId) -> None:
        """The worker said or did what is not true: it is blamed, and has to prove itself anew."""
        if (worker := self.fleet.workers.get(worker_id)) is not None:
            worker.faults += 1
            self._disputed(worker)

    def _disputed(self, worker: Worker) -> None:
        if worker.standing.proven_at is None and worker.standing.good_jobs:
            worker.standing.disputed()
            self.effects.standings[worker.id] = replace(worker.standing)

    # -- workers ---------------------------------------------------------------------------------

    def connect(
        self,
        worker_id: WorkerId,
        served: Iterable[Served],
        *,
        slots: int,
        memory_bytes: int,
        running: Sequence[Fence],
        now: float,
    ) -> list[tuple[Fence, int]]:
        """A stream opened. Which of the attempts it still runs go on, and from which sequence."""
        worker = self.fleet.workers[worker_id]
        self.fleet.opened(worker)
        worker.slots, worker.memory_bytes = max(1, slots), memory_bytes
        worker.draining, worker.state, worker.why = False, "sharing", ""
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
    ) -> None:
        worker = self.fleet.workers.get(worker_id)
        if worker is None:
            return  # removed while its words were on their way
        self.fleet.heard(worker, now)
        worker.draining, worker.state, worker.why = draining, state or "sharing", why
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
        return live is not None and self._begin(live, now)

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
        """A sign of life before the first output: from then on only output shows progress."""
        live = self._current(worker_id, job_id, number, now)
        if live is None or live.job.attempt is None:
            return False
        self._begin(live, now)
        longest = self.rules.stored_start_s_max if live.job.stored else self.rules.start_s_max
        if not live.output.sequence and now < live.job.attempt.assigned_at + longest:
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
            if live.job.kind is Kind.EMBEDDING:
                raise Misbehaviour("text for an embedding")
            fresh = live.output.take(sequence, pieces)
        except Misbehaviour as wrong:
            self.misbehaved(worker_id, job_id, number, str(wrong), now)
            return ()
        if not fresh:
            return ()
        self._begin(live, now)
        live.stage, live.progressed_at = "decode", now
        if live.prompt is None and prompt is not None:
            live.prompt = prompt
            self._believe(live, (prompt_tokens,))
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
            self.misbehaved(worker_id, job_id, number, "done before every choice had ended", now)
            return False
        if vectors != len(live.demand.prompts):
            why = f"{vectors} vectors for {len(live.demand.prompts)} inputs"
            self.misbehaved(worker_id, job_id, number, why, now)
            return False
        self._begin(live, now)
        self._believe(live, prompt_tokens)
        self._succeed(live, worker_id, now)
        return True

    def unsent(self, worker_id: WorkerId, job_id: JobId, number: int, now: float) -> None:
        """The assignment could not be put on the worker's stream: as if it had never been made."""
        live = self.lives.get(job_id)
        if live is not None and (worker_id, number) == self._holder(live):
            why = "the worker's stream was gone"
            self._stop_attempt(live, AttemptEvent.LOST, why, now, tell=True)
            self._pause(live, worker_id, now)  # or the same would be planned again
            self._retry(live, now, "worker_lost", why, counts=False)

    # -- time ------------------------------------------------------------------------------------

    def tick(self, now: float) -> Effects:
        """Sweep, plan, and hand over what is to be committed, sent and told."""
        self.line.given.now = now
        for worker in self.fleet.left(now):
            self._leave(worker, now)
        if now >= self._swept_at + self.rules.sweep_s:
            self._swept_at = now
            self._sweep(now)
            self._prove_by_time(now)
        if self._replan and self.queue:
            self._plan(now)
        self._replan = False
        effects, self.effects = self.effects, Effects()
        return effects

    def due(self) -> float:
        """The next instant at which a tick must not be late, for somebody waits for its answer to go on; may
        be infinity. All else that time alone changes is found by the sweep."""
        return self.fleet.due()

    def busy(self) -> bool:
        """Whether time alone can change anything."""
        return bool(self.lives) or any(w.missed_at is not None for w in self.fleet.workers.values())

    def _plan(self, now: float) -> None:
        def waiting(job_id: JobId) -> Waiting:
            return self.lives[job_id].waiting(now)

        for decision in plan(self.line, self.fleet, self.running, self.rules.policy, now, waiting):
            live, worker = self.lives[decision.job], self.fleet.workers[decision.worker]
            number = jobs.next_number(live.job)
            attempt = jobs.Attempt(
                number=number, worker=worker.id, owner=worker.account, assigned_at=now, why=decision.why
            )
            self._change(live, jobs.assign(live.job, attempt, now=now))
            live.heard_at = live.progressed_at = now
            live.acknowledged, live.stage, live.load_began = 0, "", None
            live.numerics = worker.models[live.job.model].numerics
            if not worker.running:
                worker.busy_since = now
            worker.running.add((live.job.id, number))
            worker.classes[class_of(live.job)] += 1
            del self.queue[live.job.id]
            self.running[live.job.member] = self.running.get(live.job.member, 0) + 1
            self.effects.sends.append(SendAssign(worker.id, live.job.id, number, decision.why))

    def _leave(self, worker: Worker, now: float) -> None:
        """The grace of a closed stream is over. Under the brake its attempts are left to the sweep."""
        if worker.running and not self.fleet.brake(now):
            self.fleet.miss(worker, now)
            for job_id, _number in sorted(worker.running):
                self._lose(self.lives[job_id], "the worker fell silent", now)

    def _sweep(self, now: float) -> None:
        patience = self.fleet.patience
        braking: bool | None = None
        for live in list(self.lives.values()):
            job, attempt = live.job, live.job.attempt
            if job.state is not JobState.RUNNING or attempt is None:
                self._expire(live, now)
                continue
            worker = self.fleet.workers[attempt.worker]
            if self.fleet.gone(worker, now) or now >= live.heard_at + patience.lease_s:
                braking = self.fleet.brake(now) if braking is None else braking
                if not braking:
                    self.fleet.miss(worker, now)
                    self._lose(live, "the worker fell silent", now)
            elif now >= live.progressed_at + patience.stall_s:
                why = f"no progress for {patience.stall_s:.0f} s"
                self._after_fault(live, worker.id, AttemptEvent.FAILED, "worker", "stalled", why, now)
            else:
                self._acknowledge(live, worker.id)
                if live.stage in LOADING:
                    self._expire(live, now)
        for worker in self.fleet.workers.values():
            if worker.missed_at is not None:
                self.fleet.blame_missing(worker, now)
        if braking is None:  # nobody is missing: the next time many are, the brake is fresh
            self.fleet.braking_since = None
        self._replan = True

    def _acknowledge(self, live: Live, worker_id: WorkerId) -> None:
        if live.output.sequence > live.acknowledged and live.job.attempt is not None:
            live.acknowledged = live.output.sequence
            ack = SendAck(worker_id, live.job.id, live.job.attempt.number, live.acknowledged)
            self.effects.sends.append(ack)

    def _expire(self, live: Live, now: float) -> None:
        """Nobody could serve it in time: the hold is returned, whatever was delivered is free."""
        job = live.job
        ends_at = job.expires_at if job.expires_at is not None else FOREVER
        since = live.waiting_since
        if not job.stored:
            ends_at = min(ends_at, since + self.rules.wait_s)
        loading = self._loading(live, now)
        if now < ends_at:
            return
        code = "no_worker_available"
        there = any(self.fleet.workers[w].connected for w in self.fleet.by_model.get(job.model, ()))
        free = "was free for" if there else "that is connected serves"
        why = f"no worker {free} {job.model}; it waited {now - since:.0f} s"
        if loading is not None:
            code, why = "model_loading", f"{job.model} is still {loading.state} on a worker"
            live.job = replace(live.job, loading=loading)
        self._stop_attempt(live, AttemptEvent.CANCELLED, why, now, tell=True)
        self._close(live, JobEvent.EXPIRED, now, why=why, code=code)

    def _loading(self, live: Live, now: float) -> Loading | None:
        """How far the model is on the worker that holds the job, if that is what the job waits for."""
        holder = self._holder(live)
        if holder is None or live.stage not in LOADING:
            return None
        served = self.fleet.workers[holder[0]].models.get(live.job.model)
        if served is None:
            return Loading(live.stage)
        if live.load_began is None or live.load_began.state != live.stage:
            live.load_began = LoadMark(live.stage, now, served.bytes_done)
        return load_of(live.stage, served, live.load_began, now)

    def holds(self, worker_id: WorkerId, job_id: JobId, number: int) -> bool:
        """Whether this attempt is current and the worker's."""
        live = self.lives.get(job_id)
        return live is not None and self._holder(live) == (worker_id, number)

    # -- one place each --------------------------------------------------------------------------

    def _holder(self, live: Live) -> tuple[WorkerId, int] | None:
        attempt = live.job.attempt
        if live.job.state is not JobState.RUNNING or attempt is None:
            return None
        return attempt.worker, attempt.number

    def _current(self, worker_id: WorkerId, job_id: JobId, number: int, now: float) -> Live | None:
        """The open job that this worker holds by this attempt; None: stale, and changes nothing."""
        live = self.lives.get(job_id)
        if live is None or self._holder(live) != (worker_id, number):
            return None
        live.heard_at = now
        self.fleet.heard(self.fleet.workers[worker_id], now)
        return live

    def _live(
        self, job: Job, demand: Demand, count: Callable[[str], int], memory_bytes: int, now: float
    ) -> Live:
        output = Output([Choice() for _ in range(job.choices)], job.max_tokens, count)
        failures = sum(a.state is not jobs.AttemptState.REFUSED for a in job.attempts)  # before a restart
        return Live(job, demand, memory_bytes, output, waiting_since=now, failures=failures)

    def _enqueue(self, live: Live) -> None:
        self.lives[live.job.id] = live
        self.queue[live.job.id] = None
        self.line.enter(live.job)
        self.effects.jobs[live.job.id] = live.job
        self._replan = True

    def _change(self, live: Live, job: Job) -> None:
        live.job = job
        self.effects.jobs[job.id] = job

    def _begin(self, live: Live, now: float) -> bool:
        """Whether it had not begun before."""
        attempt = live.job.attempt
        if attempt is None or attempt.state is not jobs.AttemptState.ASSIGNED:
            return False
        moved = jobs.move_attempt(attempt, AttemptEvent.ACCEPTED, now=now)
        live.job = jobs.with_attempt(live.job, moved)  # not worth a commit of its own
        return True

    def _believe(self, live: Live, counts: Sequence[int]) -> None:
        """Where our own count is only a bound, the worker's is believed up to it: it lowers, never raises."""
        bounds = live.demand.prompts
        if live.demand.exact or len(counts) != len(bounds):
            return
        prompts = tuple(min(bound, said or bound) for bound, said in zip(bounds, counts, strict=True))
        live.demand = replace(live.demand, prompts=prompts)
        live.job = replace(live.job, prompt_tokens=sum(prompts))

    def _stop_attempt(
        self, live: Live, event: AttemptEvent, why: str, now: float, *, tell: bool = False
    ) -> None:
        """End the running attempt, if there is one, and settle what it delivered."""
        holder, attempt = self._holder(live), live.job.attempt
        if holder is None or attempt is None:
            return
        if attempt.state is jobs.AttemptState.RUNNING and live.stage not in LOADING:
            live.waiting_since = now
        tokens = live.output.settle(attempt.number)
        note = attempt.why if event is AttemptEvent.SUCCEEDED else why
        ended = replace(jobs.move_attempt(attempt, event, now=now, why=note), tokens=tokens)
        live.job = jobs.with_attempt(live.job, ended)
        self.fleet.workers[holder[0]].running.discard((live.job.id, attempt.number))
        self.fleet.workers[holder[0]].classes[class_of(live.job)] -= 1
        self.running[live.job.member] -= 1
        if not self.running[live.job.member]:
            del self.running[live.job.member]
        if tell:
            self.effects.sends.append(SendCancel(holder[0], live.job.id, attempt.number, why))
        self._replan = True

    def _succeed(self, live: Live, worker_id: WorkerId, now: float) -> None:
        assert live.job.attempt is not None
        finisher = live.job.attempt.number
        self.fleet.workers[worker_id].successes += 1
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
            self._pause(live, worker_id, now)
        else:
            live.avoid[worker_id] = FOREVER
        if fault == "worker":
            self.fleet.workers[worker_id].faults += 1
        if fault == "job":
            live.job_faults += 1
            if live.job_faults >= self.rules.job_faults_max or self._impossible(live):
                self._close(live, JobEvent.GAVE_UP, now, why=why, code=code)
                return
        counts = fault != "none" or event is not AttemptEvent.REFUSED
        self._retry(live, now, code, why, counts=counts)

    def _pause(self, live: Live, worker_id: WorkerId, now: float) -> None:
        """Not this worker for this job, each time twice as long as before."""
        times = live.refusals[worker_id] = live.refusals.get(worker_id, 0) + 1
        longest = self.rules.refused_pause_s_max
        live.avoid[worker_id] = now + min(self.rules.refused_pause_s * 2.0 ** min(times - 1, 30), longest)

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
        job, tariff, segments = live.job, self.rules.tariff, live.output.segments
        paid: list[entries.Payment] = []
        said = details.of_refund(job, why)
        if pay and job.hold:
            units = charge_units(live.demand, tariff, segments, finisher)
            paid = payments(units, job.attempts, job.account, tariff, self._bucket_of)
            said = details.of_work(job, live.demand, tariff, segments, finisher, paid)
        if job.hold:
            self._post(entries.close(job, paid, said))
        earned = {p.attempt: p for p in paid}
        self._credit(job, earned, now)
        job = replace(
            job,
            charge=job.settled + sum(p.amount for p in paid),
            output_tokens=live.output.tokens,
            attempts=tuple(_paid(attempt, earned.get(attempt.number)) for attempt in job.attempts),
        )
        del self.lives[job.id]
        self.queue.pop(job.id, None)
        self.line.leave(job.id, job.charge)
        self._remember(jobs.move(job, event, now=now, why=why, code=code))

    def _bucket_of(self, worker_id: WorkerId) -> ledger.Bucket:
        """Who was removed before it was proven stays unproven."""
        worker = self.fleet.workers.get(worker_id)
        return (worker.standing if worker else Standing()).bucket(self.rules.proof)

    def _credit(self, job: Job, earned: Mapping[int, entries.Payment], now: float) -> None:
        """Paid work is what a worker proves itself by."""
        for attempt in job.attempts:
            worker, payment = self.fleet.workers.get(attempt.worker), earned.get(attempt.number)
            if worker is None or payment is None or worker.standing.proven_at is not None:
                continue
            if payment.bucket is ledger.Bucket.HELD:
                worker.standing.held += payment.amount - payment.fee
            if attempt.state is jobs.AttemptState.SUCCEEDED:
                worker.standing.served(now)
            self.effects.standings[worker.id] = replace(worker.standing)
            if worker.standing.passes(self.rules.proof, now):
                self.prove(worker.id, now)

    def _prove_by_time(self, now: float) -> None:
        """Workers for which only time was missing."""
        if now < self._proven_at + self.rules.prove_s:
            return
        self._proven_at = now
        for worker in self.fleet.workers.values():
            if worker.standing.held and worker.standing.passes(self.rules.proof, now):
                self.prove(worker.id, now)

    def _remember(self, job: Job) -> None:
        self.effects.jobs[job.id] = job
        self.effects.closed.append(job)
        self.recent[job.id] = job
        while len(self.recent) > self.rules.recent_max:
            old = self.recent.pop(next(iter(self.recent)))
            self.book.forget(old.id, old.settlements)

    def _post(self, entry: ledger.Entry) -> ledger.Posted:
        posted = self.book.post(entry)
        if posted is ledger.Posted.CREATED:
            self.line.given.take(entry)
            self.effects.entries.append(entry)
            self.effects.accounts.update(p.account for p in entry.postings)
        return posted


def _paid(attempt: jobs.Attempt, payment: entries.Payment | None) -> jobs.Attempt:
    if payment is None:
        return attempt
    held = payment.bucket is ledger.Bucket.HELD
    return replace(attempt, paid=payment.amount - payment.fee, held=held)
