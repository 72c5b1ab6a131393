"""`potluck worker leave`: this machine leaves its pool for good."""

import asyncio
import sys
import time
from typing import Annotated, Final

import typer

from potluck.cli.printing import Output, Printer, printable
from potluck.errors import UsageError
from potluck.identity import IdentityError, WorkerIdentity
from worker.cli_options import OutputOption
from worker.errors import WorkerError
from worker.membership import Certificate, Membership, utc_now
from worker.settings import Places
from worker.state import WorkerState
from worker.wish import Wish

DRAINED_S_MAX: Final = 86_400.0 + 120.0  # the longest that a drain may be set to take, and the farewell
LOOK_S: Final = 0.1


def leave(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask first.")] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Leave even if the pool cannot be told, or receipts are lost by it."),
    ] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Leave the pool for good; what this machine earned stays with its member.

    Running answers are finished first, within the daemon's time for it, or go on elsewhere; the daemon ends.
    Receipts that the pool has not acknowledged are handed in, the pool shuts this worker out, and its keys,
    certificate and membership are removed. Settings, models and the proof of its work stay.
    """
    from worker.departure import depart

    places, printer = Places(), Printer(output)
    member = Membership.load(places.worker)
    if not _agreed(member, yes=yes, attended=printer.text and sys.stdin.isatty()):
        printer.note("Nothing was done.")
        return
    _drain(places, printer)
    lost, untold = 0, ""
    if force and not _whole(places):
        from worker.departure import remove

        untold = "its keys or its certificate are missing, so it could not sign"
        remove(places.worker)
    else:
        try:
            lost, untold = asyncio.run(depart(places, force=force, now=utc_now()))
        except WorkerError as error:
            if not force:
                error.message += (
                    " Nothing was removed. Try again later; or leave without the pool's word, by which"
                    " receipts that it does not have are lost: potluck worker leave --force"
                )
            raise

    def as_text() -> None:
        printer.line(f"Left {member.pool}. What {member.name} earned stays with {member.member}.")
        printer.line(f"Its keys, certificate and membership are removed from {places.worker}.")
        if lost:
            printer.line(f"The pool did not take {lost} receipts; they are lost.")
        if untold:
            printer.line(
                f"The pool was not told: {untold.rstrip('.')}. There, its owner or an admin should revoke it:"
                f"  potluck workers revoke {member.name}"
            )

    told = {"worker_id": member.worker_id, "name": member.name, "pool": member.pool, "member": member.member}
    printer.show({**told, "told": not untold, "why": untold, "receipts_lost": lost}, as_text)


def _agreed(member: Membership, *, yes: bool, attended: bool) -> bool:
    """Raises UsageError where nobody can be asked."""
    question = f"{member.name} leaves {member.pool} for good, and can only come back with a new token. Go on?"
    if yes:
        return True
    if not attended:
        raise UsageError(f"{question} Here is nobody to ask: give --yes if you mean it.")
    typer.echo(f"{printable(question)} [y/N] ", nl=False, err=True)
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def _drain(places: Places, printer: Printer) -> None:
    """Let the daemon that runs here finish and end. Raises WorkerError."""
    state = WorkerState.load(places.worker)
    if not state.runs:
        return
    try:
        Wish(word="drain", given_at=time.time(), process=(state.pid, state.process_started)).save(
            places.worker
        )
    except OSError as error:
        raise WorkerError(f"{places.worker} cannot be written: {error.strerror or error}.") from None
    printer.note(f"The worker finishes what runs ({len(state.attempts)} answers), then it stops.")
    ends = time.monotonic() + DRAINED_S_MAX
    while (now := WorkerState.load(places.worker)).runs and now.pid == state.pid:
        if time.monotonic() > ends:
            raise WorkerError(f"the daemon (process {state.pid}) does not end. Stop it, then try again.")
        time.sleep(LOOK_S)


def _whole(places: Places) -> bool:
    """Whether there is an identity that the pool could be told with."""
    try:
        WorkerIdentity.load(places.worker)
        Certificate.load(places.worker)
    except (WorkerError, IdentityError, FileNotFoundError):
        return False
    return True
