"""`potluck worker doctor`, and the part of `potluck doctor` that is about the worker on this machine."""

import asyncio
import os
import time
from typing import TYPE_CHECKING, Annotated

import typer

from potluck.cli.findings import print_findings
from potluck.cli.printing import Output, Printer

if TYPE_CHECKING:
    from worker.doctor import Finding
    from worker.machine import Machine


def doctor(
    thorough: Annotated[
        bool, typer.Option("--thorough", help="Also read all model files and compare their digests.")
    ] = False,
    output: Annotated[
        Output,
        typer.Option(
            "--output", "-o", envvar="POTLUCK_OUTPUT", help="text, or json for programs.", show_default=True
        ),
    ] = Output.TEXT,
) -> None:
    """What of this machine works for sharing, what does not, and what to do.

    Looks at Python, engines, GPUs and drivers, memory, disk, threads, battery, files, the certificate and
    the ways to the pool. Disturbs no worker that runs. Exit code 0 if this machine can share, else 1.
    """
    from worker.doctor import can_share

    printer = Printer(output)
    printer.note("Looking at this machine; the engines' libraries take some seconds ...")
    findings, machine = looked(thorough=thorough)
    good = can_share(findings)

    def as_text() -> None:
        print_findings(printer, findings)
        printer.line("This machine can share." if good else "This machine cannot share until that is mended.")

    said = [finding.model_dump() for finding in findings]
    printer.show({"can_share": good, "findings": said, "machine": machine.model_dump()}, as_text)
    if not good:
        raise typer.Exit(1)


def joined() -> bool:
    """Whether this home's worker has joined a pool."""
    from worker.errors import NotJoined
    from worker.membership import Membership
    from worker.settings import Places

    try:
        Membership.load(Places().worker)
    except NotJoined:
        return False
    return True


def daemon() -> "Finding":
    """Whether the worker of this home runs, and what it does."""
    from potluck.home import worker_home
    from worker.doctor import Finding
    from worker.state import WorkerState
    from worker.status_cli import headline

    state = WorkerState.load(worker_home())
    said = f"The worker is {headline(state, time.time())}."
    if state.runs:
        return Finding(topic="worker", state="ok", sentence=said)
    remedy = "potluck worker start; `potluck worker install-service` has it start with the machine."
    return Finding(topic="worker", state="advice", sentence=said, remedy=remedy)


def looked(*, thorough: bool = False) -> "tuple[list[Finding], Machine]":
    """What there is to say of this machine. Blocking for seconds."""
    from potluck.store import ModelStore
    from worker import checks
    from worker.doctor import examine
    from worker.probe import Probe
    from worker.settings import Places

    places = Places()
    probe = Probe(places.cache, places.worker)
    machine = probe.machine(thorough=True)
    probe.close()
    around = asyncio.run(checks.circumstances(places, environ=dict(os.environ)))
    if thorough:
        damaged = ModelStore(places.cache, derived=places.converted).damaged()
        around = around.model_copy(update={"damaged": tuple(str(path) for path in damaged)})
    return examine(machine, around, checks.entries(places)), machine
