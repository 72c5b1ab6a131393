#!/usr/bin/env python3
"""Durable settlements per second, on SQLite and on PostgreSQL, by writers who each wait for the disk.

    benchmarks/settlements.py [--writers 1 4 16 64] [--seconds 2.5] [--runs 5] [--folder DIR] [--no-peer]

One settlement is one job: its hold and first assignment in one commit, its close in a later one, its receipt
in one a little later. The coordinator's own engine, tick, ledger, chains and SQL, with the settings that it
has; nothing is served and nobody is on the network (`settling.py`). SQLite in WAL mode with
synchronous=FULL; PostgreSQL as it comes, with fsync, on loopback and on the same disk. The peer is
procrastinate, a task queue on the same PostgreSQL, whose task does nothing (`task_queue.py`): a round trip is
deferred, done and recorded as done. All take turns in one run; what is printed are medians of the runs.
"""

import argparse
import asyncio
import json
import logging
import os
import sqlite3
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import stand
import structlog
from elsewhere import NotThere, environment
from fixtures_postgres import Postgres, serving
from settling import Pool, Run, new_pool

from potluck.processes import raise_on_signals

PEER: Final = "procrastinate"
PEER_VERSION: Final = "3.10.0"
PEER_NEEDS: Final = ("psycopg[binary,pool]==3.3.9",)
PEER_WRITERS: Final = (1, 16, 64)
PEER_WORKERS: Final = (1, 4)
PEER_S_MAX: Final = 60.0
MANY: Final = 64
WARM_UP_S: Final = 0.5
LASTING: Final = Path("/var/tmp")  # on a disk, where /tmp may be memory


@dataclass(slots=True)
class Results:
    """By database and writers; of the peer, round trips/s by its workers and how many wait."""

    ours: dict[tuple[str, int], list[Run]] = field(default_factory=dict)
    peer: dict[tuple[int, int], list[float]] = field(default_factory=dict)

    def rate(self, database: str, writers: int) -> float:
        return statistics.median(run.rate for run in self.ours[database, writers])

    def of_peer(self, waiting: int) -> float:
        """With as many workers as are best for it."""
        return max(statistics.median(rates) for key, rates in self.peer.items() if key[1] == waiting)


def syncs(folder: Path) -> float:
    """How often this disk can be written and synced, per second: what an ungrouped commit is bounded by."""
    with tempfile.TemporaryFile(dir=folder) as file:
        began = time.perf_counter()
        for _ in range(200):
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
        return 200 / (time.perf_counter() - began)


def round_trips(python: Path, url: str, workers: int, waiting: int, seconds: float) -> float:
    program = Path(__file__).with_name("task_queue.py")
    done = subprocess.run(
        [python, program, url, str(workers), str(waiting), str(seconds)],
        check=False, capture_output=True, text=True, timeout=PEER_S_MAX + seconds,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{PEER} failed:\n{done.stderr}")
    return float(json.loads(done.stdout)["rate"])


async def measure(
    options: argparse.Namespace, pools: Mapping[str, Pool], peer: tuple[Path, str] | None
) -> Results:
    found = Results()
    for pool in pools.values():
        await pool.run(MANY, WARM_UP_S)  # statements compiled, files grown
    for number in range(options.runs):
        print(
            f"run {number + 1} of {options.runs}: this disk syncs 4 KiB {syncs(options.folder):,.0f} times/s"
        )
        for writers in options.writers:
            for name, pool in pools.items():
                run = await pool.run(writers, options.seconds)
                found.ours.setdefault((name, writers), []).append(run)
                print(f"  {name}, {writers} writers: {run.rate:,.0f}/s", flush=True)
        for waiting in PEER_WRITERS if peer else ():
            for workers in PEER_WORKERS:
                assert peer is not None
                rate = await asyncio.to_thread(round_trips, *peer, workers, waiting, options.seconds)
                found.peer.setdefault((workers, waiting), []).append(rate)
                print(f"  {PEER}, {workers} workers, {waiting} wait: {rate:,.0f}/s", flush=True)
    for name, pool in pools.items():
        print(f"{name}: {await pool.audit()}")
    return found


def show(found: Results) -> None:
    for (name, writers), runs in found.ours.items():
        rates = [run.rate for run in runs]
        middle = sorted(runs, key=lambda run: run.rate)[len(runs) // 2]
        print(
            f"{name:>10}, {writers:>2} writers: {statistics.median(rates):>6,.0f} settlements/s"
            f" ({min(rates):,.0f} to {max(rates):,.0f}), {middle.settled / middle.commits:.1f} in a commit of"
            f" {middle.commit_s * 1e3:.1f} ms, {middle.cpu_s * 1e6:,.0f} us of CPU each"
        )
    for (workers, waiting), rates in sorted(found.peer.items()):
        print(
            f"{PEER}, {workers} workers, {waiting:>2} wait: {statistics.median(rates):>6,.0f} round trips/s"
            f" ({min(rates):,.0f} to {max(rates):,.0f})"
        )


@contextmanager
def databases(folder: Path) -> Iterator[tuple[dict[str, str], Postgres]]:
    """URLs of new ones; the server too."""
    with ExitStack() as stack:
        own = stack.enter_context(tempfile.TemporaryDirectory(dir=folder, prefix="potluck-settlements-"))
        server = stack.enter_context(serving(durable=True, parent=folder))
        name = stack.enter_context(server.database())
        yield {"SQLite": f"sqlite:///{Path(own) / 'potluck.db'}", "PostgreSQL": server.url(name)}, server


async def compare(options: argparse.Namespace, python: Path | None) -> Results:
    with databases(options.folder) as (urls, server), server.database() as tasks:
        async with new_pool(urls["SQLite"]) as sqlite, new_pool(urls["PostgreSQL"]) as postgresql:
            pools = {"SQLite": sqlite, "PostgreSQL": postgresql}
            return await measure(options, pools, (python, server.url(tasks)) if python else None)


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    lasting = LASTING if LASTING.is_dir() else Path.cwd()
    parser.add_argument("--folder", type=Path, default=lasting, help="on a real disk, not in memory")
    parser.add_argument("--writers", type=int, nargs="+", default=[1, 4, 16, MANY])
    parser.add_argument("--seconds", type=float, default=2.5)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--no-peer", action="store_true", help=f"without {PEER}")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    raise_on_signals()
    print(stand.machine("sqlalchemy", "aiosqlite", "asyncpg"))
    print(f"SQLite {sqlite3.sqlite_version}; median of {options.runs} runs of {options.seconds} s")
    try:
        python = None if options.no_peer else environment(PEER, PEER_VERSION, *PEER_NEEDS) / "python"
    except NotThere as error:
        print(error)
        python = None
    found = asyncio.run(compare(options, python))
    show(found)
    print(f"load at the end {os.getloadavg()[0]:.1f}")
    most = max(options.writers)
    for name in ("SQLite", "PostgreSQL"):
        stand.figure(name, found.rate(name, most), "settlements/s", 0)
    if found.peer:
        stand.figure(
            f"against {PEER}", found.rate("PostgreSQL", most) / found.of_peer(max(PEER_WRITERS)), "x"
        )


if __name__ == "__main__":
    main()
