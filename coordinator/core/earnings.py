"""The book's postings, and which earnings of the workers are free at once.

The lowest layer of the engine: it alone posts, so whatever moves money is learned by the line and handed over
with the effects.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from coordinator.core import details, entries, jobs, ledger
from coordinator.core.fleet import Fleet, Worker
from coordinator.core.jobs import Job, JobId, WorkerId
from coordinator.core.line import Line
from coordinator.core.messages import Effects
from coordinator.core.rules import Rules
from coordinator.core.standing import Standing


@dataclass(slots=True)
class Earnings:
    """`recent`: jobs that ended, remembered for receipts."""

    rules: Rules
    book: ledger.Book
    fleet: Fleet
    effects: Effects = field(default_factory=Effects)
    line: Line = field(default_factory=Line)
    recent: dict[JobId, Job] = field(default_factory=dict)
    _proven_at: float = 0.0

    def post(self, entry: ledger.Entry) -> ledger.Posted:
        """An entry that belongs to no job. Raises Overdrawn, IdConflict or UnknownAccount."""
        assert entry.job is None, "jobs post their own"
        return self._post(entry)

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
            self.fleet.blame(worker)
            self._disputed(worker)

    def _disputed(self, worker: Worker) -> None:
        if worker.standing.proven_at is None and worker.standing.good_jobs:
            worker.standing.disputed()
            self.effects.standings[worker.id] = replace(worker.standing)

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

    def _post(self, entry: ledger.Entry) -> ledger.Posted:
        posted = self.book.post(entry)
        if posted is ledger.Posted.CREATED:
            self.line.given.take(entry)
            self.effects.entries.append(entry)
            self.effects.accounts.update(p.account for p in entry.postings)
        return posted

    def _remember(self, job: Job) -> None:
        """It has ended."""
        self.effects.jobs[job.id] = job
        self.effects.closed.append(job)
        self.recent[job.id] = job
        while len(self.recent) > self.rules.recent_max:
            old = self.recent.pop(next(iter(self.recent)))
            self.book.forget(old.id, old.whole, old.part)
