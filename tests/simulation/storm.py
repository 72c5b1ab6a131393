"""One run: what happens in which order in each step, until faults have stopped and all has come to an end."""

from coordinator.core.jobs import WorkerId
from simulation.coordinator import Coordinator
from simulation.invariants import check_liveness, check_safety
from simulation.members import Members
from simulation.network import COORDINATOR
from simulation.workers import Workers
from simulation.world import END_S, HEAL_S, PATIENT_END_S, STEP_S, World

Outcome = tuple[tuple[str, str, int | None], ...]  # of each job: id, state, charge


class Simulation:
    def __init__(self, seed: int) -> None:
        self.world = World(seed)
        self.coordinator = Coordinator(self.world)
        self.members = Members(self.world, self.coordinator)
        self.workers = Workers(self.world, self.coordinator)
        self.steps = 0

    def run(self) -> Outcome:
        """Raises BrokenError."""
        world = self.world
        submit_at = self.members.moments()
        jobs = len(submit_at)
        while world.now < (PATIENT_END_S if world.tunes else END_S):
            world.now += STEP_S
            self.steps += 1
            if world.now - STEP_S < HEAL_S <= world.now:
                self.heal()
            while submit_at and submit_at[0] <= world.now and not world.frozen:
                submit_at.pop(0)
                self.members.submit(jobs - len(submit_at) - 1)
            self.step()
            if not (submit_at or world.engine.lives or world.engine.wholes or world.faulty):
                break
        self.coordinator.tick()
        check_liveness(world)
        return tuple(sorted((j.id, j.state.value, j.charge) for j in world.disk_jobs.values()))

    def heal(self) -> None:
        """Streams that lost something break, as they would have long before."""
        lossy = not self.world.network.ordered
        self.world.network.heal()
        for fake in self.world.fakes.values() if lossy else ():
            self.workers.disconnect(fake)

    def step(self) -> None:
        world = self.world
        frozen = world.frozen
        if not frozen:
            self.members.change_their_minds()
            self.coordinator.feed()
        for fake in world.fakes.values():
            self.workers.step(fake)
        for sender, to, (stream, message) in world.network.due(world.now, frozen=frozen):
            if to == COORDINATOR:
                self.coordinator.report(WorkerId(sender), stream, message)
            else:
                self.workers.receive(world.fakes[WorkerId(to)], stream, message)
        if not frozen:
            self.coordinator.tick()
            check_safety(world)
        self.freeze()

    def freeze(self) -> None:
        """Of the coordinator: a stopped process, a paused machine. When it goes on, time has jumped."""
        world = self.world
        if world.faulty and world.rng.random() < world.coordinator_freeze:
            world.frozen_until = min(world.now + world.rng.uniform(0.5, 30), HEAL_S)
