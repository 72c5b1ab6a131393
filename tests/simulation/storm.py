"""One run: what happens in which order in each step, until faults have stopped and all has come to an end."""

from coordinator.core.jobs import WorkerId
from simulation.coordinator import Coordinator
from simulation.invariants import check_liveness, check_safety
from simulation.members import Members
from simulation.workers import Workers
from simulation.world import BEGIN_S, END_S, HEAL_S, PATIENT_END_S, STEP_S, World

Outcome = tuple[tuple[str, str, int | None], ...]  # of each job: id, state, charge


class Simulation:
    def __init__(self, seed: int) -> None:
        self.world = World(seed)
        self.coordinator = Coordinator(self.world)
        self.members = Members(self.world, self.coordinator)
        self.workers = Workers(self.world)

    def run(self) -> Outcome:
        world = self.world
        jobs = world.rng.randint(1, 25)
        submit_at = sorted(world.rng.uniform(BEGIN_S, HEAL_S) for _ in range(jobs))
        while world.now < (PATIENT_END_S if world.tunes else END_S):
            world.now += STEP_S
            if not world.faulty:
                world.network.heal()
            while submit_at and submit_at[0] <= world.now:
                submit_at.pop(0)
                self.members.submit(jobs - len(submit_at) - 1)
            self.step()
            if not (submit_at or world.engine.lives or world.engine.wholes or world.faulty):
                break
        self.coordinator.tick()
        check_liveness(world)
        return tuple(sorted((j.id, j.state.value, j.charge) for j in world.disk_jobs.values()))

    def step(self) -> None:
        world = self.world
        self.members.change_their_minds()
        self.coordinator.feed()
        for fake in world.fakes.values():
            self.workers.step(fake)
        for sender, to, message in world.network.due(world.now):
            if to == "c":
                self.coordinator.report(WorkerId(sender), message)
            else:
                self.workers.receive(world.fakes[WorkerId(to)], message)
        self.coordinator.tick()
        check_safety(world)
