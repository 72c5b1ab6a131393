"""The order in which waiting jobs are given away, by the real planner on one worker: fair, bounded, total."""

import itertools
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from fixtures_core import account, demand, fleet_of, job_of, served, worker
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.core.fairness import JobClass
from coordinator.core.fleet import Fleet
from coordinator.core.jobs import Job, JobId, MemberId, WorkerId
from coordinator.core.line import Line, Room
from coordinator.core.place import Place, place_of
from coordinator.core.schedule import Policy, Waiting, plan

CREDIT = 1_000_000
COST = 1_000
SLOW = settings(max_examples=40, deadline=None, derandomize=True)
NETS = st.lists(st.integers(-3_000, 3_000), min_size=2, max_size=8)


def one_worker(slots: int = 1) -> Fleet:
    return fleet_of(worker("w1", "z", served(slots=slots), slots=slots))


@dataclass
class Floor:
    """A line in front of a fleet. `serve` gives away one job a second and ends it at once."""

    fleet: Fleet = field(default_factory=one_worker)
    line: Line = field(default_factory=Line)
    jobs: dict[JobId, Job] = field(default_factory=dict)
    running: dict[MemberId, int] = field(default_factory=dict)
    now: float = 1_000.0
    count: "itertools.count[int]" = field(default_factory=itertools.count)

    def gave(self, name: str, credits_: float) -> None:
        self.line.given.worked(account(name), account(name), int(credits_ * CREDIT), self.now)

    def ask(self, member: str, jobs: int = 1, *, cost: int = COST, **fields: Any) -> list[JobId]:
        """That many jobs of the member; their ids are in the order of asking."""
        made = []
        for _ in range(jobs):
            name = f"{next(self.count):05}-{member}"
            standard = {"account": account(member), "created_at": self.now, "hold": cost, "quote": cost}
            job = job_of(demand(), name, member, **{**standard, **fields})
            self.jobs[job.id] = job
            self.line.enter(job)
            made.append(job.id)
        return made

    def waiting(self, job_id: JobId) -> Waiting:
        job = self.jobs[job_id]
        return Waiting(job.id, job.kind, job.model, job.account, 100, only=job.only)

    def plan(self, most: int = 512) -> list[JobId]:
        policy = Policy(assignments_max=most)
        self.line.given.now = self.now
        decisions = plan(self.line, self.fleet, self.running, policy, self.now, self.waiting)
        return [decision.job for decision in decisions]

    def serve(self, jobs: int, *, charge: int | None = None, refill: bool = False) -> list[str]:
        """Whose jobs were served, one a second. `refill`: each member asks again at once."""
        got = []
        for _ in range(jobs):
            self.now += 1.0
            for job_id in self.plan(1):
                job = self.jobs[job_id]
                self.line.leave(job_id, job.hold if charge is None else charge)
                got.append(str(job.member))
                if refill:
                    self.ask(str(job.member), account=job.account, stored=job.stored, cost=job.hold)
        return got

    def place(self, job_id: JobId) -> Place:
        return place_of(self.line, self.fleet, self.running, Policy(), self.waiting(job_id))


# -- shares in practice


def test_contributors_get_their_part_and_newcomers_theirs() -> None:
    """300 and 100 credits given, and a newcomer: 0.667, 0.267 and 0.067 of the work."""
    floor = Floor()
    floor.gave("a", 300)
    floor.gave("b", 100)
    for name in "abc":
        floor.ask(name, 900)
    got = Counter(floor.serve(600))
    assert got["a"] == pytest.approx(400, abs=25), "less what goes to those who got nothing for 20 s"
    assert got["b"] == pytest.approx(160, abs=15)
    assert got["c"] == pytest.approx(40, abs=15)


def test_a_newcomer_goes_before_a_flood_that_came_earlier() -> None:
    floor = Floor()
    floor.ask("flood", 500)
    floor.serve(50)
    floor.ask("new")
    assert "new" in floor.serve(2)


