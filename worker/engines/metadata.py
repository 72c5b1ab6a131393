"""What an engine must know about a GGUF file before and besides its weights."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potluck.gguf import GgufError, read_header
from potluck.vocabulary import CONTROL
from worker.engines.engine import EngineError

DIGEST_HEX = 12
_FILE_TYPES = {  # llama.cpp's llama_ftype
    0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 7: "q8_0", 8: "q5_0", 9: "q5_1", 10: "q2_k",
    11: "q3_k_s", 12: "q3_k_m", 13: "q3_k_l", 14: "q4_k_s", 15: "q4_k_m", 16: "q5_k_s", 17: "q5_k_m",
    18: "q6_k", 32: "bf16",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Metadata:
    """The file's key-value pairs; properties for those that engines ask for."""

    values: dict[str, Any]

    def token(self, name: str) -> str:
        """The text of a special token (`bos`, `eos`), "" where there is none."""
        index = self.values.get(f"tokenizer.ggml.{name}_token_id")
        tokens = self.values.get("tokenizer.ggml.tokens", [])
        return str(tokens[index]) if isinstance(index, int) and index < len(tokens) else ""

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
    def eos_id(self) -> int | None:
        value = self.values.get("tokenizer.ggml.eos_token_id")
        return value if isinstance(value, int) else None

    @property
    def control(self) -> dict[str, int]:
        """The ids of the control tokens by their text."""
        tokens = self.values.get("tokenizer.ggml.tokens", [])
        kinds = self.values.get("tokenizer.ggml.token_type", [])
        return {
            token: index
            for index, (token, kind) in enumerate(zip(tokens, kinds, strict=False))
            if kind == CONTROL
        }

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


def read_metadata(path: Path) -> Metadata:
    """Raises EngineError if the file cannot be read as GGUF."""
    try:
        return Metadata(read_header(path).metadata)
    except (OSError, GgufError) as error:
        raise EngineError("bad_model_file", str(error)) from error


def model_digest(paths: Sequence[Path]) -> str:
    """Names the weights: the start of the file's sha256, or of all the files' sha256s together.

    A verified file lies under its sha256 as name; only others are read.
    """
    digests = [sha256_of(path) for path in paths]
    if len(digests) == 1:
        return digests[0][:DIGEST_HEX]
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()[:DIGEST_HEX]


def sha256_of(path: Path) -> str:
    if re.fullmatch(r"[0-9a-f]{64}", path.stem):
        return path.stem
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
