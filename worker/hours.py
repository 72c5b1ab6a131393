"""Hours of the week in which a machine may be shared: windows of wall-clock time, also across midnight.

A window belongs to the day on which it begins. Its two ends are instants (the zone says which), so that a
window is one hour longer or shorter in the night in which the clocks change, and whether the machine may be
shared and when that changes can never disagree. Pure: the zone is given.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, tzinfo
from typing import Final

DAY_MINUTES: Final = 24 * 60
DAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
WINDOWS_MAX: Final = 24  # of one day
LOOK_BACK_DAYS: Final = 2  # a window may have begun yesterday, and zones shift it by hours
_WINDOW: Final = re.compile(r"([0-9]{1,2}):([0-9]{2})\s*-\s*([0-9]{1,2}):([0-9]{2})")


@dataclass(frozen=True, slots=True, order=True)
class Window:
    """Minutes since the midnight that begins its day; an end above 1440 lies on the day after."""

    start: int
    end: int

    @classmethod
    def parse(cls, text: str) -> "Window":
        """`08:00-18:30`; `22:00-07:00` ends on the next day. Raises ValueError with a sentence."""
        match = _WINDOW.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"`{text}` is no window of time: write it like 22:00-07:00")
        start, end = _minute(match[1], match[2], text), _minute(match[3], match[4], text)
        if start == DAY_MINUTES:
            raise ValueError(f"`{text}` begins when its day is over: write 00:00 on the next day")
        if start == end:
            raise ValueError(f"`{text}` has no length; for the whole day write 00:00-24:00")
        return cls(start, end if end > start else end + DAY_MINUTES)


def _minute(hour: str, minute: str, text: str) -> int:
    minutes = int(hour) * 60 + int(minute)
    if int(minute) > 59 or minutes > DAY_MINUTES:
        raise ValueError(f"`{text}` names a time of day that does not exist")
    return minutes


@dataclass(frozen=True, slots=True)
class Week:
    """`days`: the windows of each day, Monday first."""

    days: tuple[tuple[Window, ...], ...]
    zone: tzinfo

    def __post_init__(self) -> None:
        assert len(self.days) == len(DAYS)

    @property
    def always(self) -> bool:
        """Whether it never closes."""
        whole = Window(0, DAY_MINUTES)
        return all(whole in windows for windows in self.days)

    def open(self, now: float) -> bool:
        """`now` in seconds since the epoch."""
        return any(start <= now < end for start, end in self._spans(now, 1))

    def edges(self, after: float, days: int) -> Iterator[float]:
        """When windows begin and end within so many days, in order; at some of them nothing changes."""
        ends = {at for span in self._spans(after, days) for at in span}
        yield from sorted(at for at in ends if at > after)

    def _spans(self, now: float, days: int) -> Iterator[tuple[float, float]]:
        today = datetime.fromtimestamp(now, self.zone).date()
        for offset in range(-LOOK_BACK_DAYS, days + 1):
            day = today + timedelta(days=offset)
            for window in self.days[day.weekday()]:
                yield self._instant(day, window.start), self._instant(day, window.end)

    def _instant(self, day: date, minute: int) -> float:
        """Seconds since the epoch. A time that a clock change leaves out counts from before the change, one
        that comes twice is the first."""
        later, minute = divmod(minute, DAY_MINUTES)
        wall = datetime.combine(day + timedelta(days=later), time(*divmod(minute, 60)), self.zone)
        return wall.timestamp()
