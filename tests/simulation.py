"""A whole pool in one thread under one seed: coordinator core, workers, a bad network, crashes, a clock.

`Simulation(seed).run()` draws everything from the seed and replays exactly. Faults happen until `HEAL_S`;
from then on the network is good and everything must come to an end (liveness). Safety is checked after every
step, with knowledge that the pool itself does not have: `truth`, what the workers really produced, and
`expected`, the one right text of every job.
"""

import heapq
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from simulation_tuning import FineTune, drawn

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
from coordinator.core.fleet import Fence, Fleet, Served, Worker
from coordinator.core.jobs import (
    ATTEMPT_ENDED,
    REFUSALS_KEPT,
    AccountId,
    AttemptState,
    Job,
    JobEvent,
    JobId,
    JobState,
    Kind,
    MemberId,
    WorkerId,
    next_number,
    part_id,
)
from coordinator.core.messages import Effects, SendAck, SendAssign, SendCancel
from coordinator.core.offers import Offers
from coordinator.core.output import Piece
from coordinator.core.pricing import (
    Demand,
    Segment,
    Shape,
    Tariff,
    Training,
    charge_units,
    microcredits,
    quote,
)
from coordinator.core.rules import Rules
from coordinator.core.wholes import NoRoom

STEP_S = 0.25
HEAL_S = 60.0
END_S = 260.0
PATIENT_END_S = 1_000.0  # where a fine-tune waits after failures before it gives up
TARIFF = Tariff()
SHAPE = Shape(active_parameters=134_000_000, head_parameters=28_000_000, attention=69_120)
MODEL = "tiny"


def word(job: str, index: int) -> str:
    """The one right token of a job at an index; lengths differ so that a wrong offset shows."""
    return f"{job[-2:]}{'é' * (index % 3)}{index} "


@dataclass
class Network:
    """Loses, doubles and delays; keeps the order of a link only if it is told to."""

    rng: random.Random
    loss: float
    duplicate: float
    delay_s: float
    ordered: bool
    queue: list[tuple[float, int, str, str, Any]] = field(default_factory=list)
    count: int = 0
    last: dict[tuple[str, str], float] = field(default_factory=dict)

    def send(self, now: float, sender: str, to: str, message: Any) -> None:
        for _ in range(2 if self.rng.random() < self.duplicate else 1):
            if self.rng.random() < self.loss:
                continue
            due = now + self.rng.uniform(0, self.delay_s)
            if self.ordered:
                due = max(due, self.last.get((sender, to), 0.0))
                self.last[sender, to] = due
            self.count += 1
            heapq.heappush(self.queue, (due, self.count, sender, to, message))

    def due(self, now: float) -> Iterator[tuple[str, str, Any]]:
        while self.queue and self.queue[0][0] <= now:
            _, _, sender, to, message = heapq.heappop(self.queue)
            yield sender, to, message

    def cut(self, worker: str) -> None:
        """A stream broke: what was on it is gone."""
        self.queue = [m for m in self.queue if worker not in (m[2], m[3])]
        heapq.heapify(self.queue)


@dataclass
class Work:
    job: Job
    number: int
    index: int  # the next token, or step
    sequence: int = 0
    unacknowledged: list[tuple[int, Any]] = field(default_factory=list)  # pieces, or what of a training
    steps: int = 0  # of a training, after which this worker ends it


@dataclass
class FakeWorker:
    id: WorkerId
    rng: random.Random
    slots: int
    liar: bool
    work: dict[Fence, Work] = field(default_factory=dict)
    refused: set[Fence] = field(default_factory=set)
    up: bool = True
    connected: bool = False
    paused_until: float = 0.0  # SIGSTOP
    down_until: float = 0.0
    retry_at: float = 0.0


