"""The state machine of a fine-tune, for one worker at a time or for several."""

from typing import Any

from coordinator.core.course import Course
from coordinator.core.leases import Leases
from coordinator.core.rounds import Rounds
from coordinator.core.segments import Segments
from coordinator.core.tuning import Tuning


def begin(course: Course, adapter: str) -> Tuning:
    """`adapter`: what to train from. `Began` is the first that it is told."""
    if course.workers == 1:
        return Segments(course, adapter)
    return Rounds(course, adapter, leases=Leases(course))


def restored(course: Course, kept: dict[str, Any]) -> Tuning:
    """From a snapshot; after a restart it is told `Began(resumed=True)` first."""
    way: type[Tuning] = Segments if course.workers == 1 else Rounds
    return way.restored(course, kept)
