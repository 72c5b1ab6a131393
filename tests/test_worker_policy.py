"""The owner's rules, one by one; and that the announced next change is the right one."""

from dataclasses import replace
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_worker_hours import NOW, WEEKS, at, week

from worker.policy import (
    REST_S,
    SETTLE_S,
    Card,
    Guests,
    Observation,
    Pause,
    Rules,
    Verdict,
    judge,
)

T0 = at("2026-11-27T12:00")  # a Friday
QUIET = Observation(
    input_at=T0 - 7200, cpu_percent=3.0, fullscreen=False, programs=frozenset({"bash"}), on_battery=False
)
OFF = Rules(gpu_alone=False, fullscreen=False, on_battery=True)


def seen(**changes: Any) -> Observation:
    return replace(QUIET, **changes)


def rules(**changes: Any) -> Rules:
    return replace(OFF, **changes)


def test_nothing_in_the_way_is_sharing_without_a_word() -> None:
    assert judge(Rules(), QUIET, T0) == Verdict(True, "", None)


def test_the_owners_pause_ends_by_itself_at_its_end() -> None:
    paused = judge(OFF, seen(pause=Pause(T0 + 60)), T0)
    assert (paused.sharing, paused.why, paused.next_change) == (False, "its owner paused it", T0 + 60)
    assert judge(OFF, seen(pause=Pause(T0 + 60)), T0 + 60).sharing
    endless = judge(OFF, seen(pause=Pause()), T0)
    assert (endless.sharing, endless.next_change) == (False, None)


def test_outside_the_hours_it_pauses_and_says_when_they_begin() -> None:
    night = rules(week=week("22:00-07:00"))
    noon = judge(night, QUIET, T0)
    assert (noon.sharing, noon.why) == (False, "outside its owner's hours for sharing")
    assert noon.next_change == at("2026-11-27T22:00")
    late = judge(night, QUIET, at("2026-11-27T23:00"))
    assert (late.sharing, late.next_change) == (True, at("2026-11-28T07:00"))


def test_hours_that_never_come_are_not_announced() -> None:
    assert judge(rules(week=week("")), QUIET, T0).next_change is None


def test_a_pause_that_ends_outside_the_hours_is_followed_by_the_hours() -> None:
    """The next change of state is told, not the next end of a reason."""
    verdict = judge(rules(week=week("22:00-07:00")), seen(pause=Pause(T0 + 60)), T0)
    assert verdict.why == "its owner paused it; outside its owner's hours for sharing"
    assert verdict.next_change == at("2026-11-27T22:00")


def test_somebody_at_the_machine_pauses_until_the_time_without_input_is_over() -> None:
    idle = rules(input_s=300.0)
    typed = judge(idle, seen(input_at=T0 - 100), T0)
    assert (typed.sharing, typed.why, typed.next_change) == (False, "somebody is at this machine", T0 + 200)
    assert judge(idle, seen(input_at=T0 - 300), T0).sharing


def test_input_that_cannot_be_seen_is_decided_for_the_owner() -> None:
    blind = seen(input_at=None, blind={"input": "Wayland tells nobody"})
    verdict = judge(rules(input_s=300.0), blind, T0)
    assert not verdict.sharing
    assert verdict.why == "whether somebody is at this machine cannot be seen here (Wayland tells nobody)"
    assert judge(OFF, blind, T0).sharing, "who has not asked for it does not need it"


