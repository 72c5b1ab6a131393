"""`potluck login`: try a key, and remember it with its pool's address."""

import getpass
import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from potluck.cli.printing import Output, Printer, printable
from potluck.cli.session import MicroOption, OutputOption, ProfileOption
from potluck.client import (
    DEFAULT_PROFILE,
    POOL_KEY,
    ClientFile,
    checked_profile,
    checked_url,
    is_loopback,
    masked,
    read_key,
)
from potluck.errors import PermissionDenied, PotluckError, UsageError

if TYPE_CHECKING:
    from potluck.pool import Pool

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command(
    "login",
    epilog="Example:  potluck login https://pool.example.org:8420 --key file:my.key",
    context_settings={"help_option_names": ["-h", "--help"]},
)
def login(
    url: Annotated[str, typer.Argument(help="The pool's address.")],
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="file:PATH", help="Where the key lies; asked for otherwise."),
    ] = None,
    invite: Annotated[
        str | None,
        typer.Option("--invite", metavar="TOKEN|file:PATH", help="Become a member by an invitation."),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="With --invite: your name in the pool.")
    ] = None,
    profile: ProfileOption = None,
    output: OutputOption = None,
    micro: MicroOption = False,
) -> None:
    """Save a pool's address and your key for it, after trying both."""
    printer = Printer(output or Output.TEXT, micro)
    try:
        if invite is not None:
            _accept(printer, url, invite, name, key, profile)
        else:
            _login(printer, url, key, profile)
    except PotluckError as error:
        printer.error(error)
        raise typer.Exit(int(error.exit_code)) from None


def _accept(
    printer: Printer, url: str, invite: str, name: str | None, key: str | None, profile: str | None
) -> None:
    """Become a member, and save the key that comes with it before anything else can go wrong."""
    from potluck.membership import accept_invite

    if key is not None:
        raise UsageError("--invite brings a key of its own: leave --key out.")
    if not name:
        raise UsageError("Say how you want to be called in the pool: --name NAME.")
    address = checked_url(url)
    token = read_key(invite, what="invitation")
    profile_name = checked_profile(profile or os.environ.get("POTLUCK_PROFILE") or DEFAULT_PROFILE)
    file = ClientFile.load()
    if (saved := file.profiles.get(profile_name, {}).get("key")) is not None:
        raise UsageError(
            f"The profile {profile_name!r} holds a key already ({masked(saved)}). Give another one with"
            " --profile NAME, so that it is not lost."
        )
    _note_clear(printer, address)
    made = accept_invite(address, token, name)
    try:
        file.save_profile(profile_name, address, made.key, default=profile is None or not file.profiles)
    except OSError as error:
        message = f"The key could not be saved ({error.strerror}). It is shown this once: {made.key}"
        raise PotluckError(message, code="key_not_saved") from None
    data = {
        "profile": profile_name,
        "url": address,
        "key": masked(made.key),
        "file": str(file.path),
        "member": {"id": made.id, "name": made.name, "credit_line": made.credit_line},
    }
    printer.show(data, lambda: printer.line(_welcome(made.name, made.pool, profile_name)))
    printer.note(f"Your credit line is {printer.amount(made.credit_line)} {printer.unit}.")


def _login(printer: Printer, url: str, key: str | None, profile: str | None) -> None:
    from potluck.pool import Pool

    address = checked_url(url)
    name = checked_profile(profile or os.environ.get("POTLUCK_PROFILE") or DEFAULT_PROFILE)
    file = ClientFile.load()
    given = key or os.environ.get("POTLUCK_KEY") or _asked(address)
    secret = read_key(given)
    if key and not key.startswith("file:"):
        printer.note(
            "Note: a key on the command line stays in the shell's history; --key file:PATH does not."
        )
    _note_clear(printer, address)
    with Pool(address, secret, retries_max=0) as pool:
        me, public_key = pool.me(), _signing_key(pool)
    before = file.profiles.get(name, {})
    file.save_profile(name, address, secret, default=profile is None or not file.profiles)
    if POOL_KEY.fullmatch(public_key):
        if before.get("url") == address and before.get("public_key", public_key) != public_key:
            printer.note(
                f"Note: the pool at {address} signs by another key than before ({public_key}). Ask its admin"
                " why: exports and heads from before do not verify with it."
            )
        file.save_pool_key(name, public_key)
    data = {"profile": name, "url": address, "key": masked(secret), "file": str(file.path), "me": me}
    printer.show(data, lambda: printer.line(_welcome(me.member.name, me.pool, name)))


def _note_clear(printer: Printer, address: str) -> None:
    if address.startswith("http://") and not is_loopback(address):
        printer.note(
            f"Note: {address} is not encrypted; whoever is on the way can read the key and the answers."
        )


def _signing_key(pool: "Pool") -> str:
    """By which the pool signs its ledger; empty where this API key may not ask."""
    try:
        return pool.status().coordinator_public_key
    except PermissionDenied:
        return ""


def _welcome(member: str, pool: str, profile: str) -> str:
    return printable(f'Logged in to {pool} as {member} (profile {profile}). Try: potluck chat "Hello"')


def _asked(address: str) -> str:
    """The key, typed without being shown. Raises UsageError where nobody can type."""
    if not sys.stdin.isatty():
        raise UsageError("No key was given: use --key file:PATH, or set POTLUCK_KEY.")
    return getpass.getpass(f"API key for {address}: ")
