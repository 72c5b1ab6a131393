"""`potluck coordinator backup` and `restore`."""

import asyncio
import time
from pathlib import Path
from typing import Annotated

import typer

from coordinator.backup import BOOKS, BackupError, back_up, books_of, restore
from coordinator.check import check
from coordinator.settings import Settings, SettingsError
from coordinator.store_errors import StoreError
from potluck.cli.printing import Output, Printer
from potluck.cli.shown import Shown
from potluck.errors import ExitCode, PotluckError
from potluck.results import plain

FolderArgument = Annotated[
    Path, typer.Argument(metavar="FOLDER", show_default=False, help="Where the backup is, or shall be.")
]
OutputOption = Annotated[
    Output, typer.Option("--output", "-o", envvar="POTLUCK_OUTPUT", help="text, or json for programs.")
]
DatabaseOption = Annotated[
    str | None,
    typer.Option(metavar="URL", help="sqlite:////path/to/file; default: a file in POTLUCK_HOME."),
]


def register(app: typer.Typer) -> None:
    app.command("backup", epilog="Example:  potluck coordinator backup /mnt/backup/our-pool")(backup)
    app.command("restore", epilog="Example:  potluck coordinator restore /mnt/backup/our-pool")(restored)


def backup(
    folder: FolderArgument, database: DatabaseOption = None, output: OutputOption = Output.TEXT
) -> None:
    """Copy the whole pool into a folder while it runs: books, keys, settings, files.

    The folder may have an older backup of this pool: only what is new is copied. It holds the pool's private
    keys: keep it where nobody else can read it.
    """
    printer = Printer(output)
    try:
        settings = Settings.load({} if database is None else {"database": database})
        with Shown("bytes", shown=printer.text) as progress:
            taken = back_up(settings, folder.expanduser().absolute(), time.time(), progress)
    except (BackupError, SettingsError, OSError) as trouble:
        raise _ended(printer, trouble) from None
    manifest = taken.manifest

    def as_text() -> None:
        printer.line(
            f"The pool {manifest.pool!r} as of {manifest.taken_at}: {manifest.entries} entries,"
            f" {len(manifest.items)} files, {manifest.size_bytes:,} bytes, in {folder}."
        )
        printer.note(f"To go back to it: POTLUCK_HOME=/an/empty/folder potluck coordinator restore {folder}")

    summary = {
        "folder": str(folder),
        "pool": manifest.pool,
        "taken_at": manifest.taken_at,
        "entries": manifest.entries,
        "hash": manifest.hash,
        "files": len(manifest.items),
        "bytes": manifest.size_bytes,
        "damaged": list(taken.damaged),
    }
    printer.show(summary, as_text)
    for name in taken.damaged:
        printer.note(f"{name} is damaged on the disk and was left out.")
    if taken.damaged:
        raise typer.Exit(ExitCode.ERROR)


def restored(folder: FolderArgument, output: OutputOption = Output.TEXT) -> None:
    """Put a backup into an empty POTLUCK_HOME, and check its books. Every byte is looked at.

    What happened in the pool after the backup is not in it. Start the coordinator then under the address that
    it had: workers come back by themselves.
    """
    printer = Printer(output)
    try:
        settings = Settings.load({})
        with Shown("bytes", shown=printer.text) as progress:
            manifest = restore(settings, folder.expanduser().absolute(), progress)
        settings = Settings.load({})  # with the file that has come back
        books = settings.folder / BOOKS
        elsewhere = settings.database is not None and books_of(settings) != books
        report, _ = asyncio.run(check(Settings.load({"database": f"sqlite:///{books.as_posix()}"})))
    except (BackupError, SettingsError, StoreError, OSError) as trouble:
        raise _ended(printer, trouble) from None

    def as_text() -> None:
        printer.line(
            f"The pool {manifest.pool!r} as of {manifest.taken_at} is in {settings.folder}:"
            f" {manifest.entries} entries, {len(manifest.items)} files."
        )
        for finding in report.findings:
            printer.line(f"{finding.subject}: {finding.message}")
        if not report.findings:
            printer.line("Nothing is wrong with its books. `potluck coordinator start` opens it again.")

    printer.show({"pool": manifest.pool, "taken_at": manifest.taken_at, **plain(report)}, as_text)
    if elsewhere:
        printer.note(f"Its coordinator.toml names another database; the books are in {books}.")
    if report.findings:
        raise typer.Exit(ExitCode.ERROR)


def _ended(printer: Printer, trouble: Exception) -> typer.Exit:
    why = (trouble.strerror or str(trouble)) if isinstance(trouble, OSError) else str(trouble)
    where = f"{trouble.filename}: " if isinstance(trouble, OSError) and trouble.filename else ""
    printer.error(PotluckError(f"{where}{why}"))
    return typer.Exit(ExitCode.ERROR)
