"""Who gets how much of a full pool, and waits how long: the planner against two orders that others use.

A discrete-event simulation without a clock: the coordinator's own planner gives away the jobs (`fair`), or
whoever asked first is served first (`first come`), or whoever has the largest balance (`richest first`). The
same members ask for the same things each time. Seeded: the same numbers on every machine.

    python benchmarks/fairness.py [--seed 7] [--seconds 1800] [--write docs]
"""

import argparse
import heapq
import itertools
import random
import statistics
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from plot import Panel, bars

from coordinator.core.contribution import Contributions
from coordinator.core.fairness import Clock, Fairness, class_of
from coordinator.core.fleet import Fleet, Served, Worker
from coordinator.core.jobs import AccountId, Job, JobId, Kind, MemberId, WorkerId
from coordinator.core.line import Line
from coordinator.core.schedule import Policy, Waiting, plan

Rule = Literal["fair", "first come", "richest first"]
RULES: tuple[Rule, ...] = ("fair", "first come", "richest first")
MODEL = "model"
CREDIT = 1_000_000
WORKERS, SLOTS = 10, 2
TOKENS_MIN, TOKENS_MAX, TOKENS_ASKED = 100, 1_000, 1_024
TOKENS_PER_S = 50.0
TOKEN = 16_000  # microcredits, of a model with 8 billion parameters
LONGEST_S = TOKENS_MAX / TOKENS_PER_S
BURST_AT_S = 600.0
BEGIN, END = "<!-- made by benchmarks/fairness.py -->", "<!-- end -->"


@dataclass(frozen=True, slots=True)
class Member:
    """`streams`: how many jobs it always has open; `burst`: asked for at once, in the middle."""

    kind: str
    name: str
    streams: int = 10
    recent: int = 0  # credits given minus taken lately
    balance: int = 0  # credits, however they came
    lender: str = ""
    burst: int = 0
    stored: bool = False

    @property
    def account(self) -> AccountId:
        return AccountId(f"acc_{self.name}")


MEMBERS = (
    *(Member("contributor", f"giver{n}", recent=3_000, balance=3_000) for n in range(2)),
    Member("newcomer, one at a time", "new0", streams=1),
    Member("newcomer, ten at a time", "new1"),
    Member("rich by an old gift", "heir", balance=20_000),
    Member("deep in debt", "debtor", recent=-1_000, balance=-1_000),
    Member("ten keys of one", "keys", streams=100),
    Member("one who invites", "host", streams=5),
    *(Member("ten invited by one", f"guest{n}", lender="host") for n in range(10)),
    Member("burst of 300", "burst", streams=0, burst=300),
    Member("stored jobs", "night", stored=True),
)
KINDS = tuple(dict.fromkeys(member.kind for member in MEMBERS))
FLOWS = len([member for member in MEMBERS if not member.lender])


@dataclass(slots=True)
class Tally:
    """What each kind got: microcredits of work, and how long each of its jobs waited, in seconds."""

    work: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    waits: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def share(self, kind: str) -> float:
        return self.work[kind] / max(1, sum(self.work.values()))

    def median(self, kind: str) -> float:
        return statistics.median(self.waits[kind] or [0.0])

    def worst(self, kind: str) -> float:
        return max(self.waits[kind], default=0.0)


