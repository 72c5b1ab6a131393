"""`potluck files`: what you uploaded to train on or to run as a batch, and what the pool made of it."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import typer

from potluck.cli.amounts import YesOption, asked
from potluck.cli.durations import seconds_of
from potluck.cli.sending import check, send
from potluck.cli.session import Session, command, group
from potluck.cli.shown import Shown
from potluck.errors import UsageError
from potluck.files import PoolFile

app = group("Upload files, list, download and delete them.")

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The file's id.")]


@command(app, "upload", example="potluck files upload data.jsonl --expires 7d")
def upload(
    session: Session,
    path: Annotated[Path, typer.Argument(metavar="PATH", help="JSON Lines.")],
    purpose: Annotated[
        Literal["fine-tune", "batch"], typer.Option("--purpose", help="What it is for.")
    ] = "fine-tune",
    expires: Annotated[
        str | None, typer.Option("--expires", metavar="TIME", help="When it is deleted: 12h, 7d.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="In parts, that can go on after a cut; large files are anyway.")
    ] = False,
) -> None:
    """Send a file to the pool. Training data is checked on this machine first.

    A file of more than 64 MiB goes in parts: after Ctrl-C or a cut connection, the same command goes on.
    """
    if purpose == "fine-tune":
        check(path)
    made = send(session, path, purpose, expires_s=seconds_of(expires), resume=resume)
    session.printer.show(made, lambda: session.printer.line(made.id))
    session.printer.note(f"{made.filename} has {made.bytes:,} bytes and stays until {_day(made.expires_at)}.")


@command(app, "list", example="potluck files list --purpose batch_output")
def list_(
    session: Session,
    purpose: Annotated[
        Literal["fine-tune", "batch", "fine-tune-results", "batch_output"] | None,
        typer.Option("--purpose", help="Only those."),
    ] = None,
) -> None:
    """Your files, the newest first."""
    found = list(session.pool.files.list(purpose))
    rows = [
        (
            file.id,
            file.filename,
            file.purpose,
            f"{file.bytes:,}",
            _day(file.created_at),
            _day(file.expires_at),
        )
        for file in found
    ]
    headers = ("ID", "NAME", "PURPOSE", "BYTES", "CREATED", "EXPIRES")
    session.printer.show(found, lambda: session.printer.table(headers, rows))


@command(app, "show", example="potluck files show file-0d6k")
def show(session: Session, file_id: IdArgument) -> None:
    """One file."""
    found = session.pool.files.get(file_id)
    session.printer.show(found, lambda: session.printer.facts(_facts(found)))


@command(app, "download", example="potluck files download file-0d6k --to out.jsonl")
def download(
    session: Session,
    file_id: IdArgument,
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="PATH", help="Where; default: its own name, here."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a file's bytes to this machine."""
    path = to or Path(_name_of(session.pool.files.get(file_id)))
    if path.exists() and not force:
        raise UsageError(f"{path} is there already. Choose another place with --to, or give --force.")
    with Shown("bytes received", shown=session.printer.text) as progress:
        found = session.pool.files.download(file_id, path, progress=progress)
    data = {"id": found.id, "path": str(path), "bytes": found.bytes}
    session.printer.show(data, lambda: session.printer.line(f"{path}: {found.bytes:,} bytes"))


@command(app, "delete", example="potluck files delete file-0d6k")
def delete(session: Session, file_id: IdArgument, yes: YesOption = False) -> None:
    """Delete a file for good."""
    if not asked(session, f"Delete the file {file_id} for good?", yes=yes):
        return
    session.pool.files.delete(file_id)
    session.printer.show(
        {"id": file_id, "deleted": True}, lambda: session.printer.line(f"File {file_id} is deleted.")
    )


def _name_of(file: PoolFile) -> str:
    """A name from elsewhere never leads out of this folder, nor hides a file in it."""
    name = file.filename.replace("\\", "/").rpartition("/")[2].lstrip(".")
    return name if name and name.isprintable() else file.id


def _facts(file: PoolFile) -> list[tuple[str, str]]:
    return [
        ("id", file.id),
        ("name", file.filename),
        ("purpose", file.purpose),
        ("bytes", f"{file.bytes:,}"),
        ("sha256", file.sha256),
        ("created", _day(file.created_at)),
        ("expires", _day(file.expires_at)),
    ]


def _day(seconds: int | None) -> str:
    return "never" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"
