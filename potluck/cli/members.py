"""`potluck members`: who is in the pool, and what they may (for admins)."""

from enum import StrEnum
from typing import Annotated

import typer

from potluck.cli.amounts import YesOption, amount_of, asked, line_of
from potluck.cli.limits import limit_member
from potluck.cli.session import Session, command, group
from potluck.errors import UsageError
from potluck.membership import MemberAccount

app = group("List and add members, and say what they may (for admins).")

MemberArgument = Annotated[str, typer.Argument(metavar="MEMBER", help="A name or an id.")]
LineOption = Annotated[
    str | None, typer.Option("--credit-line", metavar="CREDITS", help="How much may be owed.")
]


class Role(StrEnum):
    MEMBER = "member"
    ADMIN = "admin"


@command(app, "list", example="potluck members list")
def list_(session: Session) -> None:
    """Everybody who has an account here."""
    found, printer = session.pool.members(), session.printer
    rows = [
        (m.name, m.role, m.state, printer.amount(m.credit_line), m.created_at or "-", m.id) for m in found
    ]
    headers = ("MEMBER", "ROLE", "STATE", "CREDIT LINE", "SINCE", "ID")
    printer.show(found, lambda: printer.table(headers, rows, right=(3,)))


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
        name, role=role.value if role else None, credit_line=line_of(session, credit_line)
    )
    printer = session.printer
    printer.show(made, lambda: printer.line(made.key))
    printer.note(
        f"This is the key of {made.name} ({made.id}); it is not shown again. Send it to {made.name}, who"
        f" then runs: potluck login {session.pool.url}"
    )


command(app, "limit", example="potluck members limit alice --credits-per-day 50")(limit_member)


@command(app, "show", example="potluck members show alice")
def show(session: Session, member: MemberArgument) -> None:
    """One member with the account."""
    _show(session, session.pool.member(member))


@command(app, "set", example="potluck members set alice --credit-line 500")
def set_(
    session: Session,
    member: MemberArgument,
    credit_line: LineOption = None,
    role: Annotated[Role | None, typer.Option("--role", help="What the member may do.")] = None,
) -> None:
    """Change a member's credit line or role; what is not given stays."""
    line = line_of(session, credit_line)
    if line is None and role is None:
        raise UsageError("Nothing would change: give --credit-line, --role or both.")
    _show(session, session.pool.set_member(member, credit_line=line, role=role.value if role else None))


@command(app, "grant", example='potluck members grant alice 50 --reason "wrote the docs"')
def grant(
    session: Session,
    member: MemberArgument,
    amount: Annotated[str, typer.Argument(metavar="AMOUNT", help="In credits, like 12.5.")],
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="It stands in the ledger.")],
) -> None:
    """Give a member credits out of the commons, in the open."""
    micro, printer = amount_of(session, amount), session.printer
    if micro == 0:
        raise UsageError("Nothing would be granted: give an amount above zero.")
    made = session.pool.grant(member, micro, reason)
    printer.show(
        made, lambda: printer.line(f"Granted {printer.amount(made.amount)} {printer.unit} to {made.to.name}.")
    )
    printer.note(f"The commons has {printer.amount(made.commons.balance)} now.")


@command(app, "freeze", example='potluck members freeze mallory --reason "the key leaked"')
def freeze(
    session: Session,
    member: MemberArgument,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="The member reads it.")],
) -> None:
    """Let a member look and earn, and nothing else, until unfrozen."""
    _show(session, session.pool.freeze(member, reason))


@command(app, "unfreeze", example="potluck members unfreeze mallory")
def unfreeze(session: Session, member: MemberArgument) -> None:
    """Let a member do everything again."""
    _show(session, session.pool.unfreeze(member))


@command(app, "close", example='potluck members close mallory --reason "left the lab"')
def close(
    session: Session,
    member: MemberArgument,
    reason: Annotated[
        str | None, typer.Option("--reason", metavar="TEXT", help="Needed for an account of somebody else.")
    ] = None,
    confirm: Annotated[
        str | None,
        typer.Option("--confirm", metavar="NAME", help="Your own name, to close your own account."),
    ] = None,
    yes: YesOption = False,
) -> None:
    """Close an account for good: its jobs, keys, invitations and workers end.

    Whoever lent the credit line answers for the debt; what is left goes to the commons.
    """
    question = f"Close the account of {member}? This cannot be undone."
    if not asked(session, question, yes=yes or confirm is not None, final=True):
        raise typer.Exit(1)
    _show(session, session.pool.close_member(member, reason=reason, confirm=confirm))


def _show(session: Session, member: MemberAccount) -> None:
    printer = session.printer
    facts = [
        ("member", f"{member.name} ({member.id})"),
        ("role", member.role),
        ("state", f"{member.state}: {member.why}" if member.why else member.state),
        ("account", member.account),
        ("balance", f"{printer.amount(member.balance)} {printer.unit}"),
        ("credit line", printer.amount(member.credit_line)),
    ]
    printer.show(member, lambda: printer.facts(facts))
