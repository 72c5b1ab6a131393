"""Presence, silence, blame and the brake, each at its instant."""

import math

import pytest
from fixtures_core import START, fleet_of, served, worker

from coordinator.core.fleet import Fleet, Patience, Worker
from coordinator.core.jobs import JobId, Kind, WorkerId

FENCE = (JobId("job_1"), 1)


def busy(name: str, **fields: object) -> Worker:
    return worker(name, "b", **{"heard_at": START, "running": {FENCE}, **fields})


def test_a_worker_takes_what_it_serves() -> None:
    one = worker("w1", "b", served("chatty", kinds=frozenset({Kind.CHAT})))
    assert one.takes(Kind.CHAT, "chatty") is one.models["chatty"]
    assert one.takes(Kind.EMBEDDING, "chatty") is None
    assert one.takes(Kind.CHAT, "other") is None


@pytest.mark.parametrize(
    "fields",
    [{"connected": False}, {"draining": True}, {"state": "paused"}, {"suspect": True}],
    ids=["gone", "draining", "paused", "suspect"],
)
def test_a_worker_that_is_not_there_or_not_willing_takes_nothing(fields: dict[str, object]) -> None:
    assert worker("w1", "b", **fields).takes(Kind.CHAT, "tiny") is None


def test_a_model_that_failed_to_load_takes_nothing() -> None:
    assert worker("w1", "b", served(state="failed")).takes(Kind.CHAT, "tiny") is None
    assert worker("w1", "b", served(state="absent")).takes(Kind.CHAT, "tiny") is not None


def test_reliability_starts_as_if_four_had_gone_well() -> None:
    assert worker("w1").reliability == 1.0
    assert worker("w1", "b", faults=4).reliability == 0.5
    assert worker("w1", "b", successes=4, faults=2).reliability == 0.8


def test_serving_replaces_what_was_served_before() -> None:
    fleet = fleet_of(worker("w1"), worker("w2"))
    one = fleet.workers[WorkerId("w1")]
    fleet.serve(one, {"other": served("other")})
    assert list(fleet.by_model["tiny"]) == ["w2"]
    assert list(fleet.by_model["other"]) == ["w1"]
    fleet.remove(WorkerId("w1"))
    assert "other" not in fleet.by_model
    fleet.remove(WorkerId("w1"))
    assert list(fleet.workers) == ["w2"]


def test_enrolling_twice_keeps_what_is_known() -> None:
    fleet = fleet_of(worker("w1", "b", faults=3))
    fleet.enrol(worker("w1"))
    assert fleet.workers[WorkerId("w1")].faults == 3


def test_a_closed_stream_is_waited_for_half_a_second() -> None:
    one = busy("w1", connected=False, closed_at=START)
    fleet = fleet_of(one)
    assert not fleet.gone(one, START + 0.499)
    assert fleet.gone(one, START + 0.5)
    assert not fleet.gone(busy("w2"), START + 100), "a stream that is open has not gone"


def test_a_busy_worker_may_be_silent_for_four_seconds() -> None:
    one = busy("w1")
    fleet = fleet_of(one)
    assert not fleet.silent(one, START + 3.999)
    assert fleet.silent(one, START + 4.0)


def test_an_idle_worker_may_be_silent_and_its_lease_starts_with_its_first_work() -> None:
    idle = busy("w1", running=set())
    fleet = fleet_of(idle)
    assert not fleet.silent(idle, START + 14)
    idle.running, idle.busy_since = {FENCE}, START + 14
    assert not fleet.silent(idle, START + 17.9)
    assert fleet.silent(idle, START + 18)


def test_who_is_back_within_five_seconds_is_forgiven() -> None:
    one = busy("w1")
    fleet = fleet_of(one)
    fleet.miss(one, START + 4.0)
    suspected = (one.missed_at, one.suspect)
    assert suspected == (START, True), "it gets no work until it is heard"
    fleet.blame_missing(one, START + 5.0)
    assert one.faults == 0
    fleet.heard(one, START + 5.0)
    fleet.blame_missing(one, START + 60.0)
    after = (one.faults, one.missed_at, one.suspect)
    assert after == (0, None, False)


def test_who_is_back_later_is_blamed_once() -> None:
    one = busy("w1")
    fleet = fleet_of(one)
    fleet.miss(one, START + 4.0)
    fleet.heard(one, START + 5.001)
    for after in (5.01, 6.0, 60.0):
        fleet.blame_missing(one, START + after)
    assert one.faults == 1


