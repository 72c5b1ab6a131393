"""Finding the tool calls in a text while it comes in.

A call begins as soon as its name is certain, and its arguments go out as they come, as the OpenAI API streams
them: the text as the model wrote it, from `{` to the `}` that belongs to it. What only looked like a call is
delivered as content. Whitespace next to a call belongs to it.

Every code point is looked at a bounded number of times, and at most CALL_CHARS_MAX of them are held.
"""

import json
import re
from collections.abc import Callable, Collection
from enum import Enum, auto
from typing import Any

from coordinator.core.parts import (
    WHITESPACE,
    WHITESPACE_HELD_MAX,
    CallArguments,
    CallStart,
    Content,
    Part,
    before_space,
    begun,
)
from coordinator.core.syntax import HEAD_CHARS_MAX, NAME, Syntax

CALL_CHARS_MAX = 1 << 18  # of a call that must be read whole before its name is known
MARKER_CHARS_MAX = 64  # no opening or closer is longer
_MARKS = re.compile(r'["\\{}\[\]]')
_SPACE = re.compile(rf"[{WHITESPACE}]*+")


class Brackets:
    """Follows a JSON text's brackets, with an eye for its strings; of its grammar it knows no more."""

    def __init__(self, level: int) -> None:
        self.level = level
        self._quoted = False
        self._escaped = False

    def find_end(self, text: str, start: int, floor: int) -> int:
        """The place after the bracket that brings the level down to `floor`; -1 if it is not in the text."""
        at = start
        if self._escaped and at < len(text):
            self._escaped, at = False, at + 1
        while (found := _MARKS.search(text, at)) is not None:
            mark, at = found[0], found.end()
            if mark == '"':
                self._quoted = not self._quoted
            elif mark == "\\":
                if self._quoted and at == len(text):
                    self._escaped = True
                elif self._quoted:
                    at += 1
            elif not self._quoted:
                self.level += 1 if mark in "{[" else -1
                if self.level <= floor:
                    return at
        return -1


class _State(Enum):
    START = auto()  # nothing but whitespace came yet
    TEXT = auto()
    HEAD = auto()  # behind an opening: is it a call?
    WHOLE = auto()  # a JSON object whose order of keys says nothing before its end
    ARGUMENTS = auto()
    ENVELOPE = auto()  # what is left of the object around the arguments
    TAIL = auto()  # what closes a call


