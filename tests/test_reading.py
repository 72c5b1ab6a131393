"""Reading an answer: reasoning, content and tool calls come out apart, however the text was cut on its way."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from coordinator.core.parts import CallArguments, CallStart, Content, Part, Reasoning, joined
from coordinator.core.reading import Format, Reader, call_id, needed
from coordinator.core.syntax import HEAD_CHARS_MAX, SYNTAXES
from coordinator.core.toolcalls import CALL_CHARS_MAX

TOOLS = ("get_weather", "f")
WEATHER = '{"city": "Zürich", "note": "a \\"quoted\\" } brace"}'
THINK = Format(reasoning="think")
OPENED = Format(reasoning="think", opened=True)
FORMATS = [THINK, OPENED] + [
    Format(reasoning=reasoning, tools=tools) for tools in SYNTAXES for reasoning in ("", "think")
]


def read(text: str, form: Format, cuts: tuple[int, ...] = (), tools: tuple[str, ...] = TOOLS) -> list[Part]:
    """The parts of the text, cut at these places."""
    reader = Reader("job_1", 0, form, tools)
    places = [0, *sorted({cut % (len(text) + 1) for cut in cuts}), len(text)]
    parts = [part for start, end in pairwise(places) for part in reader.feed(text[start:end])]
    return joined([*parts, *reader.finish()])


def everywhere(text: str, form: Format) -> list[Part]:
    """The parts, after it was made sure that they are the same with every single cut and letter by letter."""
    whole = read(text, form)
    for cut in range(len(text) + 1):
        assert read(text, form, (cut,)) == whole, text[:cut]
    assert read(text, form, tuple(range(len(text)))) == whole
    return whole


def call(index: int, name: str, arguments: str) -> list[Part]:
    return [CallStart(index, call_id("job_1", 0, index), name), CallArguments(index, arguments)]


@pytest.mark.parametrize(
    ("form", "text", "expected"),
    [
        (THINK, "<think>\nHm. 2 < 3\n</think>\n\nFour.", [Reasoning("Hm. 2 < 3"), Content("Four.")]),
        (THINK, " \n<think>a</think>b", [Reasoning("a"), Content("b")]),
        (OPENED, "\nHm.\n</think>\n\nFour.", [Reasoning("Hm."), Content("Four.")]),
        (OPENED, "<think>\nagain</think>x", [Reasoning("again"), Content("x")]),
        (THINK, "<think>\n\n</think>\n\nNone.", [Content("None.")]),
        (THINK, "No thinking <think>at all</think>.", [Content("No thinking <think>at all</think>.")]),
        (THINK, "<think>cut short </thin", [Reasoning("cut short </thin")]),
        (OPENED, "cut short", [Reasoning("cut short")]),
        (
            THINK,
            "<think>a </think b></think> c </think> d",
            [Reasoning("a </think b>"), Content("c </think> d")],
        ),
        (THINK, "<thi", [Content("<thi")]),
        (THINK, "  two", [Content("  two")]),
        (THINK, "", []),
    ],
)
def test_reasoning_is_split_off(form: Format, text: str, expected: list[Part]) -> None:
    assert everywhere(text, form) == expected


ONE = {
    "hermes": f'<tool_call>\n{{"name": "get_weather", "arguments": {WEATHER}}}\n</tool_call>',
    "mistral": f'[TOOL_CALLS][{{"name": "get_weather", "arguments": {WEATHER}}}]',
    "llama3": f'{{"name": "get_weather", "parameters": {WEATHER}}}',
    "deepseek": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
    f"{WEATHER}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
}
OTHER_SPELLINGS = [
    ("hermes", f'<tool_call>{{"arguments": {WEATHER}, "name": "get_weather"}}</tool_call>'),
    ("hermes", f'<tool_call>{{"name": "get_weather", "arguments": {WEATHER}, "id": "x{{"}}'),
    ("mistral", f"[TOOL_CALLS]get_weather[ARGS]{WEATHER}"),
    ("mistral", f"[TOOL_CALLS]get_weather[CALL_ID]123456789[ARGS]{WEATHER}"),
    ("mistral", f'[TOOL_CALLS] [{{"arguments": {WEATHER}, "name": "get_weather"}}]'),
    ("llama3", f'<|python_tag|>{{"type": "function", "name": "get_weather", "parameters": {WEATHER}}}'),
    ("llama3", f'\n{{"parameters": {WEATHER}, "name": "get_weather"}}'),
    ("deepseek", f"<｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{WEATHER}<｜tool▁call▁end｜>"),
]


@pytest.mark.parametrize(("form", "text"), [*ONE.items(), *OTHER_SPELLINGS])
def test_a_call_in_every_spelling(form: str, text: str) -> None:
    """The name, and the arguments as the model wrote them; only markup is left out."""
    found = everywhere(text, Format(tools=form))
    assert [found[0]] == call(0, "get_weather", "")[:1]
    arguments = found[1]
    assert isinstance(arguments, CallArguments)
    assert json.loads(arguments.text) == json.loads(WEATHER)
    assert len(found) == 2


SEVERAL = {
    "hermes": '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>\n<tool_call>\n'
    '{"name": "f", "arguments": {"a": [1, {}]}}\n</tool_call>',
    "mistral": '[TOOL_CALLS][{"name": "f", "arguments": {}}, {"name": "f", "arguments": {"a": [1, {}]}}]',
    "llama3": '{"name": "f", "parameters": {}}; {"name": "f", "parameters": {"a": [1, {}]}}',
    "deepseek": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{}<｜tool▁call▁end｜>\n"
    '<｜tool▁call▁begin｜>f<｜tool▁sep｜>{"a": [1, {}]}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
}


@pytest.mark.parametrize("form", SEVERAL)
def test_several_calls_with_words_around_them(form: str) -> None:
    """They are numbered; what stands around them is content, without the whitespace at the seams."""
    calls = [*call(0, "f", "{}"), *call(1, "f", '{"a": [1, {}]}')]
    assert everywhere(SEVERAL[form], Format(tools=form)) == calls
    assert everywhere(SEVERAL[form] + "\n\nDone.", Format(tools=form)) == [*calls, Content("Done.")]
    if form != "llama3":  # its bare object is a call only at the beginning
        said = everywhere("Let me look.\n" + SEVERAL[form], Format(tools=form))
        assert said == [Content("Let me look."), *calls]


def test_mistral_calls_one_after_the_other() -> None:
    text = '[TOOL_CALLS]f[ARGS]{}[TOOL_CALLS]f[ARGS]{"a": 1}'
    assert everywhere(text, Format(tools="mistral")) == [*call(0, "f", "{}"), *call(1, "f", '{"a": 1}')]


def test_arguments_that_are_no_object() -> None:
    """A string is taken as the arguments' text; none at all are an empty object."""
    text = '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call><tool_call>{"name": "f"}</tool_call>'
    assert everywhere(text, Format(tools="hermes")) == [*call(0, "f", '{"a": 1}'), *call(1, "f", "{}")]


