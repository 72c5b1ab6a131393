"""`potluck worker join|start|status`."""

import asyncio
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import typer

from potluck.cli.printing import Output, Printer
from potluck.errors import UsageError
from potluck.home import worker_home
from worker.state import WorkerState

TOKEN_BYTES_MAX: Final = 4096

app = typer.Typer(
    help="Share this machine with a pool. It connects out only and opens no port; jobs are data, never code.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example:  potluck worker join https://pool.example.org --token TOKEN && potluck worker start",
)

OutputOption = Annotated[
    Output,
    typer.Option(
        "--output", "-o", envvar="POTLUCK_OUTPUT", help="text, or json for programs.", show_default=True
    ),
]


@app.command(
    epilog="Example:  potluck worker join https://pool.example.org --token file:token.txt --name attic-pc"
)
def join(
    url: Annotated[str, typer.Argument(metavar="URL", help="The pool's address.")],
    token: Annotated[
        str,
        typer.Option(
            metavar="TOKEN|file:PATH",
            help="What a member got from `potluck coordinator join-token`; file:PATH keeps it out of `ps`.",
        ),
    ],
    name: Annotated[
        str, typer.Option(metavar="NAME", help="How the pool shows this machine. Default: its host name.")
    ] = "",
    output: OutputOption = Output.TEXT,
) -> None:
    """Join a pool with this machine: makes its keys and gets its certificate. Shares nothing yet."""
    from potluck.identity import JoinToken, TokenError
    from worker.enrol import enrol
    from worker.errors import WorkerConflict

    try:
        parsed = JoinToken.parse(_secret(token))
    except TokenError as error:
        raise WorkerConflict(str(error), code="join_token_mistyped") from None
    folder = worker_home()
    shown = name or platform.node() or "worker"
    joined = asyncio.run(enrol(url=url, token=parsed, name=shown, folder=folder, now=datetime.now(UTC)))
    printer = Printer(output)

    def as_text() -> None:
        printer.line(f"Joined {joined.pool} as {joined.name}; what it serves is credited to {joined.member}.")
        printer.line("Nothing is shared yet. Start sharing with:  potluck worker start")

    printer.show(joined.model_dump() | {"folder": str(folder)}, as_text)


@app.command(
    epilog="Example:  potluck worker start --engine llamacpp --models smollm2-135m-instruct --threads 2"
)
def start(
    engine: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="llamacpp, torch or emulator. Default: what fits the model."),
    ] = None,
    models: Annotated[
        str | None,
        typer.Option(
            metavar="A,B", help="Models to serve, kept in memory. Default: the pool's first that fits."
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Threads of all engines together. Default: this machine's cores, shared evenly among the"
            " workers that run on it.",
        ),
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option(metavar="N", help="Requests at once for each model. Default: the engine's choice."),
    ] = None,
    engine_option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Passed to the engine as it is; may be repeated."),
    ] = None,
    drain_timeout: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", help="How long running answers may take to end when stopped. Default: 60."
        ),
    ] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Share this machine until stopped.

    Ctrl-C (or SIGTERM) finishes the running answers first; the second one stops at once. Settings can also
    stand in worker.toml in POTLUCK_HOME/worker, or in POTLUCK_* variables; flags come first.
    """
    from potluck import collector
    from potluck.logs import configure
    from worker.daemon import Daemon
    from worker.settings import Places, Settings, options_from

    flags = {
        "engine": engine,
        "models": models,
        "threads": threads,
        "slots": slots,
        "engine_options": options_from(engine_option or []),
        "drain_timeout_s": drain_timeout,
    }
    settings = Settings.load(flags=flags, environ=os.environ)
    configure(settings.log if output is Output.TEXT else "json")

    async def run() -> None:
        daemon = Daemon(settings=settings, places=Places())
        collector.freeze()
        await daemon.run()

    asyncio.run(run())


@app.command(epilog="Example:  potluck worker status -o json")
def status(output: OutputOption = Output.TEXT) -> None:
    """What this machine shares right now, and for whom."""
    state = WorkerState.load(worker_home())
    printer = Printer(output)
    printer.show(state.model_dump(), lambda: _show(printer, state))


def _show(printer: Printer, state: WorkerState) -> None:
    why = f": {state.why}" if state.why else ""
    printer.line(f"{state.state}{why}")
    if state.worker_id:
        printer.line(f"{state.name} ({state.worker_id}) of {state.member}, for {state.pool}")
    if state.state in {"not running", "stopped"}:
        return
    printer.line(f"process {state.pid}, {state.threads} threads")
    for model in state.models:
        progress = (
            f" {model.bytes_done / 1e6:.0f} of {model.bytes_total / 1e6:.0f} MB" if model.bytes_total else ""
        )
        memory = f", {model.memory_bytes / 1e6:.0f} MB in memory" if model.memory_bytes else ""
        shown = progress if model.state in {"downloading", "loading"} else ""
        because = f": {model.why}" if model.why else ""
        printer.line(f"model {model.name} ({model.engine}): {model.state}{shown}{memory}{because}")
    for attempt in state.attempts:
        printer.line(
            f"serving {attempt.member}: {attempt.model}, {attempt.tokens} tokens so far ({attempt.job_id})"
        )
    if not state.attempts:
        printer.line("serving nobody at the moment")
    printer.line(f"since its start: {state.attempts_served} answers, {state.tokens_served} tokens")
    if state.receipts_waiting:
        printer.line(f"{state.receipts_waiting} receipts wait for the coordinator")
    if state.receipts_countersigned:
        printer.line(f"{state.receipts_countersigned} receipts kept here that the pool has countersigned")


def _secret(text: str) -> str:
    """The token, or what stands in the file that it names. Raises UsageError."""
    if not text.startswith("file:"):
        return text
    path = Path(text.removeprefix("file:")).expanduser()
    try:
        with path.open("rb") as file:
            return file.read(TOKEN_BYTES_MAX).decode("utf-8").strip()
    except OSError as error:
        raise UsageError(f"the token's file {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UsageError(f"the file {path} holds no join token.") from None
