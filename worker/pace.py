"""How long a download or a load still takes, from what it did so far; 0 where nobody can know."""

from dataclasses import dataclass
from typing import Final

PACE_S_MIN: Final = 1.0  # before that, a speed is noise


@dataclass(slots=True)
class Pace:
    """Of one step that began at `at` with so many bytes done. `took_s`: the same step, the last time."""

    at: float
    bytes_done: int
    took_s: float = 0.0

    def left_ms(self, done: int, total: int, now: float) -> int:
        came, elapsed = done - self.bytes_done, now - self.at
        if came > 0 and total > done and elapsed >= PACE_S_MIN:
            return max(1, round((total - done) * elapsed / came * 1000))
        if self.took_s > elapsed:
            return max(1, round((self.took_s - elapsed) * 1000))
        return 0
