"""The limits that a container or a service puts on this process (Linux control groups, versions 1 and 2).

The whole machine's memory is not ours if a limit ends us sooner, and threads beyond the CPU quota only
wait for each other. Each group is within its parents, so the tightest on the way up counts. Sources:
docs.kernel.org/admin-guide/cgroup-v2 (memory.max, cpu.max) and cgroup-v1 (memory.limit_in_bytes,
cpu.cfs_quota_us).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

UNLIMITED_BYTES: Final = 1 << 60  # version 1 writes a number near 2^63 where there is no limit
DEPTH_MAX: Final = 64
FILE_CHARS_MAX: Final = 65_536


@dataclass(frozen=True, slots=True)
class Limits:
    """0: none. `memory_free_bytes` counts only where there is a limit."""

    memory_bytes: int = 0
    memory_free_bytes: int = 0
    cores: float = 0.0


def limits(*, proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> Limits:
    """Of this process. What cannot be read does not limit."""
    memory, free, cores = UNLIMITED_BYTES, 0, 0.0
    for folder in _folders(_text(proc), root, "memory"):
        limit = _number(_text(folder / "memory.max") or _text(folder / "memory.limit_in_bytes"))
        if limit is not None and limit < memory:
            used = _number(_text(folder / "memory.current") or _text(folder / "memory.usage_in_bytes")) or 0
            # What files only lie in the cache for is given back when somebody needs it.
            memory, free = limit, max(0, limit - max(0, used - _cached(_text(folder / "memory.stat"))))
    for folder in _folders(_text(proc), root, "cpu"):
        quota = _quota(folder)
        cores = quota if not cores else min(cores, quota or cores)
    return Limits(memory if memory < UNLIMITED_BYTES else 0, free, cores)


def _folders(groups: str, root: Path, controller: str) -> Iterator[Path]:
    """Where this process' group of the controller and its parents lie, the group first."""
    for line in groups.splitlines()[:DEPTH_MAX]:
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if controller in names.split(","):
            top = root / controller
        elif number == "0" and not names:
            top = root
        else:
            continue
        folder = top / path.lstrip("/")
        if ".." in folder.parts or not folder.is_dir():  # a namespace shows a path that is not mounted here
            folder = top
        for _ in range(DEPTH_MAX):
            yield folder
            if folder == top:
                break
            folder = folder.parent


def _quota(folder: Path) -> float:
    """In cores; 0: none."""
    both = _text(folder / "cpu.max").split()
    if not both:
        both = [_text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")]
    quota, period = (_number(both[0]), _number(both[1])) if len(both) == 2 else (None, None)
    return quota / period if quota and period and quota > 0 else 0.0


def _cached(stat: str) -> int:
    found = dict(line.split(" ", 1) for line in stat.splitlines() if " " in line)
    return _number(found.get("total_inactive_file", found.get("inactive_file", ""))) or 0


def _number(text: str) -> int | None:
    """None for `max`, for nothing, and for what is no number."""
    text = text.strip()
    return int(text) if text.removeprefix("-").isdecimal() and text.isascii() else None


def _text(path: Path) -> str:
    try:
        with path.open(encoding="ascii", errors="replace") as file:
            return file.read(FILE_CHARS_MAX).strip()
    except OSError:
        return ""
