"""`potluck worker`: join and start; the other commands stand in modules of their own."""

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
from worker.cli_options import (
    HoursOption,
    MaxMemoryOption,
    MaxTemperatureOption,
    MaxVramOption,
    ModelsOption,
    OnBatteryOption,
    OnlyIdleOption,
    OutputOption,
    RayAddressOption,
    RayOption,
    SlotsOption,
    ThreadsOption,
)
from worker.departure_cli import leave
from worker.doctor_cli import doctor
from worker.install import install_service, uninstall_service
from worker.models_cli import models
from worker.owner_cli import drain, pause, resume
from worker.status_cli import status

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
    models: ModelsOption = None,
    threads: ThreadsOption = None,
    slots: SlotsOption = None,
    engine_option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Passed to the engine as it is; may be repeated."),
    ] = None,
    only_idle: OnlyIdleOption = None,
    hours: HoursOption = None,
    on_battery: OnBatteryOption = None,
    max_vram: MaxVramOption = None,
    max_memory: MaxMemoryOption = None,
    max_temperature: MaxTemperatureOption = None,
    ray: RayOption = None,
    ray_address: RayAddressOption = None,
    drain_timeout: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", help="How long running answers may take to end when stopped. Default: 60."
        ),
    ] = None,
    log_file: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Write the log there instead of to stderr: 5 files of 10 MB."),
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
        "idle.input_minutes": only_idle,
        "hours.every_day": hours,
        "sharing.on_battery": on_battery,
        "caps.vram": max_vram,
        "caps.memory": max_memory,
        "caps.gpu_temperature_c": max_temperature,
        "ray": ray,
        "ray_address": ray_address,
        "drain_timeout_s": drain_timeout,
        "log_file": log_file,
    }
    settings = Settings.load(flags=flags, environ=os.environ)
    configure(settings.log if output is Output.TEXT else "json", file=settings.log_file)

    async def run() -> None:
        daemon = Daemon(settings=settings, places=Places())
        collector.freeze()
        await daemon.run()

    asyncio.run(run())


app.command(epilog="Example:  potluck worker doctor -o json")(doctor)
app.command("install-service", epilog="Example:  potluck worker install-service --dry-run")(install_service)
app.command("uninstall-service", epilog="Example:  potluck worker uninstall-service")(uninstall_service)
app.command(epilog="Example:  potluck worker models --remove smollm2-135m-instruct")(models)


app.command(epilog="Example:  potluck worker status --once")(status)
app.command(epilog="Example:  potluck worker pause --for 2h")(pause)
app.command(epilog="Example:  potluck worker resume")(resume)
app.command(epilog="Example:  potluck worker leave --yes")(leave)
app.command(epilog="Example:  potluck worker drain && pip install --upgrade 'potluck[worker]'")(drain)


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
