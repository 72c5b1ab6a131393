"""Whose turn it is: shares, what counts as contribution, and the virtual time of the lanes."""

import math
from dataclasses import replace
from typing import Any

import pytest
from fixtures_core import account, demand, job_of
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.core import entries
from coordinator.core.contribution import Contributions
from coordinator.core.entries import Payment
from coordinator.core.fairness import Clock, Fairness, JobClass, Lane, class_of, shares
from coordinator.core.jobs import AccountId, JobId
from coordinator.core.ledger import COMMONS, LINES, Account, Bucket, Entry

CREDIT = 1_000_000
RULE = Fairness()
A, B, C, D = (account(name) for name in "abcd")
NETS = st.dictionaries(
    st.sampled_from([account(n) for n in "abcdefgh"]),
    st.floats(-3_000 * CREDIT, 3_000 * CREDIT),
    min_size=1,
)
MANY = settings(max_examples=200, deadline=None, derandomize=True)


# -- shares


def test_contributors_share_four_fifths_by_what_they_gave() -> None:
    got = shares({A: 300.0 * CREDIT, B: 100.0 * CREDIT, C: 0.0}, RULE)
    assert got[A] == pytest.approx(0.2 / 3 + 0.8 * 3 / 4)
    assert got[B] == pytest.approx(0.2 / 3 + 0.8 * 1 / 4)
    assert got[C] == pytest.approx(0.2 / 3)


def test_who_is_deep_in_debt_gets_a_quarter_of_a_newcomers_part() -> None:
    got = shares({A: 300.0 * CREDIT, B: -9_999.0 * CREDIT, C: 0.0}, RULE)
    assert got[B] == pytest.approx(got[C] / 4)
    half = shares({A: 300.0 * CREDIT, B: -500.0 * CREDIT, C: 0.0}, RULE)
    assert half[B] == pytest.approx(half[C] * 5 / 8)


def test_where_nobody_gave_all_is_divided_equally() -> None:
    assert shares({A: 0.0, B: 0.0}, RULE) == {A: 0.5, B: 0.5}


def test_a_first_small_job_does_not_buy_the_pool() -> None:
    got = shares({A: 1.0 * CREDIT, B: 0.0}, RULE)
    assert 0.5 < got[A] < 0.6


@MANY
@given(NETS)
def test_shares_are_a_whole_and_everybody_has_one(nets: dict[AccountId, float]) -> None:
    got = shares(nets, RULE)
    assert math.isclose(sum(got.values()), 1.0, rel_tol=1e-6)
    for flow, net in nets.items():
        least = 0.2 / len(nets) * (0.25 if net < 0 else 1.0)
        assert got[flow] >= least * (1 - 1e-9), "the guaranteed part is guaranteed"


@MANY
@given(NETS, st.floats(0, 5_000 * CREDIT), st.integers(1, 1_000))
def test_giving_more_never_gives_less(nets: dict[AccountId, float], more: float, permille: int) -> None:
    """Whatever the others gave, and whatever part is guaranteed."""
    rule = replace(RULE, guaranteed_permille=permille)
    flow = min(nets)
    richer = {**nets, flow: nets[flow] + more}
    assert shares(richer, rule)[flow] >= shares(nets, rule)[flow] * (1 - 1e-9)


# -- contribution


