"""Following a fine-tune: live lines on a terminal, plain ones elsewhere, and what to say at its end."""

from collections.abc import Callable
from typing import Final

from potluck.cli.block import Block
from potluck.cli.curve import TRAIN, VALID, Curve, drawable, sparkline
from potluck.cli.durations import spoken
from potluck.cli.printing import Printer
from potluck.cli.session import Session
from potluck.cli.shown import bar
from potluck.errors import InsufficientCredits, JobNotFinished, NotFound
from potluck.finetune import FineTune, FineTuneEvent, id_of, succeeded

SPARK_COLUMNS: Final = 24
PLAIN_LINES: Final = 10  # about steps, where nothing can be drawn anew
EVENTS_MAX: Final = 10_000  # as many as a pool keeps
NEWEST: Final = 1_000
NO_ADAPTERS: Final = (
    "No worker serves tuned models now: those do that have torch, and room for the model in it."
)
WORDS: Final = {
    "validating_files": "reading the files",
    "queued": "waiting for a worker",
    "running": "training",
    "paused": "paused",
}
STAGES: Final = {
    "starting": "beginning",
    "downloading": "fetching what it needs",
    "loading": "loading the model",
    "uploading": "handing over a checkpoint",
    "checking": "measuring the validation loss",
    "training": "training",
}


def follow_finetune(session: Session, finetune_id: str, timeout_s: float | None, *, quiet: bool) -> FineTune:
    """Up to its end, whatever that is. `quiet`: standard output is for something else.

    Ctrl-C ends only the following. Raises JobNotFinished then, and in time.
    """
    found = None
    try:
        if session.printer.output == "jsonl" and not quiet:
            return _with_events(session, finetune_id, timeout_s)
        curve, plain = Curve(), _Plain(session.printer, quiet=quiet)
        with Block(shown=session.printer.text) as block:
            for found in session.pool.finetunes.follow(finetune_id, timeout_s=timeout_s):
                if block.live and not curve.values(TRAIN):
                    curve.add(event.data for event in _metrics(session, finetune_id) if event.data)
                curve.add(found.potluck.curve_tail)
                if block.live:
                    block.show(lines_of(found, curve, session.printer))
                elif session.printer.text:
                    plain.say(found, curve)
    except KeyboardInterrupt:
        raise goes_on(finetune_id.replace("ftjob-", "job_")) from None
    assert found is not None  # follow yields at least once
    return found


def finetune_of(session: Session, job_id: str) -> FineTune | None:
    """The fine-tune whose job it is, or which it is; None if it is no fine-tune's."""
    try:
        return session.pool.finetunes.get(id_of(job_id))
    except NotFound:
        return None


def ended(found: FineTune) -> FineTune:
    """Raises as a command ends for it, unless it succeeded."""
    if found.error is not None and found.error.code == "insufficient_credits":
        raise InsufficientCredits(found.error.message, extra={"job": found.potluck.job, "finetune": found.id})
    return succeeded(found)


def result(session: Session, found: FineTune) -> None:
    """The model's name, and what can be done with it."""
    ended(found)
    name = found.fine_tuned_model or found.potluck.result
    session.printer.show(found, lambda: session.printer.line(name))
    if session.printer.text:
        session.printer.note(_course(session, found))
    chat_with(session, name)
    session.printer.note(f"Take it along: potluck models download {name}")


def _course(session: Session, found: FineTune) -> str:
    """What it was from its beginning to its end, in a line."""
    curve, printer = Curve(), session.printer
    curve.add(event.data for event in _metrics(session, found.id) if event.data)
    cost = f"{printer.amount(found.potluck.charge)} {printer.unit}"
    return ", ".join([f"{found.potluck.steps_done:,} steps", *spoken_course(curve), cost])


def spoken_course(curve: Curve) -> list[str]:
    """Each loss from its begin to its end. Of very many events a pool forgets the first ones."""
    said = []
    for name, words in ((TRAIN, "loss"), (VALID, "validation loss")):
        if values := curve.values(name):
            begin = f"{values[0]:.3f} to " if len(values) > 1 and curve.first <= 1 else ""
            said.append(f"{words} {begin}{values[-1]:.3f}")
    return said


def chat_with(session: Session, name: str) -> None:
    """How to ask the model, or why nobody answers."""
    if not session.printer.text:
        return
    if any(model.name == name and model.workers for model in session.pool.models()):
        session.printer.note(f'Chat with it: potluck chat -m {name} "Hello"')
    else:
        session.printer.note(NO_ADAPTERS)


def lines_of(found: FineTune, curve: Curve, printer: Printer, *, blocks: bool | None = None) -> list[str]:
    """What there is to see of one that has not ended, one fact below the other."""
    facts = found.potluck
    lines = [f"{facts.result or found.model}: {_state(found)}"]
    if facts.steps:
        lines.append(f"{bar(facts.steps_done, facts.steps)} {_steps(found)}")
    if losses := curve.values(TRAIN):
        drawn = drawable() if blocks is None else blocks
        lines.append("   ".join(_losses(losses, curve.values(VALID), drawn=drawn)))
    lines.append("   ".join(_facts(found, printer)))
    return lines


