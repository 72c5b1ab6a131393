"""A LoRA adapter as peft names and stores it (arXiv 2106.09685), without torch: its tensors, how it begins.

The coordinator makes the adapter that a fine-tune begins with, once, from the fine-tune's seed, and every
worker begins with these bytes: torch's own generators differ between CPU and GPU, and adapters of different
beginnings cannot be averaged. A is uniform within 1 / sqrt(inputs), as peft has it; B is zero, so that the
model begins as its base. The numbers come from PCG64's raw bits, which numpy promises to keep.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from potluck import tensors
from potluck.gguf import GgufError
from potluck.linears import Linear, linears_of_config, linears_of_gguf
from potluck.shape import ShapeError
from potluck.tensors import Array, TensorsError

if TYPE_CHECKING:
    from potluck.catalogue import File, ModelEntry

RANK_MAX: Final = 256
ALPHA_MAX: Final = 1 << 16
CONFIG_BYTES_MAX: Final = 1 << 20
WEIGHTS_NAME: Final = "adapter_model.safetensors"
CONFIG_NAME: Final = "adapter_config.json"
PREFIX: Final = "base_model.model."
_STORED: Final = ("F32", "BF16", "F16")

Shapes = dict[str, tuple[int, int]]


class LoraError(ValueError):
    """There is no such adapter of this model, or these bytes are none; the message says why."""


def linears_of(entry: "ModelEntry", local: Callable[["File"], Path | None]) -> tuple[Linear, ...]:
    """Where this model may carry factors: as its entry says, or as a file does that `local` finds here.

    Empty where neither is known. Reads files: in a thread.
    """
    if entry.linears:
        return entry.linears
    for variant in entry.variants:
        for file in variant.files:
            try:
                if file.name == "config.json" and (path := local(file)) is not None:
                    return linears_of_config(_config_of(path))
                if variant.format == "gguf" and (path := local(file)) is not None:
                    return linears_of_gguf(path)
            except (OSError, ShapeError, GgufError):
                continue  # another form of the model may say it
    return ()


def _config_of(path: Path) -> Mapping[str, object]:
    """Raises ShapeError, OSError."""
    with path.open("rb") as file:
        data = file.read(CONFIG_BYTES_MAX + 1)
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict) or len(data) > CONFIG_BYTES_MAX:
        raise ShapeError(f"{path.name} is no configuration")
    return values


def targets_of(linears: Sequence[Linear], wanted: Sequence[str] = ()) -> tuple[str, ...]:
    """The targets' names in the model's order; all where none are wanted. Raises LoraError."""
    known = [linear.target for linear in linears]
    if not known:
        raise LoraError("this model's entry does not say which of its layers may carry adapters")
    for name in wanted:
        if name not in known:
            raise LoraError(f"{name[:64]} is no target of this model; it has {', '.join(known)}")
    return tuple(name for name in known if not wanted or name in wanted)


def shapes(linears: Sequence[Linear], layers: int, rank: int, wanted: Sequence[str] = ()) -> Shapes:
    """Every tensor's name and shape, in the order of the names. Raises LoraError."""
    if not 1 <= rank <= RANK_MAX:
        raise LoraError(f"the rank is {rank}; 1 to {RANK_MAX} is possible")
    targets = targets_of(linears, wanted)
    found: Shapes = {}
    for layer in range(layers):
        for linear in linears:
            if linear.target in targets:
                place = f"{PREFIX}model.layers.{layer}.{linear.module}"
                found[f"{place}.lora_A.weight"] = (rank, linear.inputs)
                found[f"{place}.lora_B.weight"] = (linear.outputs, rank)
    return dict(sorted(found.items()))


def parameters(of: Shapes) -> int:
    """P of the price: all the adapter's numbers."""
    return sum(rows * columns for rows, columns in of.values())


def initial(of: Shapes, seed: int) -> dict[str, Array]:
    """Float32, the same on every machine and whatever else the adapter has."""
    return {
        name: _uniform(shape, f"{seed}/{name}") if name.endswith("lora_A.weight") else np.zeros(shape, "<f4")
        for name, shape in of.items()
    }


def _uniform(shape: tuple[int, int], word: str) -> Array:
    """Kaiming's, with a = sqrt(5): 24 bits a number, from -bound up to below bound."""
    generator = np.random.PCG64(int.from_bytes(hashlib.blake2b(word.encode(), digest_size=16).digest()))
    parts = (generator.random_raw(shape[0] * shape[1]) >> np.uint64(40)).astype("<f4") * np.float32(2**-24)
    bound = np.float32(shape[1] ** -0.5)
    return ((2 * parts - 1) * bound).reshape(shape)


def encode(adapter: Mapping[str, Array], *, bfloat16: bool = False) -> bytes:
    """As peft's adapter_model.safetensors, in float32 or rounded to bfloat16."""
    plain = {name: np.asarray(array, "<f4") for name, array in adapter.items()}
    return tensors.write(plain, bfloat16=bfloat16)


def decode(data: bytes, of: Shapes | None = None) -> dict[str, Array]:
    """Float32. `of`: what it must have, no more and no less. Raises LoraError."""
    try:
        arrays, kinds = tensors.read(data)
    except TensorsError as error:
        raise LoraError(f"the adapter cannot be read: {error}") from None
    if not arrays:
        raise LoraError("the adapter has no weights")
    if of is not None:
        check_names(arrays, of)
    for name, array in arrays.items():
        if not name.startswith(PREFIX) or not name.endswith((".lora_A.weight", ".lora_B.weight")):
            raise LoraError(f"{name[:200]} is no LoRA weight")
        if kinds[name] not in _STORED or array.ndim != 2:
            raise LoraError(f"{name[:200]} is {kinds[name]} of {array.ndim} dimensions, no matrix of floats")
        if of is not None and array.shape != of[name]:
            raise LoraError(f"{name[:200]} is {list(array.shape)}, and {list(of[name])} is needed")
        if not np.isfinite(array).all():
            raise LoraError(f"the weights {name[:200]} are not all finite")
    return {name: array.astype("<f4") for name, array in arrays.items()}


def check_names(found: Mapping[str, object], of: Mapping[str, object]) -> None:
    """Raises LoraError at the first that is missing or too much."""
    if missing := sorted(of.keys() - found.keys()):
        raise LoraError(f"{missing[0][:200]} is missing")
    if strange := sorted(found.keys() - of.keys()):
        raise LoraError(f"{strange[0][:200]} belongs to no layer that is trained")


def config_json(*, rank: int, alpha: float, targets: Sequence[str], base: str) -> bytes:
    """adapter_config.json, as peft reads it. `base`: what the adapter goes on top of, for people."""
    values = {
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": sorted(targets),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    return json.dumps(values, indent=2).encode() + b"\n"
