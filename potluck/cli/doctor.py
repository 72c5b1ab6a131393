"""`potluck doctor`: does everything work, from here to the pool, and the worker on this machine?"""

from collections.abc import Sequence

import typer

from potluck.cli.findings import Finding, as_object, print_findings
from potluck.cli.session import Session, single
from potluck.client import ClientFile
from potluck.doctor import examine, works
from potluck.errors import ExitCode


def doctor(session: Session) -> None:
    """Look at everything between you and your pool, and at the worker on this machine if one has joined.

    The address, the way there, TLS, clocks, the key, versions, models, the balance; of a worker whether it
    runs, its ways to the pool, disk, memory and cards. Exit 0 if all of it works, else 1.
    """
    import time

    printer = session.printer
    findings = examine(session.connection, ClientFile.load(session.connection.file), time.time)
    worker = _worker(session)
    good = works(findings) and all(finding.state != "problem" for finding in worker or ())

    def as_text() -> None:
        print_findings(printer, findings)
        if worker is None:
            printer.line("No worker of this machine has joined a pool: see `potluck worker --help`.")
        else:
            printer.line("The worker on this machine:")
            print_findings(printer, worker)
        printer.line("All of it works." if good else "Mend the problems first.")

    said = None if worker is None else [as_object(finding) for finding in worker]
    shown = {"good": good, "findings": [as_object(finding) for finding in findings], "worker": said}
    printer.show(shown, as_text)
    if not good:
        raise typer.Exit(ExitCode.ERROR)


def _worker(session: Session) -> Sequence[Finding] | None:
    """None where none has joined, or nothing of a worker is installed."""
    try:
        from worker.doctor_cli import daemon, joined, looked
    except ModuleNotFoundError:
        return None
    if not joined():
        return None
    session.printer.note("Looking at this machine; the engines' libraries take some seconds ...")
    return [daemon(), *looked()[0]]


app = single("doctor", doctor, example="potluck doctor")