def _state(found: FineTune) -> str:
    facts = found.potluck
    words = WORDS.get(found.status, found.status)
    if facts.workers and not found.ended:
        return f"{STAGES.get(facts.stage, words)} on {', '.join(facts.workers)}"
    said = facts.why or (facts.stage if facts.stage != found.status else "")
    if found.status == "paused":
        said = f"potluck jobs resume {facts.job} goes on"
    return f"{words} ({said})" if said else words


def _steps(found: FineTune) -> str:
    facts, epochs = found.potluck, found.hyperparameters.get("n_epochs")
    said = f"step {facts.steps_done:,} of {facts.steps:,}"
    if isinstance(epochs, int) and epochs > 1:
        said += f", epoch {min(epochs, facts.steps_done * epochs // facts.steps + 1)} of {epochs}"
    return said + (f", about {spoken(facts.eta_s)} left" if facts.eta_s else "")


def _losses(losses: list[float], valid: list[float], *, drawn: bool) -> list[str]:
    said = []
    for name, values in (("loss", losses), ("validation loss", valid)):
        if values:
            line = f" {sparkline(values, SPARK_COLUMNS)}" if drawn and len(values) > 1 else ""
            said.append(f"{name} {values[-1]:.3f}{line}")
    return said


def _facts(found: FineTune, printer: Printer) -> list[str]:
    facts = found.potluck
    said = [] if facts.tokens_per_second is None else [f"{facts.tokens_per_second:,.0f} tokens/s"]
    return [*said, f"{printer.amount(facts.charge)} of at most {printer.amount(facts.quote)} {printer.unit}"]


def facts_of(found: FineTune, printer: Printer) -> list[tuple[str, str]]:
    """What `potluck jobs show` says of one, beyond its job."""
    facts, lora = found.potluck, found.potluck.lora
    done = f"{facts.steps_done:,} of {facts.steps:,}" if facts.steps else "none yet"
    said = [
        ("fine-tune", found.id),
        ("becomes", facts.result),
        ("status", _state(found) if not found.ended else found.status),
        ("steps", done),
        ("examples", f"{facts.examples:,}, {facts.tokens_per_epoch:,} tokens an epoch"),
        ("LoRA", f"rank {lora.get('rank')}, alpha {_number(lora.get('alpha'))}"),
    ]
    if not found.ended:
        said.append(("paid", f"{printer.amount(facts.charge)} {printer.unit} so far"))
    for name in (TRAIN, VALID):
        curve = Curve()
        curve.add(facts.curve_tail)
        if values := curve.values(name):
            said.append((name.replace("_", " "), f"{values[-1]:.4f}"))
    if found.error is not None:
        said.append(("error", found.error.message))
    return said


def _number(value: float | None) -> str:
    """None until the files are read."""
    return "auto" if value is None else f"{value:g}"


class _Plain:
    """Lines that stay: each state, and now and then a step."""

    def __init__(self, printer: Printer, *, quiet: bool) -> None:
        self._say: Callable[[str], None] = printer.note if quiet else printer.line
        self._printer, self._state, self._shown = printer, "", 0
        self._workers: tuple[str, ...] = ()

    def say(self, found: FineTune, curve: Curve) -> None:
        facts = found.potluck
        workers = facts.workers if found.status == "running" else ()
        if found.status != self._state or (workers and workers != self._workers):
            self._state, self._workers = found.status, workers or self._workers
            on = f" on {', '.join(workers)}" if workers else ""
            cost = f", {self._printer.amount(facts.charge)} {self._printer.unit}" if found.ended else ""
            self._say(f"{facts.job} {found.status}{on}{cost}")
        if facts.steps and facts.steps_done * PLAIN_LINES // facts.steps > self._shown and not found.ended:
            self._shown = facts.steps_done * PLAIN_LINES // facts.steps
            losses = _losses(curve.values(TRAIN), curve.values(VALID), drawn=False)
            self._say(", ".join([f"{facts.job} {_steps(found)}", *losses]))


def _with_events(session: Session, finetune_id: str, timeout_s: float | None) -> FineTune:
    """JSON Lines: each event once as it happens, and the fine-tune itself as the last line."""
    seen: set[str] = set()
    calls, now = session.pool.finetunes, None
    for now in calls.follow(finetune_id, timeout_s=timeout_s):
        for event in calls.events(now.id, limit=NEWEST if seen else EVENTS_MAX):
            if event.id not in seen:
                seen.add(event.id)
                session.printer.json(event)
    assert now is not None  # follow yields at least once
    session.printer.json(now)
    return now


def _metrics(session: Session, finetune_id: str) -> list[FineTuneEvent]:
    """What the curve was before anybody looked."""
    events = session.pool.finetunes.events(finetune_id, limit=EVENTS_MAX)
    return [event for event in events if event.type == "metrics"]


def goes_on(job_id: str) -> JobNotFinished:
    """Whoever looks no longer is told how to look again."""
    message = (
        f"Job {job_id} goes on. Attach again with `potluck jobs watch {job_id}`, or stop it with"
        f" `potluck jobs cancel {job_id}`."
    )
    return JobNotFinished(message, extra={"job": job_id})
