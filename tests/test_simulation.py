"""The pool's core under a seeded storm: see `simulation` for the world and the invariants."""

import os

import pytest
from simulation import Simulation

SEEDS = int(os.environ.get("POTLUCK_SEEDS", "300"))


@pytest.mark.parametrize("seed", range(SEEDS))
def test_every_storm_leaves_the_books_right_and_every_job_ended(seed: int) -> None:
    Simulation(seed).run()


def test_a_seed_replays_exactly() -> None:
    """A failing seed can be studied: the same seed is the same run."""
    assert Simulation(7).run() == Simulation(7).run()


def test_storms_are_storms() -> None:
    """The seeds reach what they are for: failovers, refunds, cancellations and whole answers all happen."""
    states, retried = set(), 0
    for seed in range(40):
        simulation = Simulation(seed)
        states |= {state for _, state, _ in simulation.run()}
        retried += sum(len(job.attempts) > 1 for job in simulation.disk_jobs.values())
    assert {"succeeded", "cancelled", "failed"} <= states
    assert retried > 50
