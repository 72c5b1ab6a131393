"""What a doctor found, printed."""

from collections.abc import Iterable
from typing import Protocol

from potluck.cli.printing import Printer

MARKS = {"ok": "ok      ", "advice": "advice  ", "problem": "PROBLEM "}


class Finding(Protocol):
    """Of the client (potluck.doctor) or of the worker (worker.doctor)."""

    @property
    def topic(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def sentence(self) -> str: ...
    @property
    def remedy(self) -> str: ...


def as_object(finding: Finding) -> dict[str, str]:
    """As JSON has it."""
    return {name: getattr(finding, name) for name in ("topic", "state", "sentence", "remedy")}


def print_findings(printer: Printer, findings: Iterable[Finding]) -> None:
    """One line for each, and what to do below it."""
    for finding in findings:
        printer.line(f"{MARKS[finding.state]}{finding.topic}: {finding.sentence}")
        if finding.remedy:
            printer.line(f"          {finding.remedy}")
