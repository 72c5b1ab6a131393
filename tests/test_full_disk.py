"""A pool in which nothing happens notices that its disk is full, says so to whoever watches it, and comes back."""

import resource
import sys

import pytest
from fixtures_pool import RealPool

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(sys.platform != "linux", reason="limits of another process are set on Linux only"),
]


def books_writable(pool: RealPool) -> str:
    lines = pool.admin.api("GET", "/metrics").raise_for_status().text.splitlines()
    return next(line for line in lines if line.startswith("potluck_books_writable ")).split()[1]


def test_an_idle_pool_is_not_ready_while_its_disk_is_full(real_pool: RealPool) -> None:
    """To the process, a limit of 0 bytes a file is a disk that takes nothing: every write fails with EFBIG."""
    pool, coordinator = real_pool, real_pool.coordinator
    assert coordinator is not None

    def ready() -> int:
        return pool.admin.api("GET", "/readyz").status_code

    assert (ready(), books_writable(pool)) == (200, "1.0")
    limits = resource.prlimit(coordinator.popen.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(coordinator.popen.pid, resource.RLIMIT_FSIZE, (0, limits[1]))
    pool.until(lambda: ready() == 503, "it to notice", coordinator)
    assert books_writable(pool) == "0.0"
    told = pool.admin.api("GET", "/readyz").json()
    assert told == {"status": "not ready", "why": "it cannot write its books"}
    coordinator.wait_for("commit_refused")
    resource.prlimit(coordinator.popen.pid, resource.RLIMIT_FSIZE, limits)
    pool.until(lambda: ready() == 200, "it to be back", coordinator)
    assert books_writable(pool) == "1.0"
    assert pool.member("alice").balance()["balance"] == 0
