"""`potluck keys`: API keys of your own account."""

from typing import Annotated

import typer

from potluck.cli.durations import ExpiresOption, seconds_of
from potluck.cli.session import Session, command, group

app = group("List, create and revoke API keys.")


@command(app, "list", example="potluck keys list")
def list_(session: Session) -> None:
    """Your keys, by their beginnings."""
    found, printer = session.pool.keys(), session.printer
    rows = [
        (
            key.id,
            key.name,
            key.prefix,
            key.created_at or "-",
            f"revoked {key.revoked_at}" if key.revoked_at else key.expires_at or "never",
        )
        for key in found
    ]
    printer.show(found, lambda: printer.table(("ID", "NAME", "KEY", "CREATED", "EXPIRES"), rows))


@command(app, "create", example="potluck keys create laptop --expires 90d")
def create(
    session: Session,
    name: Annotated[str, typer.Argument(help="What the key is for, e.g. the machine it lives on.")],
    expires: ExpiresOption = None,
) -> None:
    """Make a key; it is shown this once."""
    made, printer = session.pool.create_key(name, expires_s=seconds_of(expires)), session.printer
    printer.show(made, lambda: printer.line(made.key))
    until = f", valid until {made.expires_at}" if made.expires_at else ""
    printer.note(f"This is key {made.name} ({made.id}){until}. It is not shown again: put it away now.")


@command(app, "revoke", example="potluck keys revoke key_4fa2")
def revoke(
    session: Session, key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id.")]
) -> None:
    """Make a key worthless, at once and for good."""
    session.pool.revoke_key(key_id)
    printer = session.printer
    printer.show({"id": key_id, "revoked": True}, lambda: printer.line(f"Key {key_id} is revoked."))
