"""`potluck submit finetune`: train an adapter on a file of examples; it becomes a model of one's own."""

import hashlib
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer

from potluck import training_data
from potluck.cli import asking
from potluck.cli.amounts import YesOption, asked
from potluck.cli.batch import TimeoutOption
from potluck.cli.sending import check, send
from potluck.cli.session import Session
from potluck.cli.training import detached, ended, follow_finetune, result
from potluck.errors import InsufficientCredits, UsageError
from potluck.finetune import FineTune, FineTuneQuote, Method, Recipe

FILE_ID: Final = re.compile(r"file-[a-z0-9]{1,59}")


def finetune(
    session: Session,
    data: Annotated[str, typer.Argument(metavar="DATA", help="JSON Lines of examples, or a file's id.")],
    model: asking.ModelOption = None,
    validation: Annotated[
        str | None,
        typer.Option("--validation", metavar="FILE|ID", help="Examples to measure with, not to learn."),
    ] = None,
    method: Annotated[
        Literal["sft", "dpo"] | None,
        typer.Option("--method", help="Imitate, or prefer; default: as the data is."),
    ] = None,
    epochs: Annotated[
        str | None, typer.Option("--epochs", metavar="N|auto", help="How often each example is seen.")
    ] = None,
    batch_size: Annotated[
        str | None, typer.Option("--batch-size", metavar="N|auto", help="Examples in a step.")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", metavar="X", help="Like 2e-4; default: the pool's.")
    ] = None,
    beta: Annotated[
        float | None, typer.Option("--beta", metavar="X", help="How much dpo holds to the base; default 0.1.")
    ] = None,
    rank: Annotated[
        int | None, typer.Option("--rank", metavar="N", min=1, help="Of LoRA; default 16.")
    ] = None,
    alpha: Annotated[
        float | None, typer.Option("--alpha", metavar="N", help="Of LoRA; default: twice the rank.")
    ] = None,
    sequence_tokens: Annotated[
        int | None, typer.Option("--sequence-tokens", metavar="N", min=1, help="Longer examples are cut.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", metavar="N", min=1, help="More than one train in rounds.")
    ] = None,
    suffix: Annotated[
        str | None, typer.Option("--suffix", metavar="NAME", help="The model is called MODEL:ft-NAME.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", min=0, help="The same one begins in the same way.")
    ] = None,
    yes: YesOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what is in the files and what it can cost.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Follow it and print the model's name.")] = False,
    timeout: TimeoutOption = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option("--idempotency-key", metavar="TEXT", help="The same text finds the same fine-tune."),
    ] = None,
) -> None:
    """Train an adapter (LoRA) on examples and print the job's id; the result is a model of your own.

    It says what it can cost and asks before it begins.
    """
    _refuse_unattended(session, yes=yes or dry_run)
    for given in (data, validation):
        if given is not None and not _is_id(given):
            check(Path(given))
    pool, printer = session.pool, session.printer
    recipe = Recipe(
        method=method or _method_of(data),
        epochs=_auto("--epochs", epochs),
        batch_size=_auto("--batch-size", batch_size),
        learning_rate=learning_rate,
        beta=beta,
        rank=rank,
        alpha=alpha,
        sequence_tokens=sequence_tokens,
        workers=workers,
        seed=seed,
    )
    name = pool.model(model, "chat")
    order: dict[str, Any] = {"recipe": recipe, "suffix": suffix}
    order["training_file"] = _file(session, data)
    order["validation_file"] = None if validation is None else _file(session, validation)
    quote = pool.finetunes.quote(name, **order)
    if dry_run:
        printer.show(quote, lambda: printer.facts(_summary(session, quote, suffix)))
        return
    for line in _aligned(_summary(session, quote, suffix)):
        printer.note(line)
    _refuse_too_dear(session, quote)
    if not asked(session, "Start it?", yes=yes):
        return
    made = pool.finetunes.create(name, **order, idempotency_key=idempotency_key)
    _begun(session, made)
    job_id = made.potluck.job
    if not wait:
        told = {"id": job_id, "finetune": made.id, "model": made.potluck.result}
        printer.show(told, lambda: printer.line(job_id))
        printer.note(f"Follow it: potluck jobs watch {job_id}    Stop it: potluck jobs cancel {job_id}")
        return
    printer.note(f"Job {job_id}. Ctrl-C leaves it at work.")
    result(session, follow_finetune(session, made.id, timeout, quiet=True))


