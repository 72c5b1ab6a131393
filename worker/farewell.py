"""How a worker ends: time to finish, then to hand over, then for the last acknowledgements. Pure."""


class Farewell:
    def __init__(self, farewell_s: float) -> None:
        self.closed = False
        self._farewell_s = farewell_s
        self._finish_until: float | None = None
        self._answer_until: float | None = None

    def ask(self, limit_s: float, now: float) -> None:
        """What runs may take so long; asked twice, the sooner end counts."""
        if self._answer_until is None:
            until = now + limit_s
            self._finish_until = until if self._finish_until is None else min(until, self._finish_until)

    def hands_over(self, now: float) -> bool:
        """Said once: the time for finishing is over."""
        if self._finish_until is None or now < self._finish_until:
            return False
        self._finish_until = None
        return True

    def closes(self, now: float, *, told: bool) -> bool:
        """Said once, while nothing runs any more: all is `told`, or waiting for answers has no end."""
        if self.closed:
            return False
        if self._answer_until is None:
            self._answer_until, self._finish_until = now + self._farewell_s, None
        if not told and now < self._answer_until:
            return False
        self.closed, self._answer_until = True, None
        return True

    @property
    def wake_at(self) -> float | None:
        """At most one of them is set."""
        return self._finish_until if self._answer_until is None else self._answer_until
