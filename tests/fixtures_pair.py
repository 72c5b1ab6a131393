"""Two coordinators that share home and database, of which one leads and one waits."""

import contextlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
from fixtures_pool import Process, RealPool, free_port
from fixtures_postgres import Postgres


class Pair:
    """A pool whose coordinators, by name, share home and database."""

    def __init__(self, pool: RealPool) -> None:
        self.pool = pool
        self.ports = {"a": (pool.http_port, pool.grpc_port), "b": (free_port(), free_port())}
        self.processes: dict[str, Process] = {}

    def end(self) -> None:
        for worker in self.pool.workers.values():
            worker.stop()
        for process in self.processes.values():
            process.kill()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name][0]}"

    def lead(self, name: str) -> None:
        """From now on the pool is asked there."""
        self.pool.http_port, self.pool.grpc_port = self.ports[name]
        self.pool.coordinator = self.processes[name]

    def start(self, name: str, line: str) -> Process:
        http, grpc = self.ports[name]
        arguments = ["--http", f"127.0.0.1:{http}", "--grpc", f"127.0.0.1:{grpc}", "--emulator"]
        process = Process.start(
            name, ["coordinator", "start", *arguments], self.pool.folder, **self.pool.variables
        )
        self.processes[name] = process
        process.wait_for(line)
        return process

    def get(self, name: str, path: str) -> httpx2.Response:
        return httpx2.get(self.url(name) + path, timeout=60, verify=False)

    def serves(self, name: str) -> bool:
        with contextlib.suppress(httpx2.HTTPError):
            return self.get(name, "/readyz").status_code == 200
        return False

    def taken_over(self, name: str) -> float:
        """Seconds until it serves, which `benchmarks/takeover.py` prints and nobody asserts."""
        began = time.monotonic()
        self.pool.until(lambda: self.serves(name), f"{name} to serve", self.processes[name])
        self.lead(name)
        return time.monotonic() - began


@contextmanager
def paired(postgres: Postgres, folder: Path) -> Iterator[Pair]:
    """`a` leads, with the worker `rig`; `b` waits."""
    with postgres.database() as database, contextlib.ExitStack() as stack:
        pool = RealPool(folder)
        pool.variables |= {**postgres.variables(database), "POTLUCK_REQUESTS_PER_MINUTE": "100000"}
        made = Pair(pool)
        stack.callback(made.end)
        made.start("a", "is open at")
        made.lead("a")
        made.start("b", "Standing by")
        pool.add_emulator("rig", "owner", tpot_ms=40)
        yield made