class Simulation:
    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.now = 1_000.0
        ordered = rng.random() < 0.5
        self.network = Network(
            rng,
            loss=0.0 if ordered else rng.uniform(0, 0.3),
            duplicate=0.0 if ordered else rng.uniform(0, 0.3),
            delay_s=rng.uniform(0, 2.0),
            ordered=ordered,
        )
        self.crash, self.cut, self.stop = (rng.uniform(0, m) for m in (0.02, 0.04, 0.02))
        self.coordinator_crash = rng.choice([0.0, 0.01, 0.05])
        self.refusals = rng.choice([0.0, 0.1, 0.9])
        self.disk_fails = rng.choice([0.0, 0.05])
        # Lost and failed attempts end nothing here; refusals must not by themselves, however many.
        self.rules = Rules(tariff=TARIFF, attempts_max=1_000, wait_s=30.0)
        self.accounts = {
            AccountId(f"acc_{n}"): ledger.Account(AccountId(f"acc_{n}"), 400_000_000) for n in "abc"
        }
        self.accounts[ledger.COMMONS] = ledger.Account(ledger.COMMONS)
        self.fakes = {
            WorkerId(f"w{i}"): FakeWorker(WorkerId(f"w{i}"), rng, rng.randint(1, 3), rng.random() < 0.15)
            for i in range(rng.randint(1, 6))
        }
        self.disk_jobs: dict[JobId, Job] = {}
        self.disk_entries: dict[str, ledger.Entry] = {}
        self.pending: list[Effects] = []
        self.demands: dict[JobId, Demand] = {}
        self.plans: dict[JobId, list[Demand]] = {}  # of batches: what each part asks for
        self.tunes: dict[JobId, FineTune] = {}
        self.tuned: dict[
            tuple[JobId, int, WorkerId], int
        ] = {}  # tokens of trainings that really came to an end
        self.unwanted: set[JobId] = set()  # wholes whose member changed their mind
        self.client: dict[JobId, str] = defaultdict(str)
        self.truth: dict[tuple[JobId, int, WorkerId], int] = defaultdict(int)
        self.lifetimes: dict[JobId, int] = {}
        self.life = 0
        self.start({a: replace(account) for a, account in self.accounts.items()})

    # -- the coordinator's shell -------------------------------------------------------------------

    def start(self, accounts: dict[AccountId, ledger.Account]) -> None:
        fleet = Fleet()
        for i, worker_id in enumerate(self.fakes):
            owner = "abc"[i % 3]
            fleet.enrol(Worker(worker_id, worker_id, MemberId(owner), AccountId(f"acc_{owner}")))
        book = ledger.Book(accounts, {k: e for k, e in self.disk_entries.items() if e.job is not None})
        self.engine = Engine(self.rules, book, fleet)
        self.pending = []
        self.life += 1
        for job in list(self.disk_jobs.values()):
            if job.ended:
                continue
            if job.id in self.plans or job.id in self.tunes:
                self.engine.restore_whole(job)
            elif job.kind is Kind.FINETUNE:
                self.engine.abandon(job, self.now)
            elif job.stored:
                self.client[job.id] = ""  # a stored job begins anew: what was not stored is gone
                self.engine.restore(
                    job, self.demands[job.id], count=lambda t: t.count(" "), memory_bytes=0, now=self.now
                )
            else:
                self.engine.abandon(job, self.now)
        for tune in self.tunes.values():
            tune.restart()

    def crash_coordinator(self) -> None:
        """Memory is lost at whatever point the last tick left it; the disk is what was committed."""
        sums: dict[AccountId, ledger.Account] = {
            a: ledger.Account(a, account.credit_line) for a, account in self.accounts.items()
        }
        for entry in self.disk_entries.values():
            for p in entry.postings:
                setattr(sums[p.account], p.bucket, getattr(sums[p.account], p.bucket) + p.amount)
        for fake in self.fakes.values():
            fake.connected = False
            self.network.cut(fake.id)
        self.start(sums)

    def tick(self) -> None:
        self.pending.append(self.engine.tick(self.now))
        if self.rng.random() < self.disk_fails and self.now < 1_000 + HEAL_S:
            return None  # nothing may leave before it is safe
        crash_at = self.rng.choice(["before", "after", "never", "never"]) if self.crashing() else "never"
        if crash_at == "before":
            return self.crash_coordinator()
        for effects in self.pending:
            for entry in effects.entries:
                assert entry.id not in self.disk_entries, "an id was used twice"
                self.disk_entries[entry.id] = entry
            self.disk_jobs.update(effects.jobs)
            for job in effects.closed:
                if job.kind is Kind.FINETUNE and job.whole and job.state is JobState.SUCCEEDED:
                    tune = self.tunes[job.whole]
                    tune.on_disk[job.id] = tune.results[job.id]
        if crash_at == "after":
            return self.crash_coordinator()
        for effects in self.pending:
            for send in effects.sends:
                if self.fakes[send.worker].connected:
                    self.network.send(self.now, "c", send.worker, (self.life, send))
                elif isinstance(send, SendAssign):
                    self.engine.unsent(send.worker, send.job, send.number, self.now)
            for job in effects.closed:
                if job.kind is Kind.FINETUNE and job.whole and not self.tunes[job.whole].stopped:
                    heard_at = self.now + self.rng.uniform(0, 4)  # a crash may come in between
                    self.tunes[job.whole].waiting.append((heard_at, self.tunes[job.whole].ended(job)))
        self.pending = []
        return None

    def crashing(self) -> bool:
        return self.now < 1_000 + HEAL_S and self.rng.random() < self.coordinator_crash

    # -- members -----------------------------------------------------------------------------------

    def submit(self, index: int) -> None:
        name = self.rng.choice("abc")
        if self.rng.random() < 0.12:
            return self.submit_tune(index, name)
        parts = self.rng.choice([0, 0, 0, self.rng.randint(1, 6)])
        demands = [self.demand() for _ in range(parts or 1)]
        worst = sum(quote(demand, TARIFF) for demand in demands)
        job = Job(
            id=JobId(f"job_{index:02}"),
            kind=Kind.BATCH if parts else Kind.CHAT,
            model=MODEL,
            member=MemberId(name),
            account=AccountId(f"acc_{name}"),
            created_at=self.now,
            quote=worst,
            hold=worst,
            prompt_tokens=sum(demand.prompt_tokens for demand in demands),
            max_tokens=max(demand.max_tokens for demand in demands),
            stored=bool(parts) or self.rng.random() < 0.4,
        )
        try:
            if parts:
                self.engine.open_whole(job)
                self.plans[job.id] = demands
            else:
                self.submit_one(job, demands[0])
        except (ledger.Overdrawn, Impossible):
            return None
        self.lifetimes[job.id] = self.life
        return None

    def submit_tune(self, index: int, name: str) -> None:
        whole = JobId(f"job_{index:02}")
        tune = drawn(self.rng, whole, SHAPE)
        worst = tune.worst(self.rules)
        job = Job(
            id=whole,
            kind=Kind.FINETUNE,
            model=MODEL,
            member=MemberId(name),
            account=AccountId(f"acc_{name}"),
            created_at=self.now,
            quote=worst,
            hold=worst,
            prompt_tokens=0,
            max_tokens=0,
            stored=True,
        )
        try:
            self.engine.open_whole(job)
        except ledger.Overdrawn:
            return
        self.tunes[whole] = tune
        self.lifetimes[whole] = self.life

    def demand(self) -> Demand:
        return Demand(Kind.CHAT, SHAPE, (self.rng.randint(1, 200),), self.rng.randint(1, 40), 1)

    def submit_one(self, job: Job, demand: Demand) -> None:
        self.demands[job.id] = demand
        self.engine.submit(job, demand, count=lambda t: t.count(" "), memory_bytes=0, now=self.now)

    def feed(self) -> None:
        """What the shell does for each whole: a window of parts, again and again the same ones, then its end."""
        for whole in list(self.engine.wholes.values()):
            if whole.job.id in self.tunes:
                self.drive(whole.job, self.tunes[whole.job.id])
                continue
            plan, unwanted = self.plans[whole.job.id], whole.job.id in self.unwanted
            ids = [part_id(whole.job.id, number) for number in range(1, len(plan) + 1)]
            if unwanted:
                assert self.engine.cancel(whole.job.id, self.now, "its member changed their mind")
                continue
            made = [self.part_now(part) for part in ids]
            if all(part is not None and part.ended for part in made):
                if whole.job.state is JobState.QUEUED:
                    self.engine.change_whole(whole.job.id, JobEvent.ASSIGNED, self.now)
                self.engine.close_whole(whole.job.id, JobEvent.SUCCEEDED, self.now)
                continue
            new = [number for number, part in enumerate(made, 1) if part is None]
            for number in new[: 2 - len(whole.parts)]:
                self.submit_part(whole.job, number, plan[number - 1])

    def drive(self, whole: Job, tune: FineTune) -> None:
        """What the shell does for each fine-tune: tell its machine what happened, and carry out what it says."""
        if not tune.begun and whole.id in self.disk_jobs:
            tune.begun = True
            tune.waiting.append((self.now, Began()))
        elif self.rng.random() < 0.02:
            tune.waiting.append((self.now, Ticked()))
        if whole.id in self.unwanted:
            tune.stopped = True
            tune.machine.handle(Stopped(), self.now)
            self.engine.cancel(whole.id, self.now, "its member changed their mind")
            return
        for action in tune.hear(self.now):
            self.carry_out(whole, tune, action)

    def carry_out(self, whole: Job, tune: FineTune, action: Action) -> None:
        match action:
            case OpenTrain() | OpenEvaluate():
                self.submit_trained(whole, tune, action)
            case CancelPart(number, why):
                self.engine.cancel(part_id(whole.id, number), self.now, why)
            case Aggregate():
                tune.aggregate(action, self.now + self.rng.uniform(0, 5))
            case Finish():
                tune.verdict = action
                self.engine.change_whole(whole.id, JobEvent.ASSIGNED, self.now)
                self.engine.close_whole(whole.id, JobEvent.SUCCEEDED, self.now)
            case Fail(code=code, why=why):
                tune.verdict = action
                self.engine.end_whole(whole.id, JobEvent.GAVE_UP, self.now, why=why, code=code)

    def submit_trained(self, whole: Job, tune: FineTune, order: OpenTrain | OpenEvaluate) -> None:
        demand = tune.demand(order)
        worst = quote(demand, TARIFF)
        part = replace(
            self.engine.wholes[whole.id].job,
            id=part_id(whole.id, order.part),
            whole=whole.id,
            part=order.part,
            created_at=self.now,
            quote=worst,
            hold=worst,
            state=JobState.QUEUED,
            settled=0,
            settlements=0,
        )
        assert part.id not in self.disk_jobs, "part numbers never repeat"
        tune.orders[part.id] = order
        try:
            self.submit_one(part, demand)
        except NoRoom as error:
            raise AssertionError("the quote of a fine-tune is enough for whatever happens to it") from error
        except Impossible as reason:
            gone = PartFailed(part=order.part, code="no_worker_could_serve", why=str(reason))
            tune.waiting.append((self.now, gone))

    def part_now(self, part: JobId) -> Job | None:
        live = self.engine.lives.get(part)
        return live.job if live else self.engine.recent.get(part) or self.disk_jobs.get(part)

    def submit_part(self, whole: Job, number: int, demand: Demand) -> None:
        part = replace(
            whole,
            id=part_id(whole.id, number),
            kind=Kind.CHAT,
            whole=whole.id,
            part=number,
            created_at=self.now,
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
            raise AssertionError("the quote of a whole is enough for each of its parts") from error
        except Impossible:
            self.unwanted.add(whole.id)

    # -- workers -----------------------------------------------------------------------------------

    def step_worker(self, fake: FakeWorker) -> None:
        faulty, now, rng = self.now < 1_000 + HEAL_S, self.now, self.rng
        if now < fake.down_until or now < fake.paused_until:
            return None
        if faulty and rng.random() < self.crash:
            fake.work.clear()
            fake.down_until = now + rng.uniform(0.1, 12)
            return self.disconnect(fake)
        if faulty and rng.random() < self.stop:
            fake.paused_until = now + rng.uniform(0.1, 12)
            return None
        if faulty and fake.connected and rng.random() < self.cut:
            fake.retry_at = now + rng.uniform(0, 3)
            return self.disconnect(fake)
        if not fake.connected and now >= fake.retry_at:
            self.connect(fake)
        for work in list(fake.work.values()):
            self.produce(fake, work)
        if fake.connected:
            self.up(fake, ("beat", tuple(fake.work)))
            if fake.liar and faulty and rng.random() < 0.2:
                self.lie(fake)
        return None

    def disconnect(self, fake: FakeWorker) -> None:
        if fake.connected:
            fake.connected = False
            self.network.cut(fake.id)
            self.engine.disconnect(fake.id, self.now)

    def connect(self, fake: FakeWorker) -> None:
        fake.connected = True
        kinds = frozenset({Kind.CHAT, Kind.FINETUNE})
        served = [Served(MODEL, "emulator", kinds, slots=fake.slots, numerics=fake.id[-1])]
        resumed = dict(
            self.engine.connect(
                fake.id, served, slots=fake.slots, memory_bytes=0, running=tuple(fake.work), now=self.now
            )
        )
        for fence in [f for f in fake.work if f not in resumed]:
            del fake.work[fence]
        for fence, acknowledged in resumed.items():
            work = fake.work[fence]
            for sequence, piece in work.unacknowledged:
                if sequence > acknowledged:
                    self.up(fake, self.said(fence, sequence, piece))

    def said(self, fence: Fence, sequence: int, what: Any) -> Any:
        if isinstance(what, Piece):
            return ("frame", fence, sequence, what)
        return ("steps", fence, sequence) if what is None else ("trained", fence, *what)

    def up(self, fake: FakeWorker, message: Any) -> None:
        self.network.send(self.now, fake.id, "c", message)

    def train(self, fake: FakeWorker, work: Work) -> None:
        """One more step of a training, and after the last what it came to: a liar says more than it was."""
        part, rng = work.job.id, self.rng
        assert work.job.whole is not None
        tune = self.tunes[work.job.whole]
        if not work.steps:
            whole = tune.steps(part)
            work.steps = whole if rng.random() < 0.7 else rng.randint(1, whole)
        if work.index > work.steps or rng.random() < 0.6:
            return
        what: Any = None
        if work.index == work.steps:
            done, said = tune.train(part, work.steps)
            self.tuned[part, work.number, fake.id] = said.tokens
            if fake.liar:
                said = Training("dpo", 10**9, said.tokens * 9, said.square_tokens * 9)
            what = done, said
        work.index += 1
        work.sequence += 1
        work.unacknowledged.append((work.sequence, what))
        if fake.connected:
            self.up(fake, self.said((part, work.number), work.sequence, what))

    def produce(self, fake: FakeWorker, work: Work) -> None:
        if work.job.kind is Kind.FINETUNE:
            self.train(fake, work)
            return
        if work.index >= work.job.max_tokens:
            return
        tokens = min(self.rng.randint(0, 4), work.job.max_tokens - work.index)
        if not tokens:
            return
        words = [word(work.job.id, i) for i in range(work.index, work.index + tokens)]
        offset = sum(len(word(work.job.id, i)) for i in range(work.index))
        work.index += tokens
        work.sequence += 1
        end = "length" if work.index == work.job.max_tokens else ""
        ids = tuple(range(tokens)) if fake.id[-1] in "024" else ()
        piece = Piece(0, offset, "".join(words), ids, end)
        self.truth[work.job.id, work.number, fake.id] += tokens
        work.unacknowledged.append((work.sequence, piece))
        if fake.connected:
            self.up(fake, ("frame", (work.job.id, work.number), work.sequence, piece))

    def lie(self, fake: FakeWorker) -> None:
        """Claim other workers' attempts, skip sequences, repeat text, say done too early."""
        if not self.engine.lives:
            return
        live = self.rng.choice(list(self.engine.lives.values()))
        number = self.rng.randint(0, next_number(live.job))
        piece = Piece(self.rng.randint(-1, 1), self.rng.randint(0, 50), "lie ", (1,), "stop")
        fence = (live.job.id, number)
        mine = live.job.attempt is not None and live.job.attempt.worker == fake.id
        if mine and number == live.job.attempt.number:  # type: ignore[union-attr]  # `mine` says it is there
            piece = piece._replace(offset=10_000)  # a lie that can be told from the truth
        much = Training("sft", 1, 10**9, 10**12)
        lies = [
            ("frame", fence, self.rng.randint(0, 9), piece),
            ("done", fence),
            ("steps", fence, self.rng.randint(0, 9)),
            ("trained", fence, None, much),
        ]
        self.up(fake, self.rng.choice(lies))

    # -- delivery ----------------------------------------------------------------------------------

    def deliver(self, sender: str, to: str, message: Any) -> None:
        if to == "c":
            return self.report(WorkerId(sender), message)
        fake = self.fakes[WorkerId(to)]
        life, send = message
        if self.now < max(fake.down_until, 0) or not fake.connected or life != self.life:
            return None
        match send:
            case SendAssign(_, job_id, number, _):
                live = self.engine.lives.get(job_id)
                job = live.job if live else self.disk_jobs[job_id]
                newest = live is not None and number == next_number(job) - 1
                tokens = live.output.choices[0].tokens if live is not None and newest else 0
                if self.now < 1_000 + HEAL_S and self.rng.random() < self.refusals:
                    fake.refused.add((job_id, number))
                if (job_id, number) in fake.refused:
                    return self.up(fake, ("refused", (job_id, number)))
                fake.work.setdefault((job_id, number), Work(job, number, tokens))
                self.up(fake, ("accepted", (job_id, number)))
            case SendCancel(_, job_id, number, _):
                fake.work.pop((job_id, number), None)
            case SendAck(_, job_id, number, sequence):
                if work := fake.work.get((job_id, number)):
                    work.unacknowledged = [u for u in work.unacknowledged if u[0] > sequence]
        return None

    def report(self, worker: WorkerId, message: Any) -> None:
        engine, now = self.engine, self.now
        if not self.fakes[worker].connected:
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
                    self.client[job] += taken.text
            case ("steps", (job, number), sequence):
                engine.steps(worker, job, number, sequence, now)
            case ("trained", (job, number), done, said):
                self.take_trained(worker, (job, number), done, said)
            case ("done", (job, number)):
                assert not engine.completed(worker, job, number, vectors=1, now=now), "text has no vectors"

    def take_trained(self, worker: WorkerId, fence: Fence, done: PartDone | None, said: Training) -> None:
        """The shell looks at what was made before the core is told; what a liar claims is not there."""
        job, number = fence
        if not self.engine.holds(worker, job, number):
            return
        live = self.engine.lives[job]
        if live.job.whole not in self.tunes:
            self.engine.trained(worker, job, number, said, self.now)
            assert not self.engine.holds(worker, job, number), "nothing else is trained"
        elif done is None:
            self.engine.misbehaved(worker, job, number, "what it made is not there", self.now)
        else:
            tune = self.tunes[live.job.whole]
            tune.results[job] = done
            assert self.engine.trained(worker, job, number, tune.believed(job, done, said), self.now)

    # -- what must hold ------------------------------------------------------------------------------

    def check_safety(self) -> None:
        engine, book = self.engine, self.engine.book
        assert book.total() == 0, "credits sum to zero"
        for account in book.accounts.values():
            assert account.main >= -account.credit_line, "nobody falls below the floor"
            mine = [v.job for v in engine.lives.values() if v.job.account == account.id and not v.job.whole]
            wholes = [w.job for w in engine.wholes.values() if w.job.account == account.id]
            open_holds = sum(job.hold - job.settled for job in (*mine, *wholes))
            assert account.reserved == open_holds, "reserved is exactly what open holds hold"
        for whole in engine.wholes.values():
            open_parts = {v.job.id: v.job.hold for v in engine.lives.values() if v.job.whole == whole.job.id}
            assert whole.parts == open_parts, "a promise for each open part"
            assert whole.left >= 0, "what is settled and promised is never more than the hold"
        for job in engine.recent.values():
            self.check_closed(job)
        for live in engine.lives.values():
            numbers = [a.number for a in live.job.attempts]
            assert numbers == sorted(set(numbers)), "a number is given once, and later ones are higher"
            refused = sum(a.state is AttemptState.REFUSED for a in live.job.attempts)
            assert refused <= REFUSALS_KEPT + 1, "what a job keeps of refusals is bounded"
            text = self.client[live.job.id]
            assert self.expected(live.job).startswith(text), (
                "what was delivered is a prefix of the right text"
            )
            assert sum(c.length for c in live.output.choices) == len(text), (
                "the record is what the member saw"
            )
        holding = {
            (v.job.id, v.job.attempt.number): v.job.attempt.worker
            for v in engine.lives.values()
            if v.job.state is JobState.RUNNING and v.job.attempt is not None
        }
        for worker in engine.fleet.workers.values():
            assert worker.running == {f for f, w in holding.items() if w == worker.id}, "one holder each"
            training = sum(self.demands[job].training is not None for job, _ in worker.running)
            assert training <= 1, "no worker trains two things at once"
            assert len(worker.running) - training <= worker.slots, "nor is given more than its slots"
        by_disk = sum(p.amount for e in self.disk_entries.values() for p in e.postings)
        assert by_disk == 0, "the disk sums to zero after every commit"

    def check_kept(self) -> None:
        """What the planner keeps between ticks is what it would find by looking at everything anew."""
        engine = self.engine
        planner, line = engine.planner, engine.line
        planner.catch_up()
        for want, kept in planner.offers.items():
            anew = Offers(*want, engine.fleet, planner.policy)
            anew.look(engine.fleet.by_model[want[1]])
            assert (kept.newest, kept.ready) == (anew.newest, anew.ready), "who has room, and how good it is"
            assert (kept.slots, kept.used) == (anew.slots, anew.used)
        for want, turns in line.turns.items():
            assert turns.groups is line.wants[want]
            for key, group in turns.groups.items():
                head = line.head(group, engine.running)
                if turns.anew or key in turns.changed or head is None:
                    continue
                start = line.clock.lane((want[1], group.class_)).start(group.flow, line.rule)
                assert group.entry in turns.fair[group.class_], "whoever waits has a turn"
                assert group.entry <= (start, head.since, head.id, group.flow), "and no later than is due"

    def check_closed(self, job: Job) -> None:
        assert job.ended
        assert job.charge is not None
        paid = f"{job.whole}/settle/{job.part}" if job.whole else f"{job.id}/close"
        close = self.engine.book.entries.get(paid)
        if job.whole:
            assert f"{job.id}/close" not in self.engine.book.entries, "a part has no hold of its own"
            assert (close is not None) == (job.charge > 0), "a part with a charge is settled once"
        else:
            assert close is not None, "every ended job is closed"
        if job.id in self.plans:
            return self.check_whole(job, len(self.plans[job.id]))
        if job.id in self.tunes:
            return self.check_tune(job)
        assert 0 <= job.charge <= job.hold, "a charge never exceeds its hold"
        assert job.attempt is None or job.attempt.state in ATTEMPT_ENDED
        if job.kind is Kind.FINETUNE:
            return self.check_trained(job)
        for attempt in job.attempts:
            done = self.truth.get((job.id, attempt.number, attempt.worker), 0)
            assert attempt.tokens <= done, "nobody is credited with work that was not done"
            assert not attempt.paid or attempt.tokens, "nobody is paid for nothing"
        if job.state in (JobState.FAILED, JobState.EXPIRED):
            assert job.charge == 0, "a failure of the pool costs the member nothing"
        if job.state is JobState.SUCCEEDED:
            assert self.client[job.id] == self.expected(job), "the answer is whole and right"
            assert job.output_tokens == job.max_tokens
            free = {a.number for a in job.attempts if a.owner == job.account}
            if not free:
                whole = charge_units(
                    self.demands[job.id], TARIFF, [Segment(1, 0, 0, job.max_tokens)], finisher=1
                )
                assert job.charge == microcredits(whole[1]), "charged as if one worker had done it all"
        return None

    def check_trained(self, part: Job) -> None:
        """Who is paid for a part did all of it, and whoever claims more is paid no more."""
        for attempt in part.attempts:
            done = self.tuned.get((part.id, attempt.number, attempt.worker))
            assert not attempt.paid or done is not None, "nobody is paid for a training that did not end"
            assert attempt.tokens <= (done or 0), "nor for tokens that were not trained"
        if part.state is not JobState.SUCCEEDED:
            assert part.charge == part.output_tokens == 0, "what came to no checkpoint costs nothing"

    def check_tune(self, whole: Job) -> None:
        tune = self.tunes[whole.id]
        self.check_whole(whole, max((order.part for order in tune.orders.values()), default=0))
        tune.check()

    def check_whole(self, whole: Job, count: int) -> None:
        parts = [self.part_now(part_id(whole.id, n)) for n in range(1, count + 1)]
        made = [part for part in parts if part is not None]
        assert all(part.ended for part in made), "a whole ends after its parts"
        assert whole.charge == whole.settled == sum(part.charge or 0 for part in made), (
            "and costs what they did"
        )
        if whole.state is JobState.SUCCEEDED and whole.kind is Kind.BATCH:
            assert len(made) == len(parts), "a whole succeeds with all of its parts"

    def expected(self, job: Job) -> str:
        return "".join(word(job.id, i) for i in range(job.max_tokens))

    # -- the run -------------------------------------------------------------------------------------

    def run(self) -> tuple[tuple[str, str, int | None], ...]:
        jobs = self.rng.randint(1, 25)
        submit_at = sorted(1_000 + self.rng.uniform(0, HEAL_S) for _ in range(jobs))
        submitted = 0
        while self.now < 1_000 + (PATIENT_END_S if self.tunes else END_S):
            self.now += STEP_S
            if self.now >= 1_000 + HEAL_S:
                self.network.loss = self.network.duplicate = 0.0
                self.network.delay_s, self.network.ordered = 0.1, True
            while submitted < jobs and submit_at[submitted] <= self.now:
                self.submit(submitted)
                submitted += 1
            if self.rng.random() < 0.01 and self.engine.lives:
                self.engine.cancel(self.rng.choice(list(self.engine.lives)), self.now, "the client went away")
            if self.rng.random() < 0.01 and self.engine.wholes:
                self.unwanted.add(self.rng.choice(list(self.engine.wholes)))
            self.feed()
            for fake in self.fakes.values():
                self.step_worker(fake)
            for sender, to, message in self.network.due(self.now):
                self.deliver(sender, to, message)
            self.tick()
            self.check_safety()
            self.check_kept()
            if (
                submitted == jobs
                and not (self.engine.lives or self.engine.wholes)
                and self.now > 1_000 + HEAL_S
            ):
                break
        self.check_liveness()
        return tuple(sorted((j.id, j.state.value, j.charge) for j in self.disk_jobs.values()))

    def check_liveness(self) -> None:
        self.tick()
        assert not self.engine.lives, "once faults stop, every job ends"
        assert not self.engine.wholes, "and every whole"
        assert all(job.ended for job in self.disk_jobs.values())
        assert all(a.reserved == 0 for a in self.engine.book.accounts.values()), "no hold is left"
        for job in self.disk_jobs.values():
            if not job.whole:
                assert f"{job.id}/close" in self.disk_entries, "each accepted job was closed on disk"
            elif job.charge:
                assert f"{job.whole}/settle/{job.part}" in self.disk_entries, "each part was paid on disk"
