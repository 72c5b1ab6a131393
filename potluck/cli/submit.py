"""`potluck submit`: leave a job with the pool; its result waits there."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from potluck.cli import asking
from potluck.cli.batch import TimeoutOption, batch
from potluck.cli.finetune import finetune
from potluck.cli.jobs import follow, result_text
from potluck.cli.session import Session, command, group
from potluck.pool import Kind

app = group("Leave a job with the pool and get its id.")

WaitOption = Annotated[bool, typer.Option("--wait", help="Follow the job and print its result.")]
IdempotencyOption = Annotated[
    str | None,
    typer.Option("--idempotency-key", metavar="TEXT", help="The same text finds the same job and pays once."),
]


@command(app, "chat", example='potluck submit chat "Write a haiku about soup." --wait')
def chat(
    session: Session,
    prompt: Annotated[str, typer.Argument(help="What to ask; - reads standard input.")],
    model: asking.ModelOption = None,
    system: asking.SystemOption = None,
    max_tokens: asking.MaxTokensOption = None,
    temperature: asking.TemperatureOption = None,
    seed: asking.SeedOption = None,
    workers: asking.WorkersOption = None,
    reasoning_effort: asking.EffortOption = None,
    wait: WaitOption = False,
    timeout: TimeoutOption = None,
    idempotency_key: IdempotencyOption = None,
) -> None:
    """Submit a chat and print the job's id; with --wait its answer. The pool keeps both texts."""
    asked = asking.parameters(
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
        workers=workers,
        reasoning_effort=reasoning_effort,
    )
    text = asking.text_of(prompt)
    request = {"model": session.pool.model(model, "chat"), "messages": asking.messages(text, system), **asked}
    _submit(session, "chat", request, wait=wait, timeout_s=timeout, idempotency_key=idempotency_key)


@command(app, "embed", example='potluck submit embed "first text" "second text" --wait -o jsonl')
def embed(
    session: Session,
    texts: Annotated[list[str], typer.Argument(metavar="TEXT...", help="One or more texts.")],
    model: asking.ModelOption = None,
    workers: asking.WorkersOption = None,
    wait: WaitOption = False,
    timeout: TimeoutOption = None,
    idempotency_key: IdempotencyOption = None,
) -> None:
    """Submit texts for embedding and print the job's id; with --wait a vector for each text."""
    inputs = [asking.text_of(text) for text in texts]
    request = {"model": session.pool.model(model, "embedding"), "input": inputs}
    request |= asking.parameters(workers=workers)
    _submit(session, "embedding", request, wait=wait, timeout_s=timeout, idempotency_key=idempotency_key)


command(app, "batch", example="potluck submit batch questions.jsonl --wait --output-file answers.jsonl")(
    batch
)

command(app, "finetune", example="potluck submit finetune examples.jsonl --suffix supper --wait")(finetune)


def _submit(
    session: Session,
    kind: Kind,
    request: Mapping[str, Any],
    *,
    wait: bool,
    timeout_s: float | None,
    idempotency_key: str | None,
) -> None:
    pool, printer = session.pool, session.printer
    job_id = pool.submit(kind, request, idempotency_key=idempotency_key)
    if not wait:
        printer.show({"id": job_id}, lambda: printer.line(job_id))
        printer.note(f"Follow it: potluck jobs watch {job_id}    Fetch it: potluck jobs result {job_id}")
        return
    job = follow(session, job_id, timeout_s, quiet=True)
    found = pool.result(job_id)
    printer.show({"id": job_id, "job": job, "result": found}, lambda: printer.line(result_text(found)))
