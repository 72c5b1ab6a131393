"""Splitting what a reasoning model thinks from what it answers: `<think>...</think>` in front of the answer.

As DeepSeek's API does it (api-docs.deepseek.com, thinking mode): what stands inside is `reasoning_content`,
what follows is `content`; the whitespace around the tags belongs to neither. Only a block at the very
beginning counts; with `opened` the prompt had ended inside of it, and the model may say the tag again. A
block that does not end before the text does is reasoning to the end.
"""

from enum import Enum, auto

from coordinator.core.parts import (
    WHITESPACE,
    WHITESPACE_HELD_MAX,
    Content,
    Part,
    Reasoning,
    before_space,
    begun,
)

OPEN, CLOSE = "<think>", "</think>"


class _State(Enum):
    START = auto()  # whether the block begins is not certain yet
    INSIDE = auto()
    AFTER = auto()  # the whitespace after the block
    CONTENT = auto()


class Thinking:
    """Linear in the text, and holds back no more than a tag and the whitespace in front of it."""

    def __init__(self, *, opened: bool) -> None:
        self._opened = opened
        self._state = _State.START
        self._held = ""
        self._fresh = True  # nothing of the reasoning was delivered: whitespace in front of it is dropped

    def feed(self, text: str) -> list[Part]:
        """The parts that became certain with this text."""
        if self._state is _State.CONTENT:
            return [Content(text)] if text else []
        return self._read(self._held + text, final=False)

    def finish(self) -> list[Part]:
        """The text has ended: what was held back is what it looks like."""
        return self._read(self._held, final=True)

    def _read(self, text: str, *, final: bool) -> list[Part]:
        self._held, parts = "", list[Part]()
        if self._state is _State.START:
            text = self._start(text, final=final)
        if self._state is _State.INSIDE:
            text = self._inside(text, parts, final=final)
        if self._state is _State.AFTER and (text := text.lstrip(WHITESPACE)):
            self._state = _State.CONTENT
        if self._state is _State.CONTENT and text:
            parts.append(Content(text))
        return parts

    def _start(self, text: str, *, final: bool) -> str:
        """What is left of the text for the state that it leads to."""
        bare = text.lstrip(WHITESPACE)
        if len(text) - len(bare) <= WHITESPACE_HELD_MAX:
            if bare.startswith(OPEN):
                self._state = _State.INSIDE
                return bare.removeprefix(OPEN)
            if not final and OPEN.startswith(bare):
                self._held = text
                return ""
        self._state = _State.INSIDE if self._opened else _State.CONTENT
        return text

    def _inside(self, text: str, parts: list[Part], *, final: bool) -> str:
        """Deliver what is certainly reasoning; what comes after the block is returned."""
        if self._fresh:
            text = text.lstrip(WHITESPACE)
        found = text.find(CLOSE)
        if found >= 0:
            self._state = _State.AFTER
            end, rest = before_space(text, found), text[found + len(CLOSE) :]
        else:
            tag = len(text) - begun(text, (CLOSE,))
            end, rest = (len(text) if final else before_space(text, tag)), ""
            self._held = text[end:]
        if end:
            self._fresh = False
            parts.append(Reasoning(text[:end]))
        return rest
