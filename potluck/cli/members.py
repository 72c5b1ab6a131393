"""`potluck members`: who is in the pool, and what each may use (for admins)."""

from enum import StrEnum
from typing import Annotated

import typer

from potluck.cli.limits import limit_member
from potluck.cli.session import Session, command, group
from potluck.credits import AmountError, parse
from potluck.errors import UsageError

app = group("List and add members (for admins).")


class Role(StrEnum):
    MEMBER = "member"
    ADMIN = "admin"


@command(app, "list", example="potluck members list")
def list_(session: Session) -> None:
    """Everybody who has an account here."""
    found, printer = session.pool.members(), session.printer
    rows = [(m.name, m.role, printer.amount(m.credit_line), m.created_at or "-", m.id) for m in found]
    headers = ("MEMBER", "ROLE", "CREDIT LINE", "SINCE", "ID")
    printer.show(found, lambda: printer.table(headers, rows, right=(2,)))


@command(app, "add", example="potluck members add alice --credit-line 500")
def add(
    session: Session,
    name: Annotated[str, typer.Argument(help="The new member's name.")],
    role: Annotated[Role | None, typer.Option("--role", help="Default: member.")] = None,
    credit_line: Annotated[
        str | None,
        typer.Option("--credit-line", metavar="CREDITS", help="How much may be owed; default: the pool's."),
    ] = None,
) -> None:
    """Make a member with a first key; the key is shown this once."""
    made = session.pool.add_member(
        name, role=role.value if role else None, credit_line=_line(session, credit_line)
    )
    printer = session.printer
    printer.show(made, lambda: printer.line(made.key))
    printer.note(
        f"This is the key of {made.name} ({made.id}); it is not shown again. Send it to {made.name}, who"
        f" then runs: potluck login {session.pool.url}"
    )


command(app, "limit", example="potluck members limit alice --credits-per-day 50")(limit_member)


def _line(session: Session, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        line = int(text) if session.printer.micro else parse(text)
    except (AmountError, ValueError) as error:
        raise UsageError(str(error)) from None
    if line < 0:
        raise UsageError("A credit line is not negative: it says how much may be owed.")
    return line
