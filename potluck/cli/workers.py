"""`potluck workers`."""

from potluck.cli.session import Session, single
from potluck.results import WorkerModel


def workers(session: Session) -> None:
    """The machines that are in the pool, what they serve, and why not where they do not."""
    found, printer = session.pool.workers(), session.printer
    if not found:
        printer.note(
            "No worker has joined yet. `potluck coordinator join-token` prints what to run on a machine that"
            " shall share."
        )
    rows = [
        (
            worker.name,
            worker.member,
            worker.state + (f": {worker.why}" if worker.why else ""),
            ", ".join(model_line(model) for model in worker.models) or "-",
        )
        for worker in found
    ]
    headers = ("WORKER", "MEMBER", "STATE", "MODELS")
    printer.show(found, lambda: printer.table(headers, rows) if rows else None)


def model_line(model: WorkerModel) -> str:
    """One model in a few words: "smollm2-135m-instruct (llamacpp, downloading 42 %)"."""
    state = model.state
    if state in {"downloading", "loading"} and model.bytes_total:
        state += f" {model.bytes_done * 100 // model.bytes_total} %"
    inside = ", ".join(part for part in (model.engine, state, model.why or "") if part)
    return f"{model.name} ({inside})" if inside else model.name


app = single("workers", workers, example="potluck workers")
