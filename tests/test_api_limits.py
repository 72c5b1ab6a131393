"""Counting with bounded memory: windows and gauges."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.api.limits import Gauge, Window


def test_a_window_says_exactly_how_long_to_wait() -> None:
    window = Window(60.0, 10)
    for at in (0.0, 10.0):
        assert window.wait_s("a", 2, at) == 0
        window.add("a", 2, at)
    assert window.wait_s("a", 2, 30.0) == 30.0
    assert window.wait_s("b", 2, 30.0) == 0
    assert window.wait_s("a", 2, 60.0) == 0


@given(st.lists(st.floats(0, 20), max_size=60))
def test_no_window_of_that_length_ever_has_more(steps: list[float]) -> None:
    """Whatever the rhythm: who waits as told is let in, and no 60 seconds hold more than 5 events."""
    window, now = Window(60.0, 10), 0.0
    taken: list[float] = []
    for step in steps:
        now += step
        now += window.wait_s("a", 5, now)
        assert window.wait_s("a", 5, now) <= 1e-9
        window.add("a", 5, now)
        taken.append(now)
    for at in taken:
        assert sum(at - 60.0 + 1e-6 < other <= at for other in taken) <= 5


def test_a_window_forgets_the_key_that_was_idle_longest() -> None:
    """Memory is bounded however many keys come."""
    window = Window(60.0, 3)
    for key in "abc":
        window.add(key, 1, 0.0)
    window.add("a", 1, 1.0)
    window.add("d", 1, 2.0)
    assert len(window) == 3
    assert window.wait_s("b", 1, 3.0) == 0
    assert window.wait_s("a", 1, 3.0) > 0


def test_a_window_keeps_no_key_whose_events_are_over() -> None:
    window = Window(60.0, 3)
    window.add("a", 1, 0.0)
    assert window.wait_s("a", 1, 61.0) == 0
    assert len(window) == 0


def test_a_limit_that_changes_counts_from_then_on() -> None:
    """Lowered, the wait is until few enough are left; raised, there is room at once."""
    window = Window(60.0, 3)
    for at in (0.0, 10.0, 20.0):
        window.add("a", 3, at)
    assert window.used("a", 30.0) == 3
    assert window.empty_at("a", 30.0) == 80.0
    assert window.wait_s("a", 3, 30.0) == 30.0
    assert window.wait_s("a", 1, 30.0) == 50.0
    assert window.wait_s("a", 4, 30.0) == 0
    assert window.empty_at("b", 30.0) == 30.0


def test_a_gauge_counts_places_by_key() -> None:
    """Keys with none are not kept."""
    gauge = Gauge()
    gauge.take("a", 2)
    assert not gauge.fits("a", 3, 2)
    assert gauge.fits("a", 3)
    assert gauge.fits("b", 3, 3)
    gauge.take("a")
    assert gauge.open("a") == 3
    gauge.give("a", 3)
    assert gauge.open("a") == 0
    with pytest.raises(KeyError):
        gauge.give("a")
