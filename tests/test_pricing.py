"""Prices against numbers worked out by hand, and against the design's formulas added up token by token."""

from fractions import Fraction
from math import ceil

import pytest
from fixtures_core import SHAPE, account, demand
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.core.entries import Payment
from coordinator.core.jobs import Attempt, Kind, WorkerId
from coordinator.core.pricing import (
    Demand,
    Segment,
    Shape,
    Tariff,
    Training,
    charge_units,
    microcredits,
    output_units,
    payments,
    prompt_units,
    quote,
)

TARIFF = Tariff()
CHECKED = settings(max_examples=300, deadline=None, derandomize=True)
shapes = st.builds(
    lambda n, h, a: Shape(n, min(n, h), a),
    st.integers(1, 40_000_000_000),
    st.integers(0, 600_000_000),
    st.integers(0, 4_000_000),
)
tariffs = st.builds(Tariff, st.integers(0, 1_000), st.integers(0, 1_000))


def flops(wanted: Demand, tariff: Tariff, segments: list[Segment]) -> Fraction:
    """The table of the design, slowly: each token alone, nothing rounded."""
    n, h, a = wanted.shape.active_parameters, wanted.shape.head_parameters, wanted.shape.attention
    permille = 1_000 if wanted.kind is Kind.EMBEDDING else tariff.prompt_weight_permille
    total = Fraction(0)
    for t in wanted.prompts:
        total += Fraction(permille, 1_000) * (2 * (n - h) * t + Fraction(a * t**2, 2))
    for segment in segments:
        for index in range(segment.start, segment.start + segment.tokens):
            total += 2 * n + a * (sum(wanted.prompts) + index)
    return total


def attempts_of(owners: dict[int, str]) -> list[Attempt]:
    return [
        Attempt(number=n, worker=WorkerId(f"w{n}"), owner=account(owner), assigned_at=0.0)
        for n, owner in owners.items()
    ]


@st.composite
def works(draw: st.DrawFn) -> tuple[Demand, list[Segment]]:
    """A demand and an output of it in the pieces that several attempts delivered, in order."""
    choices, tokens = draw(st.integers(1, 3)), draw(st.integers(1, 40))
    wanted = Demand(Kind.CHAT, draw(shapes), (draw(st.integers(0, 5_000)),), tokens, choices)
    segments: list[Segment] = []
    starts = [0] * choices
    for attempt in range(1, draw(st.integers(1, 4)) + 1):
        for choice in range(choices):
            done = draw(st.integers(0, tokens - starts[choice]))
            segments.append(Segment(attempt, choice, starts[choice], done))
            starts[choice] += done
    return wanted, segments


def test_a_prompt_by_hand() -> None:
    """0.25 * (2 * 8e6 * 100 + 1000 * 100^2 / 2) FLOP = 401.25 MFLOP."""
    assert Fraction(prompt_units(demand(prompts=(100,)), TARIFF), 2_000) == 401_250_000


def test_an_output_by_hand() -> None:
    """Positions 100, 101, 102: 20.1 + 20.101 + 20.102 MFLOP; the fourth and fifth cost 20.103 and 20.104."""
    assert Fraction(output_units(demand(), 0, 3), 2_000) == 60_303_000
    assert Fraction(output_units(demand(), 3, 2), 2_000) == 40_207_000
    assert output_units(demand(), 7, 0) == 0


def test_a_quote_by_hand() -> None:
    """401.25 + 2 * (60.303 + 40.207) MFLOP, rounded up once."""
    assert quote(demand(tokens=5, choices=2), TARIFF) == 603
    assert quote(demand(tokens=5, choices=1), TARIFF) == 502


def test_an_embedding_by_hand() -> None:
    """Full weight, each input for itself: 1605 + 801.25 MFLOP."""
    assert quote(demand(Kind.EMBEDDING, prompts=(100, 50)), TARIFF) == 2_407
    assert quote(demand(Kind.EMBEDDING, prompts=(100, 50)), Tariff(prompt_weight_permille=1)) == 2_407


