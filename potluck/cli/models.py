"""`potluck models`."""

from potluck.cli.session import Session, single


def models(session: Session) -> None:
    """The models that this pool serves, and how near they are."""
    found, printer = session.pool.models(), session.printer
    if not found:
        printer.note("This pool serves no model yet: a worker brings one. See `potluck worker start --help`.")
    rows = [
        (
            model.name,
            " ".join(model.kinds),
            " ".join(model.features) or "-",
            model.state + (f": {model.why}" if model.why else ""),
            str(model.workers),
            f"{model.context_tokens:,}" if model.context_tokens else "-",
            printer.amount(model.price.output_1000_tokens) if model.price else "-",
            model.licence or "-",
        )
        for model in found
    ]
    headers = (
        "MODEL",
        "KINDS",
        "FEATURES",
        "STATE",
        "WORKERS",
        "CONTEXT",
        f"{printer.unit.upper()}/1000 OUT",
        "LICENCE",
    )
    printer.show(found, lambda: printer.table(headers, rows, right=(4, 5, 6)) if rows else None)
    if rows and not any(model.workers for model in found):
        printer.note(
            "No worker serves any of them now. See `potluck workers`, or share a machine: `potluck worker`."
        )


app = single("models", models, example="potluck models -o jsonl")
