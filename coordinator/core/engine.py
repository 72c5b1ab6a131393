"""The stateful middle: members' requests and workers' reports in, effects out.

`Engine.tick` is the main flow. No clock and no sockets: every method gets `now`. What is decided is collected
in `Effects`; `tick` plans, and hands the effects over to be committed, sent and told, in that order.

The engine stands on four layers that share its state, each of which calls only downwards: `Earnings` (the
book and whose earnings are free), `Wholes` (jobs that are done in parts), `OpenJobs` (what can happen to a
job), `Reports` (what workers say). On top are here the members' requests and time.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from coordinator.core import details, entries, jobs
from coordinator.core.admission import Crowded
from coordinator.core.fairness import class_of
from coordinator.core.fleet import LOADING, Worker
from coordinator.core.jobs import AttemptEvent, Job, JobEvent, JobId, JobState, WorkerId
from coordinator.core.live import FOREVER, Live
from coordinator.core.messages import Effects, SendAck, SendAssign
from coordinator.core.place import absence
from coordinator.core.pricing import Demand
from coordinator.core.reports import Reports
from coordinator.core.schedule import Planner, Waiting

SILENT = "the worker fell silent"
CLOSED = "the worker's connection closed"
UNREAD = "the worker says nothing of it, though it is there"


class Impossible(Exception):  # noqa: N818 -- named for what happened
    """No worker of the pool could ever run this job; the message says why."""


@dataclass(slots=True)
class Engine(Reports):
    planner: Planner = field(init=False)
    _swept_at: float = 0.0

    def __post_init__(self) -> None:
        self.planner = Planner(self.fleet, self.rules.policy)

    # -- members ---------------------------------------------------------------------------------

    def submit(
        self, job: Job, demand: Demand, *, count: Callable[[str], int], memory_bytes: int, now: float
    ) -> None:
        """Set the worst case aside and queue the job. Raises Impossible or Overdrawn, of a part NoRoom, and
        changes nothing."""
        assert job.id not in self.lives, "job ids are random"
        live = self._live(job, demand, count, memory_bytes, now)
        if why := self._impossible(live):
            raise Impossible(why)
        if job.whole is not None:
            self._promise(job)
        elif job.hold:
            self._post(entries.hold(job, details.of_hold(job)))
        self._enqueue(live)

    def crowded(self, job: Job, now: float, wait_s: float = FOREVER, *, back: bool = False) -> Crowded | None:
        """Whether this interactive job, which is not in the line yet, had better come back later; None: it
        may come in. `wait_s`: as long as it would wait, if that is less than what the pool's rules allow.
        """
        ends_s, line, planner = min(self.rules.wait_s, wait_s), self.line, self.planner
        bound_s = min(self.rules.crowd_s, ends_s)
        return self.admission.verdict(line, planner, self.pace, job, bound_s, now, ends_s=ends_s, back=back)

    def restore(
        self, job: Job, demand: Demand, *, count: Callable[[str], int], memory_bytes: int, now: float
    ) -> None:
        """Go on with a stored job after a restart: its hold stands, what was running is queued again."""
        live = self._live(job, demand, count, memory_bytes, now)
        if job.whole is not None:
            self._promise(job)
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
        """Return the hold of a job that a crash of the coordinator cut off, or the promise of a part."""
        if job.attempt is not None and job.attempt.state not in jobs.ATTEMPT_ENDED:
            job = jobs.with_attempt(
                job,
                jobs.move_attempt(job.attempt, AttemptEvent.LOST, now=now, why="the coordinator restarted"),
            )
        why = "the coordinator restarted while it ran; nothing was charged"
        if job.hold and job.whole is None:
            self._post(entries.close(job, [], details.of_refund(job, why)))
        job = replace(job, charge=0)
        self._remember(jobs.move(job, JobEvent.GAVE_UP, now=now, why=why, code="coordinator_restarted"))

    def cancel(self, job_id: JobId, now: float, why: str) -> bool:
        """End the job and charge what was delivered. False: it had ended already."""
        if job_id in self.wholes:
            self.end_whole(job_id, JobEvent.CANCELLED, now, why=why, code="cancelled")
            return True
        live = self.lives.get(job_id)
        if live is None:
            return False
        self._stop_attempt(live, AttemptEvent.CANCELLED, why, now, tell=True)
        self._close(live, JobEvent.CANCELLED, now, why=why, code="cancelled", pay=True)
        return True

    def end_whole(
        self, whole_id: JobId, event: JobEvent, now: float, *, why: str = "", code: str = ""
    ) -> None:
        """Close it, and before it whatever of it is still open, which is charged for what was delivered."""
        for part in list(self.wholes[whole_id].parts):
            self.cancel(part, now, why or "its whole ended")
        self.close_whole(whole_id, event, now, why=why, code=code)

    def give_up(self, job_id: JobId, now: float, why: str, code: str) -> None:
        """The pool itself cannot go on with the job: it ends, and costs nothing."""
        if (live := self.lives.get(job_id)) is not None:
            self._stop_attempt(live, AttemptEvent.CANCELLED, why, now, tell=True)
            self._close(live, JobEvent.GAVE_UP, now, why=why, code=code)

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
        return bool(self.lives or self.fleet.missed)

    def _plan(self, now: float) -> None:
        def waiting(job_id: JobId) -> Waiting:
            return self.lives[job_id].waiting(now)

        for decision in self.planner.plan(self.line, self.running, now, waiting):
            live, worker = self.lives[decision.job], self.fleet.workers[decision.worker]
            number = jobs.next_number(live.job)
            attempt = jobs.Attempt(
                number=number, worker=worker.id, owner=worker.account, assigned_at=now, why=decision.why
            )
            self._change(live, jobs.assign(live.job, attempt, now=now))
            live.heard_at = now
            live.delivered("", now)
            live.acknowledged, live.load_began = 0, None
            live.numerics = worker.models[live.job.model].numerics
            self.fleet.began(worker, (live.job.id, number), class_of(live.job), now)
            self.admission.left(live.job.id, now, served=True)
            self.pace.began(((live.job.kind, live.job.model), class_of(live.job)))
            del self.queue[live.job.id]
            self.running[live.job.member] = self.running.get(live.job.member, 0) + 1
            self.effects.sends.append(SendAssign(worker.id, live.job.id, number, decision.why))

    def _leave(self, worker: Worker, now: float) -> None:
        """The grace of a closed stream is over. Under the brake its attempts are left to the sweep."""
        if worker.running and not self.fleet.brake(now):
            self.fleet.miss(worker, now)
            for job_id, _number in sorted(worker.running):
                self._lose(self.lives[job_id], CLOSED, now)

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
                    unread = worker.connected and worker.heard_at > live.heard_at
                    self.fleet.miss(worker, now)
                    if unread:  # it beats, and says nothing of what it was sent: another one shall have it
                        self.fleet.deaf(worker)
                        live.pause(worker.id, now, self.rules)
                    lost = UNREAD if unread else SILENT if worker.closed_at is None else CLOSED
                    self._lose(live, lost, now)
            elif now >= live.progressed_at + (stall_s := patience.stalled(job.kind)):
                why = f"no progress for {stall_s:.0f} s"
                self._after_fault(live, worker.id, AttemptEvent.FAILED, "worker", "stalled", why, now)
            else:
                self._acknowledge(live, worker.id)
                if live.stage in LOADING:
                    self._expire(live, now)
        for worker_id in list(self.fleet.missed):
            self.fleet.blame_missing(self.fleet.workers[worker_id], now)
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
        loading = live.loading(self.fleet, now)
        if now < ends_at:
            return
        code = "no_worker_available"
        why = f"{absence(self.fleet, job.model)}; it waited {now - since:.0f} s"
        if loading is not None:
            code, why = "model_loading", f"{job.model} is still {loading.state} on a worker"
            live.job = replace(live.job, loading=loading)
        self._stop_attempt(live, AttemptEvent.CANCELLED, why, now, tell=True)
        self._close(live, JobEvent.EXPIRED, now, why=why, code=code)
