"""Workers that crash, hang, refuse and lie; the honest ones produce the one right text."""

from typing import Any

from coordinator.core.fleet import Fence, Served
from coordinator.core.jobs import Kind, next_number
from coordinator.core.messages import Send, SendAck, SendAssign, SendCancel
from coordinator.core.output import Piece
from coordinator.core.pricing import Training
from simulation.coordinator import Coordinator
from simulation.invariants import word
from simulation.network import COORDINATOR
from simulation.world import MODEL, FakeWorker, Work, World

NOTICED = 0.03  # in each step: that a stream behind a dead link is over


class Workers:
    def __init__(self, world: World, coordinator: Coordinator) -> None:
        self.world, self.coordinator = world, coordinator

    def step(self, fake: FakeWorker) -> None:
        w = self.world
        faulty, now, rng = w.faulty, w.now, w.rng
        if faulty and rng.random() < w.dead:
            self.cut_off(fake)
        if now < fake.down_until or now < fake.paused_until:
            return None
        if faulty and rng.random() < w.crash:
            fake.work.clear()
            fake.down_until = now + rng.uniform(0.1, 12)
            return self.disconnect(fake)
        if faulty and rng.random() < w.stop:
            fake.paused_until = now + rng.uniform(0.1, 12)
            return None
        if faulty and fake.stream and rng.random() < w.cut:
            return self.disconnect(fake)
        self.look_at_streams(fake)
        if not fake.stream and now >= fake.retry_at and w.network.through(fake.id, now) and not w.frozen:
            self.connect(fake)
        for work in list(fake.work.values()):
            self.produce(fake, work)
        if fake.stream:
            self.up(fake, ("beat", tuple(fake.work)))
            if fake.liar and faulty and rng.random() < 0.2:
                self.lie(fake)
        return None

    def cut_off(self, fake: FakeWorker) -> None:
        """A partition: one direction of its link, or both, is dead for a while."""
        w = self.world
        links = [(fake.id, COORDINATOR), (COORDINATOR, fake.id)]
        w.network.cut(w.rng.choice([links, links[:1], links[1:]]), w.now + w.rng.uniform(0.5, 20))

    def look_at_streams(self, fake: FakeWorker) -> None:
        """Behind a dead link each side notices by itself that a stream is over, or never. Else both are told, the
        coordinator perhaps after a newer stream was opened."""
        w = self.world
        if not w.network.through(fake.id, w.now):
            if fake.stream and w.rng.random() < NOTICED:
                fake.stream = 0
            if not w.frozen and w.rng.random() < NOTICED:
                self.coordinator.closed(fake.id)
        elif fake.stream and fake.stream != w.open.get(fake.id):
            fake.stream = 0
        elif not fake.stream and not w.frozen and w.rng.random() < 0.5:
            self.coordinator.closed(fake.id)

    def disconnect(self, fake: FakeWorker) -> None:
        """It closes its stream; the coordinator hears of that unless the link is dead."""
        w = self.world
        fake.stream = 0
        fake.retry_at = w.now + w.rng.uniform(0, 3)
        if w.network.through(fake.id, w.now) and not w.frozen:
            self.coordinator.closed(fake.id)

    def connect(self, fake: FakeWorker) -> None:
        """A newer stream takes over from one that the coordinator may still have open."""
        w = self.world
        w.streams += 1
        fake.stream = w.open[fake.id] = w.streams
        kinds = frozenset({Kind.CHAT, Kind.FINETUNE})
        served = [Served(MODEL, "emulator", kinds, slots=fake.slots, numerics=fake.id[-1])]
        resumed = dict(
            w.engine.connect(
                fake.id, served, slots=fake.slots, memory_bytes=0, running=tuple(fake.work), now=w.clock
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
        w = self.world
        w.network.send(w.now, fake.id, COORDINATOR, (fake.stream, message))

    def train(self, fake: FakeWorker, work: Work) -> None:
        """One more step of a training, and after the last what it came to: a liar says more than it was."""
        w = self.world
        part, rng = work.job.id, w.rng
        assert work.job.whole is not None
        tune = w.tunes[work.job.whole]
        if not work.steps:
            whole = tune.steps(part)
            work.steps = whole if rng.random() < 0.7 else rng.randint(1, whole)
        if work.index > work.steps or rng.random() < 0.6:
            return
        what: Any = None
        if work.index == work.steps:
            done, said = tune.train(part, work.number, work.steps)
            w.tuned[part, work.number, fake.id] = said.tokens
            if fake.liar:
                said = Training("dpo", 10**9, said.tokens * 9, said.square_tokens * 9)
            what = done, said
        work.index += 1
        work.sequence += 1
        work.unacknowledged.append((work.sequence, what))
        if fake.stream:
            self.up(fake, self.said((part, work.number), work.sequence, what))

    def produce(self, fake: FakeWorker, work: Work) -> None:
        w = self.world
        if work.job.kind is Kind.FINETUNE:
            self.train(fake, work)
            return
        if work.index >= work.job.max_tokens:
            return
        tokens = min(w.rng.randint(0, 4), work.job.max_tokens - work.index)
        if not tokens:
            return
        words = [word(work.job.id, i) for i in range(work.index, work.index + tokens)]
        offset = sum(len(word(work.job.id, i)) for i in range(work.index))
        work.index += tokens
        work.sequence += 1
        end = "length" if work.index == work.job.max_tokens else ""
        ids = tuple(range(tokens)) if fake.id[-1] in "024" else ()
        piece = Piece(0, offset, "".join(words), ids, end)
        w.truth[work.job.id, work.number, fake.id] += tokens
        work.unacknowledged.append((work.sequence, piece))
        if fake.stream:
            self.up(fake, ("frame", (work.job.id, work.number), work.sequence, piece))

    def lie(self, fake: FakeWorker) -> None:
        """Claim other workers' attempts, skip sequences, repeat text, say done too early; or go on with another text."""
        w = self.world
        if fake.work and w.rng.random() < 0.3:
            work = w.rng.choice(list(fake.work.values()))
            fence, wrong = (work.job.id, work.number), Piece(0, 10_000, "lie ", (1,), "")
            self.up(fake, ("frame", fence, work.sequence + 1, wrong))
            return
        if not w.engine.lives:
            return
        live = w.rng.choice(list(w.engine.lives.values()))
        number = w.rng.randint(0, next_number(live.job))
        piece = Piece(w.rng.randint(-1, 1), w.rng.randint(0, 50), "lie ", (1,), "stop")
        fence = (live.job.id, number)
        attempt = live.job.attempt
        mine = attempt is not None and (attempt.worker, attempt.number) == (fake.id, number)
        if mine or number == next_number(live.job):  # which may be its own when this arrives
            piece = piece._replace(offset=10_000)  # a lie that can be told from the truth
        much = Training("sft", 1, 10**9, 10**12)
        lies = [
            ("frame", fence, w.rng.randint(0, 9), piece),
            ("done", fence),
            ("steps", fence, w.rng.randint(0, 9)),
            ("trained", fence, None, much),
        ]
        self.up(fake, w.rng.choice(lies))

    def receive(self, fake: FakeWorker, stream: int, send: Send) -> None:
        w = self.world
        if w.now < fake.down_until or fake.stream != stream:
            return None
        match send:
            case SendAssign(_, job_id, number, _):
                live = w.engine.lives.get(job_id)
                job = live.job if live else w.disk_jobs[job_id]
                newest = live is not None and number == next_number(job) - 1
                tokens = live.output.choices[0].tokens if live is not None and newest else 0
                if w.faulty and w.rng.random() < w.refusals:
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
