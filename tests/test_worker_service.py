"""A worker as a service: what the manager is told, what it reads in the log, and the files that install it."""

import asyncio
import io
import json
import os
import plistlib
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import psutil
import pytest
import structlog
from fixtures_worker import EMULATOR, WAIT_S, coordinating, join_by_hand, places_in

from potluck import logs
from potluck.cli.main import run
from potluck.errors import ExitCode
from worker import units
from worker.install import plan_for
from worker.notify import Notifier

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="systemd is Linux's")


# --- sd_notify ---


class Manager:
    """The receiving end of a notification socket."""

    def __init__(self, folder: Path) -> None:
        self.address = str(folder / "notify.sock")
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.address)
        self.socket.setblocking(False)
        self.told: list[str] = []

    async def until(self, line: str) -> None:
        async with asyncio.timeout(WAIT_S * 3):
            while line not in self.told:
                data = await asyncio.get_running_loop().sock_recv(self.socket, 4096)
                self.told += data.decode().splitlines()

    def now(self) -> list[str]:
        found = []
        while True:
            try:
                found += self.socket.recv(4096).decode().splitlines()
            except BlockingIOError:
                return found


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path)
    yield made
    made.socket.close()


def test_a_manager_hears_what_it_must_and_each_status_once(manager: Manager) -> None:
    at = [0.0]
    notifier = Notifier(manager.address, watchdog_s=10.0, now=lambda: at[0])
    notifier.ready()
    for text in ("sharing", "sharing", "paused: a game\nREADY=0"):
        notifier.status(text)
    for at[0] in (1.0, 5.0, 6.0, 10.0, 10.5):
        notifier.alive()
    notifier.stopping()
    told = ["READY=1", "STATUS=sharing", "STATUS=paused: a game READY=0", "WATCHDOG=1", "WATCHDOG=1"]
    assert manager.now() == [*told, "STOPPING=1"]


def test_the_names_are_taken_out_of_the_environment(manager: Manager) -> None:
    """Engine processes inherit it, and must not speak for the daemon; another's watchdog is not ours."""
    environ = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}
    assert Notifier.from_environ(environ).watchdog_s == 3.0
    assert environ == {}
    other = {"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1", "NOTIFY_SOCKET": ""}
    assert Notifier.from_environ(other).watchdog_s == 0.0
    assert Notifier.from_environ({"WATCHDOG_USEC": "soon"}).watchdog_s == 0.0


@LINUX
def test_an_address_without_a_file_is_understood_and_a_dead_one_holds_nobody_up(tmp_path: Path) -> None:
    name = f"potluck-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as abstract:
        abstract.bind(f"\0{name}")
        Notifier(f"@{name}").ready()
        assert abstract.recv(100) == b"READY=1"
    Notifier(f"@{name}").ready()
    Notifier(str(tmp_path / "none")).ready()
    Notifier().ready()


async def test_a_restart_by_the_manager_is_a_drain(tmp_path: Path, manager: Manager) -> None:
    """A real daemon process: ready, sharing, alive; SIGTERM in mid-answer lets the answer end, then exit 0."""
    places, log = places_in(tmp_path), tmp_path / "log" / "worker.log"
    async with coordinating() as coordinator:
        coordinator.receipt_key = join_by_hand(places, coordinator.ca, port=coordinator.port)
        command = ("-m", "potluck", "worker", "start", "--engine", "emulator", "--models", EMULATOR.name)
        options = ("--engine-option", "ttft_ms=1", "--engine-option", "tpot_ms=20", "--log-file", str(log))
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *command,
            *options,
            env=os.environ
            | {"POTLUCK_HOME": str(tmp_path), "POTLUCK_MACHINE_DIR": str(places.machine)}
            | {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "1000000"},
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            await manager.until("READY=1")
            await manager.until("STATUS=sharing")
            await manager.until("WATCHDOG=1")
            await coordinator.ready()
            for child in psutil.Process(process.pid).children(recursive=True):
                assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC"} & child.environ().keys()
            told = coordinator.assign("job_a", tokens=60)
            await coordinator.until(lambda: told.frames > 0)
            process.send_signal(signal.SIGTERM)
            await manager.until("STOPPING=1")
            await coordinator.until(lambda: told.result is not None)
            assert told.result is not None
            assert told.result.HasField("completed")
            assert len(told.text.split()) == 60
            async with asyncio.timeout(WAIT_S):
                assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert "STATUS=draining: its owner stops it" in manager.told + manager.now()
    assert process.stderr is not None
    assert await process.stderr.read() == b"", "the log is in its file"
    actions = [json.loads(line)["action"] for line in log.read_text().splitlines()]
    assert {"started", "connected", "attempt_started", "drained"} <= set(actions)
    assert stat.S_IMODE(log.stat().st_mode) == 0o600 or sys.platform == "win32"


