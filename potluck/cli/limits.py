"""`potluck limits`, and the options that keys and members share for theirs."""

from typing import TYPE_CHECKING, Annotated

import typer

from potluck.cli.printing import Printer
from potluck.cli.session import Session, single
from potluck.credits import AmountError, parse
from potluck.errors import UsageError
from potluck.results import Limits, plain

if TYPE_CHECKING:
    from potluck.limiting import LimitUse, MemberLimits

WORDS = {
    "requests_per_minute": "requests per minute",
    "tokens_per_minute": "tokens per minute",
    "concurrent_jobs": "jobs at once",
    "credits_per_day": "credits per day",
    "credits_per_month": "credits per month",
}

RequestsOption = Annotated[
    int | None, typer.Option("--requests-per-minute", metavar="N", min=1, help="Requests within a minute.")
]
TokensOption = Annotated[
    int | None,
    typer.Option(
        "--tokens-per-minute", metavar="N", min=0, help="Tokens within a minute, prompts and answers."
    ),
]
ConcurrentOption = Annotated[
    int | None, typer.Option("--concurrent", metavar="N", min=1, help="Jobs under way at once.")
]
DayOption = Annotated[
    str | None, typer.Option("--credits-per-day", metavar="CREDITS", help="To spend in a day (UTC).")
]
MonthOption = Annotated[
    str | None, typer.Option("--credits-per-month", metavar="CREDITS", help="To spend in a month (UTC).")
]


def limits_of(
    printer: Printer,
    requests_per_minute: int | None,
    tokens_per_minute: int | None,
    concurrent: int | None,
    credits_per_day: str | None,
    credits_per_month: str | None,
    *,
    least: int,
) -> Limits:
    """From options. Raises UsageError below `least`: a key has no limit by leaving it out, not by 0."""
    limits = Limits(
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        concurrent_jobs=concurrent,
        credits_per_day=_micro(printer, credits_per_day),
        credits_per_month=_micro(printer, credits_per_month),
    )
    for name, value in _items(limits):
        if value < least:
            message = f"--{name.replace('_', '-')} is above 0 here; leave it out for no limit."
            raise UsageError(message if least else f"--{name.replace('_', '-')} is not negative.")
    return limits


def spoken(printer: Printer, limits: Limits) -> str:
    """Those that are set, on one line."""
    said = [
        f"{_amount(printer, name, value) if value else 'unlimited'} {WORDS[name]}"
        for name, value in _items(limits)
    ]
    return ", ".join(said) or "none"


def limits(session: Session) -> None:
    """What you and your key may use, how much of it is used now, and when it renews (UTC)."""
    found, printer = session.pool.limits(), session.printer
    rows = [_row(printer, use) for use in found]
    headers = ("OF", "LIMIT", "USED", "ALLOWED", "RENEWS", "SET BY")
    printer.show(found, lambda: printer.table(headers, rows, right=(2, 3)))


def limit_member(
    session: Session,
    member: Annotated[str, typer.Argument(metavar="MEMBER", help="The member's name or id.")],
    requests_per_minute: RequestsOption = None,
    tokens_per_minute: TokensOption = None,
    concurrent: ConcurrentOption = None,
    credits_per_day: DayOption = None,
    credits_per_month: MonthOption = None,
    clear: Annotated[
        bool, typer.Option("--clear", help="Drop the member's own limits first: the pool's hold again.")
    ] = False,
) -> None:
    """Set a member's own limits in place of the pool's; what is not given stays. Without options: show them.

    0 tokens or credits are no limit, whatever the pool has.
    """
    printer, pool = session.printer, session.pool
    given = limits_of(
        printer,
        requests_per_minute,
        tokens_per_minute,
        concurrent,
        credits_per_day,
        credits_per_month,
        least=0,
    )
    now = pool.member_limits(member)
    if clear or _items(given):
        kept = {} if clear else dict(_items(now.limits))
        now = pool.set_member_limits(member, Limits(**{**kept, **dict(_items(given))}))
    printer.show(now, lambda: _show(printer, now))


def _show(printer: Printer, found: "MemberLimits") -> None:
    printer.facts(
        [
            ("member", found.name),
            ("own limits", spoken(printer, found.limits)),
            ("in effect", spoken(printer, found.effective)),
        ]
    )


def _row(printer: Printer, use: "LimitUse") -> tuple[str, ...]:
    return (
        f"{use.of} {use.name}",
        WORDS.get(use.limit, use.limit),
        _amount(printer, use.limit, use.used),
        "no limit" if use.allowed is None else _amount(printer, use.limit, use.allowed),
        use.renews_at or "-",
        use.set_by if use.allowed is not None else "-",
    )


def _items(limits: Limits) -> list[tuple[str, int]]:
    return [(name, value) for name, value in plain(limits).items() if value is not None]


def _amount(printer: Printer, name: str, value: int) -> str:
    return printer.amount(value) if name.startswith("credits") else f"{value:,}"


def _micro(printer: Printer, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return int(text) if printer.micro else parse(text)
    except (AmountError, ValueError) as error:
        raise UsageError(str(error)) from None


app = single("limits", limits, example="potluck limits")
