"""Time for the coordinator: seconds since the epoch that never jump while it runs."""

import time
from collections.abc import Callable
from datetime import UTC, datetime


class SteadyClock:
    """The system's time at the start, carried on by the monotonic clock: a step of the system's clock
    (NTP, a user, a resumed laptop) must not end every lease at once."""

    def __init__(
        self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.wall, self._monotonic = wall, monotonic
        self._offset = wall() - monotonic()

    def now(self) -> float:
        return self._monotonic() + self._offset


def rfc3339(seconds: float) -> str:
    """UTC with milliseconds, as in `2026-11-23T22:24:52.125Z`."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
