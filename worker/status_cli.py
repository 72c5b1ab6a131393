"""`potluck worker status`: what this machine shares right now, for whom, and when that changes."""

import sys
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Final

import typer

from potluck import credits as amounts
from potluck.cli.printing import Output, Printer, printable
from potluck.errors import ExitCode
from potluck.home import worker_home
from worker.cli_options import OutputOption
from worker.state import CardNow, ModelNow, RunningFor, WorkerState

LOOK_S: Final = 1.0


def status(
    watch: Annotated[
        bool | None,
        typer.Option("--watch/--once", help="Follow it until Ctrl-C. Default: in a terminal, yes."),
    ] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """What this machine shares right now, for whom, what it earned today, and when that changes by itself.

    Exit 4 if no worker runs here.
    """
    printer = Printer(output)
    if watch is None:
        watch = printer.text and sys.stdout.isatty()
    if watch and printer.text:
        _follow(worker_home())
        return
    while True:
        state = WorkerState.load(worker_home())
        printer.show(state.model_dump(), partial(_print, printer, state))
        if not watch and not state.runs:
            raise typer.Exit(ExitCode.NOT_FOUND)
        if not watch:
            return
        time.sleep(LOOK_S)


def _print(printer: Printer, state: WorkerState) -> None:
    for line in lines(state, time.time()):
        printer.line(line)


def _follow(folder: Path) -> None:
    """The same lines, again and again in their place; Ctrl-C is how it ends."""
    from rich.live import Live
    from rich.text import Text

    def now() -> Text:
        shown = lines(WorkerState.load(folder), time.time())
        return Text("\n".join(printable(line) for line in shown))

    try:
        with Live(now(), auto_refresh=False) as live:
            while True:
                time.sleep(LOOK_S)
                live.update(now(), refresh=True)
    except KeyboardInterrupt:
        return


def lines(state: WorkerState, now: float) -> list[str]:
    """For people; `now` in seconds since the epoch."""
    shown = [headline(state, now)]
    if state.worker_id:
        shown.append(f"{state.name} ({state.worker_id}) of {state.member}, for {state.pool}")
    if not state.runs:
        return shown
    shown += [f"note: {note}" for note in state.notes]
    shown.append(f"process {state.pid}, {state.threads} threads")
    shown += [_model(model) for model in state.models]
    shown += [_card(card) for card in state.cards]
    shown += [_attempt(attempt) for attempt in state.attempts]
    if state.attempts:
        shown.append(f"{state.tokens_per_s:.1f} tokens/s")
    else:
        shown.append("serving nobody at the moment")
    shown.append(f"since its start: {state.attempts_served} answers, {state.tokens_served} tokens")
    shown += _earned(state)
    if state.receipts_waiting:
        shown.append(f"{state.receipts_waiting} receipts wait for the coordinator")
    if state.receipts_countersigned:
        shown.append(f"{state.receipts_countersigned} receipts kept here that the pool has countersigned")
    return shown


def headline(state: WorkerState, now: float) -> str:
    """State, why, and when it changes by itself."""
    why = f": {state.why}" if state.why else ""
    change = moment(state.next_change, now)
    if not change or state.state not in {"sharing", "paused"}:
        return f"{state.state}{why}"
    return f"{state.state}{why}; {'shares again' if state.state == 'paused' else 'pauses'} {change}"


def moment(at: float | None, now: float) -> str:
    """`at 22:00 (in 3 h 5 min)`, by this machine's clock; with the day if it is another one."""
    if at is None or at <= now:
        return ""
    local, today = time.localtime(at), time.localtime(now)
    same = (local.tm_year, local.tm_yday) == (today.tm_year, today.tm_yday)
    minutes = round((at - now) / 60)
    hours = f"{minutes // 60} h " if minutes >= 60 else ""
    left = f"{hours}{minutes % 60} min" if minutes else "moments"
    return f"at {time.strftime('%H:%M' if same else '%a %H:%M', local)} (in {left})"


def _attempt(attempt: RunningFor) -> str:
    if attempt.steps:
        done = f"step {attempt.steps_done} of {attempt.steps}"
        return f"training {attempt.model} for {attempt.member}: {done} ({attempt.job_id})"
    return f"serving {attempt.member}: {attempt.model}, {attempt.tokens} tokens so far ({attempt.job_id})"


def _model(model: ModelNow) -> str:
    loading = model.state in {"downloading", "loading"}
    progress = ""
    if loading and model.bytes_total:
        progress = f" {model.bytes_done / 1e6:.0f} of {model.bytes_total / 1e6:.0f} MB"
    if loading and model.eta_s:
        progress += f", about {model.eta_s:.0f} s left"
    memory = f", {model.memory_bytes / 1e6:.0f} MB in memory" if model.memory_bytes else ""
    because = f": {model.why}" if model.why else ""
    return f"model {model.name} ({model.engine}): {model.state}{progress}{memory}{because}"


def _card(card: CardNow) -> str:
    read = [f"{card.temperature_c:.0f} °C" if card.temperature_c is not None else ""]
    read.append(f"{card.power_w:.0f} W" if card.power_w is not None else "")
    return f"card {card.index}: {', '.join(part for part in read if part) or 'tells nothing'}"


def _earned(state: WorkerState) -> list[str]:
    """As far as a worker can know; the books are the pool's."""
    day = state.earned
    if day.day != time.strftime("%Y-%m-%d") or not (day.tokens or day.own_tokens):
        return []
    own = f", {day.own_tokens} tokens for yourself, free" if day.own_tokens else ""
    worth = amounts.rounded(day.microcredits)
    what = f"today: about {worth} credits for {day.tokens} tokens{own}"
    return [f"{what} (by matched receipts, at the usual fee; `potluck statement` has the pool's books)"]
