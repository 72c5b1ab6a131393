"""The planner alone: its order, its filters, its score, and its reasons in words."""

import random
from dataclasses import dataclass, replace
from typing import Any

import pytest
from fixtures_core import account, cold, demand, fleet_of, job_of, served, worker
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.core.fleet import Fleet, Guests, Served
from coordinator.core.jobs import Job, JobId, Kind, MemberId, WorkerId
from coordinator.core.line import Line
from coordinator.core.schedule import Assign, Policy, Waiting, allowed, impossible, plan, seconds

POLICY = Policy()


@dataclass(frozen=True, kw_only=True)
class Ask(Waiting):
    """A job as the planner sees it, with what the line must know of it."""

    member: str = "a"
    since: float = 0.0
    stored: bool = False

    def job(self) -> Job:
        return job_of(
            demand(self.kind),
            self.id,
            self.member,
            model=self.model,
            created_at=self.since,
            stored=self.stored,
            account=self.account,
        )


def waiting(name: str = "job_1", member: str = "a", **fields: Any) -> Ask:
    standard: dict[str, Any] = {
        "id": JobId(name),
        "kind": Kind.CHAT,
        "model": "tiny",
        "member": member,
        "account": account(member),
        "context_tokens": 100,
    }
    return Ask(**{**standard, **fields})


def assigns(queue: list[Ask], fleet: Fleet, policy: Policy = POLICY, **running: int) -> list[Assign]:
    """Who gets what, ten seconds after everything came."""
    line, asked = Line(), {job.id: job for job in queue}
    for job in queue:
        line.enter(job.job())
    turns = {MemberId(m): n for m, n in running.items()}
    return plan(line, fleet, turns, policy, 10.0, lambda job_id: asked[job_id])


def planned(queue: list[Ask], fleet: Fleet, policy: Policy = POLICY, **running: int) -> list[tuple[str, str]]:
    return [(d.job, d.worker) for d in assigns(queue, fleet, policy, **running)]


def order(queue: list[Ask], **running: int) -> list[str]:
    """The order in which jobs are given to one worker with room for all."""
    one = worker("w1", "z", served(slots=99), slots=99)
    return [job for job, _ in planned(queue, fleet_of(one), POLICY, **running)]


# -- the order of jobs


def test_interactive_jobs_go_before_stored_ones() -> None:
    queue = [waiting("stored", stored=True, since=1.0), waiting("chat", since=2.0)]
    one = fleet_of(worker("w1", "z", served(slots=2), slots=2))
    assert [job for job, _ in planned(queue, one)] == ["chat", "stored"]


def test_members_take_turns() -> None:
    """Who asked for ten things first does not keep out who asked for one."""
    queue = [waiting(f"a{i}", "a", since=float(i)) for i in range(3)] + [waiting("b0", "b", since=9.0)]
    assert order(queue) == ["a0", "b0", "a1", "a2"]


def test_members_of_one_account_take_turns_by_what_they_have_running() -> None:
    """Several members in one flow: who has least running goes first."""
    shared = account("a")
    queue = [waiting("a0", "a", since=1.0), waiting("b0", "b", since=2.0, account=shared)]
    assert order(queue) == ["a0", "b0"]
    assert order(queue, a=1) == ["b0", "a0"]


def test_equals_go_by_age_then_by_name() -> None:
    queue = [waiting("z", "a", since=1.0), waiting("y", "b", since=1.0), waiting("x", "c", since=2.0)]
    assert order(queue) == ["y", "z", "x"]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.integers(0, 12), st.integers(0, 8))
