"""`potluck send`."""

from typing import Annotated

import typer

from potluck.cli.amounts import YesOption, amount_of, asked
from potluck.cli.session import Session, single
from potluck.errors import UsageError


def send(
    session: Session,
    member: Annotated[str, typer.Argument(metavar="MEMBER", help="To whom: a name or an id.")],
    amount: Annotated[str, typer.Argument(metavar="AMOUNT", help="In credits, like 12.5.")],
    note: Annotated[
        str, typer.Option("--note", metavar="TEXT", help="For both of you; at most 200 characters.")
    ] = "",
    yes: YesOption = False,
) -> None:
    """Send credits that you have to another member. A credit line is for asking; it is not sent on."""
    micro, printer = amount_of(session, amount), session.printer
    if micro == 0:
        raise UsageError("Nothing would be sent: give an amount above zero.")
    if not asked(session, f"Send {printer.amount(micro)} {printer.unit} to {member}?", yes=yes):
        raise typer.Exit(1)
    sent = session.pool.send(member, micro, note=note)
    printer.show(
        sent, lambda: printer.line(f"Sent {printer.amount(sent.amount)} {printer.unit} to {sent.to.name}.")
    )
    printer.note(f"Your balance is {printer.amount(sent.balance)} now.")


app = single("send", send, example='potluck send alice 12.5 --note "for the night shift"')