def test_several_attempts_lost_in_one_silence_are_one_fault() -> None:
    one = busy("w1", connected=False, closed_at=START)
    fleet = fleet_of(one)
    fleet.miss(one, START + 0.5)
    fleet.miss(one, START + 0.75)
    assert one.missed_at == START
    fleet.blame_missing(one, START + 6)
    assert one.faults == 1


def test_a_loss_that_is_found_late_is_blamed_at_once() -> None:
    """After the brake has let go there is nothing left to wait for."""
    one = busy("w1")
    fleet = fleet_of(one)
    fleet.miss(one, START + 5.001)
    assert one.faults == 1


def many(count: int, silent: int, **fields: object) -> Fleet:
    """At START + 4 the first `silent` of them have used up their lease."""
    fleet = fleet_of(*(busy(f"w{i:02}", heard_at=START if i < silent else START + 3.5) for i in range(count)))
    for one in fleet.workers.values():
        for name, value in fields.items():
            setattr(one, name, value)
    return fleet


@pytest.mark.parametrize(
    ("count", "silent", "brakes"),
    [(10, 4, True), (10, 3, False), (9, 9, False), (20, 7, True), (20, 6, False), (10, 10, True)],
)
def test_the_brake_needs_ten_workers_and_more_than_three_tenths_silent(
    count: int, silent: int, brakes: bool
) -> None:
    assert many(count, silent).brake(START + 4) is brakes


def test_the_brake_lets_go_after_fifteen_seconds() -> None:
    fleet = many(10, 10)
    assert fleet.brake(START + 4)
    assert fleet.brake(START + 18.999)
    assert not fleet.brake(START + 19)


def test_the_brake_starts_anew_after_a_recovery() -> None:
    fleet = many(10, 10)
    assert fleet.brake(START + 4)
    for one in fleet.workers.values():
        fleet.heard(one, START + 10)
    assert not fleet.brake(START + 10)
    assert fleet.braking_since is None
    assert fleet.brake(START + 20)
    assert fleet.brake(START + 28.9)


def test_closed_streams_count_for_the_brake() -> None:
    """At once, though each is waited for: the first grace that ends already knows of the others."""
    fleet = many(10, 0)
    for one in list(fleet.workers.values())[:4]:
        assert not fleet.brake(START + 3.6)
        fleet.closed(one, START + 3.6)
    assert fleet.brake(START + 3.6)


def test_only_who_closed_while_busy_is_waited_for_and_told_of_once() -> None:
    idle, one, two = busy("w1", running=set()), busy("w2"), busy("w3")
    fleet = fleet_of(idle, one, two)
    assert fleet.due() == math.inf
    fleet.closed(idle, START)
    fleet.closed(two, START + 0.1)
    fleet.closed(two, START + 0.3)
    fleet.closed(one, START + 0.2)
    assert fleet.due() == START + 0.6
    assert fleet.left(START + 0.599) == []
    assert fleet.left(START + 0.6) == [two]
    assert fleet.due() == START + 0.7
    fleet.opened(one)
    assert (fleet.due(), fleet.left(START + 9)) == (math.inf, []), "back in time"
    fleet.closed(one, START + 9)
    fleet.remove(one.id)
    assert (fleet.due(), fleet.left(START + 99)) == (math.inf, []), "removed meanwhile"


def test_workers_that_left_long_ago_neither_trip_the_brake_nor_hide_a_loss() -> None:
    """Volunteers' machines are often off; only what happens now says something about the coordinator."""
    fleet = many(10, 4)
    for i in range(100):
        fleet.enrol(worker(f"x{i}", "b", connected=False, closed_at=START - 3_600, heard_at=START - 3_600))
    assert fleet.brake(START + 4)
    alone = many(4, 4)
    for i in range(100):
        alone.enrol(worker(f"x{i}", "b", connected=False, closed_at=START - 3_600, heard_at=START - 3_600))
    assert not alone.brake(START + 4)


def test_workers_that_never_came_are_not_known() -> None:
    fleet = many(9, 9)
    fleet.enrol(worker("new", "b", connected=False))
    assert not fleet.brake(START + 4)


def test_the_limits_of_patience_are_those_of_the_design() -> None:
    patience = Patience()
    assert (patience.lease_s, patience.closed_grace_s, patience.forgiven_s) == (4.0, 0.5, 5.0)
    assert patience.brake_workers_min == 10
