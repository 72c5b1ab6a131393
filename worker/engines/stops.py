"""Stop strings in a stream of text: what may be said already, and where the answer ends. Pure.

A match is the first to be complete; of several complete at the same character, the longest. This is decided
by characters alone, so that the cut does not depend on how the text was split into tokens.
"""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Stops:
    """The stop strings of one choice, and its text that is not delivered yet.

    `before` is delivered text: a stop string that begins in it cannot be unsaid, but still ends the answer.
    """

    strings: tuple[str, ...]
    before: str = ""
    pending: str = ""  # not yet delivered
    _reach: int = field(init=False)  # how many characters before the end can still matter

    def __post_init__(self) -> None:
        self.strings = tuple(string for string in self.strings if string)
        self._reach = max((len(string) for string in self.strings), default=1) - 1
        self.before = self.before[-self._reach :] if self._reach else ""

    def feed(self, text: str) -> str | None:
        """Add text. If a stop string is complete: what is to be delivered as the last of the answer."""
        if not self.strings:
            self.pending += text
            return None
        seen = len(self.before) + len(self.pending)
        whole = self.before + self.pending + text
        self.pending += text
        best: tuple[int, int] | None = None  # end, start: the smallest wins
        for string in self.strings:
            start = whole.find(string, max(0, seen - len(string) + 1))
            if start >= 0:
                match = (start + len(string), start)
                best = match if best is None else min(best, match)
        if best is None:
            return None
        return whole[len(self.before) : max(best[1], len(self.before))]

    @property
    def certain(self) -> bool:
        """No stop string may have begun: all pending text can be delivered."""
        if not self.strings:
            return True
        tail = (self.before + self.pending)[-self._reach :] if self._reach else ""
        return not any(
            tail.endswith(string[:length])
            for string in self.strings
            for length in range(1, min(len(string) - 1, len(tail)) + 1)
        )

    def take(self) -> str:
        """Deliver the pending text."""
        text, self.pending = self.pending, ""
        if self._reach:
            self.before = (self.before + text)[-self._reach :]
        return text