def test_ten_accounts_of_one_get_what_one_gets() -> None:
    """Ten invited accounts and their host against somebody alone with as many jobs."""
    floor = Floor()
    for n in range(10):
        floor.line.given.lend(account("host"), account(f"guest{n}"), 1)
        floor.ask(f"guest{n}", 30)
    floor.ask("host", 30)
    floor.ask("alone", 330)
    got = floor.serve(200)
    alone = got.count("alone")
    assert abs(alone - (len(got) - alone)) <= 1
    guests = Counter(name for name in got if name != "alone")
    assert max(guests.values()) - min(guests.values()) <= 1, "inside the line they take turns"
    assert len(guests) == 11


def test_inside_a_line_who_was_served_least_lately_goes_first() -> None:
    """Though nothing runs and one of them asked for everything first."""
    floor = Floor()
    floor.ask("a", 3, account=account("x"))
    floor.ask("b", 3, account=account("x"))
    assert floor.serve(6) == ["a", "b"] * 3


def test_ten_members_of_one_account_are_one_flow() -> None:
    floor = Floor()
    for n in range(10):
        floor.ask(f"key{n}", 30, account=account("a"))
    floor.ask("b", 300)
    got = floor.serve(100)
    assert abs(got.count("b") - 50) <= 1


def test_a_large_max_tokens_is_not_punished() -> None:
    """Both are charged the same in the end; one asked for fifty times as much."""
    floor = Floor()
    floor.ask("modest", 300, cost=COST)
    floor.ask("large", 300, cost=50 * COST)
    got = floor.serve(200, charge=COST)
    assert abs(got.count("modest") - got.count("large")) <= 1


def test_what_an_attempt_was_counted_for_is_given_back_when_it_fails() -> None:
    """Its job waits again, and the flow stands where it stood before."""
    floor = Floor()
    [first] = floor.ask("a", cost=100 * COST)
    floor.plan()
    floor.line.enter(floor.jobs[first])
    floor.ask("b")
    floor.ask("a")
    assert floor.serve(2) == ["a", "b"]


def test_a_job_that_is_cancelled_leaves_no_trace() -> None:
    floor = Floor()
    [gone, _] = floor.ask("a", 2)
    floor.line.leave(gone, 0)
    floor.line.leave(gone, 0)
    assert floor.serve(3) == ["a"]
    assert (floor.line.jobs, floor.line.wants, floor.line.waiting) == ({}, {}, {})


@SLOW
@given(NETS, st.integers(0, 2**32))
def test_nobody_starves(nets: list[int], seed: int) -> None:
    """Everybody has work waiting all the time: each is served within the bound, whatever was given."""
    floor, rng = Floor(), random.Random(seed)
    names = [f"m{n}" for n in range(len(nets))]
    for name, net in zip(names, nets, strict=True):
        floor.gave(name, net)
        floor.ask(name, 3, cost=rng.randint(1, 50) * COST)
    got = floor.serve(400, refill=True)
    slowest = 20.0 * 4 + (len(names) + 1) / 0.2  # of those in debt; one placement a second
    for name in names:
        turns = [-1, *(n for n, who in enumerate(got) if who == name), len(got)]
        assert max(b - a for a, b in itertools.pairwise(turns)) <= slowest, name


@SLOW
@given(NETS, st.integers(1, 3_000))
def test_who_gives_more_is_served_no_less(nets: list[int], more: int) -> None:
    def served_of(first: int) -> int:
        floor = Floor()
        for n, net in enumerate([first, *nets[1:]]):
            floor.gave(f"m{n}", net)
            floor.ask(f"m{n}", 160)
        return floor.serve(150).count("m0")

    assert served_of(nets[0] + more) >= served_of(nets[0]) - 1  # within one job


@SLOW
@given(NETS, st.integers(0, 2**32))
def test_the_order_is_total_and_does_not_depend_on_who_came_in_first(nets: list[int], seed: int) -> None:
    """The same jobs entered in another order are given away in the same one."""
    rng = random.Random(seed)
    asks = [(f"m{rng.randrange(len(nets))}", rng.randint(1, 9), rng.random() < 0.3) for _ in range(25)]
    orders = []
    for shuffled in (False, True):
        floor = Floor(fleet=one_worker(40))
        for n, net in enumerate(nets):
            floor.gave(f"m{n}", net)
        numbered = list(enumerate(asks))
        if shuffled:
            rng.shuffle(numbered)
        for n, (member, cost, stored) in numbered:
            job = job_of(
                demand(), f"{n:05}", member, account=account(member), created_at=990.0 + n % 3,
                hold=cost * COST, quote=cost * COST, stored=stored,
            )  # fmt: skip
            floor.jobs[job.id] = job
            floor.line.enter(job)
        orders.append(floor.plan())
    assert orders[0] == orders[1]
    assert len(orders[0]) == len(asks)


