"""LoRA adapters side by side on one base: each row of a batch has its own adapter, or none.

The linear layers of attention and of dense feed-forward blocks may carry adapters (arXiv 2106.09685): rows of
adapter k get `x @ A_k.T @ B_k.T * alpha / r` on top of what the base computes, which is the same for all.
Experts and routers see tokens without their rows, so nothing is added to them, shared experts included.

An adapter is what peft writes, from a stranger: adapter_config.json and adapter_model.safetensors.
"""

import json
import re
import threading
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open

from potluck.v1 import engine_pb2, work_pb2
from worker.engines.engine import EngineError, JobError
from worker.engines.packed import PackedLinear

RANK_MAX: Final = 256
ALPHA_MAX: Final = 1 << 16
KEPT_MAX: Final = 8  # in memory, beside those that running attempts hold
CONFIG_BYTES_MAX: Final = 1 << 20
WEIGHTS_BYTES_MAX: Final = 4 << 30
_PREFIX: Final = "base_model.model."
_SUFFIX: Final = ".lora_A.weight"
_WEIGHT: Final = re.compile(r"base_model\.model\..+\.lora_[AB]\.weight")
_DTYPES: Final = frozenset({"F32", "F16", "BF16"})

# What is read, and what has no effect on the computing, where the weights say which layers are meant.
# Everything else must be off: it would change what is computed.
_READ: Final = frozenset({"peft_type", "r", "lora_alpha", "bias", "init_lora_weights"})
_HARMLESS: Final = frozenset({
    "task_type", "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    "base_model_name_or_path", "revision", "inference_mode", "peft_version", "auto_mapping", "megatron_core",
    "qalora_group_size", "runtime_config", "target_parameters",
})  # fmt: skip
_PLAIN_STARTS: Final = (True, False, "gaussian")  # others change the base, too


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Adapter:
    """`factors` by the path of the layer: A [rank, in] and B [out, rank], B times alpha / rank."""

    factors: Mapping[str, tuple[Any, Any]]
    size_bytes: int = 0


class _Rows:
    """Which rows of the forward pass under way have which adapter."""

    def __init__(self) -> None:
        self.groups: list[tuple[Adapter, Any]] = []


class _Adapted(torch.nn.Module):  # type: ignore[misc]  # torch has no types here
    """A linear layer of [rows, ..., in], and what the rows' adapters add."""

    def __init__(self, plain: Any, path: str, rows: _Rows) -> None:
        super().__init__()
        self.plain, self._path, self._rows = plain, path, rows

    def forward(self, values: Any) -> Any:
        result = self.plain(values)
        for adapter, index in self._rows.groups:
            if (factors := adapter.factors.get(self._path)) is not None:
                down, up = factors
                result.index_add_(0, index, values[index] @ down.T @ up.T)
        return result


