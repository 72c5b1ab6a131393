"""The header of a GGUF file: its metadata and the shapes of its tensors, without reading any weights.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian. A reader
of its own, since the `gguf` package needs numpy, takes 6 s where this takes 0.2 s (SmolLM2's 49,152 tokens),
and has no limits, while every length in here comes from a stranger.
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

HEADER_BYTES_MAX: Final = 256 << 20
STRING_BYTES_MAX: Final = 1 << 20  # chat templates are the longest
KEYS_MAX: Final = 4_096
ARRAY_LENGTH_MAX: Final = 2 << 20
TENSORS_MAX: Final = 1 << 17
DIMENSIONS_MAX: Final = 4
FIXED_HEADER_BYTES: Final = 24

_STRING, _ARRAY = 8, 9
_SCALARS: Final = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}  # fmt: skip -- the types in the order of the format's table


class GgufError(ValueError):
    """The file is no GGUF that can be used here; the message says why."""


@dataclass(frozen=True, slots=True)
class Header:
    """`metadata` by key, arrays as lists; `tensors`: name -> dimensions, the fastest running one first."""

    metadata: dict[str, Any]
    tensors: dict[str, tuple[int, ...]]


def read_header(path: Path) -> Header:
    """Raises GgufError if it is no such file, is cut off or goes beyond the limits; OSError if unreadable."""
    with path.open("rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:  # an empty file cannot be mapped
            raise GgufError(f"{path.name} is empty") from error
        with data:
            try:
                return _header(_Cursor(data, min(len(data), HEADER_BYTES_MAX)))
            except GgufError as error:
                raise GgufError(f"{path.name} cannot be read as GGUF: {error}") from error


@dataclass(slots=True)
class _Cursor:
    data: mmap.mmap
    end: int
    at: int = 0

    def take(self, size: int) -> int:
        """The offset of the next `size` bytes, which are then behind the cursor."""
        start = self.at
        if size > self.end - start:
            raise GgufError(f"its header is cut off, or longer than {HEADER_BYTES_MAX} bytes")
        self.at = start + size
        return start

    def scalar(self, code: str) -> Any:
        return struct.unpack_from("<" + code, self.data, self.take(struct.calcsize("<" + code)))[0]

    def count(self, what: str, limit: int) -> int:
        value: int = self.scalar("Q")
        if value > limit:
            raise GgufError(f"it says {value} {what}; {limit} are allowed")
        return value

    def string(self) -> str:
        size = self.count("bytes of text", STRING_BYTES_MAX)
        start = self.take(size)
        try:
            return self.data[start : start + size].decode()
        except UnicodeDecodeError as error:
            raise GgufError("a text in it is not UTF-8") from error

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.scalar(_code(kind))
        element = self.scalar("I")
        length = self.count("elements", ARRAY_LENGTH_MAX)
        if element == _STRING:
            return [self.string() for _ in range(length)]
        code = f"<{length}{_code(element)}"  # arrays of arrays are in no known file, and refused here
        return list(struct.unpack_from(code, self.data, self.take(struct.calcsize(code))))


def _code(kind: int) -> str:
    code = _SCALARS.get(kind)
    if code is None:
        raise GgufError(f"it holds a value of the unknown type {kind}")
    return code


def _header(cursor: _Cursor) -> Header:
    if cursor.end < FIXED_HEADER_BYTES or cursor.data[:4] != b"GGUF":
        raise GgufError("it does not begin with GGUF")
    cursor.take(4)
    version = cursor.scalar("I")
    if version not in (2, 3):
        raise GgufError(f"its version is {version}; 2 and 3, little-endian, are known")
    tensor_count = cursor.count("tensors", TENSORS_MAX)
    key_count = cursor.count("keys", KEYS_MAX)
    metadata: dict[str, Any] = {}
    for _ in range(key_count):
        key = cursor.string()
        metadata[key] = cursor.value(cursor.scalar("I"))
    tensors: dict[str, tuple[int, ...]] = {}
    for _ in range(tensor_count):
        name = cursor.string()
        dimensions = cursor.scalar("I")
        if dimensions > DIMENSIONS_MAX:
            raise GgufError(f"the tensor {name[:80]!r} has {dimensions} dimensions")
        tensors[name] = tuple(cursor.scalar("Q") for _ in range(dimensions))
        cursor.take(4 + 8)  # type and offset of the weights
    return Header(metadata, tensors)
