"""`potluck coordinator start`, `admin-key`, `rotate-ca` and `check`; `backup` and `restore` stand beside."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from coordinator import backup_cli, relocation_cli
from coordinator.app import Coordinator, coordinator, home_lock
from coordinator.ca import CertificateAuthority, CertificateError
from coordinator.check import check as checked
from coordinator.descriptors import make_room
from coordinator.keys import KeyFileError
from coordinator.lock import AlreadyRunning
from coordinator.models import ModelsError
from coordinator.ports import PortTaken
from coordinator.recovery import recover_admin
from coordinator.settings import Settings, SettingsError
from coordinator.store import Store
from coordinator.store_errors import LeadershipLost, StoreError
from potluck import collector, loops
from potluck.cli.printing import Output, Printer
from potluck.errors import ExitCode, PotluckError
from potluck.logs import configure
from potluck.results import plain

# How long a thread may hold Python's lock while others wait (5 ms by default). A commit's thread asks for it
# back after each statement, and the network's for each message: all that time somebody's first token waits.
SWITCH_S = 0.0005
TROUBLES = (PortTaken, AlreadyRunning, CertificateError, KeyFileError, ModelsError, StoreError, SettingsError)

app = typer.Typer(
    help="Run the coordinator of a pool.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


backup_cli.register(app)
relocation_cli.register(app)


@app.callback()
def service() -> None:
    """Run the coordinator of a pool."""


@app.command(epilog="Example:  potluck coordinator start --http 127.0.0.1:8420")
def start(
    http: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where members connect. Default 127.0.0.1:8420.")
    ] = None,
    grpc: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where workers connect. Default 127.0.0.1:8421.")
    ] = None,
    public_host: Annotated[
        str | None,
        typer.Option(metavar="HOST", help="The name or address under which others reach this machine."),
    ] = None,
    database: Annotated[
        str | None,
        typer.Option(metavar="URL", help="sqlite:////path/to/file; default: a file in POTLUCK_HOME."),
    ] = None,
    behind_proxy: Annotated[
        bool, typer.Option("--behind-proxy", help="A reverse proxy in front of HTTP terminates TLS.")
    ] = False,
    tls_cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Certificate for HTTPS (PEM).")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="Its private key (PEM).")] = None,
    emulator: Annotated[
        bool,
        typer.Option("--emulator", help="Offer the model `emulator-small`, for tests and benchmarks."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Start although the books are wrong.")] = False,
) -> None:
    """Start the coordinator of a pool: the API for members, the door for workers, the ledger."""
    flags = {
        "http": http,
        "grpc": grpc,
        "public_host": public_host,
        "database": database,
        "behind_proxy": behind_proxy or None,  # not given is not the same as no: a file may say it
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "emulator": emulator or None,
    }
    try:
        settings = Settings.load({name: value for name, value in flags.items() if value is not None})
        configure("auto")
        make_room(settings)
        with asyncio.Runner(loop_factory=loops.quickest()) as runner:
            runner.run(_run(settings, force=force))
    except asyncio.CancelledError:  # stopped before it was open
        raise typer.Exit(ExitCode.OK) from None
    except LeadershipLost as lost:
        typer.echo(f"potluck: {lost}", err=True)
        raise typer.Exit(ExitCode.INVALID) from None
    except TROUBLES as trouble:
        typer.echo(f"potluck: {trouble}", err=True)
        raise typer.Exit(ExitCode.ERROR) from None


@app.command("admin-key", epilog="Example:  potluck coordinator admin-key")
def admin_key(
    member: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which admin; default: the one who was made first.")
    ] = None,
    database: Annotated[
        str | None,
        typer.Option(metavar="URL", help="sqlite:////path/to/file; default: a file in POTLUCK_HOME."),
    ] = None,
) -> None:
    """Make a new key for an admin who lost theirs, on this machine, while the coordinator is stopped."""
    try:
        settings = Settings.load({} if database is None else {"database": database})
        lock = home_lock(settings)
        try:
            admin, path = asyncio.run(recover_admin(settings, member))
        finally:
            lock.release()
    except (AlreadyRunning, StoreError, SettingsError) as trouble:
        typer.echo(f"potluck: {trouble}", err=True)
        raise typer.Exit(ExitCode.ERROR) from None
    typer.echo(f"A new key of {admin.name} was written to {path}")
    typer.echo(f"Once the coordinator runs again: potluck login URL --key file:{path}")
    typer.echo("Then look at `potluck keys list` and revoke the keys that are lost.")


@app.command("rotate-ca", epilog="Example:  potluck coordinator rotate-ca --yes")
def rotate_ca(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask first.")] = False,
) -> None:
    """Make a new certificate authority, while the coordinator is stopped: every worker must then join again.

    For when its key has leaked. The key that signs the pool's books stays: exports and heads go on to verify.
    """
    if not yes:
        typer.confirm("No worker is let in any more before it has joined again. Go on?", abort=True)
    try:
        settings = Settings.load({})
        lock = home_lock(settings)
        try:
            made = asyncio.run(_rotate(settings))
        finally:
            lock.release()
    except (AlreadyRunning, CertificateError, StoreError, SettingsError) as trouble:
        typer.echo(f"potluck: {trouble}", err=True)
        raise typer.Exit(ExitCode.ERROR) from None
    typer.echo(f"The pool has a new CA: sha256 {made.fingerprint()}")
    typer.echo(
        "Start the coordinator. On each worker: remove the folder `worker` in its POTLUCK_HOME, then join"
    )
    typer.echo("with a new token; `potluck coordinator join-token --uses N` makes one for all.")


async def _rotate(settings: Settings) -> CertificateAuthority:
    """With books in PostgreSQL it is the database that knows whether a coordinator runs."""
    store = None if settings.books_in_a_file else await Store.open(settings.database_url, time.time())
    try:
        return CertificateAuthority.rotate(settings.home, settings.pool_name, time.time())
    finally:
        if store is not None:
            await store.close()


@app.command(epilog="Example:  potluck coordinator check")
def check(
    database: Annotated[
        str | None,
        typer.Option(metavar="URL", help="sqlite:////path/to/file; default: a file in POTLUCK_HOME."),
    ] = None,
    output: Annotated[
        Output, typer.Option("--output", "-o", envvar="POTLUCK_OUTPUT", help="text, or json for programs.")
    ] = Output.TEXT,
) -> None:
    """Recompute the books from the database and say what is wrong; the coordinator may go on meanwhile.

    Exit 1 if anything is.
    """
    printer = Printer(output)
    try:
        settings = Settings.load({} if database is None else {"database": database})
        report, signed = asyncio.run(checked(settings))
    except TROUBLES as trouble:
        printer.error(PotluckError(str(trouble)))
        raise typer.Exit(ExitCode.ERROR) from None
    seen = f"{report.entries} entries, {report.receipts} receipts, {report.heads} heads"

    def as_text() -> None:
        for finding in report.findings:
            printer.line(f"{finding.subject}: {finding.message}")
        if not report.findings:
            printer.line(f"Nothing is wrong: {seen}.")
        if not signed:
            printer.note("Signatures were not checked: the pool's key is not in this POTLUCK_HOME.")

    printer.show({**plain(report), "signatures_checked": signed}, as_text)
    if report.findings:
        printer.note(f"{len(report.findings)} findings in {seen}.")
        raise typer.Exit(ExitCode.ERROR)


async def _run(settings: Settings, *, force: bool) -> None:
    sys.setswitchinterval(SWITCH_S)
    task = asyncio.current_task()
    assert task is not None
    with contextlib.suppress(NotImplementedError):  # Windows ends the process by itself
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with coordinator(settings, force=force, on_standby=_say_standby) as running:
        _stop_on_signals(running)
        collector.freeze()
        _say(running)
        try:
            await running.wait()
        except LeadershipLost as lost:
            # As after kill -9: whatever an orderly end would write or clean up is the new leader's now.
            typer.echo(f"potluck: {lost}", err=True)
            sys.stdout.flush()
            os._exit(ExitCode.INVALID)
        typer.echo("Stopping: running answers may end first. Press Ctrl-C again to stop at once.", err=True)


def _stop_on_signals(running: Coordinator) -> None:
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if running.stopping.is_set():
            sys.exit(130)
        running.stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # Windows: KeyboardInterrupt ends asyncio.run
            loop.add_signal_handler(number, stop)


def _say_standby(leader: str) -> None:
    where = f" at {leader}" if leader else ""
    typer.echo(f"Standing by: another coordinator{where} leads this pool. This one takes over when it ends.")
    sys.stdout.flush()


def _say(running: Coordinator) -> None:
    scheme = "https" if running.settings.tls_cert else "http"
    typer.echo(f"The pool {running.settings.pool_name!r} is open at {scheme}://{running.http}")
    typer.echo(f"Workers connect to {running.grpc}; API documentation: {scheme}://{running.http}/docs")
    if running.new_admin_key is not None:
        typer.echo(f"First start: the admin's key was written to {running.new_admin_key}")
        typer.echo(f"  potluck login {scheme}://{running.http} --key file:{running.new_admin_key}")
    sys.stdout.flush()
