"""How often in succession something may fail, and how long it is left alone after each time."""

from dataclasses import asdict, dataclass
from typing import Any, Final

FAILURES_MAX: Final = 5
PAUSE_S: Final = 5.0  # after the first failure; four times as long after each further one
GROWTH: Final = 4


@dataclass(slots=True)
class Retries:
    failures: int = 0
    ready_at: float = 0.0  # seconds since the epoch

    def failed(self, now: float) -> None:
        self.failures += 1
        self.ready_at = now + self.pause_s

    @property
    def pause_s(self) -> float:
        """After the last failure; 0 where there is none."""
        return PAUSE_S * GROWTH ** (self.failures - 1) if self.failures else 0.0

    def restarted(self, now: float) -> None:
        """The host's clock may have been set back meanwhile: nothing waits longer than its pause."""
        self.ready_at = min(self.ready_at, now + self.pause_s)

    def give_up(self) -> None:
        """It makes no sense to try again."""
        self.failures = max(self.failures, FAILURES_MAX)

    def went_well(self) -> None:
        self.failures, self.ready_at = 0, 0.0

    @property
    def exhausted(self) -> bool:
        return self.failures >= FAILURES_MAX

    def snapshot(self) -> dict[str, Any]:
        return asdict(self)
