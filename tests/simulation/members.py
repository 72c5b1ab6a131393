"""Members who ask for chats, batches and fine-tunes."""

from coordinator.core import ledger
from coordinator.core.engine import Impossible
from coordinator.core.jobs import AccountId, Job, JobId, Kind, MemberId
from coordinator.core.pricing import Demand, quote
from simulation.coordinator import Coordinator
from simulation.tuning import drawn
from simulation.world import BEGIN_S, HEAL_S, MEMBERS, MODEL, SHAPE, TARIFF, World


class Members:
    def __init__(self, world: World, coordinator: Coordinator) -> None:
        self.world, self.coordinator = world, coordinator

    def moments(self) -> list[float]:
        """When each of their jobs comes."""
        w = self.world
        if w.crowded:
            begin = w.rng.uniform(BEGIN_S, HEAL_S - 5)
            return sorted(begin + w.rng.uniform(0, 2) for _ in range(w.rng.randint(40, 70)))
        return sorted(w.rng.uniform(BEGIN_S, HEAL_S) for _ in range(w.rng.randint(1, 25)))

    def change_their_minds(self) -> None:
        """Not once faults have stopped: then what is stuck must not end because nobody wants it any more."""
        w = self.world
        if not w.faulty:
            return
        if w.rng.random() < 0.01 and w.engine.lives:
            w.engine.cancel(w.rng.choice(list(w.engine.lives)), w.clock, "the client went away")
        if w.rng.random() < 0.01 and w.engine.wholes:
            w.unwanted.add(w.rng.choice(list(w.engine.wholes)))

    def submit(self, index: int) -> None:
        w = self.world
        name = w.rng.choice(MEMBERS)
        if w.rng.random() < 0.12:
            self.submit_tune(index, name)
            return
        parts = w.rng.choice([0, 0, 0, w.rng.randint(1, 6)])
        demands = [self.demand() for _ in range(parts or 1)]
        worst = sum(quote(demand, TARIFF) for demand in demands)
        job = Job(
            id=JobId(f"job_{index:02}"),
            kind=Kind.BATCH if parts else Kind.CHAT,
            model=MODEL,
            member=MemberId(name),
            account=AccountId(f"acc_{name}"),
            created_at=w.clock,
            quote=worst,
            hold=worst,
            prompt_tokens=sum(demand.prompt_tokens for demand in demands),
            max_tokens=max(demand.max_tokens for demand in demands),
            stored=bool(parts) or w.rng.random() < 0.4,
        )
        if not job.stored and not self.coordinator.lets_in(job):
            return
        try:
            if parts:
                w.engine.open_whole(job)
                w.plans[job.id] = demands
            else:
                self.coordinator.submit_one(job, demands[0])
        except (ledger.Overdrawn, Impossible):
            return  # refused: nothing is left of it

    def submit_tune(self, index: int, name: str) -> None:
        w = self.world
        whole = JobId(f"job_{index:02}")
        tune = drawn(w.rng, whole, SHAPE)
        worst = tune.worst(w.rules)
        job = Job(
            id=whole,
            kind=Kind.FINETUNE,
            model=MODEL,
            member=MemberId(name),
            account=AccountId(f"acc_{name}"),
            created_at=w.clock,
            quote=worst,
            hold=worst,
            prompt_tokens=0,
            max_tokens=0,
            stored=True,
        )
        try:
            w.engine.open_whole(job)
        except ledger.Overdrawn:
            return
        w.tunes[whole] = tune

    def demand(self) -> Demand:
        w = self.world
        return Demand(Kind.CHAT, SHAPE, (w.rng.randint(1, 200),), w.rng.randint(1, 40), 1)
