"""`potluck jobs`: what was asked, what became of it, and what it cost."""

import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

import typer

from potluck.batching import Batch
from potluck.cli.batch import TimeoutOption, batch_of, ended, fetch, follow_batch
from potluck.cli.session import Session, command, group
from potluck.cli.training import ended as ended_finetune
from potluck.cli.training import facts_of, finetune_of, follow_finetune, goes_on
from potluck.cli.training import result as finetune_result
from potluck.errors import ExitCode, InvalidRequest, NotFound
from potluck.finetune import FineTune, not_finished
from potluck.pool import succeeded
from potluck.results import Job, read
from potluck.signed import Receipt

app = group("List, show, watch, pause and cancel jobs; fetch results.")

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")]


class State(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class Kind(StrEnum):
    CHAT = "chat"
    COMPLETION = "completion"
    EMBEDDING = "embedding"
    BATCH = "batch"
    FINETUNE = "finetune"


@command(app, "list", example="potluck jobs list --state running")
def list_(
    session: Session,
    state: Annotated[State | None, typer.Option("--state", help="Only these.")] = None,
    kind: Annotated[Kind | None, typer.Option("--kind", help="Only these.")] = None,
    last: Annotated[int, typer.Option("-n", "--last", metavar="N", min=1, max=100, help="How many.")] = 20,
    before: Annotated[
        str | None, typer.Option("--before", metavar="JOB", help="Only older ones than this.")
    ] = None,
) -> None:
    """Your jobs, the newest first."""
    page = session.pool.jobs(limit=last, before=before, state=state, kind=kind)
    printer = session.printer
    if printer.output == "jsonl":
        printer.json(page.data)
        return
    if not page.data:
        printer.note('No jobs here. Ask something: `potluck chat "Hello"`, or `potluck submit chat "Hello"`.')
    rows = [
        (job.id, job.kind, job.model, job.state, printer.amount(job.charge), job.created_at or "-")
        for job in page.data
    ]
    headers = ("JOB", "KIND", "MODEL", "STATE", printer.unit.upper(), "CREATED")
    printer.show(page, lambda: printer.table(headers, rows, right=(4,)) if rows else None)
    if page.has_more:
        printer.note(f"There are older ones: potluck jobs list --before {page.data[-1].id}")


@command(app, "show", example="potluck jobs show job_4fa2")
def show(session: Session, job_id: JobArgument) -> None:
    """One job with all its attempts and receipts."""
    try:
        job = session.pool.job(job_id)
    except NotFound:  # as above
        if (found := finetune_of(session, job_id)) is None:
            raise
        session.printer.show(found, lambda: session.printer.facts(facts_of(found, session.printer)))
        return
    session.printer.show(job, lambda: _show(session, job))


@command(app, "watch", example="potluck jobs watch job_4fa2 --timeout 60")
def watch(session: Session, job_id: JobArgument, timeout: TimeoutOption = None) -> None:
    """Follow a job to its end; exit codes: 100 failed, 101 not finished, 103 cancelled.

    Ctrl-C ends the looking: stored jobs go on.
    """
    try:
        _follow_any(session, job_id, timeout)
    except KeyboardInterrupt:
        raise goes_on(job_id) from None


def _follow_any(session: Session, job_id: str, timeout: float | None) -> None:
    try:
        follow(session, job_id, timeout)
    except NotFound:  # what is made of files has no job before they were read, and none if it could not begin
        if (found := finetune_of(session, job_id)) is not None:
            _watch_finetune(session, found.id, timeout)
        elif (batch := _batch(session, job_id)) is not None:
            follow_batch(session, batch.id, timeout)
        else:
            raise


@command(app, "cancel", example="potluck jobs cancel job_4fa2")
def cancel(session: Session, job_id: JobArgument) -> None:
    """Stop a job; what it produced so far is paid, the rest of the hold returns."""
    printer = session.printer
    if (found := _if_finetune(session, job_id)) is not None:
        _changed_finetune(session, session.pool.finetunes.cancel(found.id))
        return
    job = session.pool.cancel(job_id)
    printer.show(job, lambda: printer.line(f"Job {job.id} is {job.state}."))


@command(app, "pause", example="potluck jobs pause job_4fa2")
def pause(session: Session, job_id: JobArgument) -> None:
    """Stop a fine-tune for a while; what was trained since its last checkpoint is trained again then."""
    _changed_finetune(session, session.pool.finetunes.pause(_finetune(session, job_id).id))


@command(app, "resume", example="potluck jobs resume job_4fa2")
def resume(session: Session, job_id: JobArgument) -> None:
    """Go on with a fine-tune that was paused."""
    _changed_finetune(session, session.pool.finetunes.resume(_finetune(session, job_id).id))


@command(app, "result", example="potluck jobs result job_4fa2 -o json")
def result(session: Session, job_id: JobArgument) -> None:
    """What a stored job answered: of a batch a line for each, of a fine-tune the model's name. Exit codes:
    100 failed, 101 not finished, 103 cancelled."""
    try:
        found = session.pool.result(job_id)
    except (InvalidRequest, NotFound):
        if (tuned := finetune_of(session, job_id)) is not None:
            if not tuned.ended:
                raise not_finished(tuned) from None
            finetune_result(session, tuned)
            return
        if (batch := _batch(session, job_id)) is None or not batch.ended:
            raise
        fetch(session, batch, None)
        ended(batch)
        return
    session.printer.show(found, lambda: session.printer.line(result_text(found)))
    said = (found.get("usage") or {}).get("potluck") or {}
    if said.get("state") == "cancelled":
        session.printer.note("This job was cancelled; above is what had come until then.")
        raise typer.Exit(ExitCode.JOB_CANCELLED)


def follow(session: Session, job_id: str, timeout_s: float | None, *, quiet: bool = False) -> Job:
    """Print each change of the job up to its end. Raises as `Pool.wait` does, after printing the last."""
    printer, job = session.printer, None
    for job in session.pool.follow(job_id, timeout_s=timeout_s):
        if job.kind == "finetune":
            _watch_finetune(session, job.id, timeout_s)
            return job
        if printer.text:
            _changed(session, job, quiet=quiet)
            if job.kind == "batch" and not job.ended:
                follow_batch(session, batch_of(job_id), timeout_s)
        elif printer.output == "jsonl" and not quiet:
            printer.json(job)
    assert job is not None  # follow yields at least once
    if printer.output == "json" and not quiet:
        printer.json(job)
    return succeeded(job)


def result_text(found: Any) -> str:
    """The answer's text (what the model thought is in the JSON alone), or vectors as JSON lines."""
    if "data" in found:
        return "\n".join(json.dumps(item.get("embedding")) for item in found["data"])
    choices = found.get("choices", [])
    return "\n\n".join(choice.get("text") or _message_text(choice.get("message") or {}) for choice in choices)


def _message_text(message: Mapping[str, Any]) -> str:
    """The content, and a line of JSON for each call of a tool."""
    calls = [json.dumps(call.get("function"), ensure_ascii=False) for call in message.get("tool_calls") or ()]
    return "\n".join(text for text in (message.get("content"), *calls) if text)


def _batch(session: Session, job_id: str) -> Batch | None:
    """The batch whose job it is; None if it is no batch's."""
    try:
        return session.pool.batch(batch_of(job_id))
    except NotFound:
        return None


def _finetune(session: Session, job_id: str) -> FineTune:
    """Raises InvalidRequest for any other job."""
    if (found := _if_finetune(session, job_id)) is not None:
        return found
    session.pool.job(job_id)  # raises NotFound
    raise InvalidRequest(
        f"{job_id} is no fine-tune: only these can be paused. `potluck jobs cancel` stops it."
    )


def _if_finetune(session: Session, job_id: str) -> FineTune | None:
    try:
        if not job_id.startswith("ftjob-") and session.pool.job(job_id).kind != "finetune":
            return None
    except NotFound:
        pass  # it may have no job yet
    return finetune_of(session, job_id)


def _watch_finetune(session: Session, finetune_id: str, timeout_s: float | None) -> None:
    found = follow_finetune(session, finetune_id, timeout_s, quiet=False)
    if session.printer.output == "json":
        session.printer.json(found)
    ended_finetune(found)
    if session.printer.text:
        finetune_result(session, found)


def _changed_finetune(session: Session, found: FineTune) -> None:
    session.printer.show(found, lambda: session.printer.line(f"Job {found.potluck.job} is {found.status}."))


def _changed(session: Session, job: Job, *, quiet: bool) -> None:
    on = next((f" on {attempt.worker}" for attempt in reversed(job.attempts)), "")
    cost = (
        f", {session.printer.amount(job.charge)} {session.printer.unit}" if job.ended and job.charge else ""
    )
    line = f"{job.id} {job.state}{on}{cost}"
    if quiet:
        session.printer.note(line)
    else:
        session.printer.line(line)


def _queue(job: Job) -> list[tuple[str, str]]:
    """Where it stands in line, while it does."""
    if job.state != "queued" or (queue := job.queue) is None:
        return []
    start_s = queue.expected_start_s
    start = (
        "" if start_s is None else ", may start now" if start_s < 1 else f", starts in about {start_s:.0f} s"
    )
    return [("place", f"{queue.place} of {queue.of}{start}"), ("reason", queue.why)]


def _timing(job: Job) -> list[tuple[str, str]]:
    """How long it took, as far as the pool knows."""
    if (timing := job.timing) is None:
        return []
    said = [f"waited {timing.waited_s:.1f} s"]
    if timing.prefill_s is not None:
        said.append(f"first output after {timing.prefill_s:.1f} s more")
    return [("time", f"{timing.total_s:.1f} s: {', '.join(said)}")]


def _show(session: Session, job: Job) -> None:
    printer = session.printer
    printer.facts(
        [
            ("job", job.id),
            ("kind", job.kind),
            ("model", job.model),
            ("state", job.state + (f": {job.why}" if job.why else "")),
            *_queue(job),
            ("member", job.member),
            ("quote", f"at most {printer.amount(job.quote)} {printer.unit}"),
            (
                "charge",
                f"{printer.amount(job.charge)} {printer.unit}" if job.charge is not None else "not yet",
            ),
            ("created", job.created_at or "-"),
            ("ended", job.ended_at or "-"),
            *_timing(job),
        ]
    )
    if job.finetune is not None:
        printer.line()
        printer.facts(facts_of(read(FineTune, job.finetune), printer))
    if job.attempts:
        printer.line()
        rows = [
            (str(a.number), a.worker, a.state, str(a.tokens), printer.amount(a.paid), a.why or "")
            for a in job.attempts
        ]
        printer.table(("ATTEMPT", "WORKER", "STATE", "TOKENS", "PAID", "WHY"), rows, right=(0, 3, 4))
    if job.receipts:
        printer.line()
        printer.table(
            ("RECEIPT", "ATTEMPT", "WORKER", "STATE", "CLAIMED", "COUNTERSIGNED", "WHY"),
            [_receipt_row(receipt) for receipt in job.receipts],
            right=(0, 1, 4),
        )


def _receipt_row(receipt: Receipt) -> tuple[str, ...]:
    claimed, signed = receipt.claimed_tokens, "yes" if receipt.countersigned else "no"
    return (
        str(receipt.number),
        str(receipt.attempt),
        receipt.worker,
        receipt.state,
        "-" if claimed is None else str(claimed),
        signed,
        receipt.why or "",
    )
