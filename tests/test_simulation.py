"""The pool's core under a seeded storm: see `simulation` for the world and the invariants."""

import os
from pathlib import Path

import pytest
from simulation import Invariant, Simulation

from coordinator.core.course import Finish
from coordinator.core.jobs import Kind

SEEDS = int(os.environ.get("POTLUCK_SEEDS", "300"))
ARCHITECTURE = Path(__file__).resolve().parent.parent / "ARCHITECTURE.md"


@pytest.mark.parametrize("seed", range(SEEDS))
def test_every_storm_leaves_the_books_right_and_every_job_ended(seed: int) -> None:
    Simulation(seed).run()


def test_what_is_checked_is_written_down() -> None:
    text = ARCHITECTURE.read_text(encoding="utf-8").partition("\n## Invariants\n")[2].partition("\n## ")[0]
    assert not [name for name in Invariant if f"**{name}**" not in text]


def test_a_seed_replays_exactly() -> None:
    """A failing seed can be studied: the same seed is the same run."""
    assert Simulation(7).run() == Simulation(7).run()


def test_storms_are_storms() -> None:
    """The seeds reach what they are for: failovers, refunds, cancellations, whole answers and fine-tunes all
    happen.
    """
    states, retried, tuned, again = set(), 0, 0, 0
    for seed in range(40):
        simulation = Simulation(seed)
        states |= {state for _, state, _ in simulation.run()}
        jobs = simulation.world.disk_jobs.values()
        retried += sum(len(job.attempts) > 1 for job in jobs)
        tuned += sum(isinstance(tune.verdict, Finish) for tune in simulation.world.tunes.values())
        again += sum(len(job.attempts) > 1 and job.kind is Kind.FINETUNE for job in jobs)
    assert {"succeeded", "cancelled", "failed"} <= states
    assert retried > 50
    assert tuned > 10
    assert again > 50