@dataclass
class Simulation:
    rule: Rule
    seed: int
    seconds: float
    now: float = 0.0
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.events: list[tuple[float, int, JobId | Member]] = []
        self.count = itertools.count()
        self.jobs: dict[JobId, tuple[Job, Member, int]] = {}  # with the tokens it will really have
        self.queue: list[JobId] = []
        self.given_to: dict[JobId, WorkerId] = {}
        self.running: dict[MemberId, int] = {}
        self.balances = {member.account: member.balance * CREDIT for member in MEMBERS}
        self.line = Line(Contributions(), Clock(Fairness()))
        self.fleet = Fleet()
        self.enrol()
        for member in MEMBERS:
            given = self.line.given
            given.worked(member.account, member.account, member.recent * CREDIT, 0.0)
            if member.lender:
                given.lend(AccountId(f"acc_{member.lender}"), member.account, CREDIT)
            for _ in range(member.streams):
                self.later(self.rng.uniform(0, 10), member)
            for _ in range(member.burst):
                self.later(BURST_AT_S, member)

    def enrol(self) -> None:
        """Half of the workers are each contributor's."""
        served = Served(MODEL, "emulator", frozenset(Kind), slots=SLOTS, decode=TOKENS_PER_S)
        for n in range(WORKERS):
            owner = MEMBERS[n % 2]
            worker = Worker(WorkerId(f"wrk_{n}"), f"w{n}", MemberId(owner.name), owner.account)
            worker.connected = worker.greeted = True
            worker.slots = SLOTS
            self.fleet.enrol(worker)
            self.fleet.serve(worker, {MODEL: served})

    def later(self, at: float, about: JobId | Member) -> None:
        """The member asks for something, or the job ends."""
        heapq.heappush(self.events, (at, next(self.count), about))

    def run(self) -> Tally:
        while self.events and self.events[0][0] <= self.seconds:
            self.now = self.line.given.now = self.events[0][0]
            while self.events and self.events[0][0] == self.now:
                _, _, about = heapq.heappop(self.events)
                if isinstance(about, Member):
                    self.ask(about)
                else:
                    self.end(about)
            self.place()
        for job_id in self.queue:  # who waits still has waited that long
            job, member, _ = self.jobs[job_id]
            self.tally.waits[member.kind].append(self.now - job.created_at)
        return self.tally

    def ask(self, member: Member) -> None:
        number = len(self.jobs)
        job = Job(
            id=JobId(f"job_{number:06}"),
            kind=Kind.CHAT,
            model=MODEL,
            member=MemberId(member.name),
            account=member.account,
            created_at=self.now,
            quote=TOKENS_ASKED * TOKEN,
            hold=TOKENS_ASKED * TOKEN,
            prompt_tokens=1,
            max_tokens=TOKENS_ASKED,
            stored=member.stored,
        )
        tokens = random.Random(f"{self.seed} {member.name} {number}").randint(TOKENS_MIN, TOKENS_MAX)
        self.jobs[job.id] = job, member, tokens
        self.queue.append(job.id)
        self.line.enter(job)

    def end(self, job_id: JobId) -> None:
        """It is charged, its worker's owner is paid, and its member asks for the next."""
        job, member, tokens = self.jobs[job_id]
        worker = self.fleet.workers[self.given_to.pop(job_id)]
        worker.running.discard((job_id, 1))
        worker.classes[class_of(job)] -= 1
        self.running[job.member] -= 1
        charge = 0 if worker.account == job.account else tokens * TOKEN
        for account, amount in ((job.account, -charge), (worker.account, charge)):
            self.balances[account] += amount
            self.line.given.worked(job.account, account, amount, self.now)
        self.line.leave(job_id, charge)
        self.tally.work[member.kind] += tokens * TOKEN
        if not member.burst:
            self.later(self.now, member)

    def place(self) -> None:
        for job_id, worker_id in self.planned():
            job, member, tokens = self.jobs[job_id]
            self.queue.remove(job_id)
            self.given_to[job_id] = worker_id
            self.fleet.workers[worker_id].running.add((job_id, 1))
            self.fleet.workers[worker_id].classes[class_of(job)] += 1
            self.running[job.member] = self.running.get(job.member, 0) + 1
            self.tally.waits[member.kind].append(self.now - job.created_at)
            self.later(self.now + tokens / TOKENS_PER_S, job_id)

    def planned(self) -> list[tuple[JobId, WorkerId]]:
        if self.rule == "fair":
            # Turns alone: contributors who ask without end would fill their own workers, and they have all.
            policy = Policy(own_first=False)
            decisions = plan(self.line, self.fleet, self.running, policy, self.now, self.waiting)
            return [(decision.job, decision.worker) for decision in decisions]
        free = [w.id for w in self.fleet.workers.values() for _ in range(SLOTS - len(w.running))]
        return list(zip(heapq.nsmallest(len(free), self.queue, key=self.rank), free, strict=False))

    def rank(self, job_id: JobId) -> tuple[int, float, JobId]:
        job = self.jobs[job_id][0]
        wealth = -self.balances[job.account] if self.rule == "richest first" else 0
        return wealth, job.created_at, job_id

    def waiting(self, job_id: JobId) -> Waiting:
        job = self.jobs[job_id][0]
        return Waiting(job_id, job.kind, job.model, job.account, job.max_tokens)


def bound_s() -> float:
    """The longest that the oldest job of a newcomer can wait here, in seconds (docs/fairness.md)."""
    rule = Fairness()
    guaranteed = rule.guaranteed_permille / 1_000
    return rule.aged_s[0] + (FLOWS + 1) / guaranteed * LONGEST_S / (WORKERS * SLOTS)


def simulate(seed: int, seconds: float) -> dict[Rule, Tally]:
    return {rule: Simulation(rule, seed, seconds).run() for rule in RULES}


def table(found: dict[Rule, Tally]) -> str:
    head = "| " + " | ".join(["who", *(f"{rule}: share, median and worst wait" for rule in RULES)]) + " |"
    lines = [head, "|" + "---|" * (len(RULES) + 1)]
    for kind in KINDS:
        cells = [
            f"{100 * tally.share(kind):.1f} %, {tally.median(kind):,.0f} s, {tally.worst(kind):,.0f} s"
            for tally in found.values()
        ]
        lines.append("| " + " | ".join([kind, *cells]) + " |")
    lone = found["fair"].worst("newcomer, one at a time")
    lines += [
        "",
        (
            f"A newcomer with one job at a time waited {lone:.0f} s at the worst; the bound is"
            f" {bound_s():.0f} s ({FLOWS} flows, {WORKERS * SLOTS} slots, jobs of up to {LONGEST_S:.0f} s)."
        ),
    ]
    return "\n".join(lines)


def picture(found: dict[Rule, Tally]) -> str:
    panels = [
        Panel("share of the work, %", [[100 * t.share(kind) for t in found.values()] for kind in KINDS]),
        Panel("median wait, s", [[t.median(kind) for t in found.values()] for kind in KINDS]),
    ]
    return bars("A full pool: who gets what, and waits how long", list(KINDS), list(RULES), panels)


def written(page: str, made: str) -> str:
    """The page with what lies between its marks replaced."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{made}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1_800.0)
    parser.add_argument("--write", type=Path, metavar="DIR", help="bring DIR/fairness.md up to date")
    options = parser.parse_args()
    found = simulate(options.seed, options.seconds)
    print(table(found))
    if options.write is not None:
        page = options.write / "fairness.md"
        page.write_text(written(page.read_text(encoding="utf-8"), table(found)), encoding="utf-8")
        (options.write / "fairness.svg").write_text(picture(found), encoding="utf-8")


if __name__ == "__main__":
    main()
