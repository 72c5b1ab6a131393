"""Workers that crash, hang, refuse and lie; the honest ones produce the one right text."""

from typing import Any

from coordinator.core.fleet import Fence, Served
from coordinator.core.jobs import Kind, next_number
from coordinator.core.messages import SendAck, SendAssign, SendCancel
from coordinator.core.output import Piece
from coordinator.core.pricing import Training
from simulation.invariants import word
from simulation.world import MODEL, FakeWorker, Work, World


class Workers:
    def __init__(self, world: World) -> None:
        self.world = world

    def step(self, fake: FakeWorker) -> None:
        w = self.world
        faulty, now, rng = w.faulty, w.now, w.rng
        if now < fake.down_until or now < fake.paused_until:
            return None
        if faulty and rng.random() < w.crash:
            fake.work.clear()
            fake.down_until = now + rng.uniform(0.1, 12)
            return self.disconnect(fake)
        if faulty and rng.random() < w.stop:
            fake.paused_until = now + rng.uniform(0.1, 12)
            return None
        if faulty and fake.connected and rng.random() < w.cut:
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
        w = self.world
        if fake.connected:
            fake.connected = False
            w.network.cut(fake.id)
            w.engine.disconnect(fake.id, w.now)

    def connect(self, fake: FakeWorker) -> None:
        w = self.world
        fake.connected = True
        kinds = frozenset({Kind.CHAT, Kind.FINETUNE})
        served = [Served(MODEL, "emulator", kinds, slots=fake.slots, numerics=fake.id[-1])]
        resumed = dict(
            w.engine.connect(
                fake.id, served, slots=fake.slots, memory_bytes=0, running=tuple(fake.work), now=w.now
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
        w.network.send(w.now, fake.id, "c", message)

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
            done, said = tune.train(part, work.steps)
            w.tuned[part, work.number, fake.id] = said.tokens
            if fake.liar:
                said = Training("dpo", 10**9, said.tokens * 9, said.square_tokens * 9)
            what = done, said
        work.index += 1
        work.sequence += 1
        work.unacknowledged.append((work.sequence, what))
        if fake.connected:
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
        if fake.connected:
            self.up(fake, ("frame", (work.job.id, work.number), work.sequence, piece))

    def lie(self, fake: FakeWorker) -> None:
        """Claim other workers' attempts, skip sequences, repeat text, say done too early."""
        w = self.world
        if not w.engine.lives:
            return
        live = w.rng.choice(list(w.engine.lives.values()))
        number = w.rng.randint(0, next_number(live.job))
        piece = Piece(w.rng.randint(-1, 1), w.rng.randint(0, 50), "lie ", (1,), "stop")
        fence = (live.job.id, number)
        mine = live.job.attempt is not None and live.job.attempt.worker == fake.id
        if mine and number == live.job.attempt.number:  # type: ignore[union-attr]  # `mine` says it is there
            piece = piece._replace(offset=10_000)  # a lie that can be told from the truth
        much = Training("sft", 1, 10**9, 10**12)
        lies = [
            ("frame", fence, w.rng.randint(0, 9), piece),
            ("done", fence),
            ("steps", fence, w.rng.randint(0, 9)),
            ("trained", fence, None, much),
        ]
        self.up(fake, w.rng.choice(lies))

    def receive(self, fake: FakeWorker, message: Any) -> None:
        w = self.world
        life, send = message
        if w.now < fake.down_until or not fake.connected or life != w.life:
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
