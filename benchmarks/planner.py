#!/usr/bin/env python3
"""Placements per second of the planner, and how long a whole tick takes, with many workers and jobs.

    benchmarks/planner.py [--sizes 100,1000,10000,100000] [--members 200] [--models 4] [--ticks 15] [--no-ray]

One process, no I/O: the coordinator's own engine with workers that are connected and idle, and a queue of
as many jobs. A tick gives away at most `assignments_max` jobs; between ticks the queue is filled up again and
the workers are freed, which is not counted. Times are CPU times of the one process, so that a busy machine
does not blur them. The growth exponent is the slope of the time for one placement over the size, both as
logarithms, by least squares: 0 is no growth, 1 is twice the time with twice as many workers and jobs.

Beside it, on the same inputs, first come, first served (`firstcome.py`): no fairness, no expected time, no
owner before others, no reasons. And Ray's scheduling of as many tasks that do nothing (`noop_tasks.py`),
which are run, too: there each placement goes to another process at once, and its end comes back.
"""

import argparse
import gc
import itertools
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import stand
from firstcome import FirstCome

from coordinator.core import ledger
from coordinator.core.engine import Engine
from coordinator.core.fleet import Fleet, Served, Worker
from coordinator.core.jobs import AccountId, Job, JobId, Kind, MemberId, WorkerId
from coordinator.core.messages import SendAssign
from coordinator.core.pricing import Demand, Shape, quote
from coordinator.core.rules import Rules
from coordinator.core.schedule import Waiting

SHAPE = Shape(active_parameters=134_000_000, head_parameters=28_000_000, attention=69_120)
DEMAND = Demand(Kind.CHAT, SHAPE, (200,), 256, 1)
RICH = 10**15
BIG: Final = 10_000  # for which there is something to reach
RAY_SIZES: Final = (100, 1_000, 10_000, 100_000)


def member(n: int) -> tuple[MemberId, AccountId]:
    return MemberId(f"mem_{n}"), AccountId(f"acc_{n}")


@dataclass
class Pool:
    workers: int
    jobs: int
    members: int
    models: int
    now: float = 1_000.0
    count: "itertools.count[int]" = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        accounts = {a: ledger.Account(a, RICH) for _, a in map(member, range(self.members))}
        accounts[ledger.COMMONS] = ledger.Account(ledger.COMMONS)
        self.engine = Engine(Rules(), ledger.Book(accounts), Fleet())
        for n in range(self.workers):
            owner, account = member(n % self.members)
            self.engine.fleet.enrol(Worker(WorkerId(f"wrk_{n:05}"), f"w{n}", owner, account))
            model = f"model-{n % self.models}"
            speed = 20.0 + n % 97
            served = Served(model, "emulator", frozenset(Kind), slots=2, prefill=10 * speed, decode=speed)
            self.engine.connect(
                WorkerId(f"wrk_{n:05}"), [served], slots=2, memory_bytes=0, running=(), now=self.now
            )
        for n in range(self.members):  # some have given, some have taken
            self.engine.line.given.worked(member(0)[1], member(n)[1], (n % 5 - 2) * 50_000_000, self.now)
        self.refill()

    def refill(self) -> None:
        worst = quote(DEMAND, self.engine.rules.tariff)
        while len(self.engine.queue) < self.jobs:
            n = next(self.count)
            who, account = member(n % self.members)
            job = Job(
                id=JobId(f"job_{n:07}"),
                kind=Kind.CHAT,
                model=f"model-{n // self.members % self.models}",
                member=who,
                account=account,
                created_at=self.now,
                quote=worst,
                hold=worst,
                prompt_tokens=200,
                max_tokens=256,
                stored=n % 10 == 0,
            )
            self.engine.submit(job, DEMAND, count=len, memory_bytes=0, now=self.now)

    def free(self) -> None:
        """All that runs ends, and nothing of it is left to be sent."""
        running = [job for job, live in self.engine.lives.items() if job not in self.engine.queue]
        for job in running:
            self.engine.cancel(job, self.now, "measured")
        self.engine.effects = type(self.engine.effects)()

    def tick(self) -> tuple[int, float]:
        """How many were given away, and in how many seconds, by the whole engine."""
        self.engine._replan = True  # noqa: SLF001 -- as if a worker had just said something
        self.engine._swept_at = self.now  # noqa: SLF001 -- the sweep is measured on its own
        began = time.process_time()
        effects = self.engine.tick(self.now)
        took = time.process_time() - began
        return sum(isinstance(send, SendAssign) for send in effects.sends), took

    def plan(self) -> tuple[int, float]:
        """As `tick`, by the planner alone; the jobs are put back into the line."""
        engine = self.engine

        def waiting(job_id: JobId) -> Waiting:
            return engine.lives[job_id].waiting(self.now)

        began = time.process_time()
        decisions = engine.planner.plan(engine.line, engine.running, self.now, waiting)
        took = time.process_time() - began
        for decision in decisions:
            engine.line.enter(engine.lives[decision.job].job)
        return len(decisions), took

    def sweep(self) -> float:
        began = time.process_time()
        self.engine._sweep(self.now)  # noqa: SLF001 -- it is what is measured
        return time.process_time() - began

    def first_come(self) -> tuple[int, float]:
        """As `plan`, by who came first and who is free."""
        engine = self.engine
        simple = FirstCome(engine.rules.policy.assignments_max)
        for worker in engine.fleet.workers.values():
            for model, served in worker.models.items():
                simple.free(model, worker.id, served.slots)
        for job in engine.queue:
            simple.ask(job, engine.lives[job].job.model)
        began = time.process_time()
        placed = simple.plan()
        return len(placed), time.process_time() - began


