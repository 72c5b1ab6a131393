"""A real pool on loopback: coordinator and workers as processes, as their owners would start them."""

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

START_S = 90.0
UNCONDITIONALLY = {  # workers share whatever else the machine that runs the test is used for
    "POTLUCK_SHARING_ON_BATTERY": "true",
    "POTLUCK_IDLE_GPU_ALONE": "false",
    "POTLUCK_IDLE_FULLSCREEN": "false",
    "POTLUCK_CAPS_GPU_TEMPERATURE_C": "0",
}
COMMAND = [sys.executable, "-m", "potluck"]


def free_port() -> int:
    """One that no outbound connection is given meanwhile: they come from 32768 up (ip(7), ip_local_port_range)."""
    while True:
        port = random.randrange(12_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@dataclass
class Process:
    """A child whose output is read as it comes; `wait_for` waits for a line."""

    name: str
    popen: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    _news: threading.Condition = field(default_factory=threading.Condition)

    @classmethod
    def start(cls, name: str, arguments: list[str], home: Path, **variables: str) -> "Process":
        unbuffered = {"POTLUCK_HOME": str(home), "PYTHONUNBUFFERED": "1"}
        environment = {**os.environ, **UNCONDITIONALLY, **unbuffered, **variables}
        popen = subprocess.Popen(
            [*COMMAND, *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
        )
        process = cls(name, popen)
        threading.Thread(target=process._read, daemon=True).start()
        return process

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            with self._news:
                self.lines.append(line)
                self._news.notify_all()
        self.popen.stdout.close()
        with self._news:
            self._news.notify_all()

    def wait_for(self, pattern: str, timeout_s: float = START_S) -> str:
        """The first line that matches; fails with all that was printed if the process ends or time is over."""
        found: list[str] = []

        def there() -> bool:
            found.extend(line for line in self.lines if re.search(pattern, line))
            return bool(found) or self.popen.poll() is not None

        with self._news:
            self._news.wait_for(there, timeout_s)
        if not found:
            pytest.fail(f"{self.name} never printed {pattern!r}:\n" + "".join(self.lines[-60:]))
        return found[0]

    def kill(self) -> None:
        """As kill -9."""
        self.popen.kill()
        self.popen.wait(10)

    def stop(self, timeout_s: float = 30.0) -> int:
        """As a service manager would: SIGTERM, then wait."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
            try:
                self.popen.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait(10)
                pytest.fail(f"{self.name} did not stop within {timeout_s} s:\n" + "".join(self.lines[-60:]))
        assert self.popen.returncode is not None
        return self.popen.returncode


@dataclass
class Member:
    name: str
    key: str
    pool: "RealPool"

    def api(self, method: str, path: str, **more: Any) -> httpx2.Response:
        return self.pool.request(method, path, self.key, **more)

    def openai(self, **more: Any) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.pool.url}/v1", api_key=self.key, max_retries=0, timeout=120, **more
        )

    def balance(self) -> dict[str, Any]:
        body: dict[str, Any] = self.api("GET", "/pool/v1/balance").raise_for_status().json()
        return body


@dataclass
class RealPool:
    folder: Path
    http_port: int = field(default_factory=free_port)
    grpc_port: int = field(default_factory=free_port)
    variables: dict[str, str] = field(default_factory=dict)
    own_variables: dict[str, dict[str, str]] = field(default_factory=dict)  # of one process, by its name
    start_s: float = START_S  # how long a state of the world is waited for
    coordinator: Process | None = None
    workers: dict[str, Process] = field(default_factory=dict)
    members: dict[str, Member] = field(default_factory=dict)
    worker_flags: dict[str, list[str]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def admin(self) -> Member:
        key = (self.folder / "coordinator" / "admin.key").read_text(encoding="utf-8").strip()
        return Member("admin", key, self)

    def request(self, method: str, path: str, key: str, **more: Any) -> httpx2.Response:
        headers = {"Authorization": f"Bearer {key}", **more.pop("headers", {})}
        return httpx2.request(
            method, self.url + path, headers=headers, timeout=60, verify=False, **more
        )  # plain HTTP: reading all the trusted certificates would cost 50 ms each time

    @property
    def start_arguments(self) -> list[str]:
        addresses = ["--http", f"127.0.0.1:{self.http_port}", "--grpc", f"127.0.0.1:{self.grpc_port}"]
        return ["coordinator", "start", *addresses, "--emulator"]

    def _variables(self, name: str) -> dict[str, str]:
        return self.variables | self.own_variables.get(name, {})

    def start_coordinator(self, *more: str) -> Process:
        arguments = [*self.start_arguments, *more]
        self.coordinator = Process.start(
            "coordinator", arguments, self.folder, **self._variables("coordinator")
        )
        self.coordinator.wait_for("is open at")
        return self.coordinator

    def member(self, name: str, credit_line: int | None = None) -> Member:
        if name not in self.members:
            body: dict[str, Any] = {"name": name}
            if credit_line is not None:
                body["credit_line"] = credit_line
            answer = self.admin.api("POST", "/pool/v1/members", json=body).raise_for_status().json()
            self.members[name] = Member(name, answer["key"], self)
        return self.members[name]

    def join(self, name: str, owner: str) -> Path:
        """Enrol a worker of this member; its home."""
        token = (
            self.member(owner).api("POST", "/pool/v1/join-tokens", json={}).raise_for_status().json()["token"]
        )
        home = self.folder / name
        home.mkdir(exist_ok=True)
        (home / "token").write_text(token, encoding="utf-8")
        arguments = ["worker", "join", self.url, "--token", f"file:{home / 'token'}", "--name", name]
        done = Process.start(f"join {name}", arguments, home)
        assert done.popen.wait(60) == 0, "".join(done.lines)
        return home

    def start_worker(self, name: str, *flags: str, ready: bool = True) -> Process:
        """Start a joined worker and wait until the pool sees its model ready."""
        self.worker_flags[name] = list(flags) or self.worker_flags.get(name, [])
        arguments = ["worker", "start", *self.worker_flags[name]]
        process = Process.start(name, arguments, self.folder / name, **self._variables(name))
        self.workers[name] = process
        if ready:
            self.until(lambda: self.ready(name), f"{name} to be ready", process)
        return process

    def add_worker(self, name: str, owner: str, *flags: str) -> Process:
        self.join(name, owner)
        return self.start_worker(name, *flags)

    def add_emulator(self, name: str, owner: str, *, slots: int = 16, **options: object) -> Process:
        flags = ["--engine", "emulator", "--models", "emulator-small", "--slots", str(slots)]
        for option, value in options.items():
            flags += ["--engine-option", f"{option}={value}"]
        return self.add_worker(name, owner, *flags)

    def view(self, name: str) -> dict[str, Any]:
        """The worker as the pool shows it."""
        rows = self.admin.api("GET", "/pool/v1/workers").raise_for_status().json()
        return next((row for row in rows if row["name"] == name), {})

    def ready(self, name: str) -> bool:
        view = self.view(name)
        return view.get("state") == "sharing" and any(m["state"] == "ready" for m in view["models"])

    def until(self, condition: Callable[[], bool], what: str, process: Process | None = None) -> None:
        """Wait for a state of the world that no line announces; fails after `start_s`."""
        ends = time.monotonic() + self.start_s
        pause = threading.Event()
        while not condition():
            alive = process is None or process.popen.poll() is None
            if time.monotonic() > ends or not alive:
                logs = [
                    *(self.coordinator.lines[-30:] if self.coordinator else []),
                    *(process.lines[-60:] if process else []),
                ]
                pytest.fail(f"waited in vain for {what}:\n" + "".join(logs))
            pause.wait(0.02)

    def job(self, job_id: str) -> dict[str, Any]:
        body: dict[str, Any] = self.admin.api("GET", f"/pool/v1/jobs/{job_id}").raise_for_status().json()
        return body

    def ledger_sum(self) -> int:
        total: int = self.admin.api("GET", "/pool/v1/status").raise_for_status().json()["ledger_sum"]
        return total

    def close(self) -> None:
        for process in [*self.workers.values(), *([self.coordinator] if self.coordinator else [])]:
            process.stop()


@contextmanager
def opened(folder: Path) -> Iterator[RealPool]:
    """A coordinator with the emulator's model in its catalogue, no workers yet."""
    pool = RealPool(folder)
    pool.variables |= {"POTLUCK_REQUESTS_PER_MINUTE": "100000", "POTLUCK_WAIT_FOR_WORKER_S": "8"}
    pool.start_coordinator()
    try:
        yield pool
    finally:
        pool.close()


@pytest.fixture
def real_pool(tmp_path: Path) -> Iterator[RealPool]:
    """For tests that kill, starve or freeze parts of it."""
    with opened(tmp_path) as pool:
        yield pool


@pytest.fixture(scope="module")
def calm_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealPool]:
    """With bob's worker `rig`, for all tests of a module that leave it as it is; each asks as a member of its own."""
    with opened(tmp_path_factory.mktemp("pool")) as pool:
        pool.add_emulator("rig", "bob", tpot_ms=10)
        yield pool