def closed(payer: AccountId, *earned: tuple[AccountId, int], name: str = "job_1", **fields: Any) -> Entry:
    job = job_of(demand(), name, account=payer, hold=10**12, quote=10**12)
    return entries.close(job, [Payment(n + 1, a, m, m // 50, **fields) for n, (a, m) in enumerate(earned)])


def test_a_close_counts_for_both_sides_and_the_fee_for_neither() -> None:
    known = Contributions()
    known.take(closed(A, (B, 60 * CREDIT), (C, 40 * CREDIT)))
    assert (known.of(A), known.of(B)) == (-100 * CREDIT, 58.8 * CREDIT)
    assert known.of(C) == 39.2 * CREDIT
    assert known.of(COMMONS) == 0


def test_settlements_and_earnings_that_are_held_count_like_closes() -> None:
    known = Contributions()
    job = job_of(demand(), account=A, hold=10**12)
    known.take(entries.settle(job, 1, [Payment(1, B, 50 * CREDIT, 0)]))
    known.take(closed(A, (B, 50 * CREDIT), bucket=Bucket.HELD))
    assert (known.of(A), known.of(B)) == (-100 * CREDIT, 99 * CREDIT)


def test_money_that_is_no_work_counts_for_nothing() -> None:
    """Transfers, grants, lines and releases buy no place in line; neither do holds lose one."""
    known = Contributions()
    known.take(entries.transfer("x", A, B, 500 * CREDIT))
    known.take(entries.grant("x", B, 500 * CREDIT))
    known.take(entries.opening(B, 500 * CREDIT))
    known.take(entries.hold(job_of(demand(), account=A)))
    known.take(closed(A))
    assert known.of(A) == known.of(B) == 0


def test_after_a_half_life_half_is_left_of_both_sides() -> None:
    known = Contributions(half_life_s=100.0)
    known.take(closed(A, (B, 100 * CREDIT)))
    known.now = 100.0
    assert (known.of(A), known.of(B)) == (-50 * CREDIT, 49 * CREDIT)
    known.take(closed(A, (B, 100 * CREDIT)))
    known.now = 200.0
    assert known.of(A) == -75 * CREDIT


def test_work_counts_the_same_whichever_is_learned_first() -> None:
    """As when the ledger is read by day at a start."""
    first, second = Contributions(half_life_s=100.0), Contributions(half_life_s=100.0)
    for known, moments in ((first, (0.0, 50.0)), (second, (50.0, 0.0))):
        for at in moments:
            known.worked(A, B, 100, at)
        known.now = 100.0
    assert first.of(B) == pytest.approx(second.of(B))


def test_a_lent_account_stands_in_its_lenders_line_until_it_has_proved_itself() -> None:
    known = Contributions()
    known.take(entries.line("invite_1", A, B, 5))
    assert known.flow_of(B) == A
    known.take(closed(C, (B, 101 * CREDIT)))
    assert known.flow_of(B) == A, "the fee is not its own"
    known.take(closed(C, (B, 2 * CREDIT)))
    assert known.flow_of(B) == B
    known.take(closed(B, (C, 50 * CREDIT)))
    assert known.flow_of(B) == A, "who has taken it back is unproven again"


def test_a_line_from_the_pool_makes_nobody_a_relative() -> None:
    known = Contributions()
    known.take(entries.opening(B, 5))
    assert known.flow_of(B) == B


def test_relatives_of_relatives_stand_in_one_line_and_count_together() -> None:
    known = Contributions()
    known.take(entries.line("i1", A, B, 5))
    known.take(entries.line("i2", B, C, 5))
    known.take(closed(D, (A, 100 * CREDIT), (C, 50 * CREDIT)))
    assert known.flow_of(C) == A
    assert known.of_flow(A) == 147 * CREDIT


def test_work_among_relatives_proves_nothing() -> None:
    """Or a member could pay its own inventions into lines of their own."""
    known = Contributions()
    known.take(entries.line("i1", A, B, 5))
    known.take(entries.line("i2", A, C, 5))
    known.take(closed(A, (B, 10_000 * CREDIT)))
    known.take(closed(C, (B, 10_000 * CREDIT), (D, 10 * CREDIT)))
    assert known.of(B) == 0
    assert (known.of(A), known.of(C)) == (-200 * CREDIT, -210 * CREDIT), "what left the family, the fee too"


def test_a_line_that_is_given_back_frees_the_account() -> None:
    known = Contributions()
    known.take(entries.line("i1", A, B, 5))
    known.take(entries.line("i1/less", A, B, -2))
    assert known.flow_of(B) == A
    known.take(entries.line("i1/none", A, B, -3))
    assert known.flow_of(B) == B


def test_a_closed_account_has_no_lender_any_more() -> None:
    known = Contributions()
    known.take(entries.line("i1", A, B, 5))
    known.take(entries.retire(Account(B, credit_line=5), A, 5))
    assert known.flow_of(B) == B
    assert LINES not in known.lenders


def test_lenders_in_a_circle_end_somewhere() -> None:
    known = Contributions()
    known.lend(A, B, 5)
    known.lend(B, A, 5)
    assert known.flow_of(A) in (A, B)
    assert known.of_flow(A) == 0


# -- the lanes


def give(clock: Clock, job: str, flow: AccountId, cost: int, weight: float = 0.5, **more: Any) -> None:
    fields = {"in_turn": True, "now": 0.0, "models": ["m"], **more}
    clock.give(JobId(job), flow, ("m", JobClass.INTERACTIVE), cost=cost, weight=weight, **fields)


def start(clock: Clock, flow: AccountId, model: str = "m") -> float:
    return clock.lane((model, JobClass.INTERACTIVE)).start(flow, clock.rule)


def test_a_job_moves_its_flow_on_by_its_cost_over_its_share() -> None:
    clock = Clock()
    give(clock, "j1", A, 100)
    assert (start(clock, A), start(clock, B)) == (200, 0)


def test_the_charge_takes_the_place_of_the_quote() -> None:
    clock = Clock()
    give(clock, "j1", A, 1_000)
    clock.correct(JobId("j1"), 10)
    assert start(clock, A) == 20
    clock.correct(JobId("j1"), 0)
    assert start(clock, A) == 20, "once"


def test_idling_saves_up_nothing() -> None:
    """While A was away, B went on; A goes on from where everybody is."""
    clock = Clock()
    lane = clock.lane(("m", JobClass.INTERACTIVE))
    lane.arrive(A)
    give(clock, "a", A, 1)
    for n in range(50):
        give(clock, f"b{n}", B, 100)
    lane.arrive(A)
    assert start(clock, A) == lane.present == 49 * 200


def test_who_waits_may_fall_behind_by_a_bounded_amount() -> None:
    """A job that only one busy worker may have keeps its turn, but collects no right to a flood."""
    lane = Lane(present=10_000.0, widest=100.0, tags={A: 0.0})
    assert lane.start(A, RULE) == 10_000 - 8 * 100


def test_a_job_out_of_turn_moves_nobody_elses_present() -> None:
    clock = Clock()
    give(clock, "a", A, 100)
    give(clock, "a2", A, 100, in_turn=False)
    assert clock.lane(("m", JobClass.INTERACTIVE)).present == 0
    assert start(clock, A) == 400


def test_a_worker_counts_for_every_model_that_it_serves() -> None:
    clock = Clock()
    give(clock, "a", A, 100, models=["m", "other"])
    assert start(clock, A, "other") == 200
    assert start(clock, A, "third") == 0
    clock.correct(JobId("a"), 0)
    assert start(clock, A, "other") == 0


def test_tags_that_say_nothing_are_forgotten() -> None:
    clock = Clock()
    for n in range(50):
        give(clock, f"j{n}", account(str(n)), 100 * n)
        give(clock, f"z{n}", A, 1_000)
    clock.forget({account("1"): 1})
    lane = clock.lane(("m", JobClass.INTERACTIVE))
    assert account("1") in lane.tags, "it waits"
    assert A in lane.tags, "it is ahead"
    assert account("2") not in lane.tags


def test_stored_jobs_are_batch() -> None:
    assert class_of(job_of(demand())) is JobClass.INTERACTIVE
    assert class_of(job_of(demand(), stored=True)) is JobClass.BATCH
