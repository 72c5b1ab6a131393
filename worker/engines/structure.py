"""What an answer must look like, as one grammar: `response_format`, enforced tool calls, thoughts in front.

The grammar is llguidance's dialect of Lark (github.com/guidance-ai/llguidance, docs/syntax.md), which
llama.cpp understands as well. Schemas come from members: their size and depth, the fuel and the time for
compiling are bounded, and what a schema asks that cannot be enforced is refused by name, as the job's fault.
"""

import json
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from potluck.v1 import work_pb2
from worker.engines.engine import JobError
from worker.engines.formats import MARKS, THINK_CLOSE, THINK_OPEN, Dialect

SCHEMA_BYTES_MAX: Final = 65_536
SCHEMA_DEPTH_MAX: Final = 48
GRAMMAR_BYTES_MAX: Final = 262_144
COMPILE_S_MAX: Final = 5.0
REASON_CHARS_MAX: Final = 200
ANY: Final = r"/(.|\n)*/"
WHITESPACE: Final = r"[ \n]{0,24}"  # between JSON's tokens: room to indent, no endless loop
HEADER: Final = "%llguidance {}\n"
_OBJECT: Final[dict[str, Any]] = {"type": "object"}
_BYTES: Final = LLTokenizer("byte")
_COMPILING: Final = threading.Lock()  # one at a time: what members send takes one core at most


def limits() -> LLParserLimits:
    """Of one grammar: a tenth of what the library allows, and no grammar in its error messages."""
    return LLParserLimits(initial_lexer_fuel=500_000, max_grammar_size=100_000, verbose_errors=False)


@dataclass(frozen=True, slots=True)
class _Layout:
    """How calls are written: `begin` (`call` with the name, arguments, `close`), `between`, ... `end`."""

    begin: str
    call: str
    close: str
    between: str
    end: str


_LAYOUTS: Final = {  # by tools and `fenced`
    ("hermes", True): _Layout("", '<tool_call>\n{"name": "NAME", "arguments": ', "}\n</tool_call>", "\n", ""),
    ("mistral", True): _Layout("[TOOL_CALLS][", '{"name": "NAME", "arguments": ', "}", ", ", "]"),
    ("mistral", False): _Layout("", "[TOOL_CALLS]NAME[ARGS]", "", "", ""),
    ("llama3", True): _Layout("", '{"name": "NAME", "parameters": ', "}", "; ", ""),
    ("deepseek", True): _Layout(
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\n```json\n",
        "\n```<｜tool▁call▁end｜>",
        "\n",
        "<｜tool▁calls▁end｜>",
    ),
    ("deepseek", False): _Layout(
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁call▁begin｜>NAME<｜tool▁sep｜>",
        "<｜tool▁call▁end｜>",
        "",
        "<｜tool▁calls▁end｜>",
    ),
}


def grammar_of(
    chat: work_pb2.ChatWork, dialect: Dialect, reading: work_pb2.OutputFormat, special: Mapping[str, int]
) -> str:
    """The grammar of this chat's answer; "" where anything may be said. In a thread: it may take seconds.

    `special`: ids of the marks that are control tokens of this vocabulary. Raises JobError.
    """
    tools = list(chat.tools) if chat.tool_choice != "none" else []
    if tools and not dialect.tools:
        raise JobError("tools_unsupported", "this model's chat template knows no tools: ask without them")
    must_call = chat.tool_choice in ("required", "function")
    rules = _Rules(special)
    answers = []
    if chat.HasField("structure") and not must_call:
        answers.append(rules.json(_structure(chat.structure)))
    if tools and (must_call or answers):
        answers.append(_Calls(rules, chat, dialect).rule())
    elif any(tool.strict for tool in tools):
        answers.append(_Calls(rules, chat, dialect).among_text())
    if not answers:
        return ""
    grammar = rules.whole(" | ".join(answers), reading)
    if len(grammar) > GRAMMAR_BYTES_MAX:
        raise JobError("schema_too_large", f"all schemas together have more than {GRAMMAR_BYTES_MAX} bytes")
    return grammar


class _Rules:
    """Lark, rule by rule."""

    def __init__(self, special: Mapping[str, int]) -> None:
        self._lines: list[str] = []
        self.special = special
        self._marks = re.compile("(" + "|".join(map(re.escape, special)) + ")") if special else None

    def add(self, text: str, attributes: str = "") -> str:
        name = f"r{len(self._lines)}"
        self._lines.append(f"{name}{attributes}: {text}\n")
        return name

    def json(self, schema: dict[str, Any]) -> str:
        return self.add(_json(schema))

    def literal(self, text: str) -> str:
        """The text; marks that are control tokens as those tokens."""
        parts = self._marks.split(text) if self._marks else [text]
        return " ".join(
            f"<[{self.special[part]}]>" if part in self.special else json.dumps(part)
            for part in parts
            if part
        )

    def whole(self, answer: str, reading: work_pb2.OutputFormat) -> str:
        head, start = "", self.add(answer)
        if reading.reasoning:
            thoughts = self.add(ANY, f"[suffix={json.dumps(THINK_CLOSE)}]")
            gap = self.add(r"/[ \n]{0,8}/")
            opening = "" if reading.reasoning_open else self.literal(THINK_OPEN)
            head = f"{thoughts} {gap} " if reading.reasoning_open else f"({opening} {thoughts} {gap})? "
        return HEADER + f"start: {head}{start}\n" + "".join(self._lines)


