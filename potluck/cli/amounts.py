"""Amounts on the command line, and the question before what cannot be undone."""

import sys
from typing import Annotated

import typer

from potluck.cli.printing import printable
from potluck.cli.session import Session
from potluck.credits import AmountError, parse
from potluck.errors import UsageError

YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask first.")]


def amount_of(session: Session, text: str) -> int:
    """Microcredits: credits like 12.5, or with --micro an integer. Raises UsageError, also below zero."""
    try:
        amount = int(text) if session.printer.micro else parse(text)
    except AmountError as error:
        raise UsageError(str(error)) from None
    except ValueError:
        raise UsageError(f"{text[:40]!r} is no integer; with --micro amounts are microcredits.") from None
    if amount < 0:
        raise UsageError(f"{text[:40]!r} is below zero; an amount here is not.")
    return amount


def line_of(session: Session, text: str | None) -> int | None:
    """A credit line: how much may be owed. Raises UsageError."""
    return None if text is None else amount_of(session, text)


def asked(session: Session, question: str, *, yes: bool, final: bool = False) -> bool:
    """Whether to go on. Only a person at a terminal is asked: scripts have said what they want. What is
    `final` wants --yes where nobody can be asked. Raises UsageError.
    """
    attended = session.printer.text and sys.stdin.isatty()
    if final and not yes and not attended:
        raise UsageError(f"{question} Here is nobody to ask: give --yes if you mean it.")
    if yes or not attended:
        return True
    print(f"{printable(question)} [y/N] ", end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline().strip().lower()
    if answer in {"y", "yes"}:
        return True
    session.printer.note("Nothing was done.")
    return False
