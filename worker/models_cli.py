"""`potluck worker models`: the files of models on this machine."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from potluck.cli.printing import Output, Printer

if TYPE_CHECKING:
    from potluck.store import ModelStore
    from worker.settings import Places


def models(
    remove: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Remove this model's files, unless a worker uses them."),
    ] = None,
    output: Annotated[
        Output,
        typer.Option(
            "--output", "-o", envvar="POTLUCK_OUTPUT", help="text, or json for programs.", show_default=True
        ),
    ] = Output.TEXT,
) -> None:
    """Which models lie on this disk, how large they are, and when they were last used."""
    from potluck.store import ModelStore
    from worker.settings import Places

    places = Places()
    store, printer = ModelStore(places.cache, derived=places.converted), Printer(output)
    known = _names(places)
    for name in remove or []:
        _remove(store, name, known)
    found = [
        {
            "model": known.get(entry.sha256, "-"),
            "sha256": entry.sha256,
            "size_bytes": entry.size_bytes,
            "used_at": datetime.fromtimestamp(entry.used_at, UTC).isoformat() if entry.used_at else None,
            "in_use": entry.in_use,
        }
        for entry in store.entries()
    ]
    rows = [
        (
            str(one["model"]),
            f"{entry.size_bytes / 1e6:,.0f} MB",
            "in use" if entry.in_use else str(one["used_at"] or "not whole")[:10],
            entry.sha256,
        )
        for one, entry in zip(found, store.entries(), strict=True)
    ]
    printer.show(found, lambda: printer.table(("MODEL", "SIZE", "USED", "SHA256"), rows, right=(1,)))


def _names(places: "Places") -> dict[str, str]:
    """Of what each digest is a file."""
    from worker import checks

    return {
        file.sha256: entry.name
        for entry in checks.entries(places)
        for variant in entry.variants
        for file in variant.files
    }


def _remove(store: "ModelStore", name: str, known: dict[str, str]) -> None:
    """Raises WorkerConflict."""
    from worker.errors import WorkerConflict

    wanted = [entry for entry in store.entries() if name in (entry.sha256, known.get(entry.sha256))]
    if not wanted:
        raise WorkerConflict(f"there are no files of {name} here. `potluck worker models` lists all.")
    for entry in wanted:
        if not store.remove(entry.sha256):
            raise WorkerConflict(f"{name} is in use: stop the worker that serves it, then try again.")