def test_reasoning_and_a_call() -> None:
    """A call inside the reasoning is a thought; one after it is a call, and there is no content."""
    text = f"<think>Use <tool_call> now.</think>\n\n{ONE['hermes']}"
    found = everywhere(text, Format(reasoning="think", tools="hermes"))
    assert found == [Reasoning("Use <tool_call> now."), *call(0, "get_weather", WEATHER)]


NO_CALLS = [
    ("hermes", "The tag <tool_call> is markup."),
    ("hermes", '<tool_call>\n{"nom": "f", "arguments": {}}\n</tool_call> and more'),
    ("hermes", '<tool_call>{"name": "no name", "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f", "argum'),
    ("hermes", " <tool_"),
    ("mistral", "[TOOL_CALLS] are what it writes"),
    ("mistral", "[TOOL_CALLS][]"),
    ("llama3", '{"name": "unknown_function", "parameters": {}}'),
    ("llama3", '{"answer": 42} is all.'),
    ("llama3", '<|python_tag|>brave_search.call(query="x")'),
    ("llama3", "In prose {a} stays."),
    ("deepseek", "<｜tool▁calls▁begin｜>but no name"),
]


@pytest.mark.parametrize(("form", "text"), NO_CALLS)
def test_what_is_no_call_is_content_to_the_letter(form: str, text: str) -> None:
    assert everywhere(text, Format(tools=form)) == [Content(text)]


