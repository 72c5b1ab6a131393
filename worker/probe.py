"""What this machine has and does: processor, memory, disk, battery and cards. Nothing heavy is imported.

NVIDIA cards are seen through NVML. Whether torch can use them, and those of AMD and Apple, torch itself says
in another process (worker.libraries), where something hints at a card.
"""

import contextlib
import platform
import shutil
import sys
import time
from pathlib import Path
from typing import Final

import psutil

from potluck.v1 import session_pb2
from worker import cgroup, processor
from worker.cores import usable_cores
from worker.libraries import Surveys, installed
from worker.machine import Battery, Card, Library, Machine
from worker.nvidia import Nvidia

AMD_DEVICE: Final = Path("/dev/kfd")  # the kernel's door to cards that compute with ROCm
PERCENT_MAX: Final = 100


class Probe:
    """Of one machine; `disk` is where models are kept, `folder` where what torch said is remembered."""

    def __init__(self, disk: Path, folder: Path, *, nvidia: Nvidia | None = None) -> None:
        self._disk = disk
        self._nvidia = Nvidia() if nvidia is None else nvidia
        self._seen = self._nvidia.cards()
        self._surveys = Surveys(folder, driver=self._seen[0].driver if self._seen else "")
        psutil.cpu_percent(None)  # the first answer is 0; later ones are since the one before

    def machine(self, *, thorough: bool = False) -> Machine:
        """As it is now. Blocking for milliseconds; for seconds if `thorough` or if torch must be asked."""
        limits, memory = cgroup.limits(), psutil.virtual_memory()
        total = min(memory.total, limits.memory_bytes or memory.total)
        free = min(memory.available, limits.memory_free_bytes if limits.memory_bytes else memory.available)
        name, features = processor.cpu()
        versions = installed()
        surveyed = None if thorough else self._surveys.remembered(time.time())
        if thorough or (surveyed is None and "torch" in versions and self._hint(versions["torch"])):
            surveyed = self._surveys.ask(time.time())
        plain = {module: Library(version=version) for module, version in versions.items()}
        torch = None if surveyed is None else surveyed.torch
        return Machine(
            system=platform.system(),
            release=platform.release(),
            architecture=platform.machine(),
            python=platform.python_version(),
            cpu=name,
            cpu_features=features,
            cores=usable_cores(),
            cores_all=psutil.cpu_count() or 1,
            memory_bytes=total,
            memory_all_bytes=memory.total,
            memory_free_bytes=free,
            disk_free_bytes=disk_free_bytes(self._disk),
            battery=_battery(),
            nvml=self._nvidia.why,
            driver_cuda=self._nvidia.driver_cuda,
            cards=self._nvidia.cards() or (() if torch is None else torch.cards),
            libraries=plain if surveyed is None else surveyed.libraries,
            torch=torch,
        )

    def load(self) -> session_pb2.MachineLoad:
        """The machine at this moment. Blocking for about a millisecond, or as long as a driver hangs."""
        limits, battery = cgroup.limits(), _battery()
        free = psutil.virtual_memory().available
        load = session_pb2.MachineLoad(
            cpu_percent=min(PERCENT_MAX, round(psutil.cpu_percent(None))),
            memory_free_bytes=min(free, limits.memory_free_bytes) if limits.memory_bytes else free,
            disk_free_bytes=disk_free_bytes(self._disk),
            on_battery=battery is not None and not battery.plugged,
        )
        for card, before in zip(self._nvidia.cards(), self._seen, strict=True):
            if not before.fault:  # in the order of the cards that were announced
                load.gpus.append(_card_load(card))
        return load

    def close(self) -> None:
        self._nvidia.close()

    def _hint(self, torch: str) -> bool:
        """Whether there may be a card that only torch can tell of, or that it may not be able to use."""
        apple = sys.platform == "darwin" and platform.machine() == "arm64"
        return bool(self._seen) or apple or AMD_DEVICE.exists() or "rocm" in torch


def hardware_of(machine: Machine) -> session_pb2.Hardware:
    """What the coordinator is told of it; a card that cannot be asked is left out."""
    hardware = session_pb2.Hardware(
        system=machine.system,
        cpu=machine.cpu,
        cores=machine.cores,
        memory_bytes=machine.memory_bytes,
        disk_free_bytes=machine.disk_free_bytes,
        cpu_features=machine.cpu_features,
        battery=machine.battery is not None,
        nodes=1,
    )
    for card in machine.cards:
        if not card.fault:
            hardware.gpus.add(
                name=card.name,
                memory_bytes=card.memory_bytes,
                backend=card.backend,
                driver=card.driver,
                capability=card.capability,
            )
    return hardware


def disk_free_bytes(path: Path) -> int:
    """Free bytes where the folder is or will be."""
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return 0


def _card_load(card: Card) -> session_pb2.GpuLoad:
    """All zero for one that has stopped to answer since."""
    return session_pb2.GpuLoad(
        memory_used_bytes=card.memory_used_bytes,
        utilisation_percent=min(PERCENT_MAX, max(0, card.utilisation_percent)),
        temperature_c=max(0, card.temperature_c),
        power_w=max(0, card.power_w),
    )


def _battery() -> Battery | None:
    with contextlib.suppress(OSError, ValueError, AttributeError, NotImplementedError):
        found = psutil.sensors_battery()
        if found is not None:
            percent = min(PERCENT_MAX, max(0, round(found.percent)))
            return Battery(percent=percent, plugged=found.power_plugged is not False)  # None: nobody knows
    return None
