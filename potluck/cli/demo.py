"""`potluck demo`: see the whole thing work, in one command."""

import importlib.util
import sys
from typing import Annotated

import typer

from potluck import demo as demos
from potluck.cli.printing import Printer
from potluck.cli.session import Session, single
from potluck.client import ClientFile
from potluck.demo import PROFILE, Outcome
from potluck.errors import InvalidRequest, UsageError
from potluck.processes import ProcessFailed, Terminated

DEFAULT_MODEL = "smollm2-135m-instruct"
EMULATED_MODEL = "emulator-small"
NEEDED = ("fastapi", "grpc", "sqlmodel", "psutil")
NEEDED_BY_ENGINE = {"llamacpp": ("xllamacpp",), "torch": ("torch", "transformers"), "emulator": ()}


def demo(
    session: Session,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the pool running, and log in to it.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="End what --keep left running.")] = False,
    model: Annotated[
        str | None, typer.Option("-m", "--model", metavar="MODEL", help=f"Default: {DEFAULT_MODEL}.")
    ] = None,
    engine: Annotated[
        str, typer.Option("--engine", metavar="NAME", help="llamacpp, torch, or emulator (no model at all).")
    ] = "llamacpp",
) -> None:
    """Start a pool on this machine: a coordinator, two workers of two members, and a third who asks.

    The first time fetches a model of 98 MB. Everything is gone afterwards, unless you --keep it.
    """
    printer = session.printer
    if stop:
        ended = demos.stop(printer.note)
        printer.show({"ended": ended}, lambda: None)
        return
    _check(engine)
    if demos.kept() is not None:
        raise InvalidRequest("A demo was left running by --keep. End it first: potluck demo --stop")
    plan = demos.Plan(
        model=model or (EMULATED_MODEL if engine == "emulator" else DEFAULT_MODEL), engine=engine, keep=keep
    )
    try:
        with demos.running(plan, printer) as running:
            outcome = running.run()
    except ProcessFailed as error:
        if error.tail and printer.text:
            print(f"---- the end of its log\n{error.tail}\n----", file=sys.stderr)
        raise
    except Terminated as signal:
        raise typer.Exit(signal.exit_code) from None
    printer.show(outcome, lambda: _show(printer, outcome, keep=keep))


def _check(engine: str) -> None:
    """Raises UsageError unless this installation can start the demo."""
    if engine not in NEEDED_BY_ENGINE:
        raise UsageError(f"{engine!r} is no engine for the demo: {', '.join(NEEDED_BY_ENGINE)}.")
    missing = [
        name for name in (*NEEDED, *NEEDED_BY_ENGINE[engine]) if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise UsageError(
            f"The demo runs a coordinator and workers, and {', '.join(missing)} is missing for that. Install"
            " it with `pip install 'potluck[coordinator,worker]'`.",
            code="extra_missing",
        )


def _show(printer: Printer, outcome: Outcome, *, keep: bool) -> None:
    """The balances, the address, and what to try next."""
    rows = [(account.name, _signed(printer, account.balance)) for account in outcome.balances]
    rows.append(("sum", printer.amount(outcome.ledger_sum, aligned=True)))
    printer.line()
    printer.table(("ACCOUNT", printer.unit.upper()), rows, right=(1,))
    printer.line()
    state = "runs" if keep else "ran"
    printer.line(f"The pool {state} at {outcome.url} (API documentation: {outcome.url}/docs).")
    printer.line(f"All of it worked, in {outcome.seconds} s. Try next:")
    for command, what in _next(keep=keep):
        printer.line(f"  {command.ljust(34)}  {what}")
    if keep:
        printer.line("It keeps running. To end it:  potluck demo --stop")


def _signed(printer: Printer, micro: int) -> str:
    return ("+" if micro > 0 else "") + printer.amount(micro, aligned=True)


def _next(*, keep: bool) -> list[tuple[str, str]]:
    if not keep:
        return [
            ("potluck demo --keep", "leave such a pool running, logged in as carol"),
            ("potluck coordinator start", "open a pool of your own"),
            ("potluck --help", "all there is"),
        ]
    profile = ClientFile.load().default_profile
    as_carol = "" if profile == PROFILE else f" --profile {PROFILE}"
    return [
        (f"potluck chat{as_carol}", "converse with it, as carol"),
        (f"potluck balance{as_carol}", "what carol has taken"),
        (f"potluck workers{as_carol}", "who serves"),
    ]


app = single("demo", demo, example="potluck demo --keep")
