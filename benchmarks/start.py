#!/usr/bin/env python3
"""How long it takes from nothing to a pool that works, and again, and a worker from its start to its pool.

    benchmarks/start.py [--runs 5] [--folder DIR] [--no-demo]

`scripts/demo` in a fresh clone of this repository as it is committed, with an empty home and empty caches of
packages, so that everything is fetched: packages, a language model. Then the same once more. Both count only
if it says that all of it worked. What the machine's own settings say about where packages come from is kept.

A worker's start is timed from outside: from the moment when `potluck worker start` is entered, on a pool that
runs, until the pool shows it as connected and sharing; no model is loaded before somebody asks. Some minutes,
some gigabytes, and neither a process nor a file is left.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import psutil
import stand

from potluck.processes import raise_on_signals

ROOT: Final = Path(__file__).resolve().parent.parent
WORKED: Final = "All of it worked"
DEMO_S_MAX: Final = 1_200
END_S_MAX: Final = 10.0
LASTING: Final = Path("/var/tmp")  # on a disk, where /tmp may be memory


def fresh(home: Path) -> dict[str, str]:
    """The environment of somebody new on this machine: nothing of Potluck, and nothing in any cache."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("POTLUCK_", "VIRTUAL_"))
    }
    for name in ("PYTHONPATH", "PIP_NO_CACHE_DIR"):
        kept.pop(name, None)
    settings = [Path.home() / ".config/pip/pip.conf", Path.home() / ".pip/pip.conf"]
    for path in settings:  # a mirror that the home names is the machine's way to packages
        if path.is_file():
            kept.setdefault("PIP_CONFIG_FILE", str(path))
    named = {
        "HOME": "",
        "XDG_CACHE_HOME": "cache",
        "XDG_CONFIG_HOME": "config",
        "XDG_DATA_HOME": "data",
        "XDG_STATE_HOME": "state",
        "PIP_CACHE_DIR": "cache/pip",
        "UV_CACHE_DIR": "cache/uv",
        "HF_HOME": "cache/huggingface",
        "TMPDIR": "tmp",
    }
    (home / "tmp").mkdir(parents=True)
    python = Path(sys.base_prefix) / "bin" / "python3"  # what a home's own settings may have chosen
    return kept | {name: str(home / place) for name, place in named.items()} | {"PYTHON": str(python)}


def demo(clone: Path, environment: dict[str, str]) -> float:
    """Seconds. Exits with what it printed last if not all of it worked."""
    began = time.perf_counter()
    with subprocess.Popen(
        ["scripts/demo"],
        cwd=clone,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as popen:
        assert popen.stdout is not None
        lines = []
        try:
            for line in popen.stdout:
                lines.append(line)
                if re.match(r"Making|Installing|Installed|== |All of it", line):
                    print(f"  {time.perf_counter() - began:6.1f} s  {line.rstrip()}", flush=True)
            status = popen.wait(DEMO_S_MAX)
        except BaseException:
            end(popen.pid)
            raise
    took = time.perf_counter() - began
    if status or not any(WORKED in line for line in lines):
        raise SystemExit(f"the demo ended with {status}:\n" + "".join(lines[-30:]))
    return took


def end(pid: int) -> None:
    """The process and all that it started."""
    process = psutil.Process(pid)
    family = [process, *process.children(recursive=True)]
    process.terminate()
    _, left = psutil.wait_procs(family, END_S_MAX)
    for one in left:
        one.kill()


def demos(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder, prefix="potluck-start-") as name:
        clone = Path(name) / "potluck"
        subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(clone)], check=True)
        environment = fresh(Path(name) / "home")
        taken = {}
        for which in ("first", "again"):
            print(f"scripts/demo, {which}:", flush=True)
            taken[which] = demo(clone, environment)
            print(f"  it said `{WORKED}` after {taken[which]:.1f} s")
        fetched = sum(f.stat().st_size for f in Path(name).rglob("*") if f.is_file() and not f.is_symlink())
        print(f"{fetched / 1e9:.1f} GB on the disk afterwards, which are removed")
        if left := [p.info for p in psutil.process_iter(["pid", "cwd", "exe"]) if name in str(p.info)]:
            raise SystemExit(f"the demo left processes: {left}")
    for which, seconds in taken.items():
        stand.figure(f"demo, {which}", seconds, "s", 1)


def worker_starts(runs: int) -> list[float]:
    """Seconds of each."""
    found = []
    with stand.running_pool() as pool:
        pool.join("rig", "bob")
        for number in range(runs):
            began = time.perf_counter()
            worker = pool.start_worker("rig", "--threads", "1", ready=False)
            pool.until(
                lambda: pool.view("rig").get("state") == "sharing", "the worker to be connected", worker
            )
            found.append(time.perf_counter() - began)
            worker.stop()
            pool.until(lambda: pool.view("rig").get("state") != "sharing", "the pool to see it gone")
            print(f"  worker start {number + 1}: {found[-1]:.2f} s", flush=True)
    return found


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--runs", type=int, default=5, help="of the worker's start")
    parser.add_argument("--folder", type=Path, default=LASTING if LASTING.is_dir() else Path.cwd())
    parser.add_argument("--no-demo", action="store_true")
    asked = parser.parse_args()
    raise_on_signals()
    print(stand.machine("typer", "grpcio"))
    if not asked.no_demo:
        demos(asked.folder)
    seconds = worker_starts(asked.runs)
    print(f"worker start: {len(seconds)} runs, {min(seconds):.2f} to {max(seconds):.2f} s")
    stand.figure("worker start to connected", statistics.median(seconds), "s")


if __name__ == "__main__":
    main()
