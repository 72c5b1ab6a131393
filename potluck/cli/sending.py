"""Sending a file to the pool: training data is looked at first; the bar begins where a try before was cut."""

from pathlib import Path

from potluck import training_data
from potluck.cli.session import Session
from potluck.cli.shown import Shown
from potluck.errors import InvalidRequest
from potluck.files import PoolFile, Purpose
from potluck.uploading import IN_PARTS_BYTES, KEPT


def check(path: Path) -> None:
    """Training data. Raises InvalidRequest that names all problems."""
    try:
        problems = training_data.check(path)
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror or error}.") from None
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise InvalidRequest(f"{path} cannot be trained on:\n{listed}", code="invalid_file")


def send(
    session: Session, path: Path, purpose: Purpose, *, expires_s: int | None = None, resume: bool = False
) -> PoolFile:
    """`resume`: in parts also if it is small. Whoever stops a large one is told that it can go on."""
    in_parts = resume or (path.is_file() and path.stat().st_size > IN_PARTS_BYTES)

    def went_on(done: int, total: int) -> None:
        session.printer.note(f"{done:,} of {total:,} bytes are there from before: going on from there.")

    try:
        with Shown("bytes sent", shown=session.printer.text) as progress:
            return session.pool.files.upload(
                path, purpose, expires_s=expires_s, progress=progress, in_parts=in_parts, went_on=went_on
            )
    except KeyboardInterrupt:
        if in_parts:
            session.printer.note(f"Stopped. {KEPT}")
        raise
