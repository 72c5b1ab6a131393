"""`potluck models`: what the pool serves, and what was tuned for oneself."""

from pathlib import Path
from typing import Annotated, Any

import typer

from potluck.cli.amounts import YesOption, asked
from potluck.cli.printing import Printer
from potluck.cli.session import Session, command, group_with
from potluck.cli.shown import Shown
from potluck.cli.training import NO_ADAPTERS
from potluck.errors import UsageError
from potluck.results import Model
from potluck.tuned import folder_name

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="A tuned model: BASE:ft-SUFFIX.")]


def models(session: Session) -> None:
    """The models that this pool serves, how near they are, and those that were tuned for you."""
    found, printer = session.pool.models(), session.printer
    if not found:
        printer.note("This pool serves no model yet: a worker brings one. See `potluck worker start --help`.")
    printer.show(found, lambda: _show(printer, found))
    if any(model.base is not None and not model.workers for model in found):
        printer.note(NO_ADAPTERS)
    if found and not any(model.workers for model in found):
        printer.note(
            "No worker serves any of them now. See `potluck workers`, or share a machine: `potluck worker`."
        )


app = group_with("models", models, example="potluck models -o jsonl")


@command(app, "download", example="potluck models download smollm2-135m-instruct:ft-supper")
def download(
    session: Session,
    name: NameArgument,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="DIR", help="Which folder; default: its name, here.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
) -> None:
    """Take a tuned model along: a folder that peft and others read, with a card that says what it is."""
    folder, printer = to or Path(folder_name(name)), session.printer
    try:
        with Shown("bytes received", shown=printer.text) as progress:
            paths = session.pool.tuned.download(name, folder, force=force, progress=progress)
    except UsageError as error:
        raise UsageError(error.message.replace("or force it", "or give --force")) from None
    told = {"name": name, "folder": str(folder), "files": [str(path) for path in paths]}
    printer.show(told, lambda: printer.line(str(folder)))
    printer.note(", ".join(f"{path.name} {path.stat().st_size:,} bytes" for path in paths))


@command(app, "share", example="potluck models share smollm2-135m-instruct:ft-supper")
def share(
    session: Session,
    name: NameArgument,
    off: Annotated[bool, typer.Option("--off", help="Nobody else any more.")] = False,
) -> None:
    """Let every member of the pool ask a tuned model of yours, and take it along."""
    session.pool.tuned.share(name, shared=not off)
    who = "you alone" if off else "every member of this pool"
    told = {"name": name, "shared": not off}
    session.printer.show(told, lambda: session.printer.line(f"{name} is for {who} now."))


@command(app, "delete", example="potluck models delete smollm2-135m-instruct:ft-supper")
def delete(session: Session, name: NameArgument, yes: YesOption = False) -> None:
    """Delete a tuned model of yours for good."""
    if not asked(session, f"Delete {name} for good?", yes=yes, final=True):
        return
    session.pool.tuned.delete(name)
    told = {"name": name, "deleted": True}
    session.printer.show(told, lambda: session.printer.line(f"{name} is deleted."))


def _show(printer: Printer, found: list[Model]) -> None:
    bases = [model for model in found if model.base is None]
    tuned = [model for model in found if model.base is not None]
    if bases:
        headers = ("MODEL", "KINDS", "FEATURES", "STATE", "WORKERS", "CONTEXT", _price(printer), "LICENCE")
        printer.table(headers, [_row(printer, model) for model in bases], right=(4, 5, 6))
    if tuned:
        printer.line()
        rows = [
            (m.name, _state(m), str(m.workers), m.member or "-", "everybody" if m.shared else "its owner")
            for m in tuned
        ]
        printer.table(("TUNED MODEL", "STATE", "WORKERS", "OWNER", "FOR"), rows, right=(2,))


def _price(printer: Printer) -> str:
    return f"{printer.unit.upper()}/1000 OUT"


def _row(printer: Printer, model: Model) -> tuple[Any, ...]:
    return (
        model.name,
        " ".join(model.kinds),
        " ".join(model.features) or "-",
        _state(model),
        str(model.workers),
        f"{model.context_tokens:,}" if model.context_tokens else "-",
        printer.amount(model.price.output_1000_tokens) if model.price else "-",
        model.licence or "-",
    )


def _state(model: Model) -> str:
    return model.state + (f": {model.why}" if model.why else "")
