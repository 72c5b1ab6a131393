"""Do token ids say what the text says? A table of each id's bytes, since this is asked for every frame."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from potluck.vocabulary import SPACE, byte_alphabet

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SILENT_MAX: Final = (
    8  # tokens without text in a row of 32: more is a worker that wants to be paid for nothing
)
WINDOW_TOKENS: Final = 32
CUT_CHARS_MAX: Final = 1_024  # of a stop string: what is cut off is paid for, too
_BYTE_TOKEN: Final = re.compile(r"<0x([0-9A-F]{2})>")
_CONSONANTS, _VOWELS = "bdfghjklmnprstvz", "aiou"


@dataclass(frozen=True, slots=True)
class Spelling:
    """`pieces`: bytes by id. `silent`: ids of control tokens, which engines show or leave out.

    `leading_space`: the vocabulary begins a text with a space that is not there (sentencepiece).
    """

    pieces: tuple[bytes, ...]
    silent: dict[int, bytes] = field(default_factory=dict)
    leading_space: bool = False

    def agrees(self, previous: Sequence[int], ids: Sequence[int], text: str, *, final: bool) -> bool:
        """`previous`: the ids before, at most the last 32 count. `final`: the text may end earlier."""
        pieces = self.pieces
        try:
            parts = [pieces[token_id] for token_id in ids]
        except IndexError:
            return False
        if self._equal(b"".join(parts), previous, text, final=final):
            return b"" not in parts or not self._mute(previous, ids)
        if b"" not in parts:
            return False
        shown = b"".join([self.silent.get(token_id, pieces[token_id]) for token_id in ids])
        return self._equal(shown, previous, text, final=final)

    def _equal(self, data: bytes, previous: Sequence[int], text: str, *, final: bool) -> bool:
        said = data.decode("utf-8", "replace")
        if _says(said, text, final=final):
            return True
        return (
            self.leading_space
            and not previous
            and said.startswith(" ")
            and _says(said[1:], text, final=final)
        )

    def _mute(self, previous: Sequence[int], ids: Sequence[int]) -> bool:
        window = [*previous, *ids][-max(WINDOW_TOKENS, len(ids)) :]
        return sum(not self.pieces[i] for i in window if i < len(self.pieces)) > SILENT_MAX


def spelling_of(tokenizer: "Tokenizer") -> Spelling | None:
    """None where ids cannot be turned into bytes one by one (WordPiece and others that no chat model has)."""
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    added = tokenizer.get_added_tokens_decoder()
    kinds = _decoders(json.loads(tokenizer.to_str()).get("decoder"))
    if "ByteLevel" in kinds:
        alphabet = {character: bytes([byte]) for byte, character in byte_alphabet().items()}
    elif kinds & {"ByteFallback", "Metaspace"}:
        alphabet = {}
    else:
        return None
    pieces = [b""] * (max(vocabulary.values(), default=-1) + 1)
    silent: dict[int, bytes] = {}
    for token, index in vocabulary.items():
        if index in added:
            if added[index].special:
                silent[index] = token.encode()
            else:
                pieces[index] = token.encode()
        elif alphabet:
            pieces[index] = b"".join(alphabet.get(character, character.encode()) for character in token)
        elif found := _BYTE_TOKEN.fullmatch(token):
            pieces[index] = bytes.fromhex(found[1])
        else:
            pieces[index] = token.replace(SPACE, " ").encode()
    return Spelling(tuple(pieces), silent, leading_space=bool(kinds & {"Strip", "Metaspace"}))


def _decoders(value: Any) -> set[str]:
    """The kinds of a tokenizer.json's decoder, sequences unfolded."""
    if not isinstance(value, dict):
        return set()
    return {str(value.get("type"))}.union(*(_decoders(item) for item in value.get("decoders", [])))


def _says(said: str, text: str, *, final: bool) -> bool:
    """The same, or, at the end, cut by no more than a stop string and the rest of its last token."""
    return said == text or (final and said.startswith(text) and len(said) - len(text) <= CUT_CHARS_MAX)


def emulated(ids: Sequence[int], text: str, *, final: bool) -> bool:
    """The emulator's spelling: an id of 16 bits is a space and its proquint (arXiv 0901.4016)."""
    if any(token_id > 0xFFFF for token_id in ids):
        return False
    said = "".join([" " + proquint(token_id) for token_id in ids])
    return _says(said, text, final=final)


def proquint(token_id: int) -> str:
    return (
        _CONSONANTS[token_id >> 12 & 15]
        + _VOWELS[token_id >> 10 & 3]
        + _CONSONANTS[token_id >> 6 & 15]
        + _VOWELS[token_id >> 4 & 3]
        + _CONSONANTS[token_id & 15]
    )