# --- logs ---

SPEAK = """
import structlog, sys
from potluck.logs import configure
configure("auto")
log = structlog.get_logger()
log.info("sharing", action="x")
log.warning("hot", action="y")
log.error("gone", action="z", why="first\\nsecond")
"""


def test_a_journal_gets_priorities_and_no_second_clock(tmp_path: Path) -> None:
    """JOURNAL_STREAM names the very file that stderr is; another one is no journal."""
    with (tmp_path / "journal").open("w+") as stream:
        found = os.fstat(stream.fileno())
        environ = os.environ | {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        subprocess.run([sys.executable, "-c", SPEAK], env=environ, stderr=stream, check=True)
        stream.seek(0)
        lines = stream.read().splitlines()
    assert [line[:3] for line in lines if line.startswith("<")] == ["<6>", "<4>", *["<3>"] * (len(lines) - 2)]
    assert len(lines) >= 3
    assert not any(re.search(r"\d\d:\d\d:\d\d", line) for line in lines)
    assert lines[0].startswith("<6>sharing")
    environ["JOURNAL_STREAM"] = "1:1"
    other = subprocess.run(
        [sys.executable, "-c", SPEAK], env=environ, capture_output=True, text=True, check=True
    )
    assert json.loads(other.stderr.splitlines()[0])["action"] == "x"


def test_a_log_file_is_rotated_and_closed_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "FILE_BYTES_MAX", 2_000)
    path = tmp_path / "deep" / "worker.log"
    logs.configure("json", file=str(path))
    log = structlog.get_logger()
    for number in range(200):
        log.info("a line", action="line", number=number)
    structlog.get_config()["logger_factory"]().close()
    structlog.reset_defaults()
    files = sorted(path.parent.iterdir())
    assert len(files) == 1 + logs.FILES_OLD_MAX
    assert all(file.stat().st_size <= 2_000 for file in files)
    assert json.loads(path.read_text().splitlines()[-1])["number"] == 199
    if sys.platform != "win32":
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_a_terminal_and_a_pipe_are_as_they_were() -> None:
    stream = io.StringIO()
    logs.configure("auto", stream=stream)
    structlog.get_logger().info("x", action="y")
    structlog.reset_defaults()
    assert json.loads(stream.getvalue())["timestamp"]


# --- installing ---

SERVICE = units.Service(
    command=(sys.executable, "-m", "potluck", "worker", "start"),
    environment={"POTLUCK_HOME": '/srv/a b/100% "$HOME"'},
    drain_s=300,
    writes=(Path("/srv/a b"),),
    user="root",
    memory_max="80%",
    log_file="/srv/a b/worker.log",
)


