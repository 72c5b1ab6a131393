"""Grammars for structures and enforced calls: what they let through in every family, and what is refused, by name."""

import contextlib
import json

import pytest
from llguidance import LLMatcher, LLTokenizer

from potluck.v1 import work_pb2
from worker.engines.engine import JobError
from worker.engines.formats import MARKS, Dialect
from worker.engines.structure import HEADER, SCHEMA_BYTES_MAX, grammar_of

BYTES = LLTokenizer("byte")
PLAIN = Dialect()
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": False,
}
# Two calls, as each family writes them.
CALLS = {
    Dialect("hermes"): '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>\n'
    '<tool_call>\n{"name": "g", "arguments": {"a": 1}}\n</tool_call>',
    Dialect(
        "mistral"
    ): '[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {"a": 1}}]',
    Dialect("mistral", fenced=False): '[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g[ARGS]{"a": 1}',
    Dialect("llama3"): '{"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {"a": 1}}',
    Dialect("deepseek"): "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n"
    '```json\n{"a": 1}\n```<｜tool▁call▁end｜>\n'
    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>g\n"
    '```json\n{"a": 1}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
    Dialect("deepseek", fenced=False): "<｜tool▁calls▁begin｜>"
    '<｜tool▁call▁begin｜>f<｜tool▁sep｜>{"a": 1}<｜tool▁call▁end｜>'
    '<｜tool▁call▁begin｜>g<｜tool▁sep｜>{"a": 1}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
}
FAMILIES = pytest.mark.parametrize("dialect", CALLS, ids=lambda d: f"{d.tools}-{d.fenced}")


def tool(name: str, *, strict: bool = False, schema: str = json.dumps(SCHEMA)) -> work_pb2.Tool:
    return work_pb2.Tool(name=name, parameters=schema, strict=strict)


def asked(choice: str, *, strict: bool = False, parallel: bool = True, name: str = "") -> work_pb2.ChatWork:
    return work_pb2.ChatWork(
        tools=[tool("f", strict=strict), tool("g")],
        tool_choice=choice,
        tool_name=name,
        parallel_tool_calls=parallel,
    )


def structured(schema: str, dialect: Dialect = PLAIN, end: str = "") -> str:
    chat = work_pb2.ChatWork(structure=work_pb2.Structure(kind="json_schema", schema=schema))
    return grammar_of(chat, dialect, dialect.output_format(end), {})


def held(chat: work_pb2.ChatWork, dialect: Dialect) -> str:
    return grammar_of(chat, dialect, dialect.output_format(""), {})


