"""What the text of a chat's answer is made of, and how a text is cut while it is still coming in.

The pieces of a text arrive cut anywhere. What may still turn out to be markup is held back until it is
certain, so that the parts, neighbours of one kind joined, depend on the text alone and never on where it
was cut.
"""

from collections.abc import Iterable
from dataclasses import dataclass

WHITESPACE = " \t\r\n"
WHITESPACE_HELD_MAX = 256  # code points that may be dropped in front of markup; what is before is delivered


@dataclass(frozen=True, slots=True)
class Reasoning:
    text: str


@dataclass(frozen=True, slots=True)
class Content:
    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """The model asks for a function; `index` counts the calls of one choice from 0."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """The next characters of a call's arguments, which are JSON as far as the model wrote it well."""

    index: int
    text: str


Part = Reasoning | Content | CallStart | CallArguments


def joined(parts: Iterable[Part]) -> list[Part]:
    """The same with neighbours of one kind as one."""
    result: list[Part] = []
    for part in parts:
        last = result[-1] if result else None
        match last, part:
            case (Reasoning(before), Reasoning(text)):
                result[-1] = Reasoning(before + text)
            case (Content(before), Content(text)):
                result[-1] = Content(before + text)
            case (CallArguments(index, before), CallArguments(same, text)) if index == same:
                result[-1] = CallArguments(index, before + text)
            case _:
                result.append(part)
    return result


def begun(text: str, markers: Iterable[str]) -> int:
    """How many code points at the end of `text` may be the beginning of one of the markers."""
    longest = 0
    for marker in markers:
        for size in range(min(len(marker) - 1, len(text)), longest, -1):
            if text.endswith(marker[:size]):
                longest = size
                break
    return longest


def before_space(text: str, end: int) -> int:
    """Where the whitespace in front of `end` begins; of a longer run, the last WHITESPACE_HELD_MAX."""
    start = max(0, end - WHITESPACE_HELD_MAX)
    return start + len(text[start:end].rstrip(WHITESPACE))
