"""How workers on one machine share its cores out.

Engines' threads spin: with more threads than cores a model falls to a twentieth of its speed. So each
daemon registers in a folder that belongs to the machine's user, not to the installation, by a lock file
that disappears with its process. The rule: those with `--threads N` keep N; the rest of the cores is
divided evenly among those without, at least one each. When a daemon comes or goes, the others load their
engines again with their new share as soon as these are idle.
"""

import json
import os
import secrets
from pathlib import Path
from typing import Final

import platformdirs

from potluck.lock import FileLock, Locked, holder
from worker import cgroup

REGISTRY: Final = "workers"  # the folder of their lock files
WORKERS_MAX: Final = 256  # lock files looked at; more on one machine is a mistake


def machine_folder() -> Path:
    """Where the workers of one user on this machine find each other (`POTLUCK_MACHINE_DIR` moves it)."""
    given = os.environ.get("POTLUCK_MACHINE_DIR", "")
    if given:
        return Path(given).expanduser().absolute()
    return Path(platformdirs.user_data_dir("potluck-machine", appauthor=False))


def usable_cores() -> int:
    """The cores that this process may use; of a container's share of a core nothing is left to spin on."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = cgroup.limits().cores
    return max(1, min(cores, int(quota))) if quota else cores


def share(cores: int, *, others: list[int]) -> int:
    """The threads of a daemon without `--threads`, given the others' (0: it, too, takes a share)."""
    free = cores - sum(others)
    return max(1, free // (1 + others.count(0)))


class CoreShare:
    """One daemon's entry in the machine's registry. `threads`: what its owner asked for, 0 for a share."""

    def __init__(self, folder: Path, *, threads: int) -> None:
        self._folder = folder / REGISTRY
        self._threads = threads
        content = json.dumps({"pid": os.getpid(), "threads": threads}).encode()
        self._lock = _register(self._folder, content)

    def threads(self) -> int:
        """How many threads this daemon's engines may use together, now."""
        if self._threads:
            return self._threads
        return share(usable_cores(), others=self.others())

    def others(self) -> list[int]:
        """The wishes of the other live daemons; what dead ones left is removed."""
        return neighbours(self._folder, apart_from=self._lock.path)

    def release(self) -> None:
        self._lock.release(remove=True)


def neighbours(folder: Path, *, apart_from: Path | None = None) -> list[int]:
    """What each live daemon in the registry wants; 0: a share."""
    found = []
    for path in sorted(folder.glob("*.lock"))[:WORKERS_MAX]:
        content = None if path == apart_from else holder(path)
        if content is not None:
            found.append(_threads(content))
    return found


def _register(folder: Path, content: bytes) -> FileLock:
    while True:
        try:
            return FileLock.acquire(folder / f"{os.getpid()}-{secrets.token_hex(4)}.lock", content)
        except Locked:  # another daemon looked at the file between its making and its locking
            continue


def _threads(content: bytes) -> int:
    """A daemon that is just writing its entry counts as one that takes a share."""
    try:
        value = json.loads(content)["threads"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return 0
    return value if isinstance(value, int) and value > 0 else 0
