"""Counting with bounded memory: windows and gauges."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.api.limits import Gauge, Window


def test_a_window_says_exactly_how_long_to_wait() -> None:
    window = Window(2, 60.0, 10)
    for at in (0.0, 10.0):
        assert window.wait_s("a", at) == 0
        window.add("a", at)
    assert window.wait_s("a", 30.0) == 30.0
    assert window.wait_s("b", 30.0) == 0
    assert window.wait_s("a", 60.0) == 0


@given(st.lists(st.floats(0, 20), max_size=60))
def test_no_window_of_that_length_ever_has_more(steps: list[float]) -> None:
    """Whatever the rhythm: who waits as told is let in, and no 60 seconds hold more than 5 events."""
    window, now = Window(5, 60.0, 10), 0.0
    taken: list[float] = []
    for step in steps:
        now += step
        now += window.wait_s("a", now)
        assert window.wait_s("a", now) <= 1e-9
        window.add("a", now)
        taken.append(now)
    for at in taken:
        assert sum(at - 60.0 + 1e-6 < other <= at for other in taken) <= 5


def test_a_window_forgets_the_key_that_was_idle_longest() -> None:
    """Memory is bounded however many keys come."""
    window = Window(1, 60.0, 3)
    for key in "abc":
        window.add(key, 0.0)
    window.add("a", 1.0)
    window.add("d", 2.0)
    assert len(window) == 3
    assert window.wait_s("b", 3.0) == 0
    assert window.wait_s("a", 3.0) > 0


def test_a_window_keeps_no_key_whose_events_are_over() -> None:
    window = Window(1, 60.0, 3)
    window.add("a", 0.0)
    assert window.wait_s("a", 61.0) == 0
    assert len(window) == 0


def test_a_gauge_gives_all_places_or_none() -> None:
    gauge = Gauge(3)
    assert gauge.take("a", 2)
    assert not gauge.take("a", 2)
    assert gauge.take("a")
    assert gauge.open("a") == 3
    gauge.give("a", 3)
    assert gauge.open("a") == 0
    with pytest.raises(KeyError):
        gauge.give("a")
