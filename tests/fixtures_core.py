"""A small pool around the core's engine, with a clock that a test turns by hand."""

from dataclasses import dataclass, field, replace
from typing import Any

from coordinator.core import ledger
from coordinator.core.engine import Engine
from coordinator.core.fleet import Fleet, Patience, Served, Worker
from coordinator.core.jobs import AccountId, Attempt, Job, JobId, Kind, MemberId, WorkerId
from coordinator.core.live import Live
from coordinator.core.messages import Effects, SendAck, SendAssign, SendCancel
from coordinator.core.output import Piece
from coordinator.core.pricing import Demand, Shape, quote
from coordinator.core.rules import Rules

MODEL = "tiny"
SHAPE = Shape(active_parameters=10_000_000, head_parameters=2_000_000, attention=1_000)
ALL_KINDS = frozenset(Kind)
RICH = 10_000_000
START = 1_000.0


def account(member: str) -> AccountId:
    return AccountId(f"acc_{member}")


def words(text: str) -> int:
    """The token count of these tests: one token ends with each space."""
    return text.count(" ")


def served(name: str = MODEL, **fields: Any) -> Served:
    return Served(name, **{"engine": "emulator", "kinds": ALL_KINDS, **fields})


def demand(
    kind: Kind = Kind.CHAT, prompts: tuple[int, ...] = (100,), tokens: int = 5, choices: int = 1
) -> Demand:
    return Demand(kind, SHAPE, prompts, 0 if kind is Kind.EMBEDDING else tokens, choices)


def job_of(wanted: Demand, name: str = "job_1", member: str = "a", **fields: Any) -> Job:
    worst = quote(wanted, Rules().tariff)
    standard: dict[str, Any] = {
        "id": JobId(name),
        "kind": wanted.kind,
        "model": MODEL,
        "member": MemberId(member),
        "account": account(member),
        "created_at": START,
        "quote": worst,
        "hold": worst,
        "prompt_tokens": wanted.prompt_tokens,
        "max_tokens": wanted.max_tokens,
        "choices": wanted.choices,
    }
    return Job(**{**standard, **fields})


