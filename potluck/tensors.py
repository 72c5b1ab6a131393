"""Named arrays as safetensors, in memory: as adapters, and what changes them, travel and are kept.

The safetensors library checks what is read. It writes no bfloat16 from numpy, which has no such type, so the
writer is here: eight bytes of length, a JSON header padded to eight bytes, the arrays' bytes in their order
(https://github.com/huggingface/safetensors#format).
"""

import json
import struct
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, deserialize

TENSORS_MAX: Final = 1 << 16
DIMENSIONS_MAX: Final = 4
BFLOAT16: Final = "BF16"
_ALIGNMENT_BYTES: Final = 8
_TYPES: Final[dict[str, np.dtype[Any]]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"),
    "I8": np.dtype("i1"),
}

Array = npt.NDArray[Any]


class TensorsError(ValueError):
    """These bytes are no tensors that can be used here; the message says why."""


def read(data: bytes) -> tuple[dict[str, Array], dict[str, str]]:
    """The arrays and how each was stored (F32, BF16, ...); bfloat16 comes as float32. Raises TensorsError."""
    try:
        found: list[tuple[str, Any]] = deserialize(data)  # type: ignore[no-untyped-call]  # it has no types
    except SafetensorError as error:
        raise TensorsError(f"they are no safetensors: {str(error)[:200]}") from None
    if len(found) > TENSORS_MAX:
        raise TensorsError(f"they are {len(found)} tensors; {TENSORS_MAX} are allowed")
    arrays, kinds = {}, {}
    for name, tensor in sorted(found, key=lambda each: each[0]):  # the library's order is by chance
        kind, shape = tensor["dtype"], tensor["shape"]
        if len(shape) > DIMENSIONS_MAX:
            raise TensorsError(f"{name[:200]} has {len(shape)} dimensions; {DIMENSIONS_MAX} are allowed")
        if kind == BFLOAT16:
            flat = _of_bfloat16(np.frombuffer(tensor["data"], "<u2"))
        elif kind in _TYPES:
            flat = np.frombuffer(tensor["data"], _TYPES[kind])
        else:
            raise TensorsError(f"{name[:200]} is of the type {kind}, which is not used here")
        arrays[name], kinds[name] = flat.reshape(shape), kind
    return arrays, kinds


def write(arrays: Mapping[str, Array], *, bfloat16: bool = False) -> bytes:
    """The same bytes for the same arrays, in their names' order. `bfloat16`: float32 is rounded to it."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # peft asks for it
    bodies: list[bytes] = []
    at = 0
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        kind = next(kind for kind, dtype in _TYPES.items() if dtype == array.dtype)
        if bfloat16 and kind == "F32":
            kind, array = BFLOAT16, _to_bfloat16(array)
        body = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [at, at + len(body)]}
        at += len(body)
        bodies.append(body)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT_BYTES)
    return b"".join([struct.pack("<Q", len(text)), text, *bodies])


def rounded(array: Array) -> Array:
    """What a float32 array is after it was sent as bfloat16."""
    return _of_bfloat16(_to_bfloat16(array))


def _to_bfloat16(array: Array) -> Array:
    """Rounded to the nearest, ties to even, as everybody does; what is not finite stays that."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    up = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    kept = np.where(np.isnan(array), (bits >> 16) | 0x40, up)
    return kept.astype(np.uint16)


def _of_bfloat16(bits: Array) -> Array:
    return (bits.astype(np.uint32) << 16).view(np.float32)