@dataclass(frozen=True, slots=True)
class Measured:
    """Rates in placements/s of CPU time, times in seconds."""

    rate: float
    tick_s: float  # median
    tick_rate: float  # placements in a second of whole ticks
    first_come: float


def measure(workers: int, jobs: int, members: int, models: int, ticks: int) -> Measured:
    pool = Pool(workers, jobs, members, models)
    pool.plan()  # what is kept of every worker is there from now on
    gc.collect()
    gc.freeze()  # what is there for good is not looked through again between ticks
    planned = [pool.plan() for _ in range(ticks)]
    whole = []
    for _ in range(ticks):
        pool.now += 0.1
        whole.append(pool.tick())
        pool.free()
        pool.refill()
        gc.collect()
    sweeps = [pool.sweep() for _ in range(ticks)]
    simple = [pool.first_come() for _ in range(max(3, ticks // 3))]
    gc.unfreeze()
    found = Measured(_rate(planned), statistics.median(s for _, s in whole), _rate(whole), _rate(simple))
    worst = max(s for _, s in whole)
    print(
        f"{workers:>7,} workers {jobs:>7,} jobs {members:>6,} members {models:>3} models: "
        f"{found.rate:>8,.0f} placements/s, {statistics.median(n for n, _ in planned):.0f}"
        f" in {1e3 * statistics.median(s for _, s in planned):.1f} ms; tick p50 "
        f"{1e3 * found.tick_s:.1f} ms, worst {1e3 * worst:.1f} ms"
        f" ({statistics.median(n for n, _ in whole):.0f} given away); sweep "
        f"{1e3 * statistics.median(sweeps):.1f} ms; first come, first served {found.first_come:,.0f}/s",
        flush=True,
    )
    return found


def _rate(runs: Sequence[tuple[int, float]]) -> float:
    return sum(n for n, _ in runs) / sum(s for _, s in runs)


def exponent(costs: Mapping[int, float]) -> float:
    """Of the growth of these costs, by size."""
    points = [(math.log(size), math.log(cost)) for size, cost in costs.items()]
    x, y = (statistics.fmean(axis) for axis in zip(*points, strict=True))
    return sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)


def ray_rates() -> dict[int, float]:
    """Tasks/s by how many there are; none if Ray is not here, or a size takes too long."""
    if find_spec("ray") is None:
        print("Ray is not installed here (pip install 'potluck[ray]'): nothing is compared with it")
        return {}
    program = Path(__file__).with_name("noop_tasks.py")
    sizes = ",".join(map(str, RAY_SIZES))
    rates = {}
    with subprocess.Popen([sys.executable, program, sizes], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("tasks "):  # Ray has its own to say
                size, rate = line.split()[1:]
                rates[int(size)] = float(rate)
                print(f"Ray, {int(size):>7,} tasks that do nothing: {float(rate):,.0f} tasks/s", flush=True)
    if process.returncode:
        print(f"Ray's part ended with {process.returncode}")
    return rates


def additions_s() -> float:
    """What a million additions take here and now: 0.03 to 0.05 s on a silent machine of today."""
    began, total = time.process_time(), 0
    for n in range(1_000_000):
        total += n
    return time.process_time() - began


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--sizes", default="100,1000,10000,100000")
    parser.add_argument("--members", type=int, default=200)
    parser.add_argument("--models", type=int, default=4)
    parser.add_argument("--ticks", type=int, default=15)
    parser.add_argument("--no-ray", action="store_true")
    asked = parser.parse_args()
    sizes = [int(size) for size in asked.sizes.split(",")]
    print(stand.machine(*(["ray"] if find_spec("ray") else [])))
    print(f"a million additions take {additions_s():.3f} s")
    found = {n: measure(n, n, min(asked.members, n), min(asked.models, n), asked.ticks) for n in sizes}
    big = BIG if BIG in found else max(found)
    print(f"{big:,} of one model; and where each job is another member's:")
    measure(big, big, asked.members, 1, asked.ticks)
    measure(big, big, big, asked.models, asked.ticks)
    rates = {} if asked.no_ray else ray_rates()
    stand.figure("placements/s", found[big].rate, "", 0)
    stand.figure("tick p50", 1e3 * found[big].tick_s, "ms", 1)
    if len(found) > 1:
        stand.figure("growth exponent", exponent({n: 1 / one.rate for n, one in found.items()}))
        ticks = exponent({n: 1 / one.tick_rate for n, one in found.items()})
        stand.figure("growth exponent, whole ticks", ticks)
    stand.figure("against first-come-first-served", found[big].rate / found[big].first_come, "x", 4)
    if big in rates:
        stand.figure("against Ray's no-op tasks", found[big].rate / rates[big], "x", 1)


if __name__ == "__main__":
    main()