@dataclass
class Pool:
    """Members a to e, each with an account; workers join as `join("w1", "b")`: worker w1 of member b."""

    rules: Rules = field(default_factory=Rules)
    patience: Patience = field(default_factory=Patience)
    now: float = START

    def __post_init__(self) -> None:
        accounts = {account(m): ledger.Account(account(m), RICH) for m in "abcde"}
        accounts[ledger.COMMONS] = ledger.Account(ledger.COMMONS)
        self.engine = Engine(self.rules, ledger.Book(accounts), Fleet(self.patience))

    def enrol(self, name: str, owner: str) -> Worker:
        worker = Worker(WorkerId(name), name, MemberId(owner), account(owner))
        self.engine.fleet.enrol(worker)
        return self.engine.fleet.workers[worker.id]

    def join(
        self, name: str, owner: str = "b", *models: Served, slots: int = 1, memory_bytes: int = 0
    ) -> Worker:
        """Enrol and connect; serves the one model of these tests unless told otherwise."""
        worker = self.enrol(name, owner)
        self.connect(name, *models, slots=slots, memory_bytes=memory_bytes)
        return worker

    def connect(
        self, name: str, *models: Served, slots: int = 1, memory_bytes: int = 0, running: Any = ()
    ) -> list[tuple[tuple[JobId, int], int]]:
        return self.engine.connect(
            WorkerId(name),
            models or (served(slots=slots),),
            slots=slots,
            memory_bytes=memory_bytes,
            running=tuple(running),
            now=self.now,
        )

    def ask(self, name: str = "job_1", member: str = "a", wanted: Demand | None = None, **fields: Any) -> Job:
        wanted = wanted or demand()
        memory_bytes = fields.pop("memory_bytes", 0)
        job = job_of(wanted, name, member, created_at=self.now, **fields)
        self.engine.submit(job, wanted, count=words, memory_bytes=memory_bytes, now=self.now)
        return job

    def tick(self, after_s: float = 0.0) -> Effects:
        self.now += after_s
        return self.engine.tick(self.now)

    def beat(self, name: str, *attempts: tuple[str, int], **fields: Any) -> None:
        said = {"served": (), "draining": False, "state": "sharing", "why": "", **fields}
        fences = [(JobId(job), number) for job, number in attempts]
        self.engine.heartbeat(WorkerId(name), attempts=fences, now=self.now, **said)

    def spend(self, seconds: float, *beating: str, step_s: float = 0.25) -> Effects:
        """Let time pass in ticks; the named workers beat with all that they run. All effects together."""
        merged = Effects()
        until = self.now + seconds
        while self.now < until:
            self.now = min(until, self.now + step_s)
            for name in beating:
                running = sorted(self.engine.fleet.workers[WorkerId(name)].running)
                self.beat(name, *((str(job), number) for job, number in running))
            effects = self.engine.tick(self.now)
            merged.sends += effects.sends
            merged.entries += effects.entries
            merged.closed += effects.closed
            merged.jobs.update(effects.jobs)
        return merged

    def live(self, name: str = "job_1") -> Live:
        return self.engine.lives[JobId(name)]

    def attempt(self, name: str = "job_1") -> Attempt:
        attempt = self.live(name).job.attempt
        assert attempt is not None
        return attempt

    def write(
        self,
        text: str,
        name: str = "job_1",
        *,
        ids: tuple[int, ...] | None = None,
        finish: str = "",
        choice: int = 0,
        **fields: Any,
    ) -> Any:
        """The holder sends its next frame; `ids` default to one for each word."""
        live, attempt = self.live(name), self.attempt(name)
        offset = fields.pop("offset", live.output.choices[choice].length)
        piece = Piece(choice, offset, text, tuple(range(words(text))) if ids is None else ids, finish)
        sequence = fields.pop("sequence", live.output.sequence + 1)
        worker, number = fields.pop("worker", attempt.worker), fields.pop("number", attempt.number)
        assert not fields
        return self.engine.frame(WorkerId(worker), JobId(name), number, sequence, [piece], None, self.now)

    def closed(self, name: str = "job_1") -> Job:
        return self.engine.recent[JobId(name)]

    def main(self, member: str) -> int:
        """What a member has or owes; the commons by its own name."""
        key = ledger.COMMONS if member == "commons" else account(member)
        return self.engine.book.accounts[key].main

    def check(self) -> None:
        """What holds at every moment: zero in all, and reserved is what open holds hold."""
        book = self.engine.book
        assert book.total() == 0
        for owner in book.accounts.values():
            holds = (v.job.hold for v in self.engine.lives.values() if v.job.account == owner.id)
            assert owner.reserved == sum(holds)


def assigned(effects: Effects) -> list[tuple[str, str, int]]:
    """(job, worker, attempt) of each assignment."""
    return [(s.job, s.worker, s.number) for s in effects.sends if isinstance(s, SendAssign)]


def cancelled(effects: Effects) -> list[tuple[str, str, int]]:
    return [(s.job, s.worker, s.number) for s in effects.sends if isinstance(s, SendCancel)]


def acknowledged(effects: Effects) -> list[tuple[str, str, int, int]]:
    return [(s.job, s.worker, s.number, s.sequence) for s in effects.sends if isinstance(s, SendAck)]


def fleet_of(*workers: Worker, patience: Patience | None = None) -> Fleet:
    """A fleet of workers as they are, for tests of the planner alone."""
    fleet = Fleet(patience or Patience())
    for worker in workers:
        fleet.enrol(worker)
        models, worker.models = worker.models, {}
        fleet.serve(worker, models)
    return fleet


def worker(name: str, owner: str = "b", *models: Served, **fields: Any) -> Worker:
    """A connected worker that serves the one model of these tests unless told otherwise."""
    made = Worker(
        WorkerId(name),
        name,
        MemberId(owner),
        account(owner),
        models={m.name: m for m in models or (served(),)},
        connected=True,
        greeted=True,
    )
    for field_name, value in fields.items():
        setattr(made, field_name, value)
    return made


def cold(state: str, **fields: Any) -> Served:
    return replace(served(**fields), state=state)
