"""Budgets: the worst case is reserved, the real use settled, and no order of the two exceeds a limit."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.core.budgets import (
    DAY_S,
    Bound,
    Budgets,
    Limit,
    Limits,
    Spent,
    month_of,
    period_begins,
    period_ends,
    tokens_of,
)
from coordinator.core.jobs import AccountId, Job, JobId, JobState, Kind, MemberId

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC).timestamp()  # the last day of a month
J1, J2 = JobId("job_1"), JobId("job_2")


def bound(subject: str = "m", **limits: int) -> Bound:
    return Bound(subject, Limits(**limits))


def ended(state: JobState, output_tokens: int) -> Job:
    return Job(
        id=J1,
        kind=Kind.CHAT,
        model="tiny",
        member=MemberId("a"),
        account=AccountId("acc_a"),
        created_at=0,
        quote=1,
        hold=1,
        prompt_tokens=7,
        max_tokens=9,
        state=state,
        output_tokens=output_tokens,
    )


@given(st.floats(0, 253_402_300_799))
def test_days_and_months_are_those_of_the_calendar(at: float) -> None:
    """Up to the year 9999, by the standard library's own."""
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=int(at))
    assert month_of(at) == moment.year * 12 + moment.month - 1
    day = moment.replace(hour=0, minute=0, second=0)
    month = day.replace(day=1)
    assert period_begins(Limit.DAY, at) == day.timestamp()
    assert period_begins(Limit.MONTH, at) == month.timestamp()
    assert period_ends(Limit.DAY, at) == day.timestamp() + DAY_S
    after = period_ends(Limit.MONTH, at)
    assert month_of(after) == month_of(at) + 1
    assert month_of(after - 1) == month_of(at)


def test_a_month_ends_where_the_next_begins() -> None:
    assert period_ends(Limit.MONTH, NOON) == datetime(2026, 12, 1, tzinfo=UTC).timestamp()
    leap = datetime(2028, 2, 29, 23, 59, tzinfo=UTC).timestamp()
    assert period_ends(Limit.MONTH, leap) == datetime(2028, 3, 1, tzinfo=UTC).timestamp()


def test_open_jobs_count_in_full_and_ended_ones_for_what_they_cost() -> None:
    budgets, day = Budgets(), bound(credits_per_day=10)
    budgets.reserve(J1, ["m"], 0, 6, NOON)
    assert budgets.spent("m", NOON) == Spent(0, 0, 6)
    over = budgets.refuse_credits([day], 5, NOON)
    assert over is not None
    assert (over.limit, over.allowed, over.used, over.wanted) == (Limit.DAY, 10, 6, 5)
    assert over.renews_at == NOON + DAY_S / 2
    assert budgets.refuse_credits([day], 4, NOON) is None
    budgets.settle(J1, 0, 2, NOON + 1, NOON + 1)
    assert budgets.spent("m", NOON + 1) == Spent(2, 2, 0)
    assert budgets.refuse_credits([day], 8, NOON + 1) is None
    assert budgets.refuse_credits([day], 9, NOON + 1) is not None


def test_what_costs_nothing_exceeds_nothing() -> None:
    """Own work on own workers, also where the budget is used up."""
    budgets = Budgets()
    budgets.load("m", Spent(10, 10), NOON)
    assert budgets.refuse_credits([bound(credits_per_day=5)], 0, NOON) is None
    assert budgets.refuse_credits([bound(credits_per_day=5)], 1, NOON) is not None


