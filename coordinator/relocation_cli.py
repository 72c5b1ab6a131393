"""`potluck coordinator migrate-database`."""

import asyncio
import time
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from coordinator.app import home_lock
from coordinator.ca import CertificateError
from coordinator.lock import AlreadyRunning
from coordinator.relocation import relocate
from coordinator.settings import Settings, SettingsError
from coordinator.store_errors import StoreError
from potluck.cli.printing import Output, Printer
from potluck.cli.shown import Shown
from potluck.errors import ExitCode, PotluckError
from potluck.results import plain


def register(app: typer.Typer) -> None:
    app.command(
        "migrate-database",
        epilog="Example:  potluck coordinator migrate-database --to postgresql://potluck@127.0.0.1/potluck"
        " --to-password-file /etc/potluck/database_password",
    )(migrate_database)


def migrate_database(
    to: Annotated[
        str,
        typer.Option(
            metavar="URL", help="An empty database: postgresql://user@host/name or sqlite:////path/to/file."
        ),
    ],
    to_password_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Holds the password that the URL leaves out.")
    ] = None,
    database: Annotated[
        str | None,
        typer.Option(metavar="URL", help="The books as they are; default: those of the settings."),
    ] = None,
    output: Annotated[
        Output, typer.Option("--output", "-o", envvar="POTLUCK_OUTPUT", help="text, or json for programs.")
    ] = Output.TEXT,
) -> None:
    """Copy the books into another database, SQLite to PostgreSQL or back, while the coordinator is stopped.

    All of it arrives, or nothing. The copy is checked; the old database stays as it is.
    """
    printer = Printer(output)
    try:
        settings = Settings.load({} if database is None else {"database": database})
        lock = home_lock(settings)
        try:
            with Shown("rows", shown=printer.text) as progress:
                moved = asyncio.run(
                    relocate(settings, _with_password(to, to_password_file), time.time(), progress)
                )
        finally:
            lock.release()
    except (AlreadyRunning, CertificateError, StoreError, SettingsError) as trouble:
        printer.error(PotluckError(str(trouble)))
        raise typer.Exit(ExitCode.ERROR) from None
    where = make_url(to).set(password=None).render_as_string()

    def as_text() -> None:
        total = sum(moved.rows.values())
        printer.line(f"{total:,} rows of {len(moved.rows)} tables were copied to {where}.")
        for finding in moved.report.findings:
            printer.line(f"{finding.subject}: {finding.message}")
        if not moved.report.findings:
            printer.line(f"Nothing is wrong with the copy: {moved.report.entries} entries.")
            printer.line("Now, in coordinator.toml (or as variables of the service):")
            printer.line(f'  database = "{where}"')
            if to_password_file is not None:
                printer.line(f'  database_password_file = "{to_password_file.absolute()}"')
            printer.note("Then start the coordinator. The old books stay where they are: start none on them.")

    printer.show({"to": where, "rows": moved.rows, **plain(moved.report)}, as_text)
    if moved.report.findings:
        raise typer.Exit(ExitCode.ERROR)


def _with_password(url: str, file: Path | None) -> str:
    """Raises SettingsError."""
    try:
        made = make_url(url)
        if file is not None:
            made = made.set(password=file.read_text().strip())
        return made.render_as_string(hide_password=False)
    except ArgumentError:
        raise SettingsError("--to is no URL: give postgresql://user@host/name") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--to-password-file cannot be read: {error}") from None
