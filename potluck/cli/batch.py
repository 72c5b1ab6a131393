"""`potluck submit batch`: many requests in a file, answered behind interactive work."""

import json
from pathlib import Path
from typing import Annotated

import typer

from potluck.batching import Batch
from potluck.cli.sending import send
from potluck.cli.session import Session
from potluck.cli.shown import Shown
from potluck.cli.training import goes_on
from potluck.errors import InvalidRequest, JobCancelled, JobFailed, UsageError

FAULTS_SHOWN = 10

TimeoutOption = Annotated[
    float | None,
    typer.Option("--timeout", metavar="SECONDS", min=0.0, help="Give up after so long (exit 101)."),
]


def batch(
    session: Session,
    path: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="JSON Lines: custom_id, method, url and body in each."),
    ],
    hours: Annotated[
        int,
        typer.Option("--hours", metavar="N", min=1, max=168, help="What is not done by then is not done."),
    ] = 24,
    answers: Annotated[
        Path | None, typer.Option("--output-file", metavar="PATH", help="With --wait: where the answers go.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace that file if it is there.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the batch and fetch its answers.")] = False,
    timeout: TimeoutOption = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option("--idempotency-key", metavar="TEXT", help="The same text finds the same batch."),
    ] = None,
) -> None:
    """Upload a file of requests and print the job's id; with --wait the answers, one line each."""
    pool, printer = session.pool, session.printer
    endpoint = _endpoint(path)
    if answers is not None and answers.exists() and not force:
        raise UsageError(f"{answers} is there already. Choose another place, or give --force.")
    file = send(session, path, "batch")
    made = pool.create_batch(file.id, endpoint, window_hours=hours, idempotency_key=idempotency_key)
    job_id = made.potluck.job_id
    if not wait:
        printer.show({"id": job_id, "batch": made.id}, lambda: printer.line(job_id))
        printer.note(f"Follow it: potluck jobs watch {job_id}    Stop it: potluck jobs cancel {job_id}")
        return
    try:
        done = follow_batch(session, made.id, timeout)
    except KeyboardInterrupt:
        raise goes_on(job_id) from None
    fetch(session, done, answers)


def follow_batch(session: Session, batch_id: str, timeout_s: float | None) -> Batch:
    """A bar up to its end. Raises JobFailed or JobCancelled with the reason, JobNotFinished in time."""
    with Shown("lines answered", shown=session.printer.text) as progress:
        for now in session.pool.follow_batch(batch_id, timeout_s=timeout_s):
            counts = now.request_counts
            if counts.total:
                progress(counts.completed + counts.failed, counts.total)
    return ended(now)


def batch_of(job_id: str) -> str:
    """The batch whose whole is that job: they are named alike."""
    return "batch_" + job_id.removeprefix("job_")


def ended(batch: Batch) -> Batch:
    extra = {"batch": batch.id, "job": batch.potluck.job_id, "state": batch.status}
    if batch.status == "failed":
        faults = batch.errors.data if batch.errors is not None else ()
        listed = [f"  {'line ' + str(f.line) + ': ' if f.line else ''}{f.message}" for f in faults]
        more = [f"  and {len(listed) - FAULTS_SHOWN} more"] if len(listed) > FAULTS_SHOWN else []
        text = "\n".join([f"Batch {batch.id} could not begin:", *listed[:FAULTS_SHOWN], *more])
        raise JobFailed(text, extra=extra)
    if batch.status == "cancelled":
        raise JobCancelled(f"Batch {batch.id} was cancelled.", extra=extra)
    return batch


def fetch(session: Session, batch: Batch, output: Path | None) -> None:
    """The answers into the file, or to standard output."""
    printer, counts, files = session.printer, batch.request_counts, session.pool.files
    if output is not None:
        if batch.output_file_id is None:
            output.write_bytes(b"")
        else:
            files.download(batch.output_file_id, output)
        data = {
            "batch": batch.id,
            "path": str(output),
            "completed": counts.completed,
            "failed": counts.failed,
        }
        printer.show(data, lambda: printer.line(f"{output}: {counts.completed} answers"))
    else:
        answers = b"" if batch.output_file_id is None else files.content(batch.output_file_id)
        found = [json.loads(line) for line in answers.splitlines()]
        text = "\n".join(json.dumps(one, ensure_ascii=False) for one in found)
        printer.show(found, lambda: printer.line(text) if text else None)
    if batch.error_file_id is not None:
        missing = counts.total - counts.completed
        printer.note(f"{missing} lines have no answer: potluck files download {batch.error_file_id}")


def _endpoint(path: Path) -> str:
    """That of the first line; the pool checks that the others are for it, too."""
    try:
        with path.open("rb") as file:
            first = next((line for line in file if line.strip()), b"")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}.") from None
    try:
        url = json.loads(first)["url"]
    except (ValueError, KeyError, TypeError):
        raise InvalidRequest(
            f"{path}: the first line is no request. Each line is like"
            ' {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {...}}.',
            code="invalid_file",
        ) from None
    return str(url)