def _refuse_unattended(session: Session, *, yes: bool) -> None:
    """Nobody could be asked. Raises UsageError."""
    if not yes and not (session.printer.text and sys.stdin.isatty()):
        raise UsageError(
            "A fine-tune costs credits, and here is nobody to ask: give --yes to start it, or --dry-run to"
            " see what it can cost."
        )


def _auto(option: str, text: str | None) -> int | None:
    """A number; None leaves it to the pool. Raises UsageError."""
    if text is None or text == "auto":
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) > 0):
        raise UsageError(f"{option}: {text[:40]!r} is neither a number above 0 nor auto.")
    return int(text)


def _is_id(text: str) -> bool:
    return FILE_ID.fullmatch(text) is not None and not Path(text).exists()


def _method_of(data: str) -> Method:
    """As the first example of a file here; one in the pool is taken for examples to imitate."""
    if _is_id(data):
        return "sft"
    first = next(training_data.examples(Path(data)), None)
    return "dpo" if isinstance(first, training_data.Preference) else "sft"


def _file(session: Session, text: str) -> str:
    """The id of the pool's file; one with the same bytes is not sent again."""
    if _is_id(text):
        return text
    path = Path(text)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    for known in session.pool.files.list("fine-tune"):
        if known.sha256 == sha256:
            session.printer.note(f"{path} is there already as {known.id}.")
            return known.id
    return send(session, path, "fine-tune").id


def _summary(session: Session, quote: FineTuneQuote, suffix: str | None) -> list[tuple[str, str]]:
    """What is in the files, what will be done, what it can cost and what there is."""
    printer = session.printer
    tokens = f"{'' if quote.exact else 'at most '}{quote.tokens_per_epoch:,} tokens"
    facts = [
        ("model", f"{quote.model}{f':ft-{suffix}' if suffix else ''}, {_lora(quote)}"),
        ("examples", f"{quote.examples:,} with {tokens}; the longest has {quote.longest:,}"),
        ("cut", _cut(quote.cut, quote.sequence_tokens)),
    ]
    if quote.validation_examples:
        cut = _cut(quote.validation_cut, quote.sequence_tokens)
        facts.append(("validation", f"{quote.validation_examples:,} examples; {cut}"))
    balance = session.pool.balance()
    return [
        *facts,
        ("training", _training(quote)),
        ("cost", f"at most {printer.amount(quote.quote)} {printer.unit}"),
        ("you have", f"{printer.amount(balance.available)} {printer.unit} to spend"),
    ]


def _lora(quote: FineTuneQuote) -> str:
    lora = quote.lora
    return f"{quote.method}, LoRA of rank {lora.get('rank')} ({lora.get('parameters', 0):,} parameters)"


def _cut(count: int, most: int) -> str:
    if not count:
        return f"none: all fit into {most:,} tokens"
    return f"{count:,} longer than {most:,} tokens, at {'its end' if count == 1 else 'their ends'}"


def _training(quote: FineTuneQuote) -> str:
    batch = quote.hyperparameters.get("batch_size")
    rate = quote.lora.get("learning_rate")
    many = "" if quote.workers == 1 else f" of each of {quote.workers} workers"
    return (
        f"{quote.epochs} {'epoch' if quote.epochs == 1 else 'epochs'} in batches of {batch}:"
        f" {quote.steps:,} steps{many}, learning rate {rate:.2g}"
    )


def _aligned(facts: list[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in facts)
    return [f"{name.ljust(width)}  {value}" for name, value in facts]


def _refuse_too_dear(session: Session, quote: FineTuneQuote) -> None:
    """Who has too little may still train on own workers, for nothing. Raises InsufficientCredits."""
    available, printer = session.pool.balance().available, session.printer
    if quote.quote <= available:
        return
    me = session.pool.me().member.name
    if any(worker.member == me for worker in session.pool.workers()):
        printer.note("That is more than you have: only workers of your own will train it, for nothing.")
        return
    raise InsufficientCredits(
        f"This can cost {printer.amount(quote.quote)} {printer.unit}, and {printer.amount(available)} is"
        " available. Share a machine to earn (`potluck worker`), or ask for less: fewer epochs, or examples.",
        extra={"quote": quote.quote, "available": available},
    )


def _begun(session: Session, made: FineTune) -> None:
    """Wait until its files were read: what is wrong with them is said here. Raises PotluckError."""
    try:
        for found in session.pool.finetunes.follow(made.id):
            if found.status != "validating_files":
                if found.ended:
                    ended(found)
                return
    except KeyboardInterrupt:
        raise detached(made) from None