def test_days_and_months_renew() -> None:
    """A charge belongs to the period in which its job ended; an open job counts in every one."""
    budgets, both = Budgets(), [bound(credits_per_day=10, credits_per_month=15)]
    budgets.load("m", Spent(8, 12), NOON)
    assert budgets.refuse_credits(both, 2, NOON) is None
    over = budgets.refuse_credits(both, 3, NOON)
    assert over is not None
    assert over.limit is Limit.DAY
    budgets.reserve(J1, ["m"], 0, 2, NOON)
    midnight = period_ends(Limit.DAY, NOON)  # and a new month
    assert budgets.spent("m", midnight) == Spent(0, 0, 2)
    budgets.settle(J1, 0, 2, midnight - 1, midnight + 1)  # told late: it belongs to yesterday
    assert budgets.spent("m", midnight + 1) == Spent(0, 0, 0)
    budgets.reserve(J2, ["m"], 0, 4, midnight)
    budgets.settle(J2, 0, 4, midnight + 2, midnight + 2)
    assert budgets.spent("m", midnight + DAY_S) == Spent(0, 4, 0)
    over = budgets.refuse_credits([bound(credits_per_month=4)], 1, midnight + DAY_S)
    assert over is not None
    assert (over.limit, over.renews_at) == (Limit.MONTH, datetime(2027, 1, 1, tzinfo=UTC).timestamp())


def test_a_settlement_said_twice_counts_once_and_an_unknown_job_not_at_all() -> None:
    budgets = Budgets()
    budgets.reserve(J1, ["m"], 5, 3, NOON)
    for _ in range(2):
        budgets.settle(J1, 5, 3, NOON, NOON)
    budgets.settle(J2, 9, 9, NOON, NOON)
    assert budgets.spent("m", NOON) == Spent(3, 3, 0)
    assert budgets.tokens("m", NOON)[0] == 5


def test_tokens_of_the_last_minute_and_when_more_fit() -> None:
    budgets, limit = Budgets(), [bound(tokens_per_minute=100)]
    budgets.reserve(J1, ["m"], 60, 0, NOON)
    budgets.reserve(J2, ["m"], 30, 0, NOON + 10)
    over = budgets.refuse_tokens(limit, 11, NOON + 20)
    assert over is not None
    assert (over.limit, over.used, over.renews_at) == (Limit.TOKENS, 90, NOON + 60)
    later = budgets.refuse_tokens(limit, 80, NOON + 20)
    assert later is not None
    assert later.renews_at == NOON + 70
    never = budgets.refuse_tokens(limit, 101, NOON + 20)
    assert never is not None
    assert never.renews_at is None
    budgets.settle(J1, 20, 0, NOON + 21, NOON + 21)
    assert budgets.tokens("m", NOON + 21) == (50, NOON + 70)
    assert budgets.refuse_tokens(limit, 50, NOON + 21) is None
    assert budgets.tokens("m", NOON + 60) == (30, NOON + 70)
    budgets.settle(J2, 1, 0, NOON + 75, NOON + 75)  # after its minute: it counts no more in any case
    assert budgets.tokens("m", NOON + 75) == (0, NOON + 75)


def test_every_limit_must_hold_and_all_count() -> None:
    """The member's over all keys, a key's for itself, in addition."""
    budgets = Budgets()
    member, one, two = (
        bound("m", credits_per_day=10),
        bound("k1", credits_per_day=6),
        bound("k2", credits_per_day=6),
    )
    budgets.reserve(J1, ["m", "k1"], 0, 6, NOON)
    over = budgets.refuse_credits([member, one], 1, NOON)
    assert over is not None
    assert over.bound == one
    assert budgets.refuse_credits([member, two], 4, NOON) is None
    budgets.reserve(J2, ["m", "k2"], 0, 4, NOON)
    over = budgets.refuse_credits([member, two], 1, NOON)
    assert over is not None
    assert over.bound == member


def test_a_key_is_within_the_one_that_made_it() -> None:
    outer = Limits(credits_per_day=5, tokens_per_minute=100)
    assert Limits().within(outer) == outer
    assert Limits(credits_per_day=9, concurrent_jobs=2).within(outer) == Limits(
        credits_per_day=5, tokens_per_minute=100, concurrent_jobs=2
    )
    assert not Limits()
    assert outer


