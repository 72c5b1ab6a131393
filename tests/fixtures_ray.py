"""Ray clusters of this machine for tests, and what of them is still there afterwards."""

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
from fixtures_pool import free_port

from worker.ray.ports import Door, ask

SCRIPT = Path(__file__).parent / "ray_nodes.py"
STOP_S = 30.0


@dataclass
class RayCluster:
    folder: Path
    address: str
    nodes: list[dict[str, Any]]

    @property
    def token(self) -> Path:
        return self.folder / "token"

    def kill_node(self, number: int) -> list[psutil.Process]:
        """As when its power fails: the raylet and all that it started, engines too. What was killed."""
        raylet = psutil.Process(self.nodes[number]["raylet"])
        family = [raylet, *raylet.children(recursive=True)]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        return family

    def engines(self, number: int) -> list[psutil.Process]:
        """The processes of actors that hold an engine on a node."""
        found = []
        for child in psutil.Process(self.nodes[number]["raylet"]).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if any("ray::EngineActor" in word for word in child.cmdline()):
                    found.append(child)
        return found


@contextmanager
def ray_cluster(*, nodes: int) -> Iterator[RayCluster]:
    """A real cluster; all its processes are gone at the end. Its folder is short: Ray's sockets lie in it."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32), encoding="utf-8")
    with (folder / "errors").open("w") as errors:
        script = subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder), str(nodes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    assert script.stdin is not None
    assert script.stdout is not None
    family: list[psutil.Process] = []
    try:
        line = script.stdout.readline()
        if not line:
            pytest.fail("no Ray cluster:\n" + (folder / "errors").read_text(encoding="utf-8")[-3000:])
        family = psutil.Process(script.pid).children(recursive=True)
        yield RayCluster(folder, **json.loads(line))
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            family += psutil.Process(script.pid).children(recursive=True)
        script.stdin.close()
        try:
            script.wait(STOP_S)
        finally:
            script.kill()
            script.stdout.close()
            _, alive = psutil.wait_procs(family, 5)
            for process in alive:
                process.kill()
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def open_head() -> Iterator[tuple[str, Path]]:
    """Of a cluster that asks nobody for a token, Ray's own server that a worker asks: its address; and some token."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32), encoding="utf-8")
    found = find_spec("ray")  # not imported: it would keep what the environment says now
    assert found is not None
    assert found.origin is not None
    address = f"127.0.0.1:{free_port()}"
    head = subprocess.Popen(
        [
            str(Path(found.origin).parent / "core" / "src" / "ray" / "gcs" / "gcs_server"),
            *("--node-ip-address=127.0.0.1", f"--gcs_server_port={address.rpartition(':')[2]}"),
            *(f"--log_dir={folder}", f"--session-dir={folder}", "--session-name=open"),
        ],
        env=os.environ | {"RAY_AUTH_MODE": "disabled"},
        stderr=subprocess.DEVNULL,
    )
    try:
        ends, pause = time.monotonic() + STOP_S, threading.Event()
        while ask(address) is Door.OTHER and time.monotonic() < ends:
            pause.wait(0.02)
        yield address, token
    finally:
        head.kill()
        head.wait(STOP_S)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[RayCluster]:
    with ray_cluster(nodes=2) as cluster:
        yield cluster