def test_an_output_starts_after_all_prompts() -> None:
    assert demand(prompts=(30, 12)).prompt_tokens == 42
    assert Fraction(output_units(demand(prompts=(30, 12)), 0, 1), 2_000) == 20_000_000 + 42_000


def test_rounding_is_up_and_once() -> None:
    assert microcredits(0) == 0
    assert microcredits(1) == 1
    assert microcredits(2_000_000_000) == 1
    assert microcredits(2_000_000_001) == 2


@CHECKED
@given(works(), tariffs)
def test_the_units_are_the_table_of_the_design_exactly(
    work: tuple[Demand, list[Segment]], tariff: Tariff
) -> None:
    wanted, segments = work
    units = charge_units(wanted, tariff, segments, None)
    if any(s.tokens for s in segments):
        assert Fraction(sum(units.values()), 2_000) == flops(wanted, tariff, segments)
        assert set(units) == {s.attempt for s in segments if s.tokens}
    else:
        assert units == {}


@CHECKED
@given(works(), tariffs)
def test_a_charge_never_exceeds_its_quote_and_its_division_adds_up(
    work: tuple[Demand, list[Segment]], tariff: Tariff
) -> None:
    wanted, segments = work
    units = charge_units(wanted, tariff, segments, 1)
    paid = payments(units, attempts_of(dict.fromkeys(range(1, 5), "b")), account("a"), tariff)
    charge = sum(p.amount for p in paid)
    assert charge == ceil(Fraction(sum(units.values()), 2_000 * 1_000_000))
    assert charge <= quote(wanted, tariff)
    assert all(p.amount > 0 for p in paid)
    assert all(p.fee == p.amount * tariff.fee_permille // 1_000 for p in paid)
    for payment in paid[:-1]:
        assert payment.amount == units[payment.attempt] // 2_000_000_000, "each its own, rounded down"


@CHECKED
@given(works(), tariffs)
def test_a_failover_costs_the_member_nothing(work: tuple[Demand, list[Segment]], tariff: Tariff) -> None:
    """One charge, as if one worker had done it all."""
    wanted, segments = work
    alone = [Segment(1, s.choice, s.start, s.tokens) for s in segments]
    one = charge_units(wanted, tariff, alone, None)
    assert sum(charge_units(wanted, tariff, segments, None).values()) == sum(one.values())


@CHECKED
@given(st.lists(st.integers(0, 5_000), min_size=1, max_size=20).map(tuple), shapes, tariffs)
def test_an_embedding_is_charged_as_it_was_quoted(
    prompts: tuple[int, ...], shape: Shape, tariff: Tariff
) -> None:
    wanted = Demand(Kind.EMBEDDING, shape, prompts)
    units = charge_units(wanted, tariff, [], 1)
    assert microcredits(sum(units.values())) == quote(wanted, tariff)
    assert Fraction(units[1], 2_000) == flops(wanted, tariff, [])


def test_the_prompt_is_paid_in_proportion_to_output_delivered() -> None:
    """2 of 5 tokens by attempt 1, 3 by attempt 3; attempt 2 delivered nothing and gets nothing."""
    segments = [Segment(1, 0, 0, 2), Segment(2, 0, 2, 0), Segment(3, 0, 2, 3)]
    units = charge_units(demand(), TARIFF, segments, 3)
    prompt = prompt_units(demand(), TARIFF)
    assert units == {
        1: output_units(demand(), 0, 2) + prompt * 2 // 5,
        3: output_units(demand(), 2, 3) + prompt - prompt * 2 // 5,
    }


def test_an_answer_without_tokens_pays_the_prompt_to_its_finisher() -> None:
    assert charge_units(demand(), TARIFF, [], 2) == {2: prompt_units(demand(), TARIFF)}
    assert charge_units(demand(), TARIFF, [], None) == {}
    assert payments({}, [], account("a"), TARIFF) == []


def test_one_charge_is_divided_with_the_remainder_to_the_last() -> None:
    """2.5 + 2.5 microcredits are 5: 2 for the first, 3 for the last; and 2.5 + 2.6 are 6, rounded up."""
    half = 5_000_000_000
    owners = attempts_of({1: "b", 2: "c"})
    assert [p.amount for p in payments({1: half, 2: half}, owners, account("a"), TARIFF)] == [2, 3]
    assert [p.amount for p in payments({1: half, 2: half + 200_000_000}, owners, account("a"), TARIFF)] == [
        2,
        4,
    ]


def test_own_workers_move_nothing_and_pay_no_fee() -> None:
    half = 100_000_000_000
    paid = payments({1: half, 2: half}, attempts_of({1: "a", 2: "b"}), account("a"), TARIFF)
    assert paid == [Payment(2, account("b"), 50, 1)]
    assert payments({1: half}, attempts_of({1: "a"}), account("a"), TARIFF) == []


def test_who_earned_less_than_a_microcredit_is_not_listed() -> None:
    paid = payments({1: 1, 2: 1}, attempts_of({1: "b", 2: "c"}), account("a"), TARIFF)
    assert [(p.attempt, p.amount) for p in paid] == [(2, 1)]


@pytest.mark.parametrize(("amount", "fee"), [(49, 0), (50, 1), (99, 1), (1_000, 20)])
def test_the_fee_is_rounded_down(amount: int, fee: int) -> None:
    [payment] = payments({1: amount * 2_000_000_000}, attempts_of({1: "b"}), account("a"), TARIFF)
    assert (payment.amount, payment.fee) == (amount, fee)


def test_a_part_of_a_fine_tune_by_hand() -> None:
    """(4 * 10e6 + 6 * 1000) * 500 + 3 * 1000 * 20000 / 2 FLOP trained, and 2 * 10e6 * 100 + 1000 * 3000 / 2 read
    for the validation: 20003 + 30 + 2000 + 1.5 MFLOP.
    """
    wanted = trains("sft", 1_000, (500, 20_000), (100, 3_000))
    assert quote(wanted, TARIFF) == 22_035
    assert charge_units(wanted, TARIFF, [], 3) == {3: 22_034_500_000 * 2_000}


def test_preferences_by_hand() -> None:
    """As above, and what the frozen reference reads: 10000 + 10 MFLOP of the training, 2001.5 of the validation."""
    assert quote(trains("dpo", 1_000, (500, 20_000), (100, 3_000)), TARIFF) == 34_046


def test_training_that_nobody_finished_is_not_paid() -> None:
    wanted = trains("sft", 1_000, (500, 20_000), (0, 0))
    assert charge_units(wanted, TARIFF, [Segment(1, 0, 0, 500)], None) == {}


@CHECKED
@given(
    st.lists(st.integers(1, 4_096), max_size=20),
    st.lists(st.integers(1, 4_096), max_size=20),
    st.sampled_from(["sft", "dpo"]),
    st.integers(0, 100_000_000),
    shapes,
    tariffs,
)
def test_training_costs_what_the_table_of_the_design_says_of_its_sequences(
    trained: list[int], read: list[int], method: str, adapter: int, shape: Shape, tariff: Tariff
) -> None:
    """Sequence by sequence; at the bound the charge is the quote, whatever the tariff asks for prompts."""
    n, a = shape.active_parameters, shape.attention
    total = Fraction(0)
    for length in trained:
        total += length * (4 * n + 6 * adapter + Fraction(3 * a * length, 2))
    for length in [*read, *(read + trained) * (method == "dpo")]:
        total += length * (2 * n + Fraction(a * length, 2))
    counts = [(sum(lengths), sum(length**2 for length in lengths)) for lengths in (trained, read)]
    wanted = trains(method, adapter, *counts, shape=shape)
    units = charge_units(wanted, tariff, [], 1)
    assert Fraction(units[1], 2_000) == total
    assert microcredits(units[1]) == quote(wanted, tariff)


def trains(
    method: str, adapter: int, tokens: tuple[int, int], valid: tuple[int, int], *, shape: Shape = SHAPE
) -> Demand:
    return Demand(Kind.FINETUNE, shape, (4_096,), training=Training(method, adapter, *tokens, *valid))


def test_the_shape_of_these_tests() -> None:
    """The numbers above hold for this shape only."""
    assert Shape(10_000_000, 2_000_000, 1_000) == SHAPE
