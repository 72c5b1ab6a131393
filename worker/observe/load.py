"""What other programs do with the processor, and which run.

Our own tree of processes does not count, and no engine of any worker does: an actor on the owner's cluster is
no child of ours, and two workers of one machine must not take each other for its owner.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import psutil

SMOOTH_S: Final = 10.0  # a burst shorter than that is no work
ENGINE: Final = "worker.engines"  # the module that an engine's process runs
ACTOR: Final = "ray::EngineActor"  # how Ray names a process for its actor's class, and what it does


def own_tree() -> dict[int, psutil.Process]:
    """This process and all it has started."""
    me = psutil.Process(os.getpid())
    return {process.pid: process for process in [me, *me.children(recursive=True)]}


def is_engine(process: psutil.Process) -> bool:
    """Of any worker of this machine. Raises psutil.Error."""
    return any(word == ENGINE or word.startswith(ACTOR) for word in process.cmdline())


def engines() -> Iterator[psutil.Process]:
    """Of every worker of this machine, as far as this user may know."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if is_engine(process):
                yield process


def programs() -> frozenset[str]:
    """Names of the files of all running programs, in lower case and without `.exe`."""
    names = set()
    for process in psutil.process_iter(["name"]):
        name = (process.info["name"] or "").lower()
        names |= {name, name.removesuffix(".exe")}
    return frozenset(names - {""})


@dataclass(slots=True)
class OthersLoad:
    """Percent of all cores that others use, smoothed. The first look has nothing to compare with."""

    at: float = 0.0
    busy_s: float = 0.0  # of all cores, since boot
    own_s: dict[int, float] | None = None  # by process
    percent: float | None = None

    def look(self) -> float | None:
        at, busy_s, own_s = time.monotonic(), _busy_s(), _own_s()
        elapsed = (at - self.at) * (psutil.cpu_count() or 1)
        if self.own_s is not None and elapsed > 0:
            # A process that has ended meanwhile takes its last moments with it: they count as others'.
            ours = sum(now - self.own_s.get(pid, 0.0) for pid, now in own_s.items())
            fresh = min(100.0, max(0.0, (busy_s - self.busy_s - ours) / elapsed * 100))
            weight = min(1.0, (at - self.at) / SMOOTH_S)
            self.percent = fresh if self.percent is None else self.percent + (fresh - self.percent) * weight
        self.at, self.busy_s, self.own_s = at, busy_s, own_s
        return self.percent


def _busy_s() -> float:
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    # Guests' time stands in user and nice already.
    guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
    return sum(times) - idle - guests


def _own_s() -> dict[int, float]:
    used = {}
    for pid, process in (own_tree() | {process.pid: process for process in engines()}).items():
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        used[pid] = times.user + times.system
    return used
