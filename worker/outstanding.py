"""Receipts on their way: being signed, safe on disk, in flight, until the coordinator has judged them. Pure.

Only so many are in flight at once: after a long absence they leave in turns and do not crowd out frames.
"""

from worker.messages import AttemptId


class OutstandingReceipts:
    def __init__(self, kept_max: int, in_flight_max: int) -> None:
        self.signing: set[AttemptId] = set()  # not yet on disk
        self.kept: dict[AttemptId, bool] = {}  # on disk, the oldest first; True while in flight
        self._kept_max, self._in_flight_max = kept_max, in_flight_max

    def keep(self, attempt: AttemptId) -> AttemptId | None:
        """It is safe on disk now. Returns the oldest if that has to make room."""
        self.signing.discard(attempt)
        if attempt in self.kept:
            return None
        oldest = None
        if len(self.kept) >= self._kept_max:
            oldest = next(iter(self.kept))
            del self.kept[oldest]
        self.kept[attempt] = False
        return oldest

    def acknowledge(self, attempt: AttemptId) -> None:
        self.kept.pop(attempt, None)

    def land(self) -> None:
        """The connection they flew on is gone: each has to be sent again."""
        self.kept = dict.fromkeys(self.kept, False)

    def take_off(self) -> list[AttemptId]:
        """Those to send now, the oldest first."""
        leaving = []
        for attempt, _ in zip(self.kept, range(self._in_flight_max), strict=False):
            if not self.kept[attempt]:
                self.kept[attempt] = True
                leaving.append(attempt)
        return leaving