def test_a_plan_does_not_depend_on_the_order_in_which_things_are_listed(
    seed: int, jobs: int, workers: int
) -> None:
    rng = random.Random(seed)
    queue = [
        waiting(
            f"j{i}",
            rng.choice("abc"),
            since=float(rng.randint(0, 3)),
            stored=rng.random() < 0.3,
            numerics=rng.choice(["", "x"]),
            own_only=rng.random() < 0.2,
        )
        for i in range(jobs)
    ]
    made = [
        worker(
            f"w{i}",
            rng.choice("abc"),
            served(slots=2, decode=float(rng.randint(1, 3)), numerics=rng.choice("xy")),
            slots=rng.randint(1, 3),
        )
        for i in range(workers)
    ]
    first = planned(queue, fleet_of(*made))
    again = planned(rng.sample(queue, len(queue)), fleet_of(*rng.sample(made, len(made))))
    assert first == again
    assert len({job for job, _ in first}) == len(first), "a job is given away once"
    for one in made:
        assert sum(name == one.id for _, name in first) <= min(one.slots, 2)


# -- who may do it


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"only": frozenset({WorkerId("w9")})}, "the job names other workers"),
        ({"own_only": True}, "the job may run on its member's own workers only"),
        ({"refused_by": frozenset({WorkerId("w1")})}, "it could not do this job before"),
        ({"context_tokens": 2_049}, "needs a context of 2049 tokens, it has 2048"),
        ({"context_tokens": 2_048}, ""),
        ({"needs": frozenset({"tools"})}, ""),
        ({"needs": frozenset({"tools", "json_schema"})}, "it has no structured output (JSON Schema)"),
        ({"needs": frozenset({"lora"})}, "it has no support for adapters (LoRA)"),
        ({"only": frozenset({WorkerId("w1")})}, ""),
        ({"own_only": True, "account": account("b")}, ""),
    ],
)
def test_each_hard_filter_has_its_reason(fields: dict[str, Any], why: str) -> None:
    job, model = waiting(**fields), served(context_tokens=2_048, features=frozenset({"tools"}))
    one = worker("w1", "b", model)
    assert allowed(job, one, model) == why
    assert bool(planned([job], fleet_of(one))) == (not why)


def test_a_feature_is_found_however_many_lack_it() -> None:
    """More workers without it than a job may pass over, all of them better: the one that has it gets the job."""
    crowd = [worker(f"w{n}", "b", served(decode=1e3)) for n in range(3 * POLICY.skips_max)]
    able = worker("able", "b", served(decode=1.0, features=frozenset({"tools"})))
    jobs = [waiting("plain"), waiting("calls", needs=frozenset({"tools"}), since=1.0)]
    found = dict(planned(jobs, fleet_of(*crowd, able)))
    assert found["calls"] == "able"
    assert found["plain"] != "able"


def test_what_was_never_loaded_may_have_any_feature() -> None:
    """Nobody knows before; once it is ready, what it did not say it has not."""
    job = waiting(needs=frozenset({"tools"}))
    assert planned([job], fleet_of(worker("w1", "b", cold("present")))) == [("job_1", "w1")]
    assert planned([job], fleet_of(worker("w1", "b", cold("loading", features=frozenset({"lora"}))))) == []
    assert planned([job], fleet_of(worker("w1", "b", served()))) == []


def test_an_unknown_context_is_not_a_limit() -> None:
    assert planned([waiting(context_tokens=10**9)], fleet_of(worker("w1"))) == [("job_1", "w1")]


@pytest.mark.parametrize(
    "fields", [{"connected": False}, {"draining": True}, {"state": "paused"}, {"suspect": True}]
)
def test_workers_that_are_gone_or_unwilling_get_nothing(fields: dict[str, Any]) -> None:
    assert planned([waiting()], fleet_of(worker("w1", "b", **fields))) == []


def test_kinds_and_models_are_kept_apart() -> None:
    fleet = fleet_of(
        worker("w1", "b", served("tiny", kinds=frozenset({Kind.CHAT}))), worker("w2", "b", served("big"))
    )
    queue = [
        waiting("embed", kind=Kind.EMBEDDING),
        waiting("big", model="big"),
        waiting("none", model="none"),
    ]
    assert planned(queue, fleet) == [("big", "w2")]


# -- slots


