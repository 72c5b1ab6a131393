"""The clock of one process and its children, which may be set: libfaketime, loaded before everything else.

What is stepped is the time of day, as NTP or a user does it. The monotonic clock goes on, as it does on any machine.
"""

import ctypes.util
import re
from dataclasses import dataclass
from pathlib import Path

import psutil

LIBRARY = "faketime/libfaketimeMT.so.1"
KNOWN = ("/usr/lib", "/usr/lib64", "/usr/local/lib")
SHARED_MEMORY = Path("/dev/shm")
CACHED_S = 1  # how long a process may go on with the time from before a step


def library() -> Path:
    """Raises RuntimeError where it is not installed."""
    found = [path for folder in KNOWN for path in sorted(Path(folder).glob(f"**/{LIBRARY}"))]
    if found:
        return found[0]
    if named := ctypes.util.find_library("faketimeMT"):  # asks ldconfig
        return Path(named)
    raise RuntimeError("libfaketime is not here, by which clocks are set: apt-get install faketime")


@dataclass
class Clock:
    """`path` is its own; what it says is read again within a second."""

    path: Path
    off_s: float = 0.0

    def __post_init__(self) -> None:
        self.set(0.0)

    @property
    def variables(self) -> dict[str, str]:
        return {
            "LD_PRELOAD": str(library()),
            "FAKETIME_TIMESTAMP_FILE": str(self.path),
            "FAKETIME_CACHE_DURATION": str(CACHED_S),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }

    def set(self, off_s: float) -> None:
        """So many seconds from the right time."""
        new = self.path.with_suffix(".new")
        new.write_text(f"{off_s:+.3f}", encoding="utf-8")
        new.replace(self.path)
        self.off_s = off_s


def forget_the_dead() -> None:
    """Processes that were killed leave what libfaketime shares with their children."""
    for path in SHARED_MEMORY.glob("*faketime_*"):
        if (pid := re.search(r"_(\d+)$", path.name)) and not psutil.pid_exists(int(pid[1])):
            path.unlink(missing_ok=True)
