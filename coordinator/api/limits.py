"""Counting per key with bounded memory. Time is a parameter, in seconds."""

from collections import OrderedDict, deque


class Window:
    """At most `events_max` events of one key within any `window_s` seconds (a sliding log, so it is exact).

    At most `keys_max` keys are remembered; the one that was idle longest is forgotten first.
    """

    def __init__(self, events_max: int, window_s: float, keys_max: int) -> None:
        assert events_max > 0
        assert keys_max > 0
        self.events_max, self.window_s, self.keys_max = events_max, window_s, keys_max
        self._events: OrderedDict[str, deque[float]] = OrderedDict()

    def wait_s(self, key: str, now: float) -> float:
        """0 if another event fits now; else how long until it does."""
        events = self._events.get(key)
        if events is None:
            return 0.0
        while events and events[0] <= now - self.window_s:
            events.popleft()
        if not events:
            del self._events[key]
            return 0.0
        if len(events) < self.events_max:
            return 0.0
        return events[0] + self.window_s - now

    def add(self, key: str, now: float) -> None:
        events = self._events.get(key)
        if events is None:
            events = self._events[key] = deque(maxlen=self.events_max)
            if len(self._events) > self.keys_max:
                self._events.popitem(last=False)
        else:
            self._events.move_to_end(key)
        events.append(now)

    def __len__(self) -> int:
        return len(self._events)


class Gauge:
    """How many of something each key has open at once. Keys with none are not kept."""

    def __init__(self, open_max: int) -> None:
        self.open_max = open_max
        self._open: dict[str, int] = {}

    def take(self, key: str, amount: int = 1) -> bool:
        """Take `amount` places, or none and False."""
        taken = self._open.get(key, 0)
        if taken + amount > self.open_max:
            return False
        self._open[key] = taken + amount
        return True

    def give(self, key: str, amount: int = 1) -> None:
        left = self._open[key] - amount
        assert left >= 0, f"{key} gave back more than it took"
        if left:
            self._open[key] = left
        else:
            del self._open[key]

    def open(self, key: str) -> int:
        return self._open.get(key, 0)
