#!/usr/bin/env python3
"""What Potluck takes when it does nothing: how fast the command answers, and the memory of idle processes.

    benchmarks/footprint.py [--runs 10] [--seconds 5]

`potluck --help` is run several times and timed from outside. A coordinator is started, a worker joins it and
is started as its owner would, with no model named: it then offers the pool's default model, which is loaded
when somebody first asks, so it is connected and idle with no engine process. The memory is the resident set
(RSS), shared libraries included, looked at once a second; the largest is printed. The emulator's
process, the smallest engine, is then shown for comparison. Exit code 1 if a target is missed.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil
import stand
from fixtures_pool import RealPool

HELP_MS_MAX = 300
WORKER_MB_MAX = 150
MB = 1e6  # as the target is meant; 150 MB are 143 MiB
HELP_S_MAX = 30


def help_ms(runs: int) -> list[float]:
    command = Path(sys.executable).with_name("potluck")
    found = []
    for _ in range(runs):
        began = time.perf_counter()
        subprocess.run([command, "--help"], check=True, capture_output=True, timeout=HELP_S_MAX)
        found.append((time.perf_counter() - began) * 1e3)
    return found


def resident_mb(pid: int, seconds: int) -> float:
    """The most that is seen in so many looks, one a second."""
    process, seen = psutil.Process(pid), []
    for _ in range(seconds):
        time.sleep(1)
        seen.append(process.memory_info().rss / MB)
    return max(seen)


def idle(pool: RealPool, seconds: int) -> float:
    """Prints the memory of both; returns the worker's."""
    pool.join("rig", "bob")
    worker = pool.start_worker("rig", "--threads", "1", ready=False)
    pool.until(lambda: pool.view("rig").get("state") == "sharing", "the worker to be connected", worker)
    assert pool.coordinator is not None
    view = pool.view("rig")
    models = ", ".join(f"{model['name']} {model['state']}" for model in view["models"]) or "no model"
    memory = resident_mb(worker.popen.pid, seconds)
    children = psutil.Process(worker.popen.pid).children(recursive=True)
    print(f"worker daemon, {view['state']}, {models}, {len(children)} engine processes: {memory:.0f} MB")
    if children:
        raise SystemExit("an engine was started although nobody asked for anything")
    print(f"coordinator with one worker, idle: {resident_mb(pool.coordinator.popen.pid, seconds):.0f} MB")
    emulating = pool.add_emulator("rig2", "bob")
    for child in psutil.Process(emulating.popen.pid).children():
        print(f"for comparison, an emulator's engine process: {child.memory_info().rss / MB:.0f} MB")
    return memory


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=10, help="of potluck --help")
    parser.add_argument("--seconds", type=int, default=5, help="how long memory is watched")
    wanted = parser.parse_args()
    print(stand.machine("typer", "grpcio", "fastapi"))
    times = help_ms(wanted.runs)
    median = statistics.median(times)
    print(
        f"potluck --help: median {median:.0f} ms of {len(times)} runs ({min(times):.0f} to {max(times):.0f}),"
        f" target below {HELP_MS_MAX} ms"
    )
    with stand.running_pool() as pool:
        memory = idle(pool, wanted.seconds)
    stand.figure("potluck --help", median, "ms", 0)
    stand.figure("idle worker", memory, "MB", 0)
    print(f"target of the worker: at most {WORKER_MB_MAX} MB")
    missed = median >= HELP_MS_MAX or memory > WORKER_MB_MAX
    print("a target is missed" if missed else "both targets are met")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