# -- classes


def test_stored_jobs_leave_room_for_interactive_ones() -> None:
    """Of twenty slots two stay free, and an interactive job starts at once."""
    floor = Floor(fleet=one_worker(20))
    floor.ask("a", 50, stored=True)
    assert len(floor.plan()) == 18
    floor.fleet.workers[WorkerId("w1")].running = {(JobId(f"j{n}"), 1) for n in range(18)}
    floor.fleet.workers[WorkerId("w1")].classes = [0, 18, 0]
    assert floor.plan() == []
    asked = floor.ask("b", 3)
    assert floor.plan() == asked[:2]


def test_stored_jobs_get_their_reserved_room_while_interactive_ones_wait() -> None:
    floor = Floor(fleet=one_worker(20))
    interactive, stored = floor.ask("a", 50), floor.ask("b", 50, stored=True)
    got = floor.plan()
    assert got == [*stored[:2], *interactive[:18]]


def test_a_small_pool_keeps_no_room() -> None:
    floor = Floor(fleet=one_worker(9))
    floor.ask("a", 9, stored=True)
    assert len(floor.plan()) == 9


def test_fine_tuning_leaves_the_room_of_both_others() -> None:
    floor = Floor(fleet=one_worker(20))
    floor.ask("a", 1)
    line = floor.line

    room = Room(20, [0, 0, 15])
    assert room.open(JobClass.FINETUNE, line.rule)
    assert not Room(20, [0, 0, 16]).open(JobClass.FINETUNE, line.rule)
    assert Room(20, [0, 0, 16]).open(JobClass.BATCH, line.rule)
    assert not Room(20, [0, 2, 16]).open(JobClass.BATCH, line.rule)
    assert Room(20, [0, 4, 16]).open(JobClass.INTERACTIVE, line.rule)


def test_a_stored_job_that_got_nothing_for_long_is_served_all_the_same() -> None:
    """One slot, interactive jobs without end: half an hour later the stored job has its turn."""
    floor = Floor()
    floor.ask("a", 3)
    floor.ask("b", 2, stored=True)
    assert set(floor.serve(1_790, refill=True)) == {"a"}
    assert floor.serve(20, refill=True).count("b") == 1, "one, and then the next half hour begins"


def test_long_waits_take_at_most_a_fifth() -> None:
    """Forty who are overdue all the time cannot push a great contributor out."""
    floor = Floor()
    floor.gave("giver", 100_000)
    floor.ask("giver", 300)
    for n in range(40):
        floor.ask(f"m{n}", 10)
    floor.now += 100.0
    got = floor.serve(200)
    assert got.count("giver") >= 200 * (1 - 0.2) * 0.8 - 5


def test_who_waited_longest_without_a_turn_goes_first_among_them() -> None:
    floor = Floor()
    floor.gave("giver", 100_000)
    floor.ask("giver", 300)
    floor.serve(1)
    for name in ("late", "later", "latest"):
        floor.now += 1.0
        floor.ask(name, 5)
        floor.line.clock.lane(("tiny", JobClass.INTERACTIVE)).tags[account(name)] = 1e12
    floor.now += 30.0
    assert [name for name in floor.serve(15) if name != "giver"] == ["late", "later", "latest"]


# -- models


def test_a_job_for_a_model_that_nobody_serves_saves_up_no_turns() -> None:
    floor = Floor()
    floor.ask("a", 1, model="rare")
    floor.ask("b", 200)
    floor.serve(100)
    floor.ask("a", 100)
    got = floor.serve(40)
    assert abs(got.count("a") - got.count("b")) <= 1


