"""What a share of a round changed, as a worker sends it: int8 in blocks, each with its largest value as fp16.

For a tensor NAME the file has NAME (int8, the tensor's shape), NAME/scales (float16, one for each block of
BLOCK values in row order, the last one shorter) and NAME/peak (float32, one value: the largest of all). A
value is int8 / 127 * scale * peak, so that a change of a millionth keeps as many digits as one of a
thousandth.

What is decoded comes from a worker: whatever is not exactly this is refused.
"""

from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np

from potluck import tensors
from potluck.tensors import Array, TensorsError

BLOCK: Final = 128
LEVELS: Final = 127
SCALES: Final = "/scales"
PEAK: Final = "/peak"
_KINDS: Final = {"": "I8", SCALES: "F16", PEAK: "F32"}


class DeltaError(ValueError):
    """It is no delta, or cannot be one; the message says why."""


def encode(delta: Mapping[str, Array]) -> bytes:
    """Raises DeltaError if a value is not finite."""
    written: dict[str, Array] = {}
    for name, array in delta.items():
        if not np.isfinite(array).all():
            raise DeltaError(f"{name[:200]} has values that are not finite")
        blocks = _blocks(np.asarray(array, np.float32))
        peak = np.abs(blocks).max(initial=np.float32(0))
        # Never below the smallest normal float16, and so never zero: nothing is divided by zero.
        parts = np.abs(blocks).max(axis=1) / (peak or np.float32(1))
        scales = np.maximum(parts, np.finfo(np.float16).tiny).astype("<f2")
        unit = scales.astype(np.float64) * peak / LEVELS
        steps = np.rint(np.divide(blocks, unit[:, None], out=np.zeros(blocks.shape), where=unit[:, None] > 0))
        values = np.clip(steps, -LEVELS, LEVELS).astype(np.int8)
        written[name] = values.reshape(-1)[: array.size].reshape(array.shape)
        written[name + SCALES] = scales
        written[name + PEAK] = np.array([peak], "<f4")
    return tensors.write(written)


def decode(data: bytes) -> dict[str, Array]:
    """Float32 by name. Raises DeltaError."""
    return dict(Packed(data))


class Packed(Mapping[str, Array]):
    """A delta as it came, checked: each tensor is decoded to float32 when it is asked for, so that several
    deltas of a large adapter need a fourth of the memory. Raises DeltaError.
    """

    def __init__(self, data: bytes) -> None:
        try:
            self._arrays, kinds = tensors.read(data)
        except TensorsError as error:
            raise DeltaError(f"the delta cannot be read: {error}") from None
        self._names = [name for name in self._arrays if not name.endswith((SCALES, PEAK))]
        if not self._names or len(self._arrays) != len(_KINDS) * len(self._names):
            raise DeltaError("a delta has int8 values, scales and a peak for each tensor, and nothing else")
        for name in self._names:
            _check(name, self._arrays, kinds)

    def __getitem__(self, name: str) -> Array:
        values, scales, peak = (self._arrays[name + suffix] for suffix in _KINDS)
        units = scales.astype(np.float64) * peak / LEVELS
        flat = _blocks(values.astype(np.float64)) * units[:, None]
        return flat.reshape(-1)[: values.size].reshape(values.shape).astype(np.float32)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _check(name: str, arrays: Mapping[str, Array], kinds: Mapping[str, str]) -> None:
    for suffix, kind in _KINDS.items():
        if (found := kinds.get(name + suffix, "missing")) != kind:
            raise DeltaError(f"{name[:200]}{suffix} is {found}; {kind} is needed")
    values, scales, peak = (arrays[name + suffix] for suffix in _KINDS)
    if scales.shape != (-(-values.size // BLOCK),) or peak.shape != (1,):
        raise DeltaError(f"{name[:200]} needs a scale for each {BLOCK} values and one peak")
    if not np.isfinite(peak).all() or peak[0] < 0:
        raise DeltaError(f"the peak of {name[:200]} is no size")
    if not (np.isfinite(scales).all() and (scales >= 0).all() and (scales <= 1).all()):
        raise DeltaError(f"the scales of {name[:200]} are not all from 0 to 1")
    if (values < -LEVELS).any():
        raise DeltaError(f"{name[:200]} has values below {-LEVELS}")


def _blocks(array: Array) -> Array:
    """[blocks, BLOCK], the last one filled up with zeros."""
    flat = array.reshape(-1)
    return np.pad(flat, (0, -flat.size % BLOCK)).reshape(-1, BLOCK)
