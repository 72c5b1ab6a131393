"""JSON Lines read strictly, line by line and bounded: what is wrong is said with its line and column.

Refused: a byte order mark anywhere but in front, bytes that are no UTF-8, what is no JSON object, NaN and
Infinity, the same key twice in one object, lone surrogates, nesting beyond `DEPTH_MAX`, numbers of more than
`NUMBER_CHARS_MAX` characters, lines beyond a limit. Lines end with LF or CRLF; blank ones are passed over and
counted. Pure: it opens nothing.
"""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

DEPTH_MAX: Final = 64
NUMBER_CHARS_MAX: Final = 64
LINE_BYTES_MAX: Final = 4 << 20
KEY_CHARS_SHOWN_MAX: Final = 64
PROBLEMS_MAX: Final = 20  # are named; whoever reads them mends those first
_BOM: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Problem:
    """`line` and `column` count from 1; 0 where it is about the whole file, or the whole line."""

    text: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        if not self.line:
            return self.text
        return f"line {self.line}{f', column {self.column}' if self.column else ''}: {self.text}"


@dataclass(frozen=True, slots=True)
class Line:
    """One line that is not blank. `size_bytes` without its end."""

    number: int
    value: dict[str, Any]
    size_bytes: int


class JsonlError(ValueError):
    """What is wrong with a line, without its number."""

    def __init__(self, text: str, column: int = 0) -> None:
        super().__init__(text)
        self.text, self.column = text, column


def read(lines: Iterable[bytes], *, line_bytes_max: int = LINE_BYTES_MAX) -> Iterator[Line | Problem]:
    """What each line says, or what is wrong with it. `lines`: as `split` gives them, with their ends."""
    for number, raw in enumerate(lines, 1):
        data = raw.removesuffix(b"\n").removesuffix(b"\r")
        if number == 1:
            data = data.removeprefix(_BOM)
        if not data.strip(b" \t\r"):
            continue
        if len(data) > line_bytes_max:
            yield Problem(f"it is longer than {line_bytes_max:,} bytes", number)
            continue
        try:
            yield Line(number, parse(data), len(data))
        except JsonlError as wrong:
            yield Problem(wrong.text, number, wrong.column)


def split(chunks: Iterable[bytes], *, line_bytes_max: int = LINE_BYTES_MAX) -> Iterator[bytes]:
    """Lines with their ends. Of one that is too long, as much as shows that it is: memory stays bounded."""
    rest, most = b"", line_bytes_max + 8  # with a byte order mark and its end
    for chunk in chunks:
        *whole, last = (rest + chunk).split(b"\n")
        yield from (line[:most] + b"\n" for line in whole)
        rest = last[:most]
    if rest:
        yield rest


def parse(data: bytes) -> dict[str, Any]:
    """The object of one line. Raises JsonlError."""
    try:
        text = data.decode()
        value = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_refused, parse_int=_integer, parse_float=_float
        )
    except UnicodeDecodeError as error:
        raise JsonlError(f"it is not UTF-8 from byte {error.start + 1} on") from None
    except json.JSONDecodeError as error:
        raise JsonlError(f"it is not JSON: {error.msg}", error.colno) from None
    except RecursionError:
        raise JsonlError(f"it is nested deeper than {DEPTH_MAX} levels") from None
    if not isinstance(value, dict):
        raise JsonlError("it is not a JSON object: {...}")
    # The cheap tests first: nesting that deep needs that many brackets, and a surrogate its escape.
    if text.count("[") + text.count("{") > DEPTH_MAX and deeper_than(value, DEPTH_MAX):
        raise JsonlError(f"it is nested deeper than {DEPTH_MAX} levels")
    if "\\u" in text:
        _refuse_surrogates(value)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Parsers disagree on which of two equal keys counts."""
    made = dict(pairs)
    if len(made) < len(pairs):
        seen = set()
        for key, _ in pairs:
            if key in seen:
                raise JsonlError(f"the key {key[:KEY_CHARS_SHOWN_MAX]!a} stands twice in one object")
            seen.add(key)
    return made


def _refused(name: str) -> None:
    raise JsonlError(f"{name} is no JSON")


def _integer(text: str) -> int:
    if len(text) > NUMBER_CHARS_MAX:
        raise JsonlError(f"a number has more than {NUMBER_CHARS_MAX} digits")
    return int(text)


def _float(text: str) -> float:
    value = float(text) if len(text) <= NUMBER_CHARS_MAX else math.inf
    if not math.isfinite(value):
        raise JsonlError("a number is too large, or has too many digits")
    return value


def deeper_than(value: Any, depth_max: int) -> bool:
    """Level by level, so that it needs no recursion."""
    level = [value]
    for _ in range(depth_max):
        below: list[Any] = []
        for node in level:
            children = node.values() if isinstance(node, dict) else node
            below.extend(child for child in children if isinstance(child, (dict, list)))
        if not below:
            return False
        level = below
    return True


def _refuse_surrogates(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise JsonlError("a \\u escape is one half of a pair, without the other") from None
