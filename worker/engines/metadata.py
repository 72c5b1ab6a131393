"""What an engine must know about a GGUF file before and besides its weights.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (version 2 and 3, little-endian). Only the
key-value header is read; the reader of the gguf package maps every tensor and token, which takes seconds.
"""

import hashlib
import mmap
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.engines.engine import EngineError

KEYS_MAX = 4096
STRING_BYTES_MAX = 16 * 1024 * 1024
DIGEST_HEX = 12
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_FILE_TYPES = {  # llama.cpp's llama_ftype
    0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 7: "q8_0", 8: "q5_0", 9: "q5_1", 10: "q2_k",
    11: "q3_k_s", 12: "q3_k_m", 13: "q3_k_l", 14: "q4_k_s", 15: "q4_k_m", 16: "q5_k_s", 17: "q5_k_m",
    18: "q6_k", 32: "bf16",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Metadata:
    values: dict[str, Any]
    tokens: Sequence[str]

    def token(self, name: str) -> str:
        """The text of a special token (`bos`, `eos`), "" where there is none."""
        index = self.values.get(f"tokenizer.ggml.{name}_token_id")
        return self.tokens[index] if isinstance(index, int) and index < len(self.tokens) else ""

    @property
    def bos_id(self) -> int | None:
        value = self.values.get("tokenizer.ggml.bos_token_id")
        return value if isinstance(value, int) else None

    @property
    def adds_bos(self) -> bool:
        """llama.cpp's own default where the file does not say."""
        kind = self.values.get("tokenizer.ggml.model")
        return bool(self.values.get("tokenizer.ggml.add_bos_token", kind == "llama"))

    @property
    def chat_template(self) -> str:
        return str(self.values.get("tokenizer.chat_template", ""))

    @property
    def context_tokens(self) -> int:
        """What the model was trained for; 0 where the file does not say."""
        return int(self.values.get(f"{self.values.get('general.architecture')}.context_length", 0))

    @property
    def dtype(self) -> str:
        return _FILE_TYPES.get(self.values.get("general.file_type", -1), "mixed")


class _Cursor:
    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 0

    def scalar(self, code: str) -> Any:
        layout = struct.Struct("<" + code)
        (value,) = layout.unpack_from(self._data, self._at)
        self._at += layout.size
        return value

    def string(self) -> bytes:
        size = self.scalar("Q")
        if size > STRING_BYTES_MAX:
            raise ValueError(f"a string of {size} bytes")
        start, self._at = self._at, self._at + size
        return self._data[start : self._at]

    def value(self, kind: int, *, wanted: bool) -> Any:
        """The value at the cursor; arrays of numbers are skipped, as nobody asks for them."""
        if kind == _STRING:
            return self.string().decode(errors="replace")
        if kind != _ARRAY:
            return self.scalar(_SCALARS[kind])
        item, count = self.scalar("I"), self.scalar("Q")
        if item == _STRING:
            strings = [self.string() for _ in range(count)]
            return [text.decode(errors="replace") for text in strings] if wanted else None
        self._at += struct.calcsize("<" + _SCALARS[item]) * count
        return None


def read_metadata(path: Path) -> Metadata:
    """Raises EngineError if the file cannot be read as GGUF."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(_Cursor(data))
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise EngineError("bad_model_file", f"{path.name} cannot be read as GGUF: {error}") from error


def _parse(cursor: _Cursor) -> Metadata:
    magic, version = cursor.scalar("I"), cursor.scalar("I")
    if magic != 0x46554747 or version not in (2, 3):
        raise ValueError(f"magic {magic:08x}, version {version}")
    cursor.scalar("Q")  # how many tensors
    count = cursor.scalar("Q")
    if count > KEYS_MAX:
        raise ValueError(f"{count} keys")
    values: dict[str, Any] = {}
    tokens: list[str] = []
    for _ in range(count):
        key = cursor.string().decode(errors="replace")
        value = cursor.value(cursor.scalar("I"), wanted=key == "tokenizer.ggml.tokens")
        if key == "tokenizer.ggml.tokens":
            tokens = value
        elif value is not None:
            values[key] = value
    return Metadata(values, tokens)


def model_digest(paths: Sequence[Path]) -> str:
    """Names the weights: the start of the file's sha256, or of all the files' sha256s together.

    A verified file lies under its sha256 as name; only others are read.
    """
    digests = [_sha256(path) for path in paths]
    if len(digests) == 1:
        return digests[0][:DIGEST_HEX]
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()[:DIGEST_HEX]


def _sha256(path: Path) -> str:
    if re.fullmatch(r"[0-9a-f]{64}", path.stem):
        return path.stem
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