def test_a_failed_opening_does_not_hide_the_next_one() -> None:
    text = f"<tool_call><tool_call>{ONE['hermes']}"
    found = everywhere(text, Format(tools="hermes"))
    assert found == [Content("<tool_call><tool_call>"), *call(0, "get_weather", WEATHER)]


def test_a_call_that_is_cut_short_stays_a_call() -> None:
    """At max_tokens the arguments end where the text ends, as in the OpenAI API."""
    text = '<tool_call>{"name": "f", "arguments": {"a": "b'
    assert everywhere(text, Format(tools="hermes")) == call(0, "f", '{"a": "b')


def test_arguments_go_out_as_they_come() -> None:
    """The name as soon as it is certain, then each piece of the arguments at once."""
    reader = Reader("job_1", 0, Format(tools="hermes"), TOOLS)
    assert reader.feed('<tool_call>{"name": "f", "arguments": ') == []
    before = reader.called
    assert reader.feed("{") == call(0, "f", "{")
    assert (before, reader.called) == (False, True)
    assert reader.feed('"a": 1') == [CallArguments(0, '"a": 1')]
    assert reader.feed("}}") == [CallArguments(0, "}")]


def test_without_tools_nothing_is_looked_for() -> None:
    assert read(ONE["hermes"], Format(tools="hermes"), tools=()) == [Content(ONE["hermes"])]
    assert not needed(Format(tools="hermes"), ())
    assert not needed(Format(tools="of the future", reasoning="of the future"), TOOLS)
    assert needed(Format(tools="hermes"), TOOLS)
    assert needed(THINK, ())


def test_ids_follow_from_job_choice_and_index() -> None:
    ids = {call_id(job, choice, index) for job in "ab" for choice in (0, 1) for index in (0, 1)}
    assert len(ids) == 8
    assert call_id("a", 0, 0) == call_id("a", 0, 0)
    assert all(len(found) == 29 and found.startswith("call_") for found in ids)


BITS = st.sampled_from(
    [
        *("<think>", "</think>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>"),
        *(
            "<｜tool▁calls▁begin｜>",
            "<｜tool▁call▁begin｜>",
            "<｜tool▁sep｜>",
            "<｜tool▁call▁end｜>",
            "```json",
            "```",
        ),
        *(
            '{"name": "f", "arguments": {',
            '"a": "b\\"}"',
            "}",
            "}}",
            "{",
            "]",
            "[",
            ";",
            ",",
            "f",
            "function",
        ),
        *(" ", "\n", "\t", " " * 300, '"', "\\", "<", "x", "Grüezi 🎉", '{"name": "f", "parameters": {}}'),
        *('{"arguments": {}, "name": "get_weather"}', "x" * HEAD_CHARS_MAX),
    ]
)
TEXTS = st.lists(BITS | st.text(max_size=5), max_size=24).map("".join)
CUTS = st.lists(st.integers(0, 10_000), max_size=12).map(tuple)


@given(TEXTS, st.sampled_from(FORMATS), CUTS)
@example("<think>a" + " " * 300 + "</think>b", THINK, (9, 264, 265, 266, 300, 310))
@example(" " * 257 + "<think>a</think>", THINK, (1, 256, 257, 258))
def test_where_a_text_is_cut_makes_no_difference(text: str, form: Format, cuts: tuple[int, ...]) -> None:
    """Hypothesis: nothing raises either, whatever the model writes."""
    assert read(text, form, cuts) == read(text, form)


