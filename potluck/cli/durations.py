"""Spans of time as people write them: 90s, 30m, 12h, 7d."""

import re
from typing import Any

import typer

from potluck.errors import UsageError

UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
SECONDS_MAX = 10 * 365 * UNITS_S["d"]


def expires_option(default: str) -> Any:
    """`--expires` of a thing that is good for so long where nothing is said."""
    said = f"How long it is good for: 90s, 30m, 12h, 7d. Default: {default}."
    return typer.Option("--expires", metavar="TIME", help=said)


def seconds_of(text: str | None) -> int | None:
    """Whole seconds; a bare number counts them. Raises UsageError."""
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,9})([smhdw]?)", text.strip().lower())
    seconds = int(match[1]) * UNITS_S[match[2] or "s"] if match else 0
    if not 0 < seconds <= SECONDS_MAX:
        raise UsageError(
            f"{text!r} is no span of time that makes sense here. Write it like 90s, 30m, 12h or 7d."
        )
    return seconds


def spoken(seconds: float) -> str:
    """About how long: 45 s, 3 min, 1 h 20 min, 2 d 3 h."""
    whole = max(1, round(seconds))
    if whole < 90:
        return f"{whole} s"
    minutes = round(whole / UNITS_S["m"])
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"