def parsed(unit: str) -> dict[str, list[str]]:
    """The values of each setting in [Service], in order."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in unit.splitlines():
        if line.startswith("["):
            section = line
        elif section == "[Service]" and "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


@pytest.mark.parametrize("system", [True, False])
def test_the_units_are_right_in_systemds_own_eyes(tmp_path: Path, *, system: bool) -> None:
    """Where systemd-analyze is; what the unit says is looked at everywhere."""
    unit = units.systemd(SERVICE, system=system)
    said = parsed(unit)
    assert said["Environment"] == ['"POTLUCK_HOME=/srv/a b/100%% \\"$$HOME\\""']
    assert int(said["TimeoutStopSec"][0]) > SERVICE.drain_s, "a stop is a drain"
    assert (said["Type"], said["KillMode"], said["NoNewPrivileges"]) == (["notify"], ["mixed"], ["yes"])
    assert ("ProtectSystem" in said, "User" in said) == (system, system)
    if system:
        assert "char-nvidia* rw" in said["DeviceAllow"]
        assert said["ReadWritePaths"] == ['"-/srv/a b"']
    if (tool := shutil.which("systemd-analyze")) is not None:
        path = tmp_path / "potluck-worker.service"
        path.write_text(unit)
        verify = [tool, "verify", "--man=no", *([] if system else ["--user"]), str(path)]
        environ = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)}
        done = subprocess.run(verify, capture_output=True, text=True, env=environ, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def test_launchd_and_windows_get_files_that_they_can_read() -> None:
    plist = plistlib.loads(units.launchd(SERVICE))
    assert plist["ProgramArguments"][-2:] == ["--log-file", SERVICE.log_file]
    assert plist["EnvironmentVariables"] == SERVICE.environment
    assert plist["ExitTimeOut"] > SERVICE.drain_s
    task = ET.fromstring(units.windows_task(SERVICE).partition("\n")[2])
    names = {"t": "http://schemas.microsoft.com/windows/2004/02/mit/task"}
    assert task.findtext(".//t:Command", namespaces=names) == sys.executable
    assert (task.findtext(".//t:Arguments", namespaces=names) or "").endswith(f'"{SERVICE.log_file}"')
    assert task.findtext(".//t:ExecutionTimeLimit", namespaces=names) == "PT0S"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, and a systemctl that writes down what it is told."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    script = binaries / "systemctl"
    script.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/told\ntest ! -e {tmp_path}/refuse || exit 3\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{binaries}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("POTLUCK_HOME", str(tmp_path / "potluck"))
    return tmp_path


@LINUX
def test_a_user_installs_and_removes_the_service(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unit = machine / ".config" / "systemd" / "user" / "potluck-worker.service"
    assert run(["worker", "install-service", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert f"# write {unit}" in printed
    assert "# run systemctl --user restart potluck-worker.service" in printed
    assert not unit.exists()
    assert not (machine / "told").exists()
    assert run(["worker", "install-service"]) == 0
    assert "loginctl enable-linger" in capsys.readouterr().out
    assert unit.read_text() in printed
    told = (machine / "told").read_text().splitlines()
    assert [line.split()[1] for line in told] == ["daemon-reload", "enable", "restart"]
    assert run(["worker", "uninstall-service"]) == 0
    assert not unit.exists()
    assert (machine / "told").read_text().splitlines()[3:] == [
        "--user disable --now potluck-worker.service",
        "--user daemon-reload",
    ]


@LINUX
def test_what_cannot_be_installed_is_a_sentence(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (machine / "refuse").touch()
    assert run(["worker", "install-service"]) == ExitCode.ERROR
    assert "`systemctl --user daemon-reload` failed: exit code 3." in capsys.readouterr().err
    (machine / "potluck" / "worker").mkdir(parents=True)
    (machine / "potluck" / "worker" / "worker.toml").write_text("threds = 1")
    assert run(["worker", "install-service", "--dry-run"]) == ExitCode.INVALID
    assert "Did you mean `threads`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("platform", "command"), [("linux", "systemctl"), ("darwin", "launchctl"), ("win32", "schtasks")]
)
def test_each_system_has_its_file_and_its_commands(machine: Path, platform: str, command: str) -> None:
    plan = plan_for(platform)
    assert {line[0] for line in (*plan.install, *plan.uninstall)} == {command}
    assert plan.content


def test_root_installs_for_another_user(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker's home is that user's, not root's, and so is what it may write into."""
    monkeypatch.delenv("POTLUCK_HOME")
    monkeypatch.setattr("getpass.getuser", lambda: "somebody else")
    plan = plan_for("linux", system=True, user="root")
    said = parsed(plan.content.decode())
    home = Path("~root").expanduser() / ".local" / "share" / "potluck"
    assert said["Environment"][0] == f"POTLUCK_HOME={home}"
    assert said["ReadWritePaths"][0].startswith(f"-{home} ")
    assert said["User"] == ["root"]
