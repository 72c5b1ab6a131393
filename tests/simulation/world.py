"""All that there is in one run of the simulation: what is lost in a crash, what is not, and what nobody knows."""

import random
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from coordinator.core import ledger
from coordinator.core.engine import Engine
from coordinator.core.fleet import Fence
from coordinator.core.jobs import AccountId, Job, JobId, WorkerId
from coordinator.core.messages import Effects
from coordinator.core.pricing import Demand, Shape, Tariff
from coordinator.core.rules import Rules
from simulation.network import Network
from simulation.tuning import FineTune

STEP_S = 0.25
BEGIN_S = 1_000_000.0
HEAL_S = BEGIN_S + 60.0  # from here on the network is good, and nothing crashes
END_S = BEGIN_S + 260.0
PATIENT_END_S = BEGIN_S + 1_000.0  # where a fine-tune waits after failures before it gives up
TARIFF = Tariff()
SHAPE = Shape(active_parameters=134_000_000, head_parameters=28_000_000, attention=69_120)
MODEL = "tiny"
MEMBERS = "abc"
LINES = (400_000_000, 400_000_000, 30_000)  # credit lines; the last is soon used up


@dataclass
class Work:
    """An attempt inside a worker."""

    job: Job
    number: int
    index: int  # the next token, or step
    sequence: int = 0
    unacknowledged: list[tuple[int, Any]] = field(default_factory=list)  # pieces, or what of a training
    steps: int = 0  # of a training, after which this worker ends it


@dataclass
class FakeWorker:
    id: WorkerId
    slots: int
    liar: bool
    work: dict[Fence, Work] = field(default_factory=dict)
    refused: set[Fence] = field(default_factory=set)
    stream: int = 0  # that it has open, as it sees it
    paused_until: float = 0.0  # SIGSTOP
    down_until: float = 0.0
    retry_at: float = 0.0


class World:
    """What a seed draws, and what comes of it."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.now = BEGIN_S
        ordered = rng.random() < 0.5
        self.network = Network(
            rng,
            loss=0.0 if ordered else rng.uniform(0, 0.3),
            duplicate=0.0 if ordered else rng.uniform(0, 0.3),
            delay_s=rng.uniform(0, 2.0),
            ordered=ordered,
        )
        # How likely in each step, for each worker: it crashes, its stream breaks, it hangs, its link goes dead.
        self.crash, self.cut, self.stop, self.dead = (rng.uniform(0, m) for m in (0.02, 0.04, 0.02, 0.02))
        self.coordinator_crash = rng.choice([0.0, 0.01, 0.05])
        self.coordinator_freeze = rng.choice([0.0, 0.0, 0.01])
        self.clock_steps = rng.random() < 0.3  # whether the host's clock is set anew while it is down
        self.crowded = rng.random() < 0.15  # far more than the workers can do, all at once
        self.refusals = rng.choice([0.0, 0.1, 0.9])
        self.disk_fails = rng.choice([0.0, 0.05])
        # Lost and failed attempts end nothing here; refusals must not by themselves, however many.
        self.rules = Rules(tariff=TARIFF, attempts_max=1_000, wait_s=30.0, crowd_s=0.5)
        self.accounts = {
            AccountId(f"acc_{n}"): ledger.Account(AccountId(f"acc_{n}"), rng.choice(LINES)) for n in MEMBERS
        }
        self.accounts[ledger.COMMONS] = ledger.Account(ledger.COMMONS)
        self.fakes = {
            WorkerId(f"w{i}"): FakeWorker(WorkerId(f"w{i}"), rng.randint(1, 3), rng.random() < 0.15)
            for i in range(rng.randint(1, 6))
        }
        self.network.slow = {fake: rng.uniform(2, 8) for fake in self.fakes if rng.random() < 0.2}
        # The coordinator's memory.
        self.engine: Engine
        self.pending: list[Effects] = []
        self.open: dict[WorkerId, int] = {}  # the stream of each worker, as the coordinator sees it
        self.drift_s = 0.0  # of its clock, against the one that only the world has
        self.unwanted: set[JobId] = set()  # wholes whose member changed their mind
        # Its disk.
        self.disk_jobs: dict[JobId, Job] = {}
        self.disk_entries: dict[str, ledger.Entry] = {}
        self.demands: dict[JobId, Demand] = {}
        self.plans: dict[JobId, list[Demand]] = {}  # of batches: what each part asks for
        self.tunes: dict[JobId, FineTune] = {}
        # Of the world.
        self.streams = 0  # so many were opened; a message belongs to the one that it was sent on
        self.frozen_until = 0.0
        # What only the checks know.
        self.client: dict[JobId, str] = defaultdict(str)
        self.truth: dict[tuple[JobId, int, WorkerId], int] = defaultdict(int)
        self.tuned: dict[tuple[JobId, int, WorkerId], int] = {}  # tokens of trainings that really ended

    @property
    def faulty(self) -> bool:
        return self.now < HEAL_S

    @property
    def frozen(self) -> bool:
        """The coordinator's process is stopped, and its clock goes on."""
        return self.now < self.frozen_until

    @property
    def clock(self) -> float:
        """What the coordinator takes for the time."""
        return self.now + self.drift_s

    def part_now(self, part: JobId) -> Job | None:
        live = self.engine.lives.get(part)
        return live.job if live else self.engine.recent.get(part) or self.disk_jobs.get(part)
