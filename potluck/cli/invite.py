"""`potluck coordinator invite` and `invites`: let one person in, and see what became of it."""

from typing import Annotated

import typer

from potluck.cli.amounts import line_of
from potluck.cli.durations import expires_option, seconds_of
from potluck.cli.session import Session, single


def invite(
    session: Session,
    credit_line: Annotated[
        str | None,
        typer.Option(
            "--credit-line", metavar="CREDITS", help="Lent out of yours; default: the pool's usual."
        ),
    ] = None,
    expires: Annotated[str | None, expires_option("7d")] = None,
    note: Annotated[str, typer.Option("--note", metavar="TEXT", help="For yourself: whom it is for.")] = "",
    from_pool: Annotated[
        bool, typer.Option("--from-pool", help="The pool lends the line (for admins).")
    ] = False,
) -> None:
    """Invite one person, and print what to run there. You answer for the credit line that you lend."""
    made = session.pool.invite(
        credit_line=line_of(session, credit_line),
        expires_s=seconds_of(expires),
        note=note,
        from_pool=from_pool,
    )
    printer = session.printer
    printer.show(made, lambda: printer.line(made.token))
    lent = f"{printer.amount(made.credit_line)} {printer.unit}"
    lender = "the pool's lines" if made.from_pool else "your own line until it is taken back or expires"
    printer.note(f"Good once, until {made.expires_at}. A credit line of {lent} comes out of {lender}.")
    printer.note("Your friend runs:")
    for line in made.commands:
        printer.note(f"  {line}")


def invites(
    session: Session,
    revoke: Annotated[
        str | None, typer.Option("--revoke", metavar="ID", help="Take one back while nobody has accepted it.")
    ] = None,
    everybody: Annotated[bool, typer.Option("--all", help="Everybody's (for admins).")] = False,
) -> None:
    """Your invitations and what became of them; --revoke takes one back."""
    printer = session.printer
    if revoke is not None:
        session.pool.revoke_invite(revoke)
        printer.show(
            {"id": revoke, "revoked": True}, lambda: printer.line(f"Invitation {revoke} is taken back.")
        )
        return
    found = session.pool.invites(everybody=everybody)
    if not found:
        printer.note("Nobody was invited yet. `potluck coordinator invite` makes an invitation.")
    rows = [
        (
            item.id,
            item.by,
            f"{item.state} by {item.accepted_by}" if item.accepted_by else item.state,
            printer.amount(item.credit_line),
            item.ended_at or f"until {item.expires_at}",
            item.note or "",
        )
        for item in found
    ]
    headers = ("ID", "BY", "STATE", "CREDIT LINE", "WHEN", "NOTE")
    printer.show(found, lambda: printer.table(headers, rows, right=(3,)) if rows else None)


invite_app = single("invite", invite, example="potluck coordinator invite --credit-line 50 --expires 7d")
invites_app = single("invites", invites, example="potluck coordinator invites")
