"""What benchmarks share: the machine in two lines, figures, and a real pool that is gone afterwards."""

import asyncio
import importlib.metadata
import math
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / "tests")]

from fixtures_pool import RealPool

from potluck.home import model_cache
from potluck.processes import ignore_signals, raise_on_signals

EMULATOR = "emulator-small"
SMALL = "smollm2-135m-instruct"
START_S_MAX = 300.0  # a model may have to be fetched and converted
END_S_MAX = 10.0


def machine(*packages: str) -> str:
    """Processor, cores, load now, and the versions of what matters."""
    names = (line for line in _cpuinfo() if line.startswith("model name"))
    processor = next(names, platform.processor() or platform.machine()).rpartition(": ")[2].strip()
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    versions = " ".join(f"{name} {importlib.metadata.version(name)}" for name in ("potluck", *packages))
    return f"{processor}, {os.cpu_count()} cores{load}\nPython {platform.python_version()}, {versions}"


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []  # not Linux


def figure(name: str, value: float, unit: str = "", digits: int = 2) -> None:
    """Prints one of the numbers that a benchmark is run for, as `scripts/measure` reads it back."""
    print(f"= {name}: {value:,.{digits}f} {unit}".rstrip(), flush=True)


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def quantile(values: Sequence[float], q: float) -> float:
    """The smallest that as many as q of them do not exceed (nearest rank)."""
    return sorted(values)[max(0, math.ceil(len(values) * q) - 1)]


def run(main: Coroutine[Any, Any, None], loop: Callable[[], asyncio.AbstractEventLoop] | None = None) -> None:
    """asyncio.run that SIGTERM ends as Ctrl-C does: what a handler raises would end one task and no more."""

    async def cancellable() -> None:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        await main

    try:
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(cancellable())
    except asyncio.CancelledError:
        raise SystemExit(128 + signal.SIGTERM) from None


def cpu_seconds(*pids: int) -> float:
    """User and system time so far, of those of these processes that are still there."""
    spent = 0.0
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            times = psutil.Process(pid).cpu_times()
            spent += times.user + times.system
    return spent


def resident_bytes(*pids: int) -> int:
    """As `cpu_seconds`."""
    held = 0
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            held += psutil.Process(pid).memory_info().rss
    return held


def family(pid: int) -> list[int]:
    """A process and all that it has started."""
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


@contextmanager
def apart(
    command: Sequence[str], environment: Mapping[str, str], log: Path
) -> "Iterator[subprocess.Popen[bytes]]":
    """Another program; whatever happens, it and all that it has started are gone afterwards."""
    raise_on_signals()
    with log.open("wb") as file:
        popen = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        yield popen
    finally:
        ignore_signals()
        popen.terminate()
        with suppress(subprocess.TimeoutExpired):
            popen.wait(END_S_MAX)
        with suppress(ProcessLookupError):
            os.killpg(popen.pid, signal.SIGKILL)  # what it left
        popen.wait(END_S_MAX)


@contextmanager
def running_pool(**variables: str) -> Iterator[RealPool]:
    """A coordinator of its own, without workers; whatever happens, none of its processes is left."""
    raise_on_signals()
    with tempfile.TemporaryDirectory(prefix="potluck-benchmark-") as name:
        folder = Path(name)
        pool = RealPool(folder, start_s=START_S_MAX)
        pool.variables |= {
            "POTLUCK_REQUESTS_PER_MINUTE": "1000000",
            "POTLUCK_MODEL_CACHE": str(model_cache()),
            "POTLUCK_MACHINE_DIR": str(folder / "machine"),
            **variables,
        }
        try:
            pool.start_coordinator()
            yield pool
        finally:
            ignore_signals()
            processes = [*pool.workers.values(), *([pool.coordinator] if pool.coordinator else [])]
            try:
                pool.close()
            finally:
                for process in processes:
                    process.popen.kill()  # nothing happens to those that have ended
                    process.popen.wait(END_S_MAX)