class ToolCalls:
    """`name_call` gives the id of the call with this index; `names` are the tools that there are.

    Behind an opening any name will do, since the model must hear of it; a bare object has to name a tool.
    """

    def __init__(self, syntax: Syntax, names: Collection[str], name_call: Callable[[int], str]) -> None:
        self._syntax, self._names, self._name_call = syntax, names, name_call
        self._opening = re.compile("|".join(re.escape(opening) for opening in syntax.openings))
        self._state = _State.START if syntax.bare else _State.TEXT
        self._held = ""
        self._final = False
        self._raw = ""  # the opening of the call that is being read, as it came
        self._bare = False  # it has none
        self._whole: list[str] = []
        self._whole_chars = 0
        self._brackets = Brackets(0)
        self._shape = syntax.shapes[0]
        self._closers: tuple[str, ...] = ()
        self.calls = 0
        self._parts: list[Part] = []
        self._steps = {
            _State.START: self._begin,
            _State.TEXT: self._text,
            _State.HEAD: self._head,
            _State.WHOLE: self._read_whole,
            _State.ARGUMENTS: self._arguments,
            _State.ENVELOPE: self._envelope,
            _State.TAIL: self._tail,
        }

    def feed(self, text: str) -> list[Part]:
        """The parts that became certain with this text."""
        return self._read(text, final=False)

    def finish(self) -> list[Part]:
        """The text has ended: what is no call by now is content."""
        return self._read("", final=True)

    def _read(self, text: str, *, final: bool) -> list[Part]:
        self._final = final
        buffer, at = self._held + text, 0
        while True:
            state = self._state
            at = self._steps[state](buffer, at)
            if self._state is state:
                break
        self._held = "" if final else buffer[at:]
        parts, self._parts = self._parts, []
        return parts

    # Each step reads the buffer from `at` and returns from where on it is still to be read. A step that
    # leaves the state as it is waits for more.

    def _begin(self, buffer: str, at: int) -> int:
        bare = buffer.lstrip(WHITESPACE)
        if len(buffer) - len(bare) <= WHITESPACE_HELD_MAX:
            if not bare and not self._final:
                return at
            if bare.startswith("{"):
                self._raw, self._bare = buffer[: len(buffer) - len(bare)], True
                self._state = _State.HEAD
                return len(self._raw)
        self._state = _State.TEXT
        return at

    def _text(self, buffer: str, at: int) -> int:
        found = self._opening.search(buffer, at)
        if found is not None:
            end = max(at, before_space(buffer, found.start()))
            self._say(buffer[at:end])
            self._raw, self._bare = buffer[end : found.end()], False
            self._state = _State.HEAD
            return found.end()
        end = len(buffer)
        if not self._final:
            tail = end - begun(buffer[max(at, end - MARKER_CHARS_MAX) :], self._syntax.openings)
            end = max(at, before_space(buffer, tail))
        self._say(buffer[at:end])
        return end

    def _head(self, buffer: str, at: int) -> int:
        head = buffer[at : at + HEAD_CHARS_MAX]
        for shape in self._syntax.shapes:
            found = shape.head.match(head)
            if found is not None:
                if self._bare and found["name"] not in self._names:
                    break
                self._shape = shape
                self._start(found["name"])
                return at + found.end()
        else:
            if not self._final and len(head) < HEAD_CHARS_MAX and self._hopeful(head):
                return at
            place = head.find("{")
            if self._syntax.enveloped is not None and place >= 0 and not head[:place].strip(WHITESPACE + "["):
                self._raw += head[:place]
                self._brackets, self._whole, self._whole_chars = Brackets(0), [], 0
                self._state = _State.WHOLE
                return at + place
        self._say(self._raw)
        self._state = _State.TEXT
        return at

    def _hopeful(self, head: str) -> bool:
        """Whether a call could still come; an answer in prose is not held up for longer than it must be."""
        first = head.lstrip(WHITESPACE)[:1]
        return not first or first == "{" or any(not shape.enveloped for shape in self._syntax.shapes)

    def _start(self, name: str) -> None:
        self._parts.append(CallStart(self.calls, self._name_call(self.calls), name))
        self.calls += 1
        self._brackets = Brackets(1 if self._shape.enveloped else 0)
        self._state = _State.ARGUMENTS

    def _arguments(self, buffer: str, at: int) -> int:
        end = self._brackets.find_end(buffer, at, 1 if self._shape.enveloped else 0)
        text = buffer[at:] if end < 0 else buffer[at:end]
        if text:
            self._parts.append(CallArguments(self.calls - 1, text))
        if end < 0:
            return len(buffer)
        self._state = _State.ENVELOPE if self._shape.enveloped else _State.TAIL
        self._closers = self._shape.closers
        return end

    def _envelope(self, buffer: str, at: int) -> int:
        end = self._brackets.find_end(buffer, at, 0)
        if end < 0:
            return len(buffer)
        self._state = _State.TAIL
        return end

    def _read_whole(self, buffer: str, at: int) -> int:
        end = min(len(buffer), at + CALL_CHARS_MAX - self._whole_chars)
        closed = self._brackets.find_end(buffer[:end], at, 0)
        if closed >= 0:
            end = closed
        self._whole.append(buffer[at:end])
        self._whole_chars += end - at
        if closed < 0 and not self._final and self._whole_chars < CALL_CHARS_MAX:
            return end
        text, self._whole = "".join(self._whole), []
        call, shape = (self._call(text) if closed >= 0 else None), self._syntax.enveloped
        if call is None or shape is None:
            self._say(self._raw + text)
            self._state = _State.TEXT
        else:
            self._shape, self._closers = shape, shape.closers
            self._start(call[0])
            self._parts.append(CallArguments(self.calls - 1, call[1]))
            self._state = _State.TAIL
        return end

    def _call(self, text: str) -> tuple[str, str] | None:
        """Name and arguments of a call whose keys stand in another order, or whose arguments are a string."""
        try:
            said: Any = json.loads(text, strict=False)
        except (ValueError, RecursionError):
            return None
        name, arguments = said.get("name"), said.get("arguments", said.get("parameters"))
        if not isinstance(name, str) or re.fullmatch(NAME, name) is None:
            return None
        if self._bare and name not in self._names:
            return None
        if isinstance(arguments, str):
            return name, arguments
        if arguments is None:
            return name, "{}"
        return (name, json.dumps(arguments, ensure_ascii=False)) if isinstance(arguments, dict) else None

    def _tail(self, buffer: str, at: int) -> int:
        while True:
            at = _space_end(buffer, at)
            closer = next((c for c in self._closers if buffer.startswith(c, at)), None)
            if closer is None:
                break
            at += len(closer)
            self._closers = self._closers[self._closers.index(closer) + 1 :]
        rest = buffer[at : at + MARKER_CHARS_MAX]
        if not self._final and (not rest or any(c.startswith(rest) for c in self._closers)):
            return at
        if self._shape.chained and rest.startswith("{"):
            self._raw, self._state = "", _State.HEAD
        else:
            self._state = _State.TEXT
        return at

    def _say(self, text: str) -> None:
        if text:
            self._parts.append(Content(text))


def _space_end(text: str, start: int) -> int:
    found = _SPACE.match(text, start)
    return start if found is None else found.end()
