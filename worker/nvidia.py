"""NVIDIA cards through NVML, which needs no CUDA. Its handles stay open: a look costs little.

Each card is asked alone: one that fell off the bus keeps its place and says so, and the others go on. What
a card does not support (power on many laptops) is 0.
"""

import contextlib
from collections.abc import Callable
from typing import Any, Final

from worker.machine import Card

GPUS_MAX: Final = 64
PROCESSES_MAX: Final = 256
NAME_CHARS_MAX: Final = 200


class Nvidia:
    """`why`: in words, why there are no cards to ask; empty if NVML answers."""

    def __init__(self, nvml: Any = None) -> None:
        self._nvml = nvml = nvml or _pynvml()
        self._handles: list[Any] = []
        self.why = ""
        self.driver_cuda = ""
        self._driver = ""
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            self.why = str(error)
            return
        self._driver = _text(self._ask(nvml.nvmlSystemGetDriverVersion, default=""))
        cuda = self._ask(nvml.nvmlSystemGetCudaDriverVersion_v2, default=0)
        self.driver_cuda = f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else ""
        for index in range(min(self._ask(nvml.nvmlDeviceGetCount, default=0), GPUS_MAX)):
            try:
                self._handles.append(nvml.nvmlDeviceGetHandleByIndex(index))
            except nvml.NVMLError as error:
                self._handles.append(str(error))

    def cards(self) -> tuple[Card, ...]:
        """As they are now, in NVML's order."""
        return tuple(self._card(handle) for handle in self._handles)

    def close(self) -> None:
        if not self.why:
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()

    def _card(self, handle: Any) -> Card:
        nvml = self._nvml
        if isinstance(handle, str):
            return Card(name="NVIDIA GPU", backend="cuda", fault=handle)
        name = _text(self._ask(nvml.nvmlDeviceGetName, handle, default="NVIDIA GPU"))[:NAME_CHARS_MAX]
        try:
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        except nvml.NVMLError as error:
            return Card(name=name, backend="cuda", driver=self._driver, fault=str(error))
        capability = self._ask(nvml.nvmlDeviceGetCudaComputeCapability, handle, default=None)
        used = self._ask(nvml.nvmlDeviceGetUtilizationRates, handle, default=None)
        processes = self._ask(nvml.nvmlDeviceGetComputeRunningProcesses, handle, default=())
        return Card(
            name=name,
            backend="cuda",
            memory_bytes=int(memory.total),
            memory_used_bytes=int(memory.used),
            driver=self._driver,
            capability="{}.{}".format(*capability) if capability else "",
            power_w=self._ask(nvml.nvmlDeviceGetPowerUsage, handle, default=0) // 1000,
            power_limit_w=self._ask(nvml.nvmlDeviceGetEnforcedPowerLimit, handle, default=0) // 1000,
            temperature_c=self._ask(
                nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU, default=0
            ),
            utilisation_percent=int(used.gpu) if used else 0,
            processes=tuple(int(process.pid) for process in processes)[:PROCESSES_MAX],
        )

    def _ask(self, function: Callable[..., Any], *arguments: Any, default: Any) -> Any:
        try:
            return function(*arguments)
        except self._nvml.NVMLError:
            return default


def _pynvml() -> Any:
    import pynvml

    return pynvml


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