@pytest.mark.parametrize(
    ("rule", "change", "why"),
    [
        ({"on_battery": False}, {"on_battery": True}, "it runs on battery"),
        ({"fullscreen": True}, {"fullscreen": True}, "a program fills the screen"),
        ({"programs": frozenset({"doom"})}, {"programs": frozenset({"doom", "sh"})}, "doom runs"),
        ({"cpu_percent": 25.0}, {"cpu_percent": 26.0}, "other programs use more than 25 % of the processor"),
        (
            {"gpu_alone": True},
            {"cards": (Card(index=1, others=("blender", "python")),)},
            "card 1 is used by blender, python",
        ),
        (
            {"temperature_c": 80.0},
            {"cards": (Card(index=0, temperature_c=81.0),)},
            "card 0 is at 81 °C, 80 are allowed",
        ),
        (
            {"power_w": 200.0},
            {"cards": (Card(index=0), Card(index=1, power_w=201.0))},
            "card 1 draws 201 W, 200 are allowed",
        ),
    ],
)
def test_what_is_seen_pauses_where_the_rule_is_on_and_only_there(
    rule: dict[str, Any], change: dict[str, Any], why: str
) -> None:
    verdict = judge(rules(**rule), seen(**change), T0)
    assert (verdict.sharing, verdict.why, verdict.next_change) == (False, why, None)
    assert judge(rules(**rule), QUIET, T0).sharing
    assert judge(OFF, seen(**change), T0).sharing


def test_what_others_do_counts_for_a_while_longer() -> None:
    """A build that pauses for a second must not load a model; the end of the wait is known."""
    busy = judge(rules(cpu_percent=25.0), seen(cpu_percent=90.0), T0)
    calm = judge(rules(cpu_percent=25.0), QUIET, T0 + 10, busy)
    assert (calm.sharing, calm.next_change) == (False, T0 + SETTLE_S)
    assert calm.why == "other programs use more than 25 % of the processor until a moment ago"
    assert judge(rules(cpu_percent=25.0), QUIET, T0 + SETTLE_S, calm).sharing


def test_plugging_the_cable_in_counts_at_once() -> None:
    unplugged = judge(rules(on_battery=False), seen(on_battery=True), T0)
    assert judge(rules(on_battery=False), QUIET, T0 + 1, unplugged).sharing


def test_a_hot_card_stops_above_the_cap_and_goes_on_below_it_less_the_margin() -> None:
    hot = rules(temperature_c=80.0, temperature_margin_c=10.0)

    def card(temperature: float) -> Observation:
        return seen(cards=(Card(index=0, temperature_c=temperature),))

    first = judge(hot, card(80.0), T0)
    assert first.sharing, "the cap itself is allowed"
    stopped = judge(hot, card(80.5), T0 + 1, first)
    assert not stopped.sharing
    assert judge(hot, card(75.0), T0 + 50).sharing, "without having been hot, 75 is no reason"
    assert not judge(hot, card(75.0), T0 + 50, stopped).sharing
    cold = judge(hot, card(70.0), T0 + 51, judge(hot, card(75.0), T0 + 50, stopped))
    assert (cold.sharing, cold.next_change) == (False, T0 + 50 + REST_S)
    assert judge(hot, card(70.0), T0 + 50 + REST_S, cold).sharing
    warm = judge(hot, card(70.5), T0 + 1000, judge(hot, card(75.0), T0 + 50, stopped))
    assert (warm.sharing, warm.next_change) == (False, None), "however long it takes"


def test_what_cannot_be_seen_is_no_reason_and_is_said() -> None:
    strict = Rules(programs=frozenset({"doom"}), cpu_percent=25.0, temperature_c=80.0, power_w=100.0)
    verdict = judge(strict, Observation(cards=(Card(index=0),), blind={"battery": "no sensor"}), T0)
    assert verdict.sharing
    assert [note.partition(" cannot be seen here")[0] for note in verdict.notes] == [
        "whether this machine runs on battery",
        "whether a program fills the screen",
        "which programs run",
        "what other programs do with the processor",
        "whether other programs use the cards",
        "how hot the cards are",
        "how much power the cards draw",
    ]
    assert "(no sensor)" in verdict.notes[0]
    assert judge(OFF, Observation(), T0).notes == ()


def test_a_machine_without_cards_has_nothing_to_say_about_them() -> None:
    assert judge(Rules(temperature_c=80.0), QUIET, T0).notes == ()
    amd = judge(Rules(temperature_c=80.0), seen(blind={"gpu": "no NVIDIA driver"}), T0)
    assert len(amd.notes) == 2
    assert all("(no NVIDIA driver)" in note for note in amd.notes)


