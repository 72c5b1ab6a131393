"""`potluck statement`: every movement of the own account in words, or summed up by day or month."""

import sys
from contextlib import suppress
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from potluck.cli.session import Session, single
from potluck.errors import PotluckError, UsageError
from potluck.statement import PAGE_LINES, StatementLine, StatementPage, Total

LIMIT = 50
LIMIT_MAX = 1_000_000


class Code(StrEnum):
    HOLD = "hold"
    SETTLE = "settle"
    CLOSE = "close"
    GRANT = "grant"
    TRANSFER = "transfer"
    LINE = "line"
    RELEASE = "release"
    RETIRE = "retire"


class By(StrEnum):
    DAY = "day"
    MONTH = "month"


def statement(
    session: Session,
    since: Annotated[
        str | None, typer.Option("--from", metavar="D", help="From this day or time on (UTC).")
    ] = None,
    until: Annotated[
        str | None, typer.Option("--to", metavar="D", help="Up to this day, or before this time (UTC).")
    ] = None,
    code: Annotated[Code | None, typer.Option("--code", help="Only movements of this kind.")] = None,
    job: Annotated[str | None, typer.Option("--job", metavar="JOB", help="Only those of this job.")] = None,
    holds: Annotated[
        bool, typer.Option("--holds", help="Also what was set aside, returned or lent.")
    ] = False,
    csv: Annotated[
        str | None,
        typer.Option("--csv", metavar="FILE|-", help="Write all lines as CSV, in microcredits."),
    ] = None,
    totals: Annotated[By | None, typer.Option("--totals", help="Sums by day or month instead.")] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="N", min=1, max=LIMIT_MAX, help=f"How many lines; default {LIMIT}."),
    ] = None,
    before: Annotated[
        int | None, typer.Option("--before", metavar="NUMBER", min=1, help="Only older ones than this.")
    ] = None,
    account: Annotated[
        str | None, typer.Option("--account", metavar="commons", help="The pool's own account (for admins).")
    ] = None,
) -> None:
    """What moved your balance, the newest first, and the balance after each movement."""
    filters = {"from": since, "to": until, "account": account}
    lines = {"code": code.value if code else None, "job": job, "holds": "true" if holds else None}
    if totals is not None:
        _refuse("--totals", {**lines, "csv": csv, "limit": limit, "before": before})
        _totals(session, session.pool.totals(totals.value, since=since, until=until, account=account))
        return
    given = {name: value for name, value in {**filters, **lines}.items() if value is not None}
    if csv is not None:
        _refuse("--csv", {"limit": limit, "before": before})
        _csv(session, csv, given)
        return
    page = _page(session, given, limit or LIMIT, before)
    if session.printer.output == "jsonl":
        session.printer.json(page.data)
        return
    if not page.data:
        session.printer.note(_nothing(filtered=bool(given) or before is not None))
    session.printer.show(page, lambda: _table(session, page.data))
    if page.has_more:
        last = page.data[-1].number
        session.printer.note(f"There are older ones: add `--before {last}`, or a higher `--limit`.")


def _page(session: Session, given: dict[str, str], limit: int, before: int | None) -> StatementPage:
    """As many lines as were asked for, in as many pages as that takes."""
    found: list[StatementLine] = []
    while True:
        wanted = min(limit - len(found), PAGE_LINES)
        page = session.pool.statement_page(given, limit=wanted, before=before)
        found.extend(islice(page.data, wanted))
        if not page.has_more or not page.data or len(found) >= limit:
            return StatementPage(data=tuple(found), has_more=page.has_more)
        before = page.data[-1].number


def _table(session: Session, lines: tuple[StatementLine, ...]) -> None:
    """Only the columns in which something moved."""
    if not lines:
        return
    printer = session.printer
    columns = [("AMOUNT", [printer.amount(line.amount, aligned=True) for line in lines])]
    for name in ("held", "reserved"):
        if any(getattr(line, name) for line in lines):
            cells = [printer.amount(getattr(line, name), aligned=True) for line in lines]
            columns.append((name.upper(), cells))
    columns.append(("BALANCE", [printer.amount(line.balance, aligned=True) for line in lines]))
    times = [line.at[:19].replace("T", " ") for line in lines]
    headers = ("NUMBER", "WHEN (UTC)", *(name for name, _ in columns), "WHAT")
    rows = [
        (str(line.number), at, *cells, line.words)
        for line, at, *cells in zip(lines, times, *(cells for _, cells in columns), strict=True)
    ]
    printer.table(headers, rows, right=(0, *range(2, 2 + len(columns))), whole=(2 + len(columns),))


def _totals(session: Session, found: list[Total]) -> None:
    printer = session.printer
    if not found:
        printer.note(_nothing(filtered=False))
    names = ["given", "fee", "taken", "contribution", "received", "sent", "granted"]
    if any(total.fees for total in found):
        names.append("fees")
    rows = [
        (
            total.period,
            *(printer.amount(getattr(total, name), aligned=True) for name in names),
            f"{total.tokens_served:,}",
            f"{total.tokens_asked:,}",
        )
        for total in found
    ]
    headers = ("PERIOD", *(name.upper() for name in names), "TOKENS SERVED", "TOKENS ASKED")
    right = tuple(range(1, len(headers)))
    printer.show(found, lambda: printer.table(headers, rows, right=right) if rows else None)


def _csv(session: Session, target: str, given: dict[str, str]) -> None:
    """To stdout, or whole or not at all into a file."""
    if target == "-":
        with session.pool.statement_csv(given) as pieces:
            for piece in pieces:
                sys.stdout.buffer.write(piece)
        sys.stdout.flush()
        return
    path = Path(target)
    part = path.with_name(path.name + ".part")
    try:
        with session.pool.statement_csv(given) as pieces, part.open("wb") as file:
            for piece in pieces:
                file.write(piece)
        part.replace(path)
    except OSError as error:
        message = f"{path} cannot be written: {error.strerror or error}."
        raise PotluckError(message, code="not_writable") from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    session.printer.note(f"Written to {path}. Amounts are microcredits.")


def _refuse(flag: str, others: dict[str, object]) -> None:
    for name, value in others.items():
        if value is not None:
            raise UsageError(f"{flag} and --{name} do not go together.")


def _nothing(*, filtered: bool) -> str:
    if filtered:
        return (
            "Nothing has moved that fits. `potluck statement` shows all, `--holds` what was set aside, too."
        )
    return (
        'Nothing has moved yet. Ask something (`potluck chat "Hello"`), or earn credits by sharing a machine'
        " (`potluck worker --help`)."
    )


app = single("statement", statement, example="potluck statement --from 2026-11-01 --totals day")
