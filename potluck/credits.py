"""Amounts as people read them: credits with a point, from integer microcredits and back, without floats."""

import re
from typing import Final

MICRO: Final = 1_000_000  # microcredits in a credit
DECIMALS_MAX: Final = 6
DECIMALS_MIN: Final = 2
DIGITS_SHOWN: Final = 4  # significant digits of a rounded amount
AMOUNT_CHARS_MAX: Final = 40
_AMOUNT = re.compile(r"([+-]?)((?:\d{1,3}(?:[,_]\d{3})+)|\d*)(?:\.(\d*))?")


class AmountError(ValueError):
    """The text is no amount of credits; the message says why."""


def exact(micro: int) -> str:
    """All that there is, so that columns add up: 1234567 -> "1.234567", 1000000000 -> "1,000.00"."""
    return _written(micro, DECIMALS_MAX)


def aligned(micro: int) -> str:
    """All six decimals, so that a column lines up at the point and can be added by eye: "1.500000"."""
    return _written(micro, DECIMALS_MAX, DECIMALS_MAX)


def rounded(micro: int) -> str:
    """Four significant digits and at least cents: 271234 -> "0.2712", 1234567890 -> "1,234.57".

    Half a unit goes away from zero. What is not zero is never shown as zero.
    """
    if micro == 0:
        return _written(0, DECIMALS_MIN)
    whole_digits = (
        len(str(abs(micro))) - DECIMALS_MAX
    )  # 0.05 has -1: one zero after the point before it starts
    decimals = min(DECIMALS_MAX, max(DECIMALS_MIN, DIGITS_SHOWN - whole_digits))
    unit = 10 ** (DECIMALS_MAX - decimals)
    magnitude = (abs(micro) + unit // 2) // unit * unit
    return _written(magnitude if micro > 0 else -magnitude, decimals)


def parse(text: str) -> int:
    """Microcredits from what `exact` or a person wrote. Raises AmountError.

    Thousands may be set apart by commas or underscores; more than six decimals are refused, not rounded.
    """
    text = text.strip()
    match = _AMOUNT.fullmatch(text) if len(text) <= AMOUNT_CHARS_MAX and text.isascii() else None
    if match is None or not (match[2] or match[3]):
        raise AmountError(
            f"{text[:AMOUNT_CHARS_MAX]!r} is no amount of credits. Write it like 12.5 or 0.000001."
        )
    sign, whole, decimals = match[1], match[2].replace(",", "").replace("_", ""), match[3] or ""
    if len(decimals) > DECIMALS_MAX:
        raise AmountError(
            f"{text!r} has more than {DECIMALS_MAX} decimals: a microcredit is the smallest amount."
        )
    micro = int(whole or "0") * MICRO + int(decimals.ljust(DECIMALS_MAX, "0"))
    return -micro if sign == "-" else micro


def _written(micro: int, decimals_max: int, decimals_min: int = DECIMALS_MIN) -> str:
    whole, rest = divmod(abs(micro), MICRO)
    decimals = f"{rest:06d}"[:decimals_max].rstrip("0").ljust(decimals_min, "0")
    return f"{'-' if micro < 0 else ''}{whole:,}.{decimals}"