def test_guests_are_those_whom_the_owner_wants_and_the_owner_always() -> None:
    some = Guests(owner="ada", kinds=frozenset({"chat"}), members=frozenset({"bob", "eve"}))
    some = replace(some, members_refused=frozenset({"eve", "ada"}))
    assert [some.refusal("chat", name) for name in ("ada", "bob")] == ["", ""]
    assert some.refusal("chat", "carol") == "its owner does not share this machine with carol"
    assert some.refusal("chat", "eve"), "who is refused is refused, whatever else is allowed"
    assert some.refusal("embedding", "ada") == "its owner does not share this machine for embedding"
    assert Guests(owner="ada").refusal("chat", "anybody") == ""


# --- for all rules, observations and moments


MAYBE = st.none() | st.booleans()
CARDS = st.builds(
    Card,
    index=st.integers(0, 2),
    temperature_c=st.none() | st.floats(60, 100),
    power_w=st.none() | st.floats(50, 300),
    others=st.none() | st.sampled_from([(), ("blender",)]),
)
RULES = st.builds(
    Rules,
    week=st.none() | WEEKS,
    on_battery=st.booleans(),
    input_s=st.sampled_from([0.0, 300.0]),
    gpu_alone=st.booleans(),
    cpu_percent=st.sampled_from([0.0, 25.0]),
    fullscreen=st.booleans(),
    programs=st.sampled_from([frozenset(), frozenset({"doom"})]),
    temperature_c=st.sampled_from([0.0, 80.0]),
    temperature_margin_c=st.just(10.0),
    power_w=st.sampled_from([0.0, 200.0]),
    power_margin_w=st.just(20.0),
)


@st.composite
def histories(draw: st.DrawFn) -> tuple[Rules, Verdict, Observation, float]:
    """Rules, a verdict reached by some looks at the machine, the last of these and when it was."""
    now, owner, before = draw(NOW), draw(RULES), None
    for _ in range(draw(st.integers(1, 4))):
        now += draw(st.floats(0.1, 100))
        observation = Observation(
            pause=draw(st.none() | st.builds(Pause, st.none() | st.floats(now - 50, now + 90_000))),
            input_at=draw(st.none() | st.floats(now - 600, now)),
            cpu_percent=draw(st.none() | st.floats(0, 100)),
            fullscreen=draw(MAYBE),
            programs=draw(st.none() | st.sampled_from([frozenset[str](), frozenset({"doom"})])),
            on_battery=draw(MAYBE),
            cards=tuple(draw(st.lists(CARDS, max_size=2, unique_by=lambda card: card.index))),
        )
        before = judge(owner, observation, now, before)
    assert before is not None
    return owner, before, observation, now


@given(histories(), st.floats(0, 1))
def test_the_announced_change_comes_then_and_not_before(
    history: tuple[Rules, Verdict, Observation, float], part: float
) -> None:
    """With nothing seen anew: the same until just before it, and another at it."""
    owner, verdict, observation, now = history
    change = verdict.next_change
    if change is None:
        change = now + 7 * 86_400  # not by itself: then also not within a week
    else:
        assert change > now
        assert judge(owner, observation, change, verdict).sharing != verdict.sharing
    between = now + (change - now) * part
    if between < change:
        assert judge(owner, observation, between, verdict).sharing == verdict.sharing
    assert (
        judge(owner, observation, change - min(0.01, (change - now) / 2), verdict).sharing == verdict.sharing
    )


@given(histories())
def test_a_paused_worker_says_why_and_a_sharing_one_has_nothing_to_say(
    history: tuple[Rules, Verdict, Observation, float],
) -> None:
    _, verdict, _, _ = history
    assert verdict.sharing == (verdict.why == "")


def test_zones_are_those_of_the_rules_and_not_of_the_machine() -> None:
    tokyo = rules(week=week("09:00-10:00", ZoneInfo("Asia/Tokyo")))
    assert judge(tokyo, QUIET, at("2026-11-27T00:30", ZoneInfo("UTC"))).sharing
    assert not judge(tokyo, QUIET, at("2026-11-27T09:30", ZoneInfo("UTC"))).sharing
