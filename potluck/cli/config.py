"""`potluck config`: every setting of the client, and where it comes from."""

import os

from potluck.cli.session import Session, command, group
from potluck.client import ClientFile, masked
from potluck.home import home

app = group("Every setting, and where it comes from.")


@command(app, "view", example="potluck config view -o json")
def view(session: Session) -> None:
    """Show each setting with its value and origin; secrets are masked.

    The order is: flag, POTLUCK_* variable, client.toml, default.
    """
    found, printer = session.connection, session.printer
    shown = {
        "profile": (found.profile.value, found.profile.origin),
        "url": (found.url.value, found.url.origin),
        "key": (masked(found.key.value), found.key.origin),
        "model": (found.model.value, found.model.origin),
        "output": (found.output.value, found.output.origin),
        "home": (str(home()), "POTLUCK_HOME" if os.environ.get("POTLUCK_HOME") else "default"),
    }
    data = {name: {"value": value, "origin": origin} for name, (value, origin) in shown.items()}
    rows = [(name, value or "-", origin) for name, (value, origin) in shown.items()]
    printer.show(data, lambda: printer.table(("SETTING", "VALUE", "ORIGIN"), rows))
    file = ClientFile.load(found.file)
    if not file.profiles:
        printer.note("Nobody is logged in here yet. Run `potluck login URL`.")
    if file.open_to_others:
        printer.note(f"Warning: other users of this machine can read {file.path}. Run `chmod 600` on it.")
