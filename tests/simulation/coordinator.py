"""The coordinator's shell around the real core: commits to a disk, sends what is safe, and crashes."""

from dataclasses import replace
from typing import Any

from coordinator.core import ledger
from coordinator.core.course import (
    Action,
    Aggregate,
    Began,
    CancelPart,
    Fail,
    Finish,
    OpenEvaluate,
    OpenTrain,
    PartDone,
    PartFailed,
    Stopped,
    Ticked,
)
from coordinator.core.engine import Engine, Impossible
from coordinator.core.fleet import Fence, Fleet, Worker
from coordinator.core.jobs import AccountId, Job, JobEvent, JobState, Kind, MemberId, WorkerId, part_id
from coordinator.core.messages import Send, SendAssign
from coordinator.core.pricing import Demand, Training, quote
from coordinator.core.wholes import NoRoom
from simulation.invariants import BrokenError, Invariant, check_crowded, check_sent, must
from simulation.network import COORDINATOR
from simulation.tuning import FineTune
from simulation.world import MEMBERS, TARIFF, World

CLOCK_STEP_S = 3_600.0


class Coordinator:
    def __init__(self, world: World) -> None:
        self.world = world
        self.start({a: replace(account) for a, account in world.accounts.items()})

    def start(self, accounts: dict[AccountId, ledger.Account]) -> None:
        w = self.world
        fleet = Fleet()
        for i, worker_id in enumerate(w.fakes):
            owner = MEMBERS[i % len(MEMBERS)]
            fleet.enrol(Worker(worker_id, worker_id, MemberId(owner), AccountId(f"acc_{owner}")))
        book = ledger.Book(accounts, {k: e for k, e in w.disk_entries.items() if e.job is not None})
        w.engine = Engine(w.rules, book, fleet)
        w.pending, w.open = [], {}
        for job in list(w.disk_jobs.values()):
            if job.ended:
                continue
            if job.id in w.plans or job.id in w.tunes:
                w.engine.restore_whole(job)
            elif job.kind is Kind.FINETUNE:
                w.engine.abandon(job, w.clock)
            elif job.stored:
                w.client[job.id] = ""  # a stored job begins anew: what was not stored is gone
                w.engine.restore(
                    job, w.demands[job.id], count=lambda t: t.count(" "), memory_bytes=0, now=w.clock
                )
            else:
                w.engine.abandon(job, w.clock)
        for tune in w.tunes.values():
            tune.restart()

    def crash(self) -> None:
        """Memory is lost at whatever point the last tick left it; the disk is what was committed."""
        w = self.world
        sums: dict[AccountId, ledger.Account] = {
            a: ledger.Account(a, account.credit_line) for a, account in w.accounts.items()
        }
        for entry in w.disk_entries.values():
            for p in entry.postings:
                setattr(sums[p.account], p.bucket, getattr(sums[p.account], p.bucket) + p.amount)
        for fake in w.fakes.values():
            if fake.stream and w.network.through(fake.id, w.now):
                fake.stream = 0  # the host that goes down says so; behind a dead link nobody hears it
        if w.clock_steps:
            w.drift_s = w.rng.uniform(-CLOCK_STEP_S, CLOCK_STEP_S)
        self.start(sums)

    def tick(self) -> None:
        w = self.world
        w.pending.append(w.engine.tick(w.clock))
        if w.rng.random() < w.disk_fails and w.faulty:
            return None  # nothing may leave before it is safe
        crash_at = w.rng.choice(["before", "after", "between", "never"]) if self.crashing() else "never"
        if crash_at == "before":
            return self.crash()
        for effects in w.pending:
            for entry in effects.entries:
                must(entry.id not in w.disk_entries, Invariant.CLOSED_ONCE, f"{entry.id} was used twice")
                w.disk_entries[entry.id] = entry
            w.disk_jobs.update(effects.jobs)
            for job in effects.closed:
                if job.kind is Kind.FINETUNE and job.whole and job.state is JobState.SUCCEEDED:
                    tune = w.tunes[job.whole]
                    tune.on_disk[job.id] = tune.results[job.id]
        if crash_at == "after":
            return self.crash()
        sends = [send for effects in w.pending for send in effects.sends]
        if crash_at == "between":
            self.send(sends[: w.rng.randint(0, len(sends))])
            return self.crash()
        self.send(sends)
        for effects in w.pending:
            for job in effects.closed:
                if job.kind is Kind.FINETUNE and job.whole and not w.tunes[job.whole].stopped:
                    heard_at = w.clock + w.rng.uniform(0, 4)  # a crash may come in between
                    w.tunes[job.whole].waiting.append((heard_at, w.tunes[job.whole].ended(job)))
        w.pending = []
        return None

    def send(self, sends: list[Send]) -> None:
        w = self.world
        for send in sends:
            if isinstance(send, SendAssign):
                check_sent(w, w.disk_jobs[send.job])
            if stream := w.open.get(send.worker):
                w.network.send(w.now, COORDINATOR, send.worker, (stream, send))
            elif isinstance(send, SendAssign):
                w.engine.unsent(send.worker, send.job, send.number, w.clock)

    def closed(self, worker: WorkerId) -> None:
        """Its stream ended, as the coordinator sees it."""
        if self.world.open.pop(worker, None):
            self.world.engine.disconnect(worker, self.world.clock)

    def crashing(self) -> bool:
        w = self.world
        return w.faulty and w.rng.random() < w.coordinator_crash

    def feed(self) -> None:
        """What the shell does for each whole: a window of parts, again and again the same ones, then its end."""
        w = self.world
        for whole in list(w.engine.wholes.values()):
            if whole.job.id in w.tunes:
                self.drive(whole.job, w.tunes[whole.job.id])
                continue
            plan, unwanted = w.plans[whole.job.id], whole.job.id in w.unwanted
            ids = [part_id(whole.job.id, number) for number in range(1, len(plan) + 1)]
            if unwanted:
                assert w.engine.cancel(whole.job.id, w.clock, "its member changed their mind")
                continue
            made = [w.part_now(part) for part in ids]
            if all(part is not None and part.ended for part in made):
                if whole.job.state is JobState.QUEUED:
                    w.engine.change_whole(whole.job.id, JobEvent.ASSIGNED, w.clock)
                w.engine.close_whole(whole.job.id, JobEvent.SUCCEEDED, w.clock)
                continue
            new = [number for number, part in enumerate(made, 1) if part is None]
            for number in new[: 2 - len(whole.parts)]:
                self.submit_part(whole.job, number, plan[number - 1])

    def drive(self, whole: Job, tune: FineTune) -> None:
        """What the shell does for each fine-tune: tell its machine what happened, and carry out what it says."""
        w = self.world
        if not tune.begun and whole.id in w.disk_jobs:
            tune.begun = True
            tune.waiting.append((w.clock, Began()))
        elif w.rng.random() < 0.02:
            tune.waiting.append((w.clock, Ticked()))
        if whole.id in w.unwanted:
            tune.stopped = True
            tune.machine.handle(Stopped(), w.clock)
            w.engine.cancel(whole.id, w.clock, "its member changed their mind")
            return
        for action in tune.hear(w.clock):
            self.carry_out(whole, tune, action)

    def carry_out(self, whole: Job, tune: FineTune, action: Action) -> None:
        w = self.world
        match action:
            case OpenTrain() | OpenEvaluate():
                self.submit_trained(whole, tune, action)
            case CancelPart(number, why):
                w.engine.cancel(part_id(whole.id, number), w.clock, why)
            case Aggregate():
                tune.aggregate(action, w.clock + w.rng.uniform(0, 5))
            case Finish():
                tune.verdict = action
                w.engine.change_whole(whole.id, JobEvent.ASSIGNED, w.clock)
                w.engine.close_whole(whole.id, JobEvent.SUCCEEDED, w.clock)
            case Fail(code=code, why=why):
                tune.verdict = action
                w.engine.end_whole(whole.id, JobEvent.GAVE_UP, w.clock, why=why, code=code)

    def submit_trained(self, whole: Job, tune: FineTune, order: OpenTrain | OpenEvaluate) -> None:
        w = self.world
        demand = tune.demand(order)
        worst = quote(demand, TARIFF)
        part = replace(
            w.engine.wholes[whole.id].job,
            id=part_id(whole.id, order.part),
            whole=whole.id,
            part=order.part,
            created_at=w.clock,
            quote=worst,
            hold=worst,
            state=JobState.QUEUED,
            settled=0,
            settlements=0,
        )
        must(part.id not in w.disk_jobs, Invariant.FENCE, "part numbers never repeat")
        tune.orders[part.id] = order
        try:
            self.submit_one(part, demand)
        except NoRoom as error:
            raise BrokenError(
                Invariant.PROMISES, "a fine-tune's quote is enough for whatever happens to it"
            ) from error
        except Impossible as reason:
            gone = PartFailed(part=order.part, code="no_worker_could_serve", why=str(reason))
            tune.waiting.append((w.clock, gone))

    def submit_part(self, whole: Job, number: int, demand: Demand) -> None:
        w = self.world
        part = replace(
            whole,
            id=part_id(whole.id, number),
            kind=Kind.CHAT,
            whole=whole.id,
            part=number,
            created_at=w.clock,
            quote=quote(demand, TARIFF),
            hold=quote(demand, TARIFF),
            prompt_tokens=demand.prompt_tokens,
            max_tokens=demand.max_tokens,
            state=JobState.QUEUED,
            settled=0,
            settlements=0,
        )
        try:
            self.submit_one(part, demand)
        except NoRoom as error:
            raise BrokenError(Invariant.PROMISES, "a quote is enough for each of its parts") from error
        except Impossible:
            w.unwanted.add(whole.id)

    def lets_in(self, job: Job) -> bool:
        """Whether an interactive job need not come back later; half of those that should come in all the same."""
        w = self.world
        if (crowded := w.engine.crowded(job, w.clock)) is None:
            return True
        check_crowded(w, job, crowded)
        return w.engine.line.served % 2 == 0

    def submit_one(self, job: Job, demand: Demand) -> None:
        w = self.world
        w.demands[job.id] = demand
        w.engine.submit(job, demand, count=lambda t: t.count(" "), memory_bytes=0, now=w.clock)

    def report(self, worker: WorkerId, stream: int, message: Any) -> None:
        w = self.world
        engine, now = w.engine, w.clock
        if w.open.get(worker) != stream:
            return
        match message:
            case ("beat", attempts):
                engine.heartbeat(
                    worker, served=(), attempts=attempts, draining=False, state="sharing", why="", now=now
                )
            case ("accepted", (job, number)):
                engine.accepted(worker, job, number, now)
            case ("refused", (job, number)):
                engine.refused(worker, job, number, "none", "busy", "no free slot", now)
            case ("frame", (job, number), sequence, piece):
                for taken in engine.frame(worker, job, number, sequence, [piece], None, now):
                    w.client[job] += taken.text
            case ("steps", (job, number), sequence):
                engine.steps(worker, job, number, sequence, now)
            case ("trained", (job, number), done, said):
                self.take_trained(worker, (job, number), done, said)
            case ("done", (job, number)):
                assert not engine.completed(worker, job, number, vectors=1, now=now), "text has no vectors"

    def take_trained(self, worker: WorkerId, fence: Fence, done: PartDone | None, said: Training) -> None:
        """The shell looks at what was made before the core is told; what a liar claims is not there."""
        w = self.world
        job, number = fence
        if not w.engine.holds(worker, job, number):
            return
        live = w.engine.lives[job]
        if live.job.whole not in w.tunes:
            w.engine.trained(worker, job, number, said, w.clock)
            assert not w.engine.holds(worker, job, number), "nothing else is trained"
        elif done is None:
            w.engine.misbehaved(worker, job, number, "what it made is not there", w.clock)
        else:
            tune = w.tunes[live.job.whole]
            tune.results[job] = done
            assert w.engine.trained(worker, job, number, tune.believed(job, done, said), w.clock)
