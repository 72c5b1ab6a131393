"""Each NVIDIA card at this moment, through NVML: temperature, power, and whose programs use it.

A program counts as a user if it has a CUDA context, or if it kept the card busy for a tenth of the time
(games and browsers have no context of that kind; NVML's own samples of the last second show them).
"""

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, Final

import psutil

from worker.observe.input import Unseen
from worker.observe.load import is_engine
from worker.policy import Card

CARDS_MAX: Final = 64
BUSY_PERCENT: Final = 10
SAMPLE_S: Final = 2.0


@contextmanager
def _nvml() -> Iterator[Any]:
    """Raises Unseen where no driver is."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        raise Unseen("there is no NVIDIA driver") from None
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def cards(own: Collection[int], wanted: Collection[int] = ()) -> tuple[Card, ...]:
    """`own`: processes that are ours; `wanted`: indices, all if empty. Raises Unseen."""
    with _nvml() as nvml:
        try:
            count = min(nvml.nvmlDeviceGetCount(), CARDS_MAX)
        except nvml.NVMLError:
            raise Unseen("the NVIDIA driver does not answer") from None
        chosen = [index for index in range(count) if not wanted or index in wanted]
        return tuple(_card(nvml, index, own) for index in chosen)


def _card(nvml: Any, index: int, own: Collection[int]) -> Card:
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
    except nvml.NVMLError:  # fell off the bus
        return Card(index=index)
    return Card(
        index=index,
        temperature_c=_reading(
            nvml, lambda: float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
        ),
        power_w=_reading(nvml, lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000),
        others=_others(nvml, handle, own),
    )


def _reading(nvml: Any, read: Any) -> float | None:
    try:
        return float(read())
    except nvml.NVMLError:  # many cards know only some of it
        return None


def _others(nvml: Any, handle: Any, own: Collection[int]) -> tuple[str, ...] | None:
    """Names of the programs of others; None if the driver tells neither way."""
    pids: set[int] = set()
    told = False
    try:
        pids |= {int(process.pid) for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)}
        told = True
    except nvml.NVMLError:
        pass
    try:
        since = int((time.time() - SAMPLE_S) * 1e6)
        samples = nvml.nvmlDeviceGetProcessUtilization(handle, since)
        pids |= {int(sample.pid) for sample in samples if sample.smUtil >= BUSY_PERCENT}
        told = True
    except nvml.NVMLError_NotFound:  # nobody used it since
        told = True
    except nvml.NVMLError:
        pass
    if not told:
        return None
    return tuple(sorted({name for pid in pids - set(own) if (name := _stranger(pid))}))


def _stranger(pid: int) -> str:
    """The program's name; empty if it is gone or an engine of another worker of this machine."""
    try:
        process = psutil.Process(pid)
        if is_engine(process):
            return ""
        return process.name()
    except psutil.NoSuchProcess:
        return ""
    except psutil.Error:  # another user's: its name is nobody's business, that it is there is
        return "another user's program"