def accepts(grammar: str, text: str) -> bool:
    """The whole text, and the grammar may end there."""
    matcher = LLMatcher(BYTES, grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    data = list(text.encode())
    return matcher.try_consume_tokens(data) == len(data) and bool(matcher.is_accepting())


@FAMILIES
def test_a_required_call_is_all_that_can_be_said(dialect: Dialect) -> None:
    grammar = held(asked("required"), dialect)
    calls = CALLS[dialect]
    assert accepts(grammar, calls)
    assert not accepts(grammar, "Hello.")
    assert not accepts(grammar, calls.replace('"a": 1', '"b": 1'))
    assert not accepts(grammar, calls.replace("f", "h", 1))
    assert not accepts(held(asked("required", parallel=False), dialect), calls)


@FAMILIES
def test_a_named_tool_is_the_only_one(dialect: Dialect) -> None:
    grammar = held(asked("function", name="g"), dialect)
    assert not accepts(grammar, CALLS[dialect])
    assert accepts(
        grammar,
        CALLS[dialect]
        .replace('"f"', '"g"')
        .replace("f[", "g[")
        .replace("sep｜>f", "sep｜>g")
        .replace("begin｜>f<", "begin｜>g<"),
    )


@FAMILIES
def test_a_strict_tool_binds_only_its_calls(dialect: Dialect) -> None:
    """Whatever is said in words stays free, and what begins as a call goes on as one."""
    grammar = held(asked("auto", strict=True), dialect)
    calls = CALLS[dialect]
    for text in ("", "Hello.", "a < b, [x] and <b>", calls):
        assert accepts(grammar, text), text
    assert not accepts(grammar, calls.replace('"a": 1', '"b": 1'))
    assert not accepts(grammar, calls.replace("f", "h", 1))
    if dialect.tools != "llama3":
        assert accepts(grammar, "Let me see. " + calls)
        assert not accepts(grammar, "Let me see. " + calls.replace('"a": 1', '"a": "x"'))


@FAMILIES
def test_marks_that_are_control_tokens_are_those_tokens(dialect: Dialect) -> None:
    mark = MARKS[dialect.tools][0]
    grammar = grammar_of(asked("required"), dialect, dialect.output_format(""), {mark: 7})
    assert ("<[7]>" in grammar) is (dialect.tools != "llama3")
    assert mark not in grammar


@pytest.mark.parametrize("chat", [asked("auto"), asked("none", strict=True), work_pb2.ChatWork()])
def test_nothing_is_held_where_nobody_asked_for_it(chat: work_pb2.ChatWork) -> None:
    assert held(chat, Dialect("hermes")) == ""


def test_tools_need_a_template_that_knows_them() -> None:
    with pytest.raises(JobError, match="knows no tools"):
        held(asked("auto"), Dialect())
    assert held(asked("none"), Dialect()) == ""
    with pytest.raises(JobError, match="names x, which is not among the tools"):
        held(asked("function", name="x"), Dialect("hermes"))


def test_a_structure_beside_tools_is_either() -> None:
    chat = asked("auto")
    chat.structure.kind = "json_object"
    grammar = held(chat, Dialect("hermes"))
    assert accepts(grammar, '{"any": [1, {"thing": null}]}')
    assert accepts(grammar, CALLS[Dialect("hermes")])
    assert not accepts(grammar, "Hello.")


@pytest.mark.parametrize(
    ("end", "right", "wrong"),
    [
        ("<think>\n", 'let {me} "see</think>\n\n{"a": 1}', '{"a": 1}'),
        ("", '<think>1 </thin 2</think>\n{"a": 1}', '<think>{"a": 1}'),
        ("", '{"a": 1}', 'Hm. {"a": 1}'),
    ],
)
def test_thoughts_are_free_and_the_structure_begins_behind_them(end: str, right: str, wrong: str) -> None:
    grammar = structured(json.dumps(SCHEMA), Dialect("", "think"), end)
    assert accepts(grammar, right)
    assert not accepts(grammar, wrong)


def test_whitespace_is_enough_to_indent_and_has_an_end() -> None:
    """Whatever the schema says about it: a small model would go on with spaces for ever."""
    grammar = structured(json.dumps(SCHEMA | {"x-guidance": {"whitespace_pattern": "x*"}}))
    assert accepts(grammar, json.dumps({"a": 1}, indent=8))
    assert not accepts(grammar, '{"a":' + " " * 50 + "1}")
    assert not accepts(grammar, '{"a":xx1}')


@pytest.mark.parametrize(
    ("schema", "code", "words"),
    [
        ('{"not": {}}', "unsupported_schema", '"not"'),
        ('{"properties": {"a": {"if": {}, "then": {}}}}', "unsupported_schema", '"if", "then"'),
        ('{"type": "string", "format": "shoe"}', "unsupported_schema", "Unknown format: shoe"),
        ('{"type": "string", "pattern": "(?=a)b"}', "unsupported_schema", "look-around"),
        ('{"$ref": "http://127.0.0.1:1/x"}', "unsupported_schema", "does not fetch"),
        ('{"$ref": "#"}', "unsupported_schema", "cannot be enforced"),
        ("false", "invalid_schema", "is an object"),
        ('{"const": NaN}', "invalid_schema", "is no JSON"),
        ("[" * 100_000, "schema_too_large", str(SCHEMA_BYTES_MAX)),
        ("[" * 50_000, "invalid_schema", "is no JSON"),
        ('{"anyOf": [' * 30 + "{}" + "]}" * 30, "schema_too_large", "nested deeper"),
    ],
)
def test_what_cannot_be_enforced_is_refused_by_name(schema: str, code: str, words: str) -> None:
    with pytest.raises(JobError) as raised:
        structured(schema)
    assert raised.value.code == code
    assert str(raised.value).startswith("response_format: ")
    assert words in str(raised.value)
    assert len(str(raised.value)) < 300
    with pytest.raises(JobError, match="the tool f: "):
        held(work_pb2.ChatWork(tools=[tool("f", strict=True, schema=schema)]), Dialect("hermes"))


def test_a_tool_that_is_not_strict_may_have_any_schema() -> None:
    """Its arguments are then any object: the member asked for a call, not for the impossible."""
    chat = work_pb2.ChatWork(tools=[tool("f", schema='{"not": {}}')], tool_choice="required")
    assert accepts(held(chat, Dialect("llama3")), '{"name": "f", "parameters": {"x": [1]}}')


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "^((a{100}){100}){100}$"},
        {"type": "array", "minItems": 100_000, "items": {"type": "array", "minItems": 100_000}},
        {"type": "string", "minLength": 10**9, "maxLength": 10**9},
        {"allOf": [{"anyOf": [{"properties": {f"{s}{i}": {}}} for s in "ab"]} for i in range(16)]},
        {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(1500)}},
        {"enum": [f"value {i}" for i in range(4000)]},
    ],
    ids=["pattern", "items", "length", "product", "properties", "enum"],
)
@pytest.mark.timeout(60)
def test_no_schema_takes_long_to_compile(schema: object) -> None:
    """Accepted or refused: the fuel decides, so that no member holds up a machine."""
    with contextlib.suppress(JobError):
        assert structured(json.dumps(schema)).startswith(HEADER)
