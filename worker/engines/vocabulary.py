"""The bytes behind token ids, so that text can be put together without a tokenizer's guesses. Pure.

Two families cover the open models: byte-level BPE, where each character of a token stands for a byte
(GPT-2's table), and SentencePiece, where `▁` stands for a space and `<0x0A>` for a byte. Special tokens
have no text, but for those in which models write tool calls and thoughts.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from potluck.vocabulary import byte_alphabet
from worker.engines.engine import EngineError
from worker.engines.formats import MARKS

# What ends a turn in the open chat formats: the names that llama.cpp's vocabulary loader knows
# (llama-vocab.cpp).
END_TOKENS = frozenset(
    {
        *("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|end_of_text|>", "<|endoftext|>"),
        *("<end_of_turn>", "</s>", "<EOT>", "<|eot|>", "<|return|>", "<|call|>", "<｜end▁of▁sentence｜>"),
    }
)

_MARKS = frozenset(mark for marks in MARKS.values() for mark in marks)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """`tokens[id]` are the bytes of a token; `strips_space`: the first space of an answer is not part of
    it.
    """

    tokens: tuple[bytes, ...]
    end_ids: frozenset[int]
    strips_space: bool

    def bytes_of(self, token_id: int, position: int) -> bytes:
        """Of the output token at index `position`. Ids beyond the vocabulary have no text."""
        data = self.tokens[token_id] if token_id < len(self.tokens) else b""
        return data.removeprefix(b" ") if self.strips_space and position == 0 else data

    def decode(self, ids: Iterable[int]) -> str:
        """The text of a whole output."""
        data = b"".join(self.bytes_of(token_id, position) for position, token_id in enumerate(ids))
        return data.decode(errors="replace")


def vocabulary_of(tokenizer: Mapping[str, Any], end_ids: Iterable[int]) -> Vocabulary:
    """From the JSON of a Hugging Face `tokenizers` file. Raises EngineError for an unknown decoder."""
    decoders = {part["type"]: part for part in _parts(tokenizer.get("decoder"))}
    vocab = tokenizer["model"]["vocab"]
    pairs = (
        vocab.items() if isinstance(vocab, dict) else ((item[0], index) for index, item in enumerate(vocab))
    )
    spellings = {index: text for text, index in pairs}
    added = {item["id"]: item for item in tokenizer.get("added_tokens", [])}
    size = max([*spellings, *added], default=-1) + 1
    spell: Callable[[str], bytes]
    if "ByteLevel" in decoders:
        spell = partial(_byte_level, table={character: byte for byte, character in byte_alphabet().items()})
    elif "Replace" in decoders or "Metaspace" in decoders:
        spell = _sentencepiece
    else:
        raise EngineError("bad_tokenizer", f"no way to spell tokens with the decoder {sorted(decoders)}")
    tokens = []
    for index in range(size):
        if (item := added.get(index)) is not None:
            shown = not item["special"] or item["content"] in _MARKS
            tokens.append(item["content"].encode() if shown else b"")
        else:
            tokens.append(spell(spellings.get(index, "")))
    ends = {index for index, item in added.items() if item["special"] and item["content"] in END_TOKENS}
    strips = "Strip" in decoders or decoders.get("Metaspace", {}).get("prepend_scheme") in ("always", "first")
    return Vocabulary(tuple(tokens), frozenset({*ends, *end_ids}), strips)


def _parts(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if decoder is None:
        return []
    return list(decoder["decoders"]) if decoder["type"] == "Sequence" else [decoder]


def _byte_level(spelling: str, table: Mapping[str, int]) -> bytes:
    return b"".join(bytes([table[c]]) if c in table else c.encode() for c in spelling)


def _sentencepiece(spelling: str) -> bytes:
    if match := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", spelling):
        return bytes([int(match[1], 16)])
    return spelling.replace("▁", " ").encode()


def read_vocabulary(text: str, end_ids: Iterable[int]) -> Vocabulary:
    """From the text of a tokenizer.json. Raises EngineError."""
    try:
        return vocabulary_of(json.loads(text), end_ids)
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError("bad_tokenizer", f"the model's tokenizer cannot be read: {error!r}") from error
