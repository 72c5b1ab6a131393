"""Which models must leave memory so that another one fits. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """A model in memory. `place`: which memory; models in different places do not compete."""

    name: str
    place: str
    size_bytes: int
    used_at: float
    busy: bool


@dataclass(frozen=True, slots=True)
class Room:
    """`evict` these first, the least recently used before others; or `wait` says for what, or `never` why."""

    evict: tuple[str, ...] = ()
    wait: str = ""
    never: str = ""


def make_room(
    name: str, place: str, size_bytes: int, residents: Iterable[Resident], caps: Mapping[str, int]
) -> Room:
    """For a model of so many bytes. `caps`: bytes that all models together may take in each place."""
    cap = caps.get(place, 0)
    if size_bytes > cap:
        return Room(never=f"{name} needs {_size(size_bytes)}, and this worker may use {_size(cap)}")
    there = [resident for resident in residents if resident.place == place and resident.name != name]
    free, evicted = cap - sum(resident.size_bytes for resident in there), list[str]()
    for resident in sorted(there, key=lambda resident: (resident.used_at, resident.name)):
        if free >= size_bytes:
            break
        if not resident.busy and resident.size_bytes:
            evicted.append(resident.name)
            free += resident.size_bytes
    if free >= size_bytes:
        return Room(tuple(evicted))
    busy = " and ".join(sorted(resident.name for resident in there if resident.busy))
    return Room(wait=f"{name} needs {_size(size_bytes)}, {_size(free)} are free while {busy} works")


def together(sizes: Iterable[int], cap: int) -> int:
    """How many of the models can be in one memory at once, at least one: the smallest first."""
    count, used = 0, 0
    for size in sorted(sizes):
        used += size
        if used > cap:
            break
        count += 1
    return max(1, count)


def shares(sizes: Mapping[str, int], cap: int) -> dict[str, int]:
    """How much of one memory each model may take while it is there: its size, and an equal part of what is
    left beside as many as fit together. A bridge, of size 0, takes nothing.
    """
    real = {name: size for name, size in sizes.items() if size}
    count = together(real.values(), cap)
    left = max(0, cap - sum(sorted(real.values())[:count]))
    return {name: min(cap, size + left // count) for name, size in real.items()}


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB"
