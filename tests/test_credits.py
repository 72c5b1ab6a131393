"""Amounts: what people read and type is what the integers say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.refusal import credits_of
from potluck.credits import AmountError, aligned, exact, parse, rounded

AMOUNTS = st.integers(min_value=-(10**18), max_value=10**18)


@given(AMOUNTS)
def test_exact_amounts_survive_the_way_there_and_back(micro: int) -> None:
    assert parse(exact(micro)) == micro
    assert parse(exact(micro).replace(",", "")) == micro
    assert parse(aligned(micro)) == micro
    assert len(aligned(micro).partition(".")[2]) == 6


@given(AMOUNTS)
def test_rounding_loses_less_than_half_a_unit_of_the_last_shown_digit(micro: int) -> None:
    shown = parse(rounded(micro))
    assert abs(shown - micro) * 1_000 <= abs(micro)  # four significant digits: at most 0.1 %
    assert abs(shown - micro) <= 5_000  # and never more than half a hundredth of a credit


@given(AMOUNTS)
def test_nothing_but_zero_is_shown_as_zero_and_signs_stay(micro: int) -> None:
    shown = parse(rounded(micro))
    assert (shown == 0) == (micro == 0)
    assert (shown < 0) == (micro < 0)


@given(AMOUNTS, AMOUNTS)
def test_a_refusal_shows_amounts_that_differ_as_different(one: int, other: int) -> None:
    """A single microcredit is not nothing, and one too few is not enough."""
    assert (credits_of(one) == credits_of(other)) == (one == other)
    assert (credits_of(1), credits_of(0), credits_of(-1_999)) == ("0.000001", "0.00", "-0.001999")


@given(AMOUNTS, AMOUNTS)
def test_rounding_keeps_the_order(one: int, other: int) -> None:
    low, high = sorted((one, other))
    assert parse(rounded(low)) <= parse(rounded(high))


@pytest.mark.parametrize(
    ("micro", "shown"),
    [
        (0, "0.00"),
        (1, "0.000001"),
        (42, "0.000042"),
        (27_123, "0.02712"),
        (271_234, "0.2712"),
        (1_500_000, "1.50"),
        (12_345_678, "12.35"),
        (999_999_999, "1,000.00"),
        (1_000_000_000, "1,000.00"),
        (-1_234_567_890, "-1,234.57"),
    ],
)
def test_sensible_digits(micro: int, shown: str) -> None:
    assert rounded(micro) == shown


@pytest.mark.parametrize(
    ("text", "micro"),
    [("1", 1_000_000), (".5", 500_000), ("1.", 1_000_000), ("+1_000.25", 1_000_250_000), (" -0.000001 ", -1)],
)
def test_what_people_type(text: str, micro: int) -> None:
    assert parse(text) == micro


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "-",
        "1e3",
        "nan",
        "inf",
        "0.0000001",
        "1,00",
        "1,0000",
        "1..2",
        "0x10",
        "١",
        "1 000",
        "9" * 41,
    ],
)
def test_what_is_no_amount_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(AmountError, match=r"amount|decimals"):
        parse(text)


@given(st.text(max_size=20))
def test_no_text_does_anything_but_parse_or_be_refused(text: str) -> None:
    try:
        micro = parse(text)
    except AmountError:
        return
    assert parse(exact(micro)) == micro
