"""`potluck submit finetune`: train an adapter on a file of examples; it becomes a model of one's own."""

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from potluck.cli import asking, recipe
from potluck.cli.amounts import YesOption, asked
from potluck.cli.batch import TimeoutOption
from potluck.cli.sending import check, send
from potluck.cli.session import Session
from potluck.cli.training import ended, follow_finetune, goes_on, result
from potluck.errors import InsufficientCredits, UsageError
from potluck.finetune import FineTune, FineTuneQuote, Recipe

WaitOption = Annotated[bool, typer.Option("--wait", help="Follow it and print the model's name.")]
IdempotencyOption = Annotated[
    str | None,
    typer.Option("--idempotency-key", metavar="TEXT", help="The same text finds the same fine-tune."),
]


def finetune(
    session: Session,
    data: recipe.DataArgument,
    model: asking.ModelOption = None,
    validation: recipe.ValidationOption = None,
    method: recipe.MethodOption = None,
    epochs: recipe.EpochsOption = None,
    batch_size: recipe.BatchOption = None,
    learning_rate: recipe.RateOption = None,
    beta: recipe.BetaOption = None,
    rank: recipe.RankOption = None,
    alpha: recipe.AlphaOption = None,
    sequence_tokens: recipe.SequenceOption = None,
    targets: recipe.TargetsOption = None,
    workers: recipe.WorkersOption = None,
    local_steps: recipe.LocalStepsOption = None,
    only: recipe.OnlyOption = None,
    suffix: recipe.SuffixOption = None,
    seed: recipe.SeedOption = None,
    yes: YesOption = False,
    dry_run: recipe.DryRunOption = False,
    wait: WaitOption = False,
    timeout: TimeoutOption = None,
    idempotency_key: IdempotencyOption = None,
) -> None:
    """Train an adapter (LoRA) on examples and print the job's id; the result is a model of your own.

    It says what it can cost and asks before it begins.
    """
    _refuse_unattended(session, yes=yes or dry_run)
    for given in (data, validation):
        if given is not None and not recipe.is_id(given):
            check(Path(given))
    method = method or recipe.method_of(data)
    if beta is not None and method != "dpo":
        raise UsageError("--beta is of dpo, which learns from preference pairs.")
    how = Recipe(
        method=method,
        epochs=recipe.number("--epochs", epochs),
        batch_size=recipe.number("--batch-size", batch_size),
        learning_rate=recipe.finite("--learning-rate", learning_rate),
        beta=recipe.finite("--beta", beta),
        rank=rank,
        alpha=recipe.finite("--alpha", alpha),
        targets=recipe.names("--targets", targets),
        sequence_tokens=sequence_tokens,
        workers=workers,
        local_steps=local_steps,
        only=asking.chosen(only) if only else None,
        seed=seed,
    )
    order = _Order(
        session.pool.model(model, "chat"),
        _file(session, data),
        None if validation is None else _file(session, validation),
        how,
        suffix,
    )
    if not _agreed(session, order, yes=yes, dry_run=dry_run):
        return
    made = order.made(session, idempotency_key)
    _begun(session, made)
    if wait:
        session.printer.note(f"Job {made.potluck.job}. Ctrl-C leaves it at work.")
        result(session, follow_finetune(session, made.id, timeout, quiet=True))
    else:
        _show(session, made)


@dataclass(frozen=True, slots=True)
class _Order:
    """What is asked of the pool, once for its price and once for good."""

    model: str
    training_file: str
    validation_file: str | None
    recipe: Recipe
    suffix: str | None

    def quote(self, session: Session) -> FineTuneQuote:
        return session.pool.finetunes.quote(
            self.model,
            self.training_file,
            self.recipe,
            validation_file=self.validation_file,
            suffix=self.suffix,
        )

    def made(self, session: Session, idempotency_key: str | None) -> FineTune:
        return session.pool.finetunes.create(
            self.model,
            self.training_file,
            self.recipe,
            validation_file=self.validation_file,
            suffix=self.suffix,
            idempotency_key=idempotency_key,
        )


def _agreed(session: Session, order: _Order, *, yes: bool, dry_run: bool) -> bool:
    """Whether to begin, after what is in the files and what it can cost was shown. Raises PotluckError."""
    quote, printer = order.quote(session), session.printer
    summary = _summary(session, quote, order.suffix)
    if dry_run:
        printer.show(quote, lambda: printer.facts(summary))
        return False
    for line in _aligned(summary):
        printer.note(line)
    _refuse_too_dear(session, quote)
    return asked(session, "Start it?", yes=yes)


def _show(session: Session, made: FineTune) -> None:
    job_id, printer = made.potluck.job, session.printer
    told = {"id": job_id, "finetune": made.id, "model": made.potluck.result}
    printer.show(told, lambda: printer.line(job_id))
    printer.note(f"Follow it: potluck jobs watch {job_id}    Stop it: potluck jobs cancel {job_id}")


def _refuse_unattended(session: Session, *, yes: bool) -> None:
    """Nobody could be asked. Raises UsageError."""
    if not yes and not (session.printer.text and sys.stdin.isatty()):
        raise UsageError(
            "A fine-tune costs credits, and here is nobody to ask: give --yes to start it, or --dry-run to"
            " see what it can cost."
        )


def _file(session: Session, text: str) -> str:
    """The id of the pool's file; one with the same bytes is not sent again."""
    if recipe.is_id(text):
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
        cut = f"; {_cut(quote.validation_cut, quote.sequence_tokens)}" if quote.validation_cut else ""
        facts.append(("validation", f"{quote.validation_examples:,} examples{cut}"))
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
        raise goes_on(made.potluck.job) from None