def test_a_worker_gets_no_more_than_its_slots() -> None:
    queue = [waiting(f"j{i}") for i in range(5)]
    assert len(planned(queue, fleet_of(worker("w1", "b", served(slots=3), slots=3)))) == 3
    assert len(planned(queue, fleet_of(worker("w1", "b", served(slots=2), slots=3)))) == 2, (
        "the model has two"
    )
    assert len(planned(queue, fleet_of(worker("w1", "b", served(slots=0), slots=3)))) == 1, (
        "or one, if it says none"
    )


def test_what_it_runs_takes_its_slots() -> None:
    running = {(JobId("x"), 1)}
    assert planned([waiting()], fleet_of(worker("w1", "b", running=running))) == []
    one = worker("w1", "b", served(slots=2), slots=2, running=running)
    assert len(planned([waiting("j1"), waiting("j2")], fleet_of(one))) == 1


def test_slots_are_shared_by_all_models_of_a_worker() -> None:
    one = worker("w1", "b", served("tiny", slots=2), served("big", slots=2), slots=2)
    queue = [waiting("j1"), waiting("j2", model="big"), waiting("j3"), waiting("j4", model="big")]
    assert planned(queue, fleet_of(one)) == [("j1", "w1"), ("j2", "w1")]


def test_a_tick_is_bounded() -> None:
    one = worker("w1", "b", served(slots=9), slots=9)
    queue = [waiting(f"j{i}") for i in range(9)]
    assert len(planned(queue, fleet_of(one), replace(POLICY, assignments_max=4))) == 4


def test_one_job_is_offered_to_a_bounded_number_of_workers() -> None:
    """The only worker that may have it stands behind the bound: it waits, and the others are served."""
    closed = [worker(f"w{i}", "a") for i in range(4)]
    for one in closed:
        one.guests = Guests(members=frozenset({"somebody"}))
    fleet = fleet_of(*closed, worker("w4"))
    guest, owner = waiting("guest", since=-1.0, account=account("d")), waiting("easy")
    assert planned([guest, owner], fleet, replace(POLICY, skips_max=3)) == [("easy", "w0")]
    assert planned([guest, owner], fleet) == [("easy", "w0"), ("guest", "w4")]


@pytest.mark.parametrize("narrow", [{"only": frozenset({WorkerId("w3")})}, {"own_only": True}])
def test_a_job_for_certain_workers_finds_them_behind_any_number_of_better_ones(
    narrow: dict[str, Any],
) -> None:
    slow = worker("w3", "d", served(decode=1.0, state="present"))
    fleet = fleet_of(*(worker(f"w{i}", "b") for i in range(3)), slow)
    job = waiting("narrow", account=account("d"), **narrow)
    assert planned([job], fleet, replace(POLICY, skips_max=1)) == [("narrow", "w3")]


# -- which is best


def test_the_expected_time_by_hand() -> None:
    """256 tokens in at 512/s and 256 out at 64/s: 4.5 s; half as much again at half load; over reliability."""
    fast = served(prefill=512.0, decode=64.0)
    one = worker("w1", "b", fast, slots=2)
    assert seconds(one, fast, POLICY) == 4.5
    one.running = {(JobId("x"), 1)}
    assert seconds(one, fast, POLICY) == 6.75
    one.faults = 4
    assert seconds(one, fast, POLICY) == 13.5
    assert seconds(worker("w2"), served(), POLICY) == 256 / 200 + 256 / 20, "guesses where nothing is known"


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (worker("w2", "b", served(decode=30.0)), worker("w1", "b", served(decode=10.0))),
        (worker("w2", "b", served(prefill=900.0)), worker("w1", "b", served(prefill=90.0))),
        (worker("w2"), worker("w1", "b", faults=1)),
        (worker("w2"), worker("w1", "b", cold("loading"))),
        (worker("w2", "b", cold("loading")), worker("w1", "b", cold("present"))),
        (worker("w2", "b", cold("present")), worker("w1", "b", cold("downloading"))),
        (worker("w2", "b", cold("downloading")), worker("w1", "b", cold("absent"))),
        (
            worker("w2", "b", served(slots=4), slots=4),
            worker("w1", "b", served(slots=4), slots=4, running={(JobId("x"), 1)}),
        ),
        (worker("w1"), worker("w2")),
    ],
    ids=["decode", "prefill", "reliability", "loading", "present", "downloading", "absent", "load", "name"],
)
def test_the_better_worker_is_chosen(better: Any, worse: Any) -> None:
    assert planned([waiting()], fleet_of(worse, better)) == [("job_1", better.id)]


