"""What is known of a machine, as plain data: read by worker.probe, recorded in tests/data/machines.

Sizes are bytes, 0 and "" mean that it is not known or not there. Deciding from it is worker.advice and
worker.doctor, which therefore work for machines that are elsewhere.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Bytes = Annotated[int, Field(ge=0, lt=2**63)]
Backend = Literal["cuda", "rocm", "mps", "vulkan"]


class _Recorded(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Card(_Recorded):
    """One GPU. `fault`: in words, why nothing can be asked of it; it is then of no use."""

    name: str
    backend: Backend
    memory_bytes: Bytes = 0
    memory_used_bytes: Bytes = 0
    driver: str = ""
    capability: str = ""  # compute capability of a cuda card: "8.6"
    power_w: int = 0
    power_limit_w: int = 0
    temperature_c: int = 0
    utilisation_percent: int = 0
    processes: tuple[int, ...] = ()  # that compute on it
    fault: str = ""


class Torch(_Recorded):
    """What torch says of this machine, asked in a process of its own."""

    cuda: str = ""  # that it was built for: "12.8"
    hip: str = ""
    available: bool = False  # torch.cuda.is_available(), also true on ROCm
    bfloat16: bool = False
    mps: bool = False
    architectures: tuple[str, ...] = ()  # of cuda cards that its kernels are for: "sm_86", "compute_90"
    cards: tuple[Card, ...] = ()
    why: str = ""  # of a device that should be there and does not start


class Library(_Recorded):
    """`error`: why it cannot be imported although it is installed. `cards`: that llama.cpp was built for."""

    version: str
    error: str = ""
    cards: tuple[Card, ...] = ()


class Battery(_Recorded):
    percent: int
    plugged: bool


class Machine(_Recorded):
    system: str  # Linux | Darwin | Windows
    release: str = ""
    architecture: str = ""  # x86_64 | arm64 | aarch64 | AMD64
    python: str = ""
    cpu: str = ""
    cpu_features: tuple[str, ...] = ()
    cores: int = 1  # that this process may use, whatever limits them
    cores_all: int = 1
    memory_bytes: Bytes = 0  # that this process may use
    memory_all_bytes: Bytes = 0
    memory_free_bytes: Bytes = 0
    disk_free_bytes: Bytes = 0
    battery: Battery | None = None
    nvml: str = ""  # why NVIDIA's management library says nothing
    driver_cuda: str = ""  # the newest CUDA that the driver knows
    cards: tuple[Card, ...] = ()
    libraries: dict[str, Library] = Field(default_factory=dict)  # by module; absent: not installed
    torch: Torch | None = None  # None: not asked, since nothing hints at a card
