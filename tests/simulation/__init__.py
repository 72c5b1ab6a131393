"""A whole pool in one thread under one seed: the coordinator's core, workers, a bad network, crashes, a clock.

`Simulation(seed).run()` draws everything from the seed and replays exactly.
"""

from simulation.invariants import BrokenError, Invariant
from simulation.storm import Simulation

__all__ = ["BrokenError", "Invariant", "Simulation"]