@pytest.mark.parametrize(
    ("state", "output_tokens", "counted"),
    [
        (JobState.SUCCEEDED, 3, 10),
        (JobState.SUCCEEDED, 0, 7),
        (JobState.CANCELLED, 2, 9),
        (JobState.CANCELLED, 0, 0),
        (JobState.FAILED, 2, 0),
        (JobState.EXPIRED, 0, 0),
    ],
)
def test_a_failure_of_the_pool_takes_no_tokens(state: JobState, output_tokens: int, counted: int) -> None:
    assert tokens_of(ended(state, output_tokens)) == counted


def test_meters_of_who_did_nothing_this_month_are_forgotten() -> None:
    """Memory is bounded by who is here."""
    budgets = Budgets()
    for number in range(50):
        budgets.load(f"m{number}", Spent(1, 1), NOON)
    budgets.reserve(J1, ["open"], 0, 1, NOON)
    assert len(budgets.meters) == 51
    budgets.spent("m0", period_ends(Limit.MONTH, NOON))
    assert set(budgets.meters) == {"open", "m0"}


STEP = st.tuples(
    st.sampled_from(["submit", "settle", "refund", "wait"]),
    st.integers(0, 3),  # the key
    st.integers(0, 12),  # what is asked for, or which of the open jobs
    st.integers(0, 100),  # of a hundred: how much of the worst case it was
    st.sampled_from([0.0, 1.0, 29.0, 61.0, DAY_S / 3, DAY_S * 4.5]),
)


@settings(max_examples=300)
@given(st.lists(STEP, max_size=80))
def test_no_order_of_submissions_ends_and_refunds_exceeds_a_budget(
    steps: list[tuple[str, int, int, int, float]],
) -> None:
    """Judged from outside: what was charged in each day and month, and that the meters say the same.

    Keys 0 to 2 are limited; key 3 was made with key 0, and counts for it.
    """
    limits = Limits(tokens_per_minute=30, credits_per_day=20, credits_per_month=45)
    tight = Limits(tokens_per_minute=12, credits_per_day=9, credits_per_month=17)
    budgets, now, made = Budgets(), NOON, 0
    held: dict[JobId, tuple[list[Bound], int]] = {}
    charged: dict[tuple[str, Limit, float], int] = {}
    for action, key, amount, percent, pause in steps:
        now += pause if action == "wait" else 0.0
        if action == "submit":
            bounds = [
                Bound("m", limits),
                Bound(f"k{key}", tight),
                *([Bound("k0", tight)] if key == 3 else []),
            ]
            if budgets.refuse_tokens(bounds, amount, now) or budgets.refuse_credits(bounds, amount, now):
                continue
            made += 1
            job = JobId(f"job_{made}")
            budgets.reserve(job, [b.subject for b in bounds], amount, amount, now)
            held[job] = (bounds, amount)
        elif action in ("settle", "refund") and held:
            job = list(held)[amount % len(held)]
            bounds, worst = held.pop(job)
            cost = worst * percent // 100 if action == "settle" else 0
            budgets.settle(job, cost, cost, now, now)
            for b in bounds:
                for limit in (Limit.DAY, Limit.MONTH):
                    period = (b.subject, limit, period_begins(limit, now))
                    charged[period] = charged.get(period, 0) + cost
        for (subject, limit, _), total in charged.items():
            allowed = (limits if subject == "m" else tight).of(limit)
            assert allowed is not None
            assert total <= allowed
        for subject in ("m", "k0", "k1", "k2", "k3"):
            mine = limits if subject == "m" else tight
            spent = budgets.spent(subject, now)
            open_now = sum(w for bounds, w in held.values() if subject in {b.subject for b in bounds})
            assert spent.held == open_now
            assert spent.day == charged.get((subject, Limit.DAY, period_begins(Limit.DAY, now)), 0)
            assert spent.month == charged.get((subject, Limit.MONTH, period_begins(Limit.MONTH, now)), 0)
            assert spent.day + open_now <= (mine.credits_per_day or 0)
            assert spent.month + open_now <= (mine.credits_per_month or 0)
            assert 0 <= budgets.tokens(subject, now)[0] <= (mine.tokens_per_minute or 0)