def test_using_two_models_of_one_worker_gets_no_more_than_using_one() -> None:
    floor = Floor(fleet=fleet_of(worker("w1", "z", served("tiny"), served("big"))))
    floor.ask("a", 100)
    floor.ask("a", 100, model="big")
    floor.ask("b", 200)
    got = floor.serve(100)
    assert abs(got.count("a") - got.count("b")) <= 2


def test_a_job_that_nobody_may_take_now_keeps_nobody_waiting() -> None:
    """Not the others of its own flow, and it is still there afterwards."""
    floor = Floor()
    [bound] = floor.ask("a", only=frozenset({WorkerId("w9")}))
    free = floor.ask("a", 1)
    assert floor.plan() == free
    assert bound in floor.line.jobs
    floor.fleet = fleet_of(worker("w9", "z"))
    assert floor.plan() == [bound]


# -- place in line


def test_the_place_is_the_order_in_which_jobs_are_given_away() -> None:
    floor = Floor(fleet=one_worker(20))
    floor.gave("a", 40)
    floor.gave("b", -100)
    for _ in range(3):
        for name in "abc":
            floor.ask(name, 2)
    places = {job: floor.place(job).place for job in floor.line.jobs}
    expected = {job: n + 1 for n, job in enumerate(floor.plan())}
    assert {job: abs(places[job] - expected[job]) <= 1 for job in expected} == dict.fromkeys(expected, True)
    assert sorted(places.values()) == list(range(1, 19))


def test_the_reason_names_what_was_given_and_taken() -> None:
    floor = Floor()
    floor.gave("taker", -12.3)
    floor.gave("giver", 200)
    floor.gave("lesser", 5)
    floor.ask("giver", 3)
    _, taker = floor.ask("taker", 2)
    _, lesser = floor.ask("lesser", 2)
    _, new = floor.ask("new", 2)
    floor.serve(1)
    found = floor.place(taker)
    said = f"{found.place - 1} jobs are ahead, 1 of them your own: you took 12.3 credits more than you gave recently"
    assert found.why == f"{said}; contributors go first"
    assert "you gave 5.0 credits more than you took recently" in floor.place(lesser).why
    assert "a part is kept for everybody" in floor.place(new).why


def test_the_reason_tells_a_guest_in_whose_line_it_stands() -> None:
    floor = Floor()
    floor.line.given.lend(account("host"), account("guest"), 1)
    floor.gave("x", 500)
    floor.ask("x", 5)
    floor.ask("host", 1)
    [guest] = floor.ask("guest")
    assert (
        "you stand in the line of the member who lent you your credit line until you gave 100.0 credits"
        in floor.place(guest).why
    )


def test_the_reason_says_when_interactive_jobs_or_own_ones_go_first() -> None:
    floor = Floor()
    stored = floor.ask("a", 2, stored=True)
    assert floor.place(stored[1]).why == "1 job is ahead, your own"
    floor.ask("b")
    found = floor.place(stored[1])
    assert (found.place, found.of) == (3, 3)
    assert found.why.startswith("2 jobs are ahead, 1 of them your own; interactive jobs go first: you gave")


def test_no_worker_and_no_fitting_worker_are_said() -> None:
    floor = Floor(fleet=Fleet())
    [job] = floor.ask("a")
    assert floor.place(job) == Place(1, 1, None, "no worker that serves tiny is connected")
    floor = Floor()
    [job] = floor.ask("a", only=frozenset({WorkerId("w9")}))
    found = floor.place(job)
    assert found.expected_start_s is None
    assert found.why == "no worker that is here may take it: the job names other workers"


def test_the_expected_start_by_hand() -> None:
    """Two slots, one busy; a typical job takes 4.5 s, half as much again at half load."""
    fast = served(prefill=512.0, decode=64.0, slots=2)
    one = worker("w1", "z", fast, slots=2, running={(JobId("x"), 1)})
    floor = Floor(fleet=fleet_of(one))
    first, second, third = floor.ask("a", 3)
    assert floor.place(first).expected_start_s == 0
    assert floor.place(second).expected_start_s == round(6.75 / 2, 1)
    assert floor.place(third).expected_start_s == 6.8
    assert floor.place(first).why == "it is the next"
    one.running = {(JobId("x"), 1), (JobId("y"), 1)}
    assert floor.place(first).why == "it is the next: all 2 slots that could serve it are taken"
