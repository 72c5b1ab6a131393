"""Counting per key with bounded memory. Time is a parameter, in seconds.

The largest number that is allowed may be another for each key: whoever asks says it.
"""

from collections import OrderedDict, deque


class Window:
    """At most `events_max` events of one key within any `window_s` seconds (a sliding log, so it is exact).

    At most `keys_max` keys are remembered; the one that was idle longest is forgotten first.
    """

    def __init__(self, window_s: float, keys_max: int) -> None:
        assert keys_max > 0
        self.window_s, self.keys_max = window_s, keys_max
        self._events: OrderedDict[str, deque[float]] = OrderedDict()

    def wait_s(self, key: str, events_max: int, now: float) -> float:
        """0 if another event fits now; else how long until it does."""
        if self.used(key, now) < events_max:
            return 0.0
        events = self._events[key]
        return events[len(events) - events_max] + self.window_s - now

    def add(self, key: str, events_max: int, now: float) -> None:
        """Only the newest `events_max` are kept: older ones change no answer."""
        events = self._events.get(key)
        if events is None:
            events = self._events[key] = deque()
            if len(self._events) > self.keys_max:
                self._events.popitem(last=False)
        else:
            self._events.move_to_end(key)
        events.append(now)
        while len(events) > events_max:
            events.popleft()

    def used(self, key: str, now: float) -> int:
        """How many there are within the window that ends now."""
        events = self._events.get(key)
        if events is None:
            return 0
        while events and events[0] <= now - self.window_s:
            events.popleft()
        if not events:
            del self._events[key]
        return len(events)

    def empty_at(self, key: str, now: float) -> float:
        """When none will be left, if none comes until then."""
        return self._events[key][-1] + self.window_s if self.used(key, now) else now

    def __len__(self) -> int:
        return len(self._events)


class Gauge:
    """How many of something each key has open at once. Keys with none are not kept."""

    def __init__(self) -> None:
        self._open: dict[str, int] = {}

    def fits(self, key: str, open_max: int, amount: int = 1) -> bool:
        return self._open.get(key, 0) + amount <= open_max

    def take(self, key: str, amount: int = 1) -> None:
        """Take `amount` places; whether they are there is asked before, without a wait in between."""
        self._open[key] = self._open.get(key, 0) + amount

    def give(self, key: str, amount: int = 1) -> None:
        left = self._open[key] - amount
        assert left >= 0, f"{key} gave back more than it took"
        if left:
            self._open[key] = left
        else:
            del self._open[key]

    def open(self, key: str) -> int:
        return self._open.get(key, 0)
