"""What the planner keeps between ticks changes no plan: it is what a fresh look would find."""

import random

import pytest
from fixtures_core import Pool, account, assigned, demand, fleet_of, job_of, served, worker

from coordinator.core.fairness import Clock, Fairness
from coordinator.core.jobs import JobId, Kind, MemberId, WorkerId
from coordinator.core.line import Line
from coordinator.core.schedule import Assign, Policy, Waiting, plan

START = 1_000.0


class Twin:
    """A line before one worker of many slots; `forgetful`: whose turn it is, is found anew in each tick."""

    def __init__(self, rule: Fairness, *, forgetful: bool) -> None:
        self.line, self.forgetful = Line(clock=Clock(rule)), forgetful
        self.fleet = fleet_of(worker("w1", "z", served(slots=99), served("other", slots=99), slots=99))
        self.waiting: dict[JobId, Waiting] = {}
        self.running: dict[MemberId, int] = {}

    def ask(self, n: int, member: str, flow: str, now: float, cost: int, model: str) -> None:
        name, owner = JobId(f"job_{n:04}"), account(flow)
        job = job_of(
            demand(), name, member, account=owner, created_at=now, hold=cost, quote=cost, model=model
        )
        self.waiting[name] = Waiting(name, Kind.CHAT, model, owner, 100)
        self.line.enter(job)

    def plan(self, most: int, now: float) -> list[Assign]:
        if self.forgetful:
            self.line.turns.clear()
        self.line.given.now = now
        policy = Policy(assignments_max=most)
        return plan(self.line, self.fleet, self.running, policy, now, self.waiting.__getitem__)


@pytest.mark.parametrize("seed", range(40))
def test_turns_that_are_kept_are_those_made_anew(seed: int) -> None:
    """Flows of several members, refunds, long waits, and flows so far behind that their tag does not count."""
    rng = random.Random(seed)
    rule = Fairness(
        behind_max=rng.choice([0, 1, 8]), aged_s=rng.choice([(2.0, 5.0, 5.0), (20.0, 60.0, 60.0)])
    )
    twins = Twin(rule, forgetful=False), Twin(rule, forgetful=True)
    now, count = START, 0
    for _ in range(60):
        now += rng.choice([0.1, 1.0])
        for _ in range(rng.choice([0, 2, 6])):
            member, cost, model = (
                rng.choice("abcdefgh"),
                rng.choice([10, 1_000]),
                rng.choice(["tiny", "other"]),
            )
            for twin in twins:
                twin.ask(count, member, "abc"[ord(member) % 3], now, cost, model)
            count += 1
        running = {MemberId(m): rng.randint(0, 2) for m in "abcdefgh"}
        most = rng.choice([1, 3])
        for twin in twins:
            twin.running = running
        kept, anew = (twin.plan(most, now) for twin in twins)
        assert kept == anew
        for given in kept:
            if rng.random() < 0.5:
                charge = rng.choice([0, 5])
                for twin in twins:
                    twin.line.leave(given.job, charge)


@pytest.fixture
def pair() -> Pool:
    """Two equal workers; w1 comes first, and the planner has seen both."""
    pool = Pool()
    pool.join("w1")
    pool.join("w2")
    pool.ask("first")
    assert assigned(pool.tick()) == [("first", "w1", 1)]
    pool.engine.cancel(JobId("first"), pool.now, "measured")
    pool.engine.planner.catch_up()
    return pool


def test_who_pauses_is_seen_though_it_was_free_before(pair: Pool) -> None:
    pair.beat("w1", state="paused")
    pair.ask("a")
    pair.ask("b")
    assert [worker for _, worker, _ in assigned(pair.tick())] == ["w2"]
    pair.beat("w1", state="sharing")
    assert [worker for _, worker, _ in assigned(pair.tick())] == ["w1"]


def test_who_is_blamed_loses_its_rank_though_it_was_first_before(pair: Pool) -> None:
    first = pair.engine.planner.offers[Kind.CHAT, "tiny"].newest[WorkerId("w1")]
    pair.engine.dispute(WorkerId("w1"))
    pair.engine.planner.catch_up()
    assert pair.engine.planner.offers[Kind.CHAT, "tiny"].newest[WorkerId("w1")] > first
