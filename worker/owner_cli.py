"""`potluck worker pause|resume|drain`: the owner's word, which the daemon hears within a second.

It is a small file in POTLUCK_HOME/worker, so it holds over restarts and also before a daemon runs.
"""

import time
from collections.abc import Callable
from typing import Annotated, Final

import typer

from potluck.cli.durations import seconds_of
from potluck.cli.printing import Output, Printer
from potluck.home import worker_home
from worker.cli_options import OutputOption
from worker.errors import WorkerError
from worker.membership import Membership
from worker.state import WorkerState
from worker.status_cli import headline, moment
from worker.wish import Wish

HEARD_S_MAX: Final = 10.0
LOOK_S: Final = 0.1


def pause(
    for_: Annotated[
        str | None,
        typer.Option("--for", metavar="TIME", help="It ends by itself: 90s, 30m, 2h, 1d. Default: never."),
    ] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Take the machine back: running answers go on elsewhere, and the memory is free within seconds.

    Holds over restarts of the daemon and of the machine.
    """
    seconds, now = seconds_of(for_), time.time()
    until = None if seconds is None else now + seconds
    _give(Wish(word="pause", until=until, given_at=now))
    state = _heard(lambda state: state.state == "paused" and not any(m.memory_bytes for m in state.models))
    printer = Printer(output)
    ends = moment(until, now) or "with `potluck worker resume`"

    def as_text() -> None:
        if not state.runs:
            printer.line(f"No worker runs here; one that is started is paused. The pause ends {ends}.")
        elif state.state == "paused":
            printer.line(f"Paused: nothing runs, and its memory is given back. The pause ends {ends}.")
        else:
            printer.line(f"The worker is {headline(state, now)}; not paused yet. The pause ends {ends}.")

    printer.show({"word": "pause", "until": until, **_shown(state)}, as_text)


def resume(output: OutputOption = Output.TEXT) -> None:
    """Share again, as far as the rules in worker.toml allow; what was paused from afar, too."""
    now = time.time()
    _give(Wish(word="share", given_at=now))
    state = _heard(lambda state: "paused it" not in state.why)  # neither here nor from afar
    printer = Printer(output)

    def as_text() -> None:
        if not state.runs:
            printer.line("No worker runs here; one that is started shares: potluck worker start")
        else:
            printer.line(f"The pause is over. The worker is {headline(state, time.time())}.")

    printer.show({"word": "share", "until": None, **_shown(state)}, as_text)


def drain(output: OutputOption = Output.TEXT) -> None:
    """Finish the running answers, take no new ones, then end the daemon."""
    before = _state()
    printer = Printer(output)
    if not before.runs:
        said = {"word": "drain", "until": None, **_shown(before)}
        printer.show(said, lambda: printer.line("No worker runs here: there is nothing to drain."))
        return
    _give(Wish(word="drain", given_at=time.time(), process=(before.pid, before.process_started)))
    state = _heard(lambda state: state.state == "draining" or not state.runs)

    def as_text() -> None:
        count = len(state.attempts)
        rest = f"finishes {count} answers, then it stops" if count else "stops"
        printer.line(f"The worker {rest}. `potluck worker status` follows it.")

    printer.show({"word": "drain", "until": None, **_shown(state)}, as_text)


def _give(wish: Wish) -> None:
    """Raises NotJoined, or WorkerError if the file cannot be written."""
    folder = worker_home()
    Membership.load(folder)
    try:
        wish.save(folder)
    except OSError as error:
        raise WorkerError(f"{folder} cannot be written: {error.strerror or error}.") from None


def _state() -> WorkerState:
    return WorkerState.load(worker_home())


def _heard(done: Callable[[WorkerState], bool]) -> WorkerState:
    """The daemon's state once it has heard the word, or as it is after some seconds, or if none runs."""
    ends = time.monotonic() + HEARD_S_MAX
    state = _state()
    while state.runs and not done(state) and time.monotonic() < ends:
        time.sleep(LOOK_S)
        state = _state()
    return state


def _shown(state: WorkerState) -> dict[str, str | bool]:
    return {"running": state.runs, "state": state.state, "why": state.why}