class Lora:
    """The adapters of one model. `use` belongs to the computing thread; `get` may be called beside it."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._layers = adaptable(model)
        self._rows = _Rows()
        for path, layer in self._layers.items():
            model.set_submodule(path, _Adapted(layer, path, self._rows))
        self.bytes_max = 0  # of all adapters in memory, those of running attempts included; 0: no cap
        self._kept: OrderedDict[str, Adapter] = OrderedDict()
        self._alive: weakref.WeakSet[Adapter] = weakref.WeakSet()
        self._lock = threading.Lock()

    @property
    def kept(self) -> tuple[str, ...]:
        """Digests, the least recently used first."""
        return tuple(self._kept)

    def get(self, loaded: engine_pb2.LoadedAdapter) -> Adapter:
        """From memory, or read now. Raises EngineError."""
        with self._lock:
            adapter = self._kept.pop(loaded.digest, None)
            if adapter is None:
                adapter = self._read(Path(loaded.folder), loaded.name)
            self._kept[loaded.digest] = adapter
            while len(self._kept) > KEPT_MAX:
                self._kept.popitem(last=False)
            return adapter

    def use(self, adapters: Sequence[Adapter | None]) -> None:
        """The next forward pass has a row for each of these."""
        rows: dict[Adapter, list[int]] = {}
        for row, adapter in enumerate(adapters):
            if adapter is not None:
                rows.setdefault(adapter, []).append(row)
        device = self._model.device
        self._rows.groups = [(who, torch.tensor(which, device=device)) for who, which in rows.items()]

    def _read(self, folder: Path, name: str) -> Adapter:
        try:
            rank, scale = _config(folder / "adapter_config.json")
            path = folder / "adapter_model.safetensors"
            if path.stat().st_size > WEIGHTS_BYTES_MAX:
                raise ValueError(f"its weights have more than {WEIGHTS_BYTES_MAX:,} bytes")
            with safe_open(str(path), "pt") as file:
                layers = self._checked(file, rank)
                size = (
                    sum(rank * _widths(self._layers[layer]) for layer in layers) * self._model.dtype.itemsize
                )
                self._make_room(size, name)
                adapter = Adapter({layer: self._factors(file, layer, scale) for layer in layers}, size)
                self._alive.add(adapter)
                return adapter
        except OSError as error:
            raise EngineError(
                "adapter_not_there", f"the adapter {name} cannot be read: {error.strerror}"
            ) from error
        except (ValueError, SafetensorError) as error:
            raise JobError("bad_adapter", f"the adapter {name} cannot be served: {error}") from error

    def _make_room(self, size: int, name: str) -> None:
        """Adapters that nobody uses leave, the least recently used first. Raises EngineError."""
        if not self.bytes_max:
            return
        while sum(adapter.size_bytes for adapter in self._alive) + size > self.bytes_max:
            if not self._kept:
                raise EngineError(
                    "no_room",
                    f"the adapter {name} takes {size / 1e6:.0f} MB, and adapters may take"
                    f" {self.bytes_max / 1e6:.0f} MB of this worker's memory together",
                    fault=work_pb2.FAULT_NONE,
                )
            self._kept.popitem(last=False)

    def _checked(self, file: Any, rank: int) -> list[str]:
        """The layers that it has weights for, every tensor looked at, none read. Raises ValueError."""
        names = set(file.keys())
        if strange := [name for name in names if _WEIGHT.fullmatch(name) is None]:
            raise ValueError(f"{min(strange)[:200]} is no LoRA weight")
        layers = sorted({name[len(_PREFIX) : -len(_SUFFIX)] for name in names})
        if not layers:
            raise ValueError("it has no weights")
        for layer in layers:
            plain = self._layers.get(layer)
            if plain is None:
                raise ValueError(why_not(layer, self._model))
            shapes = {"A": [rank, plain.in_features], "B": [plain.out_features, rank]}
            for factor, shape in shapes.items():
                if (name := _name(layer, factor)) not in names:
                    raise ValueError(f"{name} is missing")
                tensor = file.get_slice(name)
                if tensor.get_dtype() not in _DTYPES or tensor.get_shape() != shape:
                    found = f"{tensor.get_dtype()} {tensor.get_shape()}"
                    raise ValueError(f"{name} is {found}; a float of {shape} is needed")
        return layers

    def _factors(self, file: Any, layer: str, scale: float) -> tuple[Any, Any]:
        model = self._model
        down, up = (file.get_tensor(_name(layer, factor)).to(torch.float32) for factor in "AB")
        if not (down.isfinite().all() and up.isfinite().all()):
            raise ValueError(f"the weights for {layer} are not all finite")
        return down.to(model.device, model.dtype), (up * scale).to(model.device, model.dtype)


def _widths(layer: Any) -> int:
    return int(layer.in_features + layer.out_features)


def _name(layer: str, factor: str) -> str:
    return f"{_PREFIX}{layer}.lora_{factor}.weight"


def adaptable(model: Any) -> dict[str, Any]:
    """The linear layers that may carry adapters, by their paths."""
    found = {}
    for path, block in model.named_modules():
        kind = path.rpartition(".")[2]
        if kind == "self_attn" or (kind == "mlp" and not hasattr(block, "experts")):
            for name, child in block.named_children():
                plain = child.plain if isinstance(child, _Adapted) else child
                if isinstance(plain, torch.nn.Linear | PackedLinear):
                    found[f"{path}.{name}"] = plain
    return found


def why_not(layer: str, model: Any) -> str:
    words = layer[:200].split(".")
    if any("expert" in word or word in ("gate", "router") for word in words):
        return f"it targets {layer[:200]}: experts and routers cannot have adapters"
    where = "cannot have one" if layer in dict(model.named_modules()) else "is not in this model"
    return f"it targets {layer[:200]}, which {where}: adapters go on attention and dense feed-forward layers"


def _config(path: Path) -> tuple[int, float]:
    """(rank, alpha / rank). Raises ValueError for what is no plain LoRA, OSError."""
    with path.open("rb") as file:
        data = file.read(CONFIG_BYTES_MAX + 1)
    if len(data) > CONFIG_BYTES_MAX:
        raise ValueError(f"its configuration has more than {CONFIG_BYTES_MAX:,} bytes")
    try:
        config = json.loads(data)
    except RecursionError:
        raise ValueError("its configuration is nested too deeply") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ValueError("its configuration is not one of LoRA")
    strange = sorted(key[:100] for key, value in config.items() if value and key not in _READ | _HARMLESS)
    if config.get("bias", "none") != "none":
        strange.append("bias")
    if config.get("init_lora_weights", True) not in _PLAIN_STARTS:
        strange.append("init_lora_weights")
    if strange:
        raise ValueError(f"it is no plain LoRA: {', '.join(strange[:5])}")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= RANK_MAX:
        raise ValueError(f"its rank is no number from 1 to {RANK_MAX}")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) <= ALPHA_MAX:
        raise ValueError("its lora_alpha is no usable number")
    return rank, alpha / rank
