"""`potluck worker install-service` and `uninstall-service`."""

import getpass
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    from worker.settings import Places
    from worker.units import Service

COMMAND_S_MAX: Final = 120.0
VARIABLES: Final = ("POTLUCK_MODEL_CACHE", "POTLUCK_MACHINE_DIR", "HF_ENDPOINT", "SSL_CERT_FILE")

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print what would be written and run; change nothing.")
]
System = Annotated[
    bool, typer.Option("--system", help="For the whole machine, from its start on, hardened; as root. Linux.")
]


@dataclass(frozen=True, slots=True)
class Plan:
    """A file, and the commands that make the system take it up or let go of it."""

    path: Path
    content: bytes
    install: tuple[tuple[str, ...], ...]
    uninstall: tuple[tuple[str, ...], ...]
    hint: str = ""
    limit_s: float = COMMAND_S_MAX  # of each command: a stop is a drain


def install_service(
    system: System = False,
    user: Annotated[str, typer.Option(metavar="NAME", help="With --system: the user that it runs as.")] = "",
    memory_max: Annotated[
        str, typer.Option(metavar="SIZE", help="The most memory for all of it, like 12G or 80%. systemd.")
    ] = "",
    dry_run: DryRun = False,
) -> None:
    """Start this worker with the machine, and again when it fails: systemd, launchd or a Windows task.

    Stopping or restarting the service finishes the running answers first, so an update loses nothing:
    upgrade the package, then restart the service.
    """
    plan = plan_for(sys.platform, system=system, user=user, memory_max=memory_max)
    if dry_run:
        _print(plan, plan.install)
        return
    _checked(lambda: _write(plan), plan.path)
    _run(plan.install, plan.limit_s)
    typer.echo(f"Installed {plan.path}. {plan.hint}".rstrip())


def uninstall_service(system: System = False, dry_run: DryRun = False) -> None:
    """Stop the service (the running answers are finished first) and remove it. What it earned stays."""
    plan = plan_for(sys.platform, system=system)
    if dry_run:
        _print(plan, plan.uninstall, remove=True)
        return
    _run(plan.uninstall, plan.limit_s)
    _checked(lambda: plan.path.unlink(missing_ok=True), plan.path)
    if plan.uninstall and plan.uninstall[0][0] == "systemctl":
        _run((plan.install[0],), plan.limit_s)  # daemon-reload
    typer.echo(f"Removed {plan.path}.")


def plan_for(platform: str, *, system: bool = False, user: str = "", memory_max: str = "") -> Plan:
    """Raises WorkerError if the settings are wrong or the system is not known."""
    from worker import units
    from worker.errors import WorkerConflict
    from worker.settings import Settings

    user = user or os.environ.get("SUDO_USER") or getpass.getuser()
    home, places = _places(user)
    settings = Settings.load(flags={}, environ=os.environ, folder=places.worker)
    given = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    service = units.Service(
        command=(sys.executable, "-m", "potluck", "worker", "start"),
        environment={"POTLUCK_HOME": str(home), **given},
        drain_s=settings.drain_timeout_s,
        writes=tuple(dict.fromkeys((home, places.cache, places.machine))),
        user=user,
        memory_max=memory_max,
        log_file=str(places.worker / "worker.log"),
    )
    if platform == "linux":
        return _systemd(service, system=system)
    if system:
        raise WorkerConflict("--system is for Linux; elsewhere a worker is a service of its user.")
    if platform == "darwin":
        path = Path.home() / "Library" / "LaunchAgents" / f"{units.LABEL}.plist"
        domain = f"gui/{os.getuid() if hasattr(os, 'getuid') else 0}"
        begin = (("launchctl", "bootstrap", domain, str(path)),)
        end = (("launchctl", "bootout", f"{domain}/{units.LABEL}"),)
        return Plan(path, units.launchd(service), begin, end, limit_s=COMMAND_S_MAX + service.stop_s)
    if platform == "win32":
        path = places.worker / "task.xml"
        create = ("schtasks", "/Create", "/TN", units.TASK, "/XML", str(path), "/F")
        down = (("schtasks", "/End", "/TN", units.TASK), ("schtasks", "/Delete", "/TN", units.TASK, "/F"))
        hint = "Windows ends tasks at once: `potluck worker drain` first, then stop or update it."
        up = (create, ("schtasks", "/Run", "/TN", units.TASK))
        return Plan(path, units.windows_task(service).encode("utf-16"), up, down, hint)
    raise WorkerConflict(
        f"there are no services for {platform} here: start it as that system starts programs."
    )


def _places(user: str) -> "tuple[Path, Places]":
    """POTLUCK_HOME of that user, who may be another one than root, who installs; and the folders in it."""
    from potluck.home import home
    from worker.settings import Places

    if user == getpass.getuser() or "POTLUCK_HOME" in os.environ or sys.platform == "win32":
        return home(), Places()
    data = Path(f"~{user}").expanduser() / ".local" / "share"
    found = data / "potluck"
    cache = os.environ.get("POTLUCK_MODEL_CACHE") or found / "cache" / "models"
    machine = os.environ.get("POTLUCK_MACHINE_DIR") or data / "potluck-machine"
    return found, Places(worker=found / "worker", cache=Path(cache), machine=Path(machine))


def _systemd(service: "Service", *, system: bool) -> Plan:
    from worker import units

    folder = Path("/etc/systemd/system") if system else Path.home() / ".config" / "systemd" / "user"
    control = ("systemctl",) if system else ("systemctl", "--user")
    unit = f"{units.NAME}.service"
    up = ((*control, "daemon-reload"), (*control, "enable", unit), (*control, "restart", unit))
    status = " ".join((*control, "status", unit))
    linger = "" if system else " To run while you are not logged in: loginctl enable-linger"
    text = units.systemd(service, system=system)
    hint = f"See it with: {status}{linger}"
    down = ((*control, "disable", "--now", unit),)
    return Plan(folder / unit, text.encode(), up, down, hint, COMMAND_S_MAX + service.stop_s)


def _print(plan: Plan, commands: tuple[tuple[str, ...], ...], *, remove: bool = False) -> None:
    text = plan.content.decode("utf-16" if plan.content.startswith(b"\xff\xfe") else "utf-8")
    typer.echo(f"# {'remove' if remove else 'write'} {plan.path}")
    if not remove:
        typer.echo(text.replace("\r\n", "\n"))
    for command in commands:
        typer.echo(f"# run {' '.join(command)}")


def _write(plan: Plan) -> None:
    from potluck.home import write_atomic

    plan.path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(plan.path, plan.content)


def _checked(act: Callable[[], None], path: Path) -> None:
    """Raises WorkerError."""
    from worker.errors import WorkerError

    try:
        act()
    except PermissionError:
        raise WorkerError(f"{path} may not be changed by this user. Run the command with sudo.") from None
    except OSError as error:
        raise WorkerError(f"{path} cannot be changed: {error.strerror or error}.") from None


def _run(commands: tuple[tuple[str, ...], ...], limit_s: float) -> None:
    """Raises WorkerError with what the command said."""
    from worker.errors import WorkerError

    for command in commands:
        line = " ".join(command)
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
        except FileNotFoundError:
            raise WorkerError(f"{command[0]} is not on this machine, so `{line}` cannot be run.") from None
        except subprocess.TimeoutExpired:
            raise WorkerError(f"`{line}` did not end within {limit_s:.0f} s.") from None
        if done.returncode:
            said = (done.stderr or done.stdout).strip()[:300]
            raise WorkerError(f"`{line}` failed: {said or f'exit code {done.returncode}'}.")
