"""How fast a fine-tune goes and how long it takes, by what its parts have said of their steps."""

import pytest

from coordinator.finetunes.curve import Curve, Live, Pace, Point


def point(step: int, tokens: int = 8) -> Point:
    return Point(step=step, loss=1.0, accuracy=0.5, tokens=tokens, targets=4, norm=1.0, rate=1e-4)


def heard(live: Live, *moments: float) -> None:
    for step, at in enumerate(moments):
        live.add([point(step)], at)


def test_one_part_is_as_fast_as_its_steps_came() -> None:
    curve = Curve(live={1: Live(1, "rig")})
    heard(curve.live[1], 10.0)
    curve.measure()
    assert curve.pace is None, "one moment is no span"
    curve.live[1].add([point(1), point(2)], 14.0)
    curve.measure()
    assert curve.pace == Pace(tokens=4.0, steps=0.5, at=14.0)


def test_two_words_at_one_moment_are_no_pace() -> None:
    live = Live(1, "rig")
    heard(live, 10.0, 10.0)
    assert live.pace is None


def test_between_two_parts_the_last_pace_stands_and_the_next_one_corrects_it() -> None:
    curve = Curve(live={1: Live(1, "rig")})
    heard(curve.live[1], 10.0, 12.0)
    curve.measure()
    del curve.live[1]
    curve.live[2] = Live(1, "box")
    heard(curve.live[2], 20.0)
    curve.measure()
    assert curve.pace == Pace(tokens=4.0, steps=0.5, at=12.0)
    curve.live[2].add([point(1)], 21.0)
    curve.measure()
    assert curve.pace == Pace(tokens=8.0, steps=1.0, at=21.0)


def test_of_shares_side_by_side_tokens_add_up_and_steps_do_not() -> None:
    """The third has just begun: it is taken to be as fast as the others."""
    curve = Curve(live={part: Live(1, f"w{part}") for part in (1, 2, 3)})
    heard(curve.live[1], 0.0, 1.0)
    heard(curve.live[2], 0.0, 2.0)
    heard(curve.live[3], 2.0)
    curve.measure()
    assert curve.pace is not None
    assert curve.pace.tokens == pytest.approx(3 * (8.0 + 4.0) / 2)
    assert curve.pace.steps == pytest.approx((1.0 + 0.5) / 2)


def test_a_step_is_told_once_though_two_workers_took_it() -> None:
    """What a part said under way and what settles it are the same steps."""
    curve = Curve()
    assert [one.step for one in curve.untold([point(0), point(1)])] == [0, 1]
    assert curve.untold([point(1)]) == []
    assert [one.step for one in curve.settle([point(1), point(2), point(2, tokens=16)])] == [2]
    assert [one.tokens for one in curve.settled] == [8, 24]
