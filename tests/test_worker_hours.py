"""Windows of wall-clock time: across midnight, in every zone, in the nights in which the clocks change."""

import re
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.hours import DAY_MINUTES, DAYS, Week, Window

BERLIN = ZoneInfo("Europe/Berlin")
ZONES = (
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",  # half an hour of summer time
    "Asia/Kathmandu",
    "Pacific/Apia",  # left a whole day out in 2011
    "UTC",
)


def at(text: str, zone: ZoneInfo = BERLIN, *, fold: int = 0) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=zone, fold=fold).timestamp()


def week(every_day: str = "", zone: ZoneInfo = BERLIN, **days: str) -> Week:
    texts = [days.get(day, every_day) for day in DAYS]
    return Week(tuple(tuple(Window.parse(t) for t in text.split(",") if t) for text in texts), zone)


def test_a_window_is_open_from_its_start_until_just_before_its_end() -> None:
    office = week("09:00-17:30")
    assert [office.open(at(f"2026-11-25T{t}")) for t in ("08:59:59", "09:00", "17:29:59", "17:30")] == [
        False,
        True,
        True,
        False,
    ]


def test_a_window_across_midnight_belongs_to_the_day_on_which_it_begins() -> None:
    """2026-11-27 is a Friday."""
    party = week(friday="22:00-04:00")
    assert party.open(at("2026-11-27T23:00"))
    assert party.open(at("2026-11-28T03:59"))
    assert not party.open(at("2026-11-27T03:00"))
    assert not party.open(at("2026-11-28T23:00"))


def test_the_end_of_the_day_is_midnight_and_neighbours_join_without_a_gap() -> None:
    split = week("00:00-12:00,12:00-24:00")
    assert all(split.open(at("2026-11-27T00:00") + second) for second in range(0, 2 * 86_400, 600))
    assert not split.always
    assert week("00:00-24:00").always


def test_in_the_night_that_loses_an_hour_a_window_is_shorter_and_ends_by_the_clock_on_the_wall() -> None:
    """29 March 2026 in Berlin: 02:00 becomes 03:00."""
    night = week("00:00-06:00")
    assert night.open(at("2026-03-29T05:59"))
    assert not night.open(at("2026-03-29T06:00"))
    edges = list(night.edges(at("2026-03-28T23:00"), 1))[:2]
    assert edges[1] - edges[0] == 5 * 3600


def test_in_the_night_that_has_an_hour_twice_a_window_is_longer() -> None:
    """25 October 2026 in Berlin: 03:00 becomes 02:00."""
    night = week("00:00-06:00")
    edges = list(night.edges(at("2026-10-24T23:00"), 1))[:2]
    assert edges[1] - edges[0] == 7 * 3600
    assert night.open(at("2026-10-25T02:30", fold=0))
    assert night.open(at("2026-10-25T02:30", fold=1))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("8-9", "no window of time"),
        ("08:00-08:00", "has no length"),
        ("24:00-08:00", "begins when its day is over"),
        ("08:00-24:30", "does not exist"),
        ("08:61-09:00", "does not exist"),
        ("", "no window of time"),
    ],
)
def test_what_is_no_window_is_refused_with_a_sentence(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        Window.parse(text)


MINUTES = st.integers(0, DAY_MINUTES - 1)
WINDOWS = st.builds(lambda start, length: Window(start, start + length), MINUTES, st.integers(1, DAY_MINUTES))
WEEKS = st.builds(
    lambda days, zone: Week(tuple(tuple(day) for day in days), ZoneInfo(zone)),
    st.lists(st.lists(WINDOWS, max_size=3), min_size=7, max_size=7),
    st.sampled_from(ZONES),
)
NOW = st.floats(at("2011-01-01T00:00"), at("2031-01-01T00:00"))


@given(WEEKS, NOW)
def test_nothing_changes_between_two_edges(hours: Week, now: float) -> None:
    """What is open at a moment stays as it is until the next edge, in every zone and every night."""
    edges = list(hours.edges(now, 3))
    assert edges == sorted(set(edges))
    moments = [now, *edges]
    for start, end in pairwise(moments):
        opened = hours.open(start)
        assert hours.open(start + (end - start) / 2) == opened
        assert hours.open(end - min(0.001, (end - start) / 2)) == opened


@given(WEEKS, NOW)
def test_away_from_clock_changes_the_wall_clock_alone_decides(hours: Week, now: float) -> None:
    """Against a plain count of minutes of the week, which knows nothing of instants."""
    local = datetime.fromtimestamp(now, hours.zone)
    around = [datetime.fromtimestamp(now, UTC) + timedelta(days=days) for days in range(-3, 4)]
    if len({moment.astimezone(hours.zone).utcoffset() for moment in around}) > 1:
        return
    minute = local.hour * 60 + local.minute
    wanted = any(
        window.start <= minute + DAY_MINUTES * back < window.end
        for back in range(3)
        for window in hours.days[(local.weekday() - back) % 7]
    )
    assert hours.open(now) == wanted
