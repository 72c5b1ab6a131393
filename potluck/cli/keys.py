"""`potluck keys`: API keys of your own account, and as an admin of others'."""

from enum import StrEnum
from typing import Annotated

import typer

from potluck.cli import limits as given
from potluck.cli.amounts import YesOption, asked
from potluck.cli.durations import expires_option, seconds_of
from potluck.cli.session import Session, command, group

app = group("List, create and revoke API keys.")

MemberOption = Annotated[
    str | None, typer.Option("--member", metavar="MEMBER", help="Another member's keys (for admins).")
]


@command(app, "list", example="potluck keys list")
def list_(session: Session, member: MemberOption = None) -> None:
    """Your keys, by their beginnings."""
    printer = session.printer
    found = session.pool.keys() if member is None else session.pool.member_keys(member)
    rows = [
        (
            key.id,
            key.name,
            key.prefix,
            key.created_at or "-",
            f"revoked {key.revoked_at}" if key.revoked_at else key.expires_at or "never",
            " ".join(key.scopes) or "-",
            " ".join(key.models) or "all",
            given.spoken(printer, key.limits),
        )
        for key in found
    ]
    headers = ("ID", "NAME", "KEY", "CREATED", "EXPIRES", "SCOPES", "MODELS", "LIMITS")
    printer.show(found, lambda: printer.table(headers, rows))


class Scope(StrEnum):
    INFERENCE = "inference"
    READ = "read"
    ACCOUNT = "account"
    ADMIN = "admin"


@command(app, "create", example="potluck keys create ci --scope inference --expires 90d --credits-per-day 5")
def create(
    session: Session,
    name: Annotated[str, typer.Argument(help="What the key is for, e.g. the machine it lives on.")],
    expires: Annotated[str | None, expires_option("until it is revoked")] = None,
    scope: Annotated[
        list[Scope] | None,
        typer.Option("--scope", help="What it may do; may be given several times. Default: all you may."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="NAME", help="For which model; may be given several times."),
    ] = None,
    requests_per_minute: given.RequestsOption = None,
    tokens_per_minute: given.TokensOption = None,
    concurrent: given.ConcurrentOption = None,
    credits_per_day: given.DayOption = None,
    credits_per_month: given.MonthOption = None,
    member: MemberOption = None,
) -> None:
    """Make a key; it is shown this once. It may at most what the key that makes it may."""
    limits = given.limits_of(
        session.printer,
        requests_per_minute,
        tokens_per_minute,
        concurrent,
        credits_per_day,
        credits_per_month,
        least=1,
    )
    made = session.pool.create_key(
        name,
        member=member,
        expires_s=seconds_of(expires),
        scopes=[one.value for one in scope] if scope else None,
        models=model or None,
        limits=limits,
    )
    printer = session.printer
    printer.show(made, lambda: printer.line(made.key))
    until = f", valid until {made.expires_at}" if made.expires_at else ""
    whose = f" of {member}" if member else ""
    printer.note(
        f"This is key {made.name}{whose} ({made.id}){until}. It is not shown again: put it away now."
    )
    said = given.spoken(printer, made.limits)
    models = f"; models: {', '.join(made.models)}" if made.models else ""
    printer.note(f"It may: {', '.join(made.scopes) or 'all you may'}{models}; limits: {said}.")


@command(app, "revoke", example="potluck keys revoke key_4fa2")
def revoke(
    session: Session,
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id.")],
    force: Annotated[bool, typer.Option("--force", help="Also your own last key.")] = False,
    yes: YesOption = False,
) -> None:
    """Make a key worthless, at once and for good."""
    if not asked(session, f"Revoke the key {key_id} for good?", yes=yes):
        return
    session.pool.revoke_key(key_id, force=force)
    printer = session.printer
    printer.show({"id": key_id, "revoked": True}, lambda: printer.line(f"Key {key_id} is revoked."))
