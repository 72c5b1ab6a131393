"""Who is let in when many wait: by how long it would wait, by whose doing, and when to come back."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
from fixtures_core import Pool, demand, job_of, served

from coordinator.core.admission import RETRY_S_MAX, Admission, Crowded
from coordinator.core.crowd import Crowd
from coordinator.core.jobs import Job, JobId, MemberId
from coordinator.core.rules import Rules


def house(slots: int = 2, jobs_s: float = 4.0, crowd_s: float = 10.0) -> Pool:
    """Its jobs took `jobs_s` lately."""
    pool = Pool(rules=Rules(crowd_s=crowd_s))
    pool.join("w1", "b", served(slots=slots), slots=slots)
    for n in range(3):
        fill(pool, "c", 1, f"before{n}")
        live = pool.engine.lives[JobId(f"before{n}.0")]
        pool.now += jobs_s
        assert live.holder is not None
        pool.engine.cancel(live.job.id, pool.now, "enough")
        pool.engine.tick(pool.now)
    return pool


def fill(pool: Pool, member: str, count: int, name: str = "") -> None:
    for n in range(count):
        pool.now += 0.001
        job = asked(pool, member, f"{name or member}.{n}")
        pool.engine.submit(job, demand(), count=lambda t: t.count(" "), memory_bytes=0, now=pool.now)
    pool.engine.tick(pool.now)


def asked(pool: Pool, member: str, name: str = "new", **fields: Any) -> Job:
    wanted = {"created_at": pool.now, "max_tokens": 1_000, **fields}
    return replace(job_of(demand(), name, member), **wanted)


def verdict(pool: Pool, member: str, **fields: Any) -> Crowded | None:
    return pool.engine.crowded(asked(pool, member, **fields), pool.now)


def test_where_a_slot_is_free_everybody_comes_in() -> None:
    pool = house(jobs_s=1_000.0)
    fill(pool, "a", 1)
    assert verdict(pool, "a") is None


def test_the_wait_follows_from_how_long_jobs_take() -> None:
    """Two slots, 4 s a job: five that wait before one make it 12 s, of which 2 s are too many."""
    pool = house()
    fill(pool, "a", 2 + 4)
    assert verdict(pool, "a") is None
    fill(pool, "a", 1, "more")
    crowded = verdict(pool, "a")
    assert crowded is not None
    assert crowded.expected_s == pytest.approx(12.0, abs=0.1)
    assert crowded.retry_after_s == pytest.approx(2.0, abs=0.1)


def test_where_nothing_is_known_everybody_comes_in() -> None:
    """Neither did a job end lately nor has a worker measured itself; nor is it known when nobody is there."""
    pool = Pool(rules=Rules(crowd_s=1.0))
    assert pool.engine.crowded(asked(pool, "a"), pool.now) is None
    pool.join("w1", "b", served())
    fill(pool, "a", 50)
    assert verdict(pool, "a") is None


def test_before_anything_ended_the_workers_own_measurements_count() -> None:
    """256 tokens at 32 a second: 8 s a job, and less for one that asks for less."""
    pool = Pool(rules=Rules(crowd_s=20.0))
    pool.join("w1", "b", served(decode=32.0))
    fill(pool, "a", 1 + 1)
    assert verdict(pool, "a") is None
    fill(pool, "a", 1, "more")
    crowded = verdict(pool, "a")
    assert crowded is not None
    assert crowded.expected_s == pytest.approx(24.0)
    assert verdict(pool, "a", max_tokens=128) is None


def test_a_members_crowd_shuts_out_itself_and_nobody_else() -> None:
    """Whose turn comes first is let in past a thousand that wait; the crowd is told that it is its own doing."""
    pool = house()
    fill(pool, "a", 1_000)
    assert verdict(pool, "c") is None
    crowded = verdict(pool, "a")
    assert crowded is not None
    assert crowded.own
    assert crowded.expected_s > 1_000


def test_where_all_together_are_too_many_it_is_nobodys_own_doing() -> None:
    """Three flows wait for one slot of 4 s: even the first job of a fourth waits for three others. The worker's own
    owner does not."""
    pool = house(slots=1, crowd_s=8.0)
    for member in "ade":
        fill(pool, member, 10)
    crowded = verdict(pool, "c")
    assert crowded is not None
    assert not crowded.own
    assert verdict(pool, "b") is None


def test_a_crowd_that_is_refused_does_not_come_back_together() -> None:
    """Each is told a moment later than the one before, by as much as a job of theirs adds; none beyond ten
    minutes."""
    pool = house()
    fill(pool, "a", 20)
    told = [found.retry_after_s for _ in range(400) if (found := verdict(pool, "a")) is not None]
    steps = [later - earlier for earlier, later in itertools.pairwise(told)]
    assert steps[0] == pytest.approx(2.0, abs=0.2)
    assert steps[:100] == pytest.approx([steps[0]] * 100, abs=0.1)
    assert told[-1] == RETRY_S_MAX


def test_part_of_the_line_is_kept_for_those_who_come_back() -> None:
    """Or somebody new would be there first at each place that is free."""
    pool = house()
    fill(pool, "a", 2 + 6)
    assert verdict(pool, "a") is not None
    assert pool.engine.crowded(asked(pool, "a"), pool.now, back=True) is None
    fill(pool, "a", 2, "back")
    assert pool.engine.crowded(asked(pool, "a"), pool.now, back=True) is not None


def test_where_jobs_waited_longer_than_was_expected_more_is_expected() -> None:
    """Others came later and went before. What was told of moments far off ends when the line is short again."""
    admission = Admission()
    pool = house()
    fill(pool, "a", 4)
    for n in range(200):
        job = asked(pool, "a", f"n{n}")
        assert (
            admission.verdict(pool.engine.line, pool.engine.planner, pool.engine.pace, job, 1e6, 0.0) is None
        )
        admission.left(job.id, 2 * 6.0, served=n % 2 == 0)
    assert admission.longer == pytest.approx(2.0, rel=0.01)
    assert not admission._let_in


def test_who_comes_back_when_told_gets_in() -> None:
    """Nobody else came meanwhile, and jobs took as long as before."""
    pool = house()
    fill(pool, "a", 2 + 8)
    crowded = verdict(pool, "a")
    assert crowded is not None
    came_back = pool.now + crowded.retry_after_s
    while pool.now + 4.0 <= came_back:
        pool.now += 4.0
        for live in [live for live in pool.engine.lives.values() if live.holder is not None]:
            pool.engine.cancel(live.job.id, pool.now, "enough")
        pool.engine.tick(pool.now)
    pool.now = came_back
    assert verdict(pool, "a") is None


def test_what_a_member_is_willing_to_wait_counts_where_it_is_less() -> None:
    pool = house(slots=1)
    fill(pool, "a", 2)
    assert pool.engine.crowded(asked(pool, "c"), pool.now) is None
    assert pool.engine.crowded(asked(pool, "c"), pool.now, wait_s=1.0) is not None


def test_nobody_is_let_in_to_wait_until_it_is_given_up() -> None:
    """Neither by a pool that gives up sooner than it refuses, nor because somebody comes back."""
    pool = house(slots=1)
    fill(pool, "a", 2)
    assert pool.engine.crowded(asked(pool, "c"), pool.now, wait_s=7.0, back=True) is not None
    assert pool.engine.crowded(asked(pool, "c"), pool.now, wait_s=9.0, back=True) is None
    pool.engine.rules = replace(pool.engine.rules, wait_s=7.0)
    assert verdict(pool, "c") is not None


def test_jobs_of_other_models_on_the_same_workers_take_their_slots() -> None:
    """Four slots, two of them taken by another model: this one has two to count on."""
    pool = Pool(rules=Rules(crowd_s=10.0))
    pool.join("w1", "b", served(slots=4, decode=64.0), served("other", slots=4, decode=64.0), slots=4)
    for n in range(2):
        job = asked(pool, "c", f"other.{n}", model="other")
        pool.engine.submit(job, demand(), count=len, memory_bytes=0, now=pool.now)
    fill(pool, "a", 2 + 5)
    crowded = verdict(pool, "a")
    assert crowded is not None
    assert crowded.expected_s == pytest.approx(6 * 4.0 / 2)


# -- what is open


def test_a_member_may_have_as_much_as_is_left_for_others() -> None:
    """One alone half of all, the next one a third of the rest, and so on: somebody new always finds room."""
    crowd = Crowd(jobs_max=100, bytes_max=10**9)
    for member in ("a", "b", "c"):
        while not crowd.full(MemberId(member), 10, stored=True):
            crowd.enter(JobId(f"{member}{len(crowd)}"), MemberId(member), 10)
    assert len(crowd) == 50 + 25 + 12 + 1
    assert crowd.full(MemberId("a"), 10, stored=True) == "own"
    assert crowd.full(MemberId("a"), 10, stored=False) == ""
    assert crowd.full(MemberId("d"), 10, stored=True) == ""


def test_texts_have_a_limit_in_bytes() -> None:
    crowd = Crowd(jobs_max=100, bytes_max=1_000)
    crowd.enter(JobId("one"), MemberId("a"), 400)
    assert crowd.full(MemberId("a"), 300, stored=True) == "own"
    assert crowd.full(MemberId("b"), 300, stored=True) == ""
    assert crowd.full(MemberId("b"), 601, stored=False) == "all"
    seen = [crowd.half]
    crowd.enter(JobId("two"), MemberId("b"), 300)
    seen.append(crowd.half)
    assert seen == [False, True]
    crowd.leave(JobId("one"))
    crowd.leave(JobId("one"))
    assert (len(crowd), crowd.bytes) == (1, 300)
    assert crowd.full(MemberId("a"), 300, stored=True) == ""
