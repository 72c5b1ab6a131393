"""A minute of a real pool under faults; `scripts/chaos` runs longer ones. See `chaos_harness` for the faults and the oracles."""

from pathlib import Path

import pytest
from chaos_harness import Chaos

pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]

SEED, SECONDS = 1, 45.0
FAULTS_MIN = 4  # on a machine that does other things as well


def test_a_pool_under_faults_keeps_its_promises(tmp_path: Path) -> None:
    """Every accepted job ends, is charged once, with the right text; nothing is held, and no process is left."""
    report = Chaos(tmp_path, SEED, SECONDS).run()
    print(report)
    assert not report.wrong, str(report)
    assert report.faults.total() >= FAULTS_MIN
    assert report.retried, "the faults hit jobs that ran"
    assert report.jobs["succeeded"] > report.jobs["failed"], "and the pool was of use all the same"
