"""Placements per second of the planner, and how long a whole tick takes, with many workers and jobs.

One process, no I/O: the coordinator's own engine with workers that are connected and idle, and a queue. A
tick gives away at most `assignments_max` jobs; between ticks the queue is filled up again and the workers are
freed. Times are CPU times of the one process, so that a busy machine does not blur them.

    python benchmarks/planner.py [--workers 10000] [--jobs 10000] [--members 200] [--models 4] [--ticks 15]
"""

import argparse
import gc
import itertools
import os
import platform
import statistics
import time
from dataclasses import dataclass, field

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


def measure(workers: int, jobs: int, members: int, models: int, ticks: int) -> None:
    pool = Pool(workers, jobs, members, models)
    pool.plan()  # what is kept of every worker is there from now on
    gc.collect()
    planned = [pool.plan() for _ in range(ticks)]
    whole = []
    for _ in range(ticks):
        pool.now += 0.1
        whole.append(pool.tick())
        pool.free()
        pool.refill()
        gc.collect()
    sweeps = [pool.sweep() for _ in range(ticks)]
    placed = sum(n for n, _ in planned)
    rate = placed / sum(s for _, s in planned)
    worst = max(s for _, s in whole)
    print(
        f"{workers:>7,} workers {jobs:>7,} jobs {members:>6,} members {models:>3} models: "
        f"{rate:>8,.0f} placements/s, {statistics.median(n for n, _ in planned):.0f}"
        f" in {1e3 * statistics.median(s for _, s in planned):.1f} ms; tick p50 "
        f"{1e3 * statistics.median(s for _, s in whole):.1f} ms, worst {1e3 * worst:.1f} ms"
        f" ({statistics.median(n for n, _ in whole):.0f} given away); sweep "
        f"{1e3 * statistics.median(sweeps):.1f} ms"
    )


def additions_s() -> float:
    """What a million additions take here and now: 0.03 to 0.05 s on a silent machine of today."""
    began, total = time.process_time(), 0
    for n in range(1_000_000):
        total += n
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--workers", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--members", type=int, default=200)
    parser.add_argument("--models", type=int, default=4)
    parser.add_argument("--ticks", type=int, default=15)
    options = parser.parse_args()
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(f"{platform.platform()}, {os.cpu_count()} cores{load}, Python {platform.python_version()}")
    print(f"a million additions take {additions_s():.3f} s")
    print("to reach: 20,000 placements/s and a tick of at most 50 ms with 10,000 workers and 10,000 jobs")
    big = options.workers, options.jobs
    for workers, jobs, members, models in (
        (*big, options.members, options.models),
        (*big, options.members, 1),
        (*big, options.jobs, options.models),  # everybody asks for one thing
        (100, 100, 20, 2),
        (10, 5, 5, 1),
    ):
        measure(workers, jobs, members, models, options.ticks)


if __name__ == "__main__":
    main()
