"""Processes of this same installation, started and ended by their own handles, with their logs in files."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potluck.errors import PotluckError
from potluck.home import write_secret

TAIL_BYTES_MAX = 4_000
TAIL_LINES_MAX = 25
STOP_S_MAX = 15.0
KILL_S_MAX = 5.0


class ProcessFailed(PotluckError):  # noqa: N818 -- named for what happened
    """A process ended, or did not do what it is for; `tail` is the end of its log."""

    default_code = "process_failed"

    def __init__(self, message: str, tail: str = "") -> None:
        super().__init__(message, extra={"log": tail} if tail else None)
        self.tail = tail


@dataclass(slots=True)
class Child:
    """One running process."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @classmethod
    def start(cls, name: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> "Child":
        """`potluck ARGUMENTS` with this interpreter. It is out of reach of the terminal's Ctrl-C: the one who
        started it ends it, in the right order.
        """
        command = [sys.executable, "-m", "potluck", *arguments]
        with log.open("ab") as file:
            process = subprocess.Popen(
                command, env=dict(environment), stdin=subprocess.DEVNULL, stdout=file, stderr=file, **apart()
            )
        return cls(name, process, log)

    def check(self) -> None:
        """Raises ProcessFailed if it has ended."""
        code = self.process.poll()
        if code is not None:
            raise ProcessFailed(f"{self.name} ended by itself with exit code {code}.", self.tail())

    def finish(self, timeout_s: float) -> None:
        """Wait until it is done. Raises ProcessFailed unless it ends well and in time."""
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise ProcessFailed(f"{self.name} took longer than {timeout_s:g} s.", self.tail()) from None
        if code != 0:
            raise ProcessFailed(f"{self.name} failed with exit code {code}.", self.tail())

    def ask_to_stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()  # on Windows this kills; engines end with their daemon all the same

    def stopped(self, timeout_s: float = STOP_S_MAX) -> None:
        """Wait for its end, and kill it if it takes too long."""
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(KILL_S_MAX)

    def tail(self) -> str:
        """The last lines of its log."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - TAIL_BYTES_MAX))
                text = file.read().decode(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-TAIL_LINES_MAX:])


def apart() -> dict[str, Any]:
    """How to start a process that gets no Ctrl-C of this terminal."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody has just now. Another process may be faster: be ready for that."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


def born(pid: int) -> float | None:
    """When the process with this id was started, or None if there is none: an id alone is given out again."""
    import psutil

    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def write_pids(path: Path, children: Sequence[Child], **more: Any) -> None:
    """Remember what runs, for a later command that ends it."""
    processes = [
        {"name": child.name, "pid": child.process.pid, "born": born(child.process.pid)} for child in children
    ]
    write_secret(path, json.dumps({"processes": processes, **more}, indent=2).encode())


def end_pids(processes: Sequence[Mapping[str, Any]]) -> list[str]:
    """End each process that is still the one that was remembered, in this order; their names."""
    import psutil

    ended = []
    for entry in processes:
        pid = int(entry["pid"])
        if entry.get("born") is None or born(pid) != entry["born"]:
            continue
        try:
            process = psutil.Process(pid)
            process.terminate()
            try:
                process.wait(STOP_S_MAX)
            except psutil.TimeoutExpired:
                process.kill()
                process.wait(KILL_S_MAX)
        except psutil.NoSuchProcess:
            continue
        ended.append(str(entry["name"]))
    return ended


def child_environment(**more: str) -> dict[str, str]:
    """What a child gets: the caller's environment without the caller's own settings of Potluck."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("POTLUCK_")}
    return {**kept, "PYTHONUNBUFFERED": "1", **more}


class Terminated(Exception):  # noqa: N818 -- named for what happened
    """The process was told to end (SIGTERM, SIGHUP)."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.exit_code = 128 + number


def raise_on_signals() -> None:
    """Let SIGTERM and SIGHUP unwind the stack like Ctrl-C does, so that everything is put away."""

    def handler(number: int, _frame: object) -> None:
        raise Terminated(number)

    signal.signal(signal.SIGTERM, handler)
    if sys.platform != "win32":
        signal.signal(signal.SIGHUP, handler)


def ignore_signals() -> None:
    """While everything is put away a second Ctrl-C must not leave half of it behind."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform != "win32":
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
