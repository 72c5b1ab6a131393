"""Holding text to a grammar from its middle on, where an engine can only hold it from the beginning.

llama.cpp's grammars begin with the first new token. To go on inside of a structure, it writes freely while
each character is looked at; where it leaves the structure, it is called again, and its next one is among
those that may come. That is slower than a mask by as many calls as it errs, and just as strict.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from llguidance import LLMatcher, LLTokenizer

from potluck.v1 import work_pb2
from worker.engines.engine import JobError
from worker.engines.pieces import Pieces
from worker.engines.structure import ANY, HEADER, limits

_BYTES: Final = LLTokenizer("byte")


class Validated:
    """`grammar`: with all marks as text. `said` is delivered already. Raises JobError if it does not fit."""

    def __init__(self, grammar: str, said: str) -> None:
        self._matcher = LLMatcher(_BYTES, grammar, log_level=0, limits=limits())
        if self.take(said) != said:
            raise JobError("structure_broken", "what was delivered does not hold to the structure asked for")

    def take(self, text: str) -> str:
        """As much of the text as may come here; it counts as said."""
        for place, character in enumerate(text):
            data = list(character.encode())
            if self._matcher.validate_tokens(data) < len(data):
                return text[:place]
            self._matcher.consume_tokens(data)
        return text

    @property
    def complete(self) -> bool:
        """Nothing may follow."""
        return bool(self._matcher.is_stopped())

    @property
    def accepting(self) -> bool:
        """The text may end here."""
        return bool(self._matcher.is_accepting())

    def opening(self) -> str:
        """A grammar for one character that may come, and anything behind it. Raises JobError."""
        bits = self._matcher.compute_bitmask()
        allowed = [byte for byte in range(256) if bits[byte // 8] >> byte % 8 & 1]
        plain = "".join(f"\\x{byte:02x}" for byte in allowed if byte < 0x80)
        wide = r"\u{80}-\u{10ffff}" if any(byte >= 0xC2 for byte in allowed) else ""
        if not plain + wide:
            raise JobError("structure_too_complex", "the structure asked for takes too much to follow")
        return f"{HEADER}start: /[{plain}{wide}]/ {ANY}\n"


Hear = Callable[[dict[str, Any]], bool]


@dataclass(slots=True)
class GoingOn:
    """One choice from inside of its structure, by as many completions as it needs.

    `ask(request, hear)` runs one, whose chunks (llama.cpp's /completions) `hear` takes until it says True.
    """

    held: Validated
    pieces: Pieces
    request: dict[str, Any]
    ask: Callable[[dict[str, Any], Hear], None]
    emit: Callable[[work_pb2.Delta], None]
    _written: str = ""
    _forced: bool = False  # the first completion is free from its first character on

    def step(self) -> None:
        """Nearer to the end by at least a character. Raises JobError."""
        pieces = self.pieces
        if self.held.complete or pieces.exhausted:
            self.emit(pieces.end("stop" if self.held.complete else "length"))
            return
        begun = self.request["prompt"]
        asked = self.request | {"max_tokens": pieces.tokens_max - pieces.tokens}
        if self._written:
            asked["prompt"] = [*(begun if isinstance(begun, list) else [begun]), self._written]
        if self._forced:
            asked["grammar"] = self.held.opening()
        self._forced = True
        self.ask(asked, self._hear)

    def _hear(self, chunk: dict[str, Any]) -> bool:
        pieces, choice = self.pieces, chunk["choices"][0]
        if pieces.exhausted:
            return True
        text = choice["text"]
        good = self.held.take(text)
        self._written += good
        if good and (delta := pieces.add(good, 1)) is not None:
            self.emit(delta)
        if pieces.finish_reason:
            return True
        if choice["finish_reason"] == "stop" and self.held.accepting:
            self.emit(pieces.end("stop"))
        return bool(pieces.finish_reason) or self.held.complete or good != text