@given(TEXTS, st.sampled_from(FORMATS))
def test_nothing_is_lost_but_markup_and_whitespace(text: str, form: Format) -> None:
    """What is delivered stands in the text in this order; without a call or reasoning it is all of it."""
    parts = read(text, form)
    if all(isinstance(part, Content) for part in parts) and "<think>" not in text and not form.opened:
        assert "".join(part.text for part in parts if isinstance(part, Content)) == text
    at = 0
    for part in parts:
        if isinstance(part, Content | Reasoning):
            for line in part.text.split():
                at = text.index(line, at) + len(line)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.lists(st.dictionaries(st.text(max_size=5), JSON, max_size=3), min_size=1, max_size=3),
    st.sampled_from(sorted(SYNTAXES)),
    st.sampled_from([None, 1]),
    CUTS,
)
def test_what_a_model_calls_is_what_comes_out(
    calls: list[dict[str, Any]], form: str, indent: int | None, cuts: tuple[int, ...]
) -> None:
    """Any arguments, written in the format, come out as they went in."""
    texts = [json.dumps(arguments, indent=indent, ensure_ascii=False) for arguments in calls]
    written = {
        "hermes": "\n".join(
            f'<tool_call>\n{{"name": "f", "arguments": {text}}}\n</tool_call>' for text in texts
        ),
        "mistral": "".join(f"[TOOL_CALLS]f[ARGS]{text}" for text in texts),
        "llama3": "; ".join(f'{{"name": "f", "parameters": {text}}}' for text in texts),
        "deepseek": "<｜tool▁calls▁begin｜>"
        + "\n".join(
            f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{text}\n```<｜tool▁call▁end｜>"
            for text in texts
        )
        + "<｜tool▁calls▁end｜>",
    }[form]
    expected = [part for index, text in enumerate(texts) for part in call(index, "f", text)]
    assert read(written, Format(tools=form), cuts) == expected


HOSTILE = [
    ("hermes", "<tool_call>" * 20_000),
    ("hermes", "<tool_call>{" * 20_000),
    ("hermes", '<tool_call>{"name": "f", "arguments": {}}' * 6_000),
    ("hermes", " " * 200_000 + "<"),
    ("hermes", '<tool_call>{"' + "[" * 200_000),
    ("mistral", ("[TOOL_CALLS]f" + " " * 480) * 400),
    ("deepseek", ("<｜tool▁call▁begin｜>" + " " * 480) * 400),
    ("llama3", '{"name": "f", "parameters": {}};' * 6_000),
]


@pytest.mark.parametrize(("form", "text"), HOSTILE)
@pytest.mark.parametrize("size", [1 << 20, 61])
def test_a_hostile_text_is_read_to_its_end(form: str, text: str, size: int) -> None:
    """Long runs of what may become a call: were the work not in proportion, this would not end in minutes."""
    reader = Reader("job_1", 0, Format(reasoning="think", tools=form), TOOLS)
    parts = [part for at in range(0, len(text), size) for part in reader.feed(text[at : at + size])]
    parts += reader.finish()
    said = sum(len(part.text) for part in parts if isinstance(part, Content))
    assert said == len(text) or reader.called


def test_what_is_held_is_bounded() -> None:
    """An object that never ends is given up as a call, and its text goes out."""
    reader = Reader("job_1", 0, Format(tools="hermes"), TOOLS)
    held = 0
    for _ in range(3 * CALL_CHARS_MAX // 1_000):
        held += 1_000
        held -= sum(
            len(part.text) for part in reader.feed("<tool_call>{" + "x" * 988) if isinstance(part, Content)
        )
        assert held <= CALL_CHARS_MAX + 2_000