class _Calls:
    """The tools that may be called, as rules. Raises JobError."""

    def __init__(self, rules: _Rules, chat: work_pb2.ChatWork, dialect: Dialect) -> None:
        self._rules, self._chat, self._dialect = rules, chat, dialect
        self._layout = _LAYOUTS[dialect.tools, dialect.fenced]
        named = chat.tool_name if chat.tool_choice == "function" else ""
        tools = [tool for tool in chat.tools if not named or tool.name == named]
        if not tools:
            raise JobError("invalid_request", f"tool_choice names {named}, which is not among the tools")
        self._arguments = {tool.name: rules.json(_parameters(tool)) for tool in tools}

    def rule(self, opening: str = "") -> str:
        """A call or, where that is allowed, several. `opening`: what stands there already."""
        rules, layout = self._rules, self._layout
        first = self._any((layout.begin + layout.call).removeprefix(opening))
        more = ""
        if self._chat.parallel_tool_calls:
            more = f"({rules.literal(layout.between)} {self._any(layout.call)})*"
        return rules.add(f"{first} {more} {rules.literal(layout.end)}")

    def _any(self, head: str) -> str:
        rules = self._rules
        close = rules.literal(self._layout.close)
        options = (
            f"{rules.literal(head.replace('NAME', json.dumps(name)[1:-1]))} {arguments} {close}"
            for name, arguments in self._arguments.items()
        )
        return rules.add(" | ".join(options))

    def among_text(self) -> str:
        """Anything may be said, but what begins as a call goes on as one."""
        rules = self._rules
        if self._dialect.tools == "llama3":  # a call has no mark but its first character
            return rules.add(rf"{self.rule()} | /([^{{ \n](.|\n)*)?/")
        opening = MARKS[self._dialect.tools][0]
        if opening in rules.special:
            before = rules.add(f"{ANY} {rules.literal(opening)}")
        else:
            before = rules.add(f"{ANY} {json.dumps(opening)}", "[lazy]")
        return rules.add(f"({before} {self.rule(opening)})* {ANY}")


def _structure(structure: work_pb2.Structure) -> dict[str, Any]:
    return _OBJECT if structure.kind == "json_object" else _schema(structure.schema, "response_format")


def _parameters(tool: work_pb2.Tool) -> dict[str, Any]:
    """The schema of the arguments; one that cannot be enforced binds only where the member asked for that."""
    if not tool.parameters:
        return _OBJECT
    try:
        return _schema(tool.parameters, f"the tool {tool.name}")
    except JobError:
        if tool.strict:
            raise
        return _OBJECT


def _json(schema: dict[str, Any]) -> str:
    """A value of this schema. Whatever the schema says about it, whitespace is ours."""
    bounded = {**schema, "x-guidance": {"whitespace_pattern": WHITESPACE}}
    return f"%json {json.dumps(bounded)}"


def _schema(text: str, place: str) -> dict[str, Any]:
    """A schema that can be enforced. Raises JobError, which says where and why not."""
    if len(text.encode()) > SCHEMA_BYTES_MAX:
        raise JobError("schema_too_large", f"{place}: the JSON schema has more than {SCHEMA_BYTES_MAX} bytes")
    try:
        schema = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise JobError("invalid_schema", f"{place}: the JSON schema is no JSON") from None
    if not isinstance(schema, dict):
        raise JobError("invalid_schema", f"{place}: a JSON schema is an object")
    if _depth(schema) > SCHEMA_DEPTH_MAX:
        raise JobError("schema_too_large", f"{place}: the schema is nested deeper than {SCHEMA_DEPTH_MAX}")
    with _COMPILING:
        begun = time.monotonic()
        matcher = LLMatcher(_BYTES, f"{HEADER}start: {_json(schema)}\n", log_level=0, limits=limits())
        matcher.compute_bitmask()  # the first mask builds what the grammar's size does not show
        if matcher.is_error():
            raise JobError("unsupported_schema", f"{place}: {_reason(matcher.get_error())}")
        if time.monotonic() - begun > COMPILE_S_MAX:
            raise JobError("schema_too_large", f"{place}: the schema takes too long to compile")
    return schema


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")


def _depth(value: Any) -> int:
    """Levels of nesting; the parser has bounded them already."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, inner), default=0)


def _reason(error: str) -> str:
    """The library's words without the place in a grammar that nobody has seen."""
    text = error.partition("failed to compile JSON schema: ")[2] or error
    text = " ".join(text.partition("\n   1 |")[0].replace("<non-verbose/>", "").split())
    if text.startswith("Unimplemented keys"):
        return f"this cannot be enforced: {text.partition(': ')[2]}"[:REASON_CHARS_MAX]
    return f"this cannot be enforced: {text}"[:REASON_CHARS_MAX]
