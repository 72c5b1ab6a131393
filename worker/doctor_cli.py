"""`potluck worker doctor`."""

import asyncio
import os
from typing import Annotated

import typer

from potluck.cli.printing import Output, Printer

MARKS = {"ok": "ok      ", "advice": "advice  ", "problem": "PROBLEM "}


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
    from potluck.store import ModelStore
    from worker import checks
    from worker.doctor import can_share, examine
    from worker.probe import Probe
    from worker.settings import Places

    printer, places = Printer(output), Places()
    printer.note("Looking at this machine; the engines' libraries take some seconds ...")
    probe = Probe(places.cache, places.worker)
    machine = probe.machine(thorough=True)
    probe.close()
    around = asyncio.run(checks.circumstances(places, environ=dict(os.environ)))
    if thorough:
        damaged = ModelStore(places.cache, derived=places.converted).damaged()
        around = around.model_copy(update={"damaged": tuple(str(path) for path in damaged)})
    findings = examine(machine, around, checks.entries(places))
    good = can_share(findings)

    def as_text() -> None:
        for finding in findings:
            printer.line(f"{MARKS[finding.state]}{finding.topic}: {finding.sentence}")
            if finding.remedy:
                printer.line(f"          {finding.remedy}")
        printer.line("This machine can share." if good else "This machine cannot share until that is mended.")

    said = [finding.model_dump() for finding in findings]
    printer.show({"can_share": good, "findings": said, "machine": machine.model_dump()}, as_text)
    if not good:
        raise typer.Exit(1)
