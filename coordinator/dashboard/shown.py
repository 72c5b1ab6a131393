"""Values as pages show them: the filters of the templates."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape

from potluck.credits import exact, rounded

TEMPLATES: Final = Path(__file__).parent / "templates"
_SPANS: Final = (("d", 86_400, 3_600, "h"), ("h", 3_600, 60, "min"), ("min", 60, 1, "s"))
_UNITS: Final = ("B", "kB", "MB", "GB", "TB")


def environment() -> Environment:
    """Every value is escaped; one that a template does not get is a mistake and not an empty text."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        credits=credits,
        plain=rounded,
        amount=exact,
        energy=energy,
        signed=signed,
        moment=moment,
        size=size,
        number=number,
        duration=duration,
        capitalize_first=capitalize_first,
    )
    return made


def credits(micro: int) -> Markup:  # noqa: A001 -- the word of the templates
    """Rounded, with all of it where the pointer rests."""
    return Markup('<data value="{}" title="{} credits">{}</data>').format(micro, exact(micro), rounded(micro))


def signed(micro: int) -> Markup:
    """A change: with its sign."""
    way = "plus" if micro > 0 else "minus"
    sign = "+" if micro > 0 else ""
    return Markup('<data class="{}" value="{}" title="{} credits">{}{}</data>').format(
        way if micro else "", micro, exact(micro), sign, rounded(micro)
    )


def moment(at: float | str | None) -> Markup:
    """In UTC; where scripts run, they say it in the reader's own time."""
    if at is None:
        return Markup("–")
    time = datetime.fromisoformat(at) if isinstance(at, str) else datetime.fromtimestamp(at, UTC)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ")
    return Markup('<time datetime="{}">{} UTC</time>').format(stamp, escape(time.strftime("%Y-%m-%d %H:%M")))


def size(count: int) -> str:
    """Bytes with three significant digits."""
    value, unit = float(count), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1_000, unit + 1
    return f"{value:.3g} {_UNITS[unit]}"


def energy(kwh: float) -> str:
    """Three significant digits, in Wh or kWh."""
    return f"{kwh * 1_000:.3g} Wh" if kwh < 1 else f"{kwh:,.0f} kWh" if kwh >= 100 else f"{kwh:.3g} kWh"


def number(value: float) -> str:
    """With thousands set apart; small ones with one decimal."""
    return f"{value:,.1f}" if 0 < abs(value) < 10 and value != int(value) else f"{value:,.0f}"


def capitalize_first(text: str) -> str:
    """A reason as a sentence; names inside it stay as they are."""
    return text[:1].upper() + text[1:]


def duration(seconds: float | None) -> str:
    """In the two largest units that matter."""
    if seconds is None:
        return "–"
    if seconds < 0.9995:
        return f"{seconds * 1_000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, length, below, small in _SPANS:
        if whole >= length:
            rest = whole % length // below
            return f"{whole // length} {unit}" + (f" {rest} {small}" if rest else "")
    return f"{whole} s"
