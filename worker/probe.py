"""What this machine has: processor, memory, disk and cards. Nothing heavy is imported for it.

NVIDIA cards are seen through NVML, which needs no CUDA. Apple's are told from the system; AMD's are seen by
the engines that use them.
"""

import contextlib
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import psutil

from potluck.v1 import session_pb2
from worker.cores import usable_cores

GPUS_MAX: Final = 64
SYSCTL_S_MAX: Final = 5.0


def probe(disk: Path) -> session_pb2.Hardware:
    """The machine as it is now; `disk` is where models are kept. Blocking for some milliseconds."""
    return session_pb2.Hardware(
        system=platform.system(),
        cpu=_cpu(),
        cores=usable_cores(),
        memory_bytes=psutil.virtual_memory().total,
        disk_free_bytes=disk_free_bytes(disk),
        gpus=_gpus(),
    )


def disk_free_bytes(path: Path) -> int:
    """Free bytes where the folder is or will be."""
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return 0


def memory_for_models(hardware: session_pb2.Hardware) -> dict[str, int]:
    """Bytes free for models: of the machine's `memory`, and on the largest card (`vram`) if there is one."""
    cards = [gpu.memory_bytes for gpu in hardware.gpus if gpu.backend == "cuda"]
    free = {"memory": psutil.virtual_memory().available}
    return free | ({"vram": max(cards)} if cards else {})


def _cpu() -> str:
    if sys.platform == "linux":
        with (
            contextlib.suppress(OSError),
            Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file,
        ):
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()[:200]
    if sys.platform == "darwin":
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=SYSCTL_S_MAX, check=True)
            return done.stdout.strip()[:200]
    return platform.processor() or platform.machine()


def _gpus() -> list[session_pb2.Gpu]:
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return [session_pb2.Gpu(name="Apple GPU", memory_bytes=psutil.virtual_memory().total, backend="mps")]
    return _nvidia()


def _nvidia() -> list[session_pb2.Gpu]:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver: no cards
        return []
    try:
        count = min(pynvml.nvmlDeviceGetCount(), GPUS_MAX)
        return [_card(pynvml, pynvml.nvmlDeviceGetHandleByIndex(index)) for index in range(count)]
    except pynvml.NVMLError:  # a card that fell off the bus must not keep the worker from starting
        return []
    finally:
        pynvml.nvmlShutdown()


def _card(pynvml: Any, handle: Any) -> session_pb2.Gpu:
    name = pynvml.nvmlDeviceGetName(handle)
    return session_pb2.Gpu(
        name=(name.decode(errors="replace") if isinstance(name, bytes) else str(name))[:200],
        memory_bytes=int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
        backend="cuda",
    )