def test_ones_own_worker_comes_first_unless_it_is_much_slower() -> None:
    """It costs its owner nothing; but thrice the time is no favour, and a model to be loaded neither."""
    quick = worker("w1", "b", served(decode=100.0, prefill=1_000.0))
    own = worker("w2", "a", served(decode=50.0, prefill=500.0))
    assert planned([waiting()], fleet_of(quick, own)) == [("job_1", "w2")]
    both = planned([waiting("j1"), waiting("j2")], fleet_of(quick, own))
    assert both == [("j1", "w2"), ("j2", "w1")], "its one slot is taken then"
    for poor in (served(decode=10.0, prefill=100.0), cold("present", decode=50.0)):
        assert planned([waiting()], fleet_of(quick, worker("w2", "a", poor))) == [("job_1", "w1")]
    other = worker("w2", "a", served(decode=50.0, prefill=500.0, numerics="y"))
    same = worker("w1", "b", served(decode=100.0, prefill=1_000.0, numerics="x"))
    assert planned([waiting(numerics="x")], fleet_of(same, other)) == [("job_1", "w1")]


def test_equals_take_turns() -> None:
    """A twentieth faster is no reason to get everything: who has been idle for longest comes first."""
    one = worker("w1", "b", served(decode=22.0), busy_since=20.0)
    two = worker("w2", "c", served(decode=21.0), busy_since=10.0)
    assert planned([waiting()], fleet_of(one, two)) == [("job_1", "w2")]
    two.busy_since = 30.0
    assert planned([waiting()], fleet_of(one, two)) == [("job_1", "w1")]
    slow = worker("w3", "c", served(decode=10.0), busy_since=0.0)
    assert planned([waiting()], fleet_of(one, slow)) == [("job_1", "w1")]


def test_a_much_faster_cold_worker_loses_against_a_warm_one() -> None:
    fleet = fleet_of(
        worker("w1", "b", cold("absent", decode=1_000.0)), worker("w2", "b", served(decode=20.0))
    )
    assert planned([waiting()], fleet) == [("job_1", "w2")]


def test_work_is_spread_as_workers_fill() -> None:
    fleet = fleet_of(*(worker(f"w{i}", "b", served(slots=2), slots=2) for i in range(2)))
    queue = [waiting(f"j{i}") for i in range(4)]
    assert [name for _, name in planned(queue, fleet)] == ["w0", "w1", "w0", "w1"]


def test_the_same_numerics_go_first_though_slower() -> None:
    """A continuation is identical only within its class."""
    fleet = fleet_of(
        worker("fast", "b", served(numerics="bf16", decode=900.0)),
        worker("slow", "b", served(numerics="fp32", decode=1.0)),
    )
    assert planned([waiting(numerics="fp32")], fleet) == [("job_1", "slow")]
    assert planned([waiting()], fleet) == [("job_1", "fast")]


def test_another_class_is_better_than_none_and_the_best_of_them_is_taken() -> None:
    fleet = fleet_of(
        worker("w1", "b", served(numerics="bf16", decode=10.0)),
        worker("w2", "b", served(numerics="bf16", decode=30.0)),
    )
    assert planned([waiting(numerics="fp32"), waiting("next")], fleet) == [("job_1", "w2"), ("next", "w1")]


def test_a_worker_filled_through_one_model_is_passed_over_in_the_other() -> None:
    one = worker("w1", "b", served("tiny", decode=900.0), served("big", decode=900.0))
    fleet = fleet_of(one, worker("w2", "b", served("tiny")))
    queue = [
        waiting("j0", since=0.0, only=frozenset({WorkerId("w9")})),
        waiting("j1", model="big", since=1.0),
        waiting("j2", since=2.0),
    ]
    assert planned(queue, fleet) == [("j1", "w1"), ("j2", "w2")]


