"""The LoRA factors of a model under training: peft's layers, all their values in one vector, gradients beside
it.

One vector makes the norm of the gradient, its clipping, AdamW, a checkpoint and a delta one operation each,
instead of one for each of hundreds of small tensors.
"""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from peft.tuners.lora import LoraLayer

from potluck import lora
from potluck.lora import PREFIX, LoraError
from potluck.tensors import Array
from potluck.v1 import work_pb2
from worker.engines.engine import JobError
from worker.engines.lora import WEIGHTS_BYTES_MAX, adaptable, why_not

_NAME = "default"


class Adapter:
    """Put into the model by the constructor, taken out by `remove`. `values`: a leaf with its gradient."""

    def __init__(self, model: Any, config: work_pb2.LoraConfig, path: Path) -> None:
        """Raises JobError if the file is no adapter of this model with this configuration, OSError."""
        read = _read(path)
        self._model = model
        self._check(config, read)
        self.names = sorted(read)
        paths = sorted({_path_of(name) for name in read})
        try:
            _inject(model, config, paths)
            self._layers = [model.get_submodule(path) for path in paths]
            self.values = torch.nn.Parameter(self._joined(read).to(model.device))
            self.values.grad = torch.zeros_like(self.values)
            self._views = self._spread([read[name].shape for name in self.names])
        except Exception:  # the next attempt finds the model as it was
            self.remove()
            raise

    def _spread(self, shapes: list[tuple[int, ...]]) -> list[slice]:
        """peft's weights become views of the vector, and their gradients gather in its gradient."""
        places, at = [], 0
        for name, shape in zip(self.names, shapes, strict=True):
            place = slice(at, at + int(np.prod(shape)))
            weight = self._weight(name)
            weight.data = self.values.data[place].view(shape)
            weight.grad = self.values.grad[place].view(shape)
            weight.requires_grad_(True)
            places.append(place)
            at = place.stop
        return places

    def _weight(self, name: str) -> Any:
        layer = self._model.get_submodule(_path_of(name))
        return (layer.lora_A if ".lora_A." in name else layer.lora_B)[_NAME].weight

    def _check(self, config: work_pb2.LoraConfig, read: dict[str, Array]) -> None:
        """Raises JobError."""
        known = adaptable(self._model)
        for name, array in read.items():
            path = _path_of(name)
            linear = known.get(path)
            if linear is None:
                raise _another_base(why_not(path, self._model))
            is_down = ".lora_A." in name
            shape = (config.rank, linear.in_features) if is_down else (linear.out_features, config.rank)
            if array.shape != shape:
                raise _another_base(f"{name[:200]} is {list(array.shape)}, and {list(shape)} is needed")
            if (
                name.replace(".lora_A." if is_down else ".lora_B.", ".lora_B." if is_down else ".lora_A.")
                not in read
            ):
                raise _another_base(f"{name[:200]} stands there without its other factor")
        found = {_path_of(name).rpartition(".")[2] for name in read}
        if config.targets and found != set(config.targets):
            raise _another_base(f"it is for {', '.join(sorted(found))[:200]}, and others are to be trained")

    @property
    def parameters(self) -> int:
        return int(self.values.numel())

    def arrays(self, vector: Any) -> dict[str, Array]:
        """A vector in parts by peft's names, each with its tensor's shape; copies where it is on a card."""
        flat = vector.detach().cpu().numpy()
        return {
            name: flat[place].reshape(self._weight(name).shape)
            for name, place in zip(self.names, self._views, strict=True)
        }

    def vector(self, arrays: dict[str, Array]) -> Any:
        """The opposite of `arrays`."""
        return self._joined(arrays).to(self.values.device)

    def _joined(self, arrays: dict[str, Array]) -> Any:
        return torch.from_numpy(np.concatenate([arrays[name].ravel() for name in self.names]))

    @contextmanager
    def off(self) -> Iterator[None]:
        """The base alone answers."""
        for layer in self._layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self._layers:
                layer.enable_adapters(True)

    def in_own_dtype(self) -> None:
        """With autocast, inputs are not made float32 first."""
        for layer in self._layers:
            layer.cast_input_dtype_enabled = False

    def remove(self) -> None:
        for path, module in list(self._model.named_modules()):
            if isinstance(module, LoraLayer):
                self._model.set_submodule(path, module.base_layer)
        if hasattr(self._model, "peft_config"):
            del self._model.peft_config


def _inject(model: Any, config: work_pb2.LoraConfig, paths: list[str]) -> None:
    wanted = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules="|".join(map(re.escape, paths)),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # from how peft asks transformers
        peft.inject_adapter_in_model(wanted, model, _NAME)


def _read(path: Path) -> dict[str, Array]:
    """Raises JobError, OSError."""
    if path.stat().st_size > WEIGHTS_BYTES_MAX:
        raise JobError("bad_adapter", f"the adapter has more than {WEIGHTS_BYTES_MAX:,} bytes")
    try:
        return lora.decode(path.read_bytes())
    except LoraError as error:
        raise JobError("bad_adapter", str(error)) from None


def _another_base(why: str) -> JobError:
    return JobError("bad_adapter", f"the adapter does not belong to this model or plan: {why}")


def _path_of(name: str) -> str:
    """Of the layer: decoded names are known to begin and end so."""
    return name.removeprefix(PREFIX)[: -len(".lora_A.weight")]
