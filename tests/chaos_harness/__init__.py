"""A real pool of processes under real faults, with members at work all the while.

`Chaos(folder, seed, seconds).run()` draws the faults and what is asked from the seed. The machine's timing is its own,
so that a seed is the same plan, not the same run.
"""

from chaos_harness.storm import Chaos, Report

__all__ = ["Chaos", "Report"]
