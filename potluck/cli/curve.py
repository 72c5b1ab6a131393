"""A loss curve for a terminal: its points as they come, drawn as a line of blocks."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

POINTS_MAX: Final = 20_000  # of one curve; the oldest go
BLOCKS: Final = "▁▂▃▄▅▆▇█"
TRAIN, VALID = "train_loss", "valid_loss"


@dataclass(slots=True)
class Curve:
    """Points by their step; the same one again changes nothing."""

    _points: dict[int, Mapping[str, Any]] = field(default_factory=dict)

    def add(self, points: Iterable[Mapping[str, Any]]) -> None:
        for point in points:
            step = point.get("step")
            if isinstance(step, int | float):
                self._points[int(step)] = {**self._points.get(int(step), {}), **point}
        while len(self._points) > POINTS_MAX:
            del self._points[min(self._points)]

    @property
    def first(self) -> int:
        """The first step that is known; 0 if there is none."""
        return min(self._points, default=0)

    def values(self, name: str) -> list[float]:
        """In the order of the steps; points without that name are left out."""
        ordered = (self._points[step].get(name) for step in sorted(self._points))
        return [float(value) for value in ordered if isinstance(value, int | float)]


def sparkline(values: Sequence[float], columns: int, *, blocks: str = BLOCKS) -> str:
    """The values as blocks, the last `columns` means of equally many of them; a flat line is low."""
    if not values or columns < 1:
        return ""
    share = max(1.0, len(values) / columns)
    count = min(columns, len(values))
    means = []
    for index in range(count):
        some = values[int(index * share) : max(int(index * share) + 1, int((index + 1) * share))]
        means.append(sum(some) / len(some))
    low, span = min(means), max(means) - min(means)
    top = len(blocks) - 1
    return "".join(blocks[round((mean - low) / span * top) if span > 0 else 0] for mean in means)


def drawable(stream: Any = None) -> bool:
    """Can the terminal's encoding show blocks?"""
    encoding = getattr(stream or sys.stderr, "encoding", None) or "ascii"
    try:
        BLOCKS.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True
