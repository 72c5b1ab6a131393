"""The attempts that a worker knows: those that run, those whose end is not acknowledged, those that are gone.

Pure, as the core. Iterating goes over a copy: what is looked at may be dropped meanwhile.
"""

from collections.abc import Iterator
from typing import Final

from worker.attempt import RunningAttempt
from worker.messages import AttemptId

TRAINED_S: Final = 120.0  # what training made is looked at for no longer


class Attempts:
    """`tokens_delivered`: acknowledged since the start, of all attempts together."""

    def __init__(self, ended_max: int) -> None:
        self.tokens_delivered = 0
        self._here: dict[AttemptId, RunningAttempt] = {}
        self._gone: dict[AttemptId, None] = {}  # insertion order: the oldest is forgotten first
        self._gone_max = ended_max

    def __iter__(self) -> Iterator[RunningAttempt]:
        return iter(list(self._here.values()))

    def __len__(self) -> int:
        return len(self._here)

    def get(self, attempt: AttemptId) -> RunningAttempt | None:
        return self._here.get(attempt)

    def find(self, attempt: AttemptId) -> RunningAttempt | None:
        """The attempt if its engine is still listened to; late words of an engine end here."""
        found = self._here.get(attempt)
        return None if found is None or found.ended else found

    def is_gone(self, attempt: AttemptId) -> bool:
        return attempt in self._gone

    def running(self) -> list[RunningAttempt]:
        """Those whose engine works."""
        return [attempt for attempt in self._here.values() if not attempt.ended]

    def tokens_produced(self) -> int:
        """Since the start: what is acknowledged, and what the running attempts have beyond that."""
        ahead = (attempt.tokens - attempt.tokens_acknowledged for attempt in self._here.values())
        return self.tokens_delivered + sum(ahead)

    def add(self, attempt: RunningAttempt) -> None:
        self._here[attempt.id] = attempt

    def acknowledge(self, attempt_id: AttemptId, sequence: int) -> None:
        """Who is acknowledged to its end is gone."""
        if (attempt := self._here.get(attempt_id)) is not None:
            self.tokens_delivered += attempt.acknowledge(sequence)
            if attempt.done:
                self.drop(attempt)

    def end_known(self, attempt_id: AttemptId) -> None:
        """The coordinator judged the receipt: it has the end, whether or not it acknowledged that, too."""
        attempt = self._here.get(attempt_id)
        if attempt is not None and attempt.ended:
            self.acknowledge(attempt_id, attempt.sequence)

    def drop(self, attempt: RunningAttempt) -> None:
        del self._here[attempt.id]
        self.remember(attempt.id)

    def drop_told(self, now: float, lease_s: float) -> None:
        """An end that was told a lease ago is known, or came too late: nobody will ask for it again. What
        training made is looked at before its end is acknowledged.
        """
        for attempt in self:
            waits_s = TRAINED_S if attempt.assigned.trains else lease_s
            if attempt.ended and now - attempt.unacknowledged[-1].at >= waits_s:
                self.drop(attempt)

    def remember(self, attempt: AttemptId) -> None:
        """It will not be run (again)."""
        self._gone[attempt] = None
        while len(self._gone) > self._gone_max:
            del self._gone[next(iter(self._gone))]
