"""Training data: what each format needs, what is said of bad lines, and that what is accepted can be read."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck import training_data
from potluck.jsonl import LINE_BYTES_MAX, PROBLEMS_MAX, Line, read, split
from potluck.training_data import Chat, Completion, Preference, Turn, check, example_of, examples, problems

USER, ASSISTANT = {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}
CHAT = {"messages": [USER, ASSISTANT]}
COMPLETION = {"prompt": "2 + 2 =", "completion": " 4"}
PAIR = {
    "input": {"messages": [USER], "tools": [], "parallel_tool_calls": True},
    "preferred_output": [ASSISTANT],
    "non_preferred_output": [{"role": "assistant", "content": "5"}],
}


def lines(*values: Any) -> list[bytes]:
    return [(one if isinstance(one, bytes) else json.dumps(one).encode()) + b"\n" for one in values]


def said(*values: Any) -> list[str]:
    return [str(problem) for problem in problems(lines(*values))]


def with_bad(bad: Any, good: Any = CHAT) -> list[str]:
    """What is said of a file that is good but for line 7."""
    return said(*[good] * 6, bad, *[good] * 5)


def test_all_three_formats_are_read() -> None:
    for good in (CHAT, COMPLETION, PAIR):
        assert said(*[good] * 10) == []
    assert example_of({"messages": [USER, {**ASSISTANT, "weight": 0}, USER, ASSISTANT]}) == Chat(
        (Turn("user", "2 + 2?"), Turn("assistant", "4", 0), Turn("user", "2 + 2?"), Turn("assistant", "4"))
    )
    assert example_of(COMPLETION) == Completion("2 + 2 =", " 4")
    assert example_of(PAIR) == Preference((Turn("user", "2 + 2?"),), "4", "5")


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (b'{"messages": [}', "line 7, column 15: it is not JSON"),
        (b"\xff\xfe", "line 7: it is not UTF-8 from byte 1 on"),
        (b"[1]", "line 7: it is not a JSON object"),
        (b'{"prompt": "a", "prompt": "b"}', "line 7: the key 'prompt' stands twice"),
        (b'{"prompt": "\\ud800", "completion": "b"}', "line 7: a \\u escape is one half of a pair"),
        (b'{"prompt": NaN}', "line 7: NaN is no JSON"),
        (b'{"prompt": 1e999}', "line 7: a number is too large"),
        (b'{"prompt": ' + b"1" * 5_000 + b"}", "line 7: a number has more than 64 digits"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, "line 7: it is nested deeper than 64 levels"),
        (b'{"a":' * 100_000, "line 7: it is n"),
        (b"x" * (LINE_BYTES_MAX + 1), "line 7: it is longer than 4,194,304 bytes"),
        ({}, "line 7: this is no example: `messages`, or `prompt`"),
        ({"messages": []}, "line 7: messages: a list of messages is needed"),
        ({"messages": [USER] * 2_049}, "line 7: messages: at most 2048 messages"),
        ({"messages": [USER]}, "line 7: messages: there is no turn of the assistant"),
        ({"messages": [ASSISTANT, USER]}, "line 7: messages: the last one must be of the assistant"),
        ({"messages": [{**ASSISTANT, "weight": 0}]}, "line 7: messages: every turn of the assistant has the"),
        ({"messages": [{**ASSISTANT, "weight": 2}]}, "line 7: messages.0.weight: 0 or 1"),
        ({"messages": [{**ASSISTANT, "weight": True}]}, "line 7: messages.0.weight: 0 or 1"),
        (
            {"messages": [{**USER, "weight": 1}, ASSISTANT]},
            "line 7: messages.0.weight: only turns of the ass",
        ),
        ({"messages": [{"role": "assistant", "content": " "}]}, "line 7: messages.0.content: it is empty"),
        ({"messages": [USER, {"role": "bot", "content": "4"}]}, "line 7: messages.1.role: one of system,"),
        ({"messages": [USER, {"role": ["user"]}]}, "line 7: messages.1.role: one of system,"),
        ({"messages": [USER, "4"]}, "line 7: messages.1: a message is an object"),
        ({"messages": [{"role": "user", "content": 4}, ASSISTANT]}, "line 7: messages.0.content: a text"),
        ({"messages": [USER, ASSISTANT], "tool": []}, "line 7: tool: there is no such field"),
        ({"prompt": "a"}, "line 7: completion: a text is needed"),
        ({"prompt": "a", "completion": ""}, "line 7: completion: it is empty"),
        ({**PAIR, "input": [USER]}, "line 7: input: an object with `messages`"),
        ({**PAIR, "input": {"messages": [USER], "tools": [1]}}, "line 7: input.tools: training with tools"),
        ({**PAIR, "input": CHAT}, "line 7: input.messages: the last one must not be"),
        ({**PAIR, "preferred_output": [ASSISTANT] * 2}, "line 7: preferred_output: a list of one message"),
        ({**PAIR, "non_preferred_output": [ASSISTANT]}, "line 7: non_preferred_output: it is the same"),
        (COMPLETION, "line 7: this is a prompt with its completion, and line 1 is a chat"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(bad: Any, words: str) -> None:
    (problem,) = with_bad(bad)
    assert problem.startswith(words)


def test_few_examples_many_problems_and_an_empty_file() -> None:
    """As OpenAI does, ten are the least; of many problems the first twenty are named."""
    assert said(*[CHAT] * 3) == ["at least 10 examples are needed, and there are 3"]
    assert said() == ["at least 10 examples are needed, and there are 0"]
    many = said(*[{}] * 100)
    assert (len(many), many[-1].partition(":")[0]) == (PROBLEMS_MAX, "line 20")


def test_more_examples_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_data, "EXAMPLES_MAX", 20)
    assert said(*[CHAT] * 20) == []
    assert said(*[CHAT] * 21) == ["more than 20 examples; that is the most allowed"]


def test_a_byte_order_mark_crlf_and_blank_lines_are_passed_over(tmp_path: Path) -> None:
    """They count as lines: what is said agrees with an editor."""
    path, one = tmp_path / "data.jsonl", json.dumps(CHAT).encode()
    path.write_bytes(b"\xef\xbb\xbf" + one + b"\r\n\r\n \t\n" + b"\n".join([one] * 9))
    assert check(path) == []
    assert len(list(examples(path))) == 10
    path.write_bytes(b"\xef\xbb\xbf" + one + b"\r\n\r\n" + b"\n".join([one] * 9) + b"\n{\n")
    assert [problem.line for problem in check(path)] == [12]
    with pytest.raises(training_data.ExampleError, match="line 12"):
        list(examples(path))


@given(st.binary(max_size=400), st.integers(1, 50))
def test_lines_do_not_depend_on_how_the_bytes_come(data: bytes, size: int) -> None:
    chunks = [data[start : start + size] for start in range(0, len(data), size)]
    assert b"".join(split(chunks)) == data
    assert list(split(chunks)) == list(split([data]))


def test_a_line_without_end_takes_no_more_memory_than_the_longest_allowed() -> None:
    (line,) = split([b"x" * 1_000] * 1_000, line_bytes_max=5_000)
    assert len(line) < 6_000
    (problem,) = read([line], line_bytes_max=5_000)
    assert not isinstance(problem, Line)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def spoiled(draw: st.DrawFn) -> Any:
    """An example in which one value may be anything, or one key is gone."""
    example = json.loads(json.dumps(draw(st.sampled_from([CHAT, COMPLETION, PAIR]))))
    node: Any = example
    for _ in range(draw(st.integers(0, 4))):
        keys = (
            list(node) if isinstance(node, dict) else list(range(len(node))) if isinstance(node, list) else []
        )
        if not keys:
            break
        key = draw(st.sampled_from(keys))
        if draw(st.booleans()):
            if draw(st.booleans()):
                node[key] = draw(JSON)
            else:
                del node[key]
            break
        node = node[key]
    return example


@given(st.lists(spoiled() | JSON | st.binary(max_size=60), max_size=14), st.booleans())
def test_it_never_raises_and_what_it_accepts_can_be_read(values: list[Any], long: bool) -> None:
    """Accepted: as many examples as lines, of one kind, with text to learn in each."""
    raw = lines(*values, *[CHAT] * (10 if long else 0))
    if problems(raw):
        return
    found = [example_of(line.value) for line in read(raw) if isinstance(line, Line)]
    assert len(found) >= 10
    assert len({type(example) for example in found}) == 1
    for example in found:
        if isinstance(example, Chat):
            assert any(t.role == "assistant" and t.weight and t.content.strip() for t in example.turns)
        elif isinstance(example, Completion):
            assert example.completion.strip()
        else:
            assert example.preferred != example.non_preferred
        json.dumps(asdict(example), ensure_ascii=False).encode()  # no lone surrogates
