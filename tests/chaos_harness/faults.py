"""What happens to the pool: each fault begins, holds for a while, and is over. A fault that kills also starts again."""

import contextlib
import math
import os
import random
import resource
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil
from fixtures_pool import RealPool

from chaos_harness.clocks import Clock
from chaos_harness.proxy import DOWN, UP, Proxy

FULL_BYTES = 4_096  # the largest that a file may be while the disk is full
CRAWL_BYTES_PER_S = 20_000
STEP_S_MIN, STEP_S_MAX = 1, 12_000


@dataclass
class Faults:
    pool: RealPool
    proxies: dict[str, Proxy]  # by worker
    clocks: dict[str, Clock]  # by process
    rng: random.Random
    over: threading.Event = field(default_factory=threading.Event)

    def draw(self) -> tuple[str, Callable[[], Any]]:
        """The next one; carrying it out takes as long as it lasts."""
        worker = self.rng.choice(sorted(self.proxies))
        ways: list[tuple[Callable[[str], None], int]] = [
            (self.kill_worker, 3), (self.kill_engines, 3), (self.kill_coordinator, 2), (self.stop_worker, 3),
            (self.stop_coordinator, 2), (self.dead_link, 4), (self.reset, 3), (self.crawl, 2), (self.full_disk, 2),
            (self.slow_disk, 2), (self.step_clock, 3), (self.step_clock_while_down, 2),
        ]  # fmt: skip
        (way,) = self.rng.choices([way for way, _ in ways], [weight for _, weight in ways])
        return way.__name__, lambda: way(worker)

    def hold(self, least_s: float, most_s: float) -> None:
        self.over.wait(self.rng.uniform(least_s, most_s))

    def kill_worker(self, name: str) -> None:
        """kill -9 of the daemon; its engines notice that they are alone."""
        self.pool.workers[name].kill()
        self.hold(0.2, 3)
        self.pool.start_worker(name, ready=False)

    def kill_engines(self, name: str) -> None:
        for child in self._family(self.pool.workers[name].popen.pid)[1:]:
            with contextlib.suppress(psutil.Error):
                child.kill()

    def kill_coordinator(self, _name: str) -> None:
        assert self.pool.coordinator is not None
        self.pool.coordinator.kill()
        self.hold(0.1, 2)
        self.pool.start_coordinator()

    def stop_worker(self, name: str) -> None:
        """The whole machine sleeps: the daemon and its engines."""
        with self._stopped(self._family(self.pool.workers[name].popen.pid)):
            self.hold(0.5, 8)

    def stop_coordinator(self, _name: str) -> None:
        assert self.pool.coordinator is not None
        with self._stopped(self._family(self.pool.coordinator.popen.pid)):
            self.hold(0.5, 8)

    def dead_link(self, name: str) -> None:
        self.proxies[name].cut(*self.rng.choice([(UP,), (DOWN,), (UP, DOWN)]))
        self.hold(0.5, 8)
        self.proxies[name].heal()

    def reset(self, name: str) -> None:
        self.proxies[name].reset()

    def crawl(self, name: str) -> None:
        self.proxies[name].bytes_per_s = CRAWL_BYTES_PER_S
        self.hold(1, 6)
        self.proxies[name].heal()

    def full_disk(self, _name: str) -> None:
        """As a full disk is met: nothing can be written any more."""
        assert self.pool.coordinator is not None
        pid = self.pool.coordinator.popen.pid
        before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (FULL_BYTES, before[1]))
        self.hold(0.5, 4)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)

    def slow_disk(self, _name: str) -> None:
        """Each commit waits until somebody else's is over."""
        books = self.pool.folder / "coordinator" / "potluck.db"
        with (
            contextlib.closing(sqlite3.connect(books, timeout=10, isolation_level=None)) as other,
            contextlib.suppress(sqlite3.OperationalError),  # it may be the slower one
        ):
            other.execute("BEGIN IMMEDIATE")
            self.hold(0.3, 3)
            other.execute("ROLLBACK")

    def step_clock(self, _name: str) -> None:
        """Forward or back, by seconds to hours; it stays there."""
        self._step(self.rng.choice(sorted(self.clocks)))
        self.hold(1, 4)

    def step_clock_while_down(self, _name: str) -> None:
        assert self.pool.coordinator is not None
        self.pool.coordinator.kill()
        self._step("coordinator")
        self.pool.start_coordinator()

    def _step(self, name: str) -> None:
        off_s = math.exp(self.rng.uniform(math.log(STEP_S_MIN), math.log(STEP_S_MAX)))
        self.clocks[name].set(off_s * self.rng.choice((-1, 1)))

    @staticmethod
    def _family(pid: int) -> list[psutil.Process]:
        """It and all that it started."""
        with contextlib.suppress(psutil.Error):
            parent = psutil.Process(pid)
            return [parent, *parent.children(recursive=True)]
        return []

    @staticmethod
    @contextmanager
    def _stopped(processes: list[psutil.Process]) -> Iterator[None]:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGSTOP)
        yield
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGCONT)