def test_a_decision_says_why() -> None:
    fleet = fleet_of(
        worker("w1", "b", served(slots=2, prefill=512.0, decode=64.0, numerics="fp32"), slots=2),
        worker("w2", "b", served(numerics="fp32")),
    )
    [decision] = assigns([waiting(numerics="fp32")], fleet)
    assert decision.why == "emulator ready, about 4.5 s, 1 other with room, same numerics"


# -- what can never be


def reason(job: Waiting, *workers: Any, memory_bytes: int = 0) -> str:
    return impossible(job, fleet_of(*workers), memory_bytes)


def test_an_empty_pool_says_how_to_bring_a_worker_in() -> None:
    assert "potluck worker join" in reason(waiting())


def test_a_worker_that_is_only_away_or_busy_is_reason_to_wait() -> None:
    away = worker("w1", "b", connected=False)
    assert reason(waiting(), away) == ""
    assert reason(waiting(), worker("w1", "b", running={(JobId("x"), 1)})) == ""
    assert reason(waiting(), worker("w1", "b", suspect=True)) == ""


def test_a_worker_not_heard_since_the_start_has_the_benefit_of_the_doubt() -> None:
    assert reason(waiting(model="other"), worker("w1", "b", greeted=False, connected=False)) == ""
    assert reason(waiting(model="other"), worker("w1")) != ""


@pytest.mark.parametrize(
    ("job", "models", "said"),
    [
        (waiting(model="other"), [served()], "no worker of this pool serves other"),
        (
            waiting(kind=Kind.EMBEDDING),
            [served(kinds=frozenset({Kind.CHAT}))],
            "the workers that serve tiny do no embedding",
        ),
        (
            waiting(context_tokens=5_000),
            [served(context_tokens=2_048)],
            "the job needs a context of 5000 tokens, the workers have 2048",
        ),
        (
            waiting(needs=frozenset({"tools", "json_schema"})),
            [served()],
            "the workers that serve tiny have no structured output (JSON Schema) and no tool calls",
        ),
        (waiting(needs=frozenset({"tools"})), [cold("absent")], ""),
        (waiting(own_only=True), [served()], "you have no worker of your own"),
        (
            waiting(only=frozenset({WorkerId("w9")})),
            [served()],
            "none of the workers you named is in this pool",
        ),
        (
            waiting(refused_by=frozenset({WorkerId("w1")})),
            [served()],
            "no worker that serves tiny is left to try",
        ),
    ],
)
def test_what_no_worker_could_ever_do_is_said(job: Waiting, models: list[Served], said: str) -> None:
    assert reason(job, worker("w1", "b", *models)) == said


def test_too_little_memory_names_both_numbers() -> None:
    small = worker("w1", "b", served("tiny"), memory_bytes=8 * 10**9)
    large = worker("w2", "b", served("tiny"), memory_bytes=24 * 10**9)
    said = reason(waiting(model="huge"), small, large, memory_bytes=40 * 10**9)
    assert said == "huge needs 40.0 GB, the largest worker has 24.0 GB"


def test_a_worker_whose_memory_is_unknown_is_not_called_too_small() -> None:
    one = worker("w1", "b", served("tiny"), memory_bytes=0)
    assert reason(waiting(model="huge"), one, memory_bytes=40 * 10**9) == "no worker of this pool serves huge"


def test_one_worker_that_could_is_enough() -> None:
    assert (
        reason(waiting(context_tokens=5_000), worker("w1", "b", served(context_tokens=10)), worker("w2"))
        == ""
    )


def test_the_most_frequent_reason_is_given() -> None:
    few = [worker(f"w{i}", "b", served(context_tokens=10)) for i in range(2)]
    said = reason(waiting(), worker("w9", "b", served("other")), *few)
    assert said == "the job needs a context of 100 tokens, the workers have 10"
