"""What a chat template says of its model: tool syntax, thoughts, and prompts with both, in every known family."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from fixtures_templates import (
    DEEPSEEK_R1,
    DEEPSEEK_V31,
    HERMES,
    LLAMA3,
    MISTRAL,
    MISTRAL_ARGS,
    QWEN,
    QWEN_CODER,
    SMOLLM2,
)

from potluck.v1 import work_pb2
from worker.engines.engine import JobError
from worker.engines.formats import Dialect, dialect_of
from worker.engines.template import ChatTemplate

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = work_pb2.Tool(name="weather", description="Weather of a city", parameters=json.dumps(PARAMETERS))
CALL = work_pb2.ToolCall(id="call_1", name="weather", arguments='{"city": "Zürich"}')
ROUND_TRIP = (
    work_pb2.ChatMessage(role="user", content="Rain?"),
    work_pb2.ChatMessage(role="assistant", tool_calls=[CALL], reasoning="look it up"),
    work_pb2.ChatMessage(role="tool", tool_call_id="call_1", content='"wet"'),
)


def render(source: str, *messages: work_pb2.ChatMessage, **fields: Any) -> str:
    template = ChatTemplate(source, bos="<s>", eos="</s>", now=lambda: datetime(2026, 11, 23, tzinfo=UTC))
    return template.render(work_pb2.ChatWork(messages=messages or ROUND_TRIP, **fields))


@pytest.mark.parametrize(
    ("source", "dialect"),
    [
        (QWEN, Dialect("hermes", "think")),
        (HERMES, Dialect("hermes")),
        (LLAMA3, Dialect("llama3")),
        (MISTRAL, Dialect("mistral")),
        (MISTRAL_ARGS, Dialect("mistral", fenced=False)),
        (DEEPSEEK_R1, Dialect("deepseek", "think")),
        (DEEPSEEK_V31, Dialect("deepseek", "think", fenced=False)),
        (SMOLLM2, Dialect()),
        (QWEN_CODER, Dialect()),
        (DEEPSEEK_R1.replace("tools", "hidden"), Dialect("", "think")),
        ("", Dialect()),
    ],
    ids=["qwen", "hermes", "llama3", "mistral", "args", "r1", "v3.1", "smollm2", "xml", "distill", "none"],
)
def test_a_template_tells_its_familys_dialect(source: str, dialect: Dialect) -> None:
    assert dialect_of(source) == dialect
    assert ("tools" in dialect.features, "reasoning" in dialect.features) == (
        bool(dialect.tools),
        bool(dialect.reasoning),
    )


@pytest.mark.parametrize(
    ("source", "pieces"),
    [
        (
            QWEN,
            [
                '<tools>\n{"type": "function", "function": {"name": "weather", "description": "Weather of a city"',
                "<think>\nlook it up\n</think>\n\n\n",
                '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call><|im_end|>',
                '<|im_start|>user\n<tool_response>\n"wet"\n</tool_response><|im_end|>\n<|im_start|>assistant\n',
            ],
        ),
        (
            HERMES,
            [
                "weather(city: str) - Weather of a city\n",
                '{"arguments": {"city": "Zürich"}, "name": "weather"}',
                '{"name": "weather", "content": "\\"wet\\""}',
            ],
        ),
        (
            LLAMA3,
            [
                '\n{\n    "type": "function"',
                '{"name": "weather", "parameters": {"city": "Zürich"}}',
                '"\\"wet\\""',
            ],
        ),
        (DEEPSEEK_R1, ['function<｜tool▁sep｜>weather\n```json\n{"city": "Zürich"}\n```<｜tool▁call▁end｜>']),
        (DEEPSEEK_V31, ['<｜tool▁call▁begin｜>weather<｜tool▁sep｜>{"city": "Zürich"}<｜tool▁call▁end｜>']),
        (MISTRAL_ARGS, ['[TOOL_CALLS]weather[ARGS]{"city": "Zürich"}']),
        (MISTRAL, ['[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Zürich"}, "id": "']),
    ],
    ids=["qwen", "hermes", "llama3", "r1", "v3.1", "args", "mistral"],
)
def test_a_round_trip_through_a_tool_reads_as_the_family_writes_it(source: str, pieces: list[str]) -> None:
    """Arguments are objects where a template writes JSON, and text where it puts strings together; a tool's answer
    finds the name of its call.
    """
    prompt = render(source, tools=[TOOL])
    places = [prompt.find(piece) for piece in pieces]
    assert min(places) >= 0, prompt
    assert places == sorted(places)
    assert "<｜Assistant｜><｜end" not in prompt, "no empty answer beside a call"


def test_mistrals_ids_are_the_same_nine_characters_in_call_and_answer() -> None:
    prompt = render(MISTRAL)
    called = prompt.partition('"id": "')[2][:9]
    assert prompt.partition('"call_id": "')[2][:10] == called + '"'
    kept = work_pb2.ChatMessage(role="tool", tool_call_id="AbCdEf123", content="x")
    assert '"call_id": "AbCdEf123"' in render(MISTRAL, kept)


def test_tools_that_must_not_be_called_are_not_shown() -> None:
    assert "Weather of a city" not in render(QWEN, tools=[TOOL], tool_choice="none")
    assert "Weather of a city" in render(QWEN, tools=[TOOL], tool_choice="auto")


def test_words_that_were_no_json_come_back_as_they_were() -> None:
    broken = work_pb2.ToolCall(id="1", name="weather", arguments='{"city')
    message = work_pb2.ChatMessage(role="assistant", tool_calls=[broken])
    assert '"arguments": {"city}\n' in render(QWEN, message)
    assert '<｜tool▁sep｜>{"city<｜tool▁call▁end｜>' in render(DEEPSEEK_V31, message)


@pytest.mark.parametrize(
    ("source", "effort", "end", "opened"),
    [
        (QWEN, "", "<|im_start|>assistant\n", False),
        (QWEN, "high", "<|im_start|>assistant\n", False),
        (QWEN, "none", "<think>\n\n</think>\n\n", False),
        (DEEPSEEK_R1, "", "<｜Assistant｜><think>\n", True),
        (DEEPSEEK_V31, "", "<｜Assistant｜></think>", False),
        (DEEPSEEK_V31, "low", "<｜Assistant｜><think>", True),
        (DEEPSEEK_V31, "none", "<｜Assistant｜></think>", False),
        (SMOLLM2, "high", "<|im_start|>assistant\n", False),
        ("{{ reasoning_effort }}", "minimal", "low", False),
        ("{{ reasoning_effort }}", "medium", "medium", False),
        ("{{ reasoning_effort is defined }}", "none", "False", False),
    ],
)
def test_effort_reaches_the_template_and_the_prompts_end_tells_where_thoughts_begin(
    source: str, effort: str, end: str, opened: bool
) -> None:
    prompt = render(source, work_pb2.ChatMessage(role="user", content="hi"), reasoning_effort=effort)
    assert prompt.endswith(end)
    reading = dialect_of(source).output_format(prompt)
    assert reading.reasoning_open is opened
    assert reading.reasoning == ("think" if "think>" in source else "")


def test_what_training_marks_is_shown_as_it_is() -> None:
    message = work_pb2.ChatMessage(role="user", content="hi")
    assert render("a{% generation %}{{ messages[0].content }}{% endgeneration %}b", message) == "ahib"


def test_a_templates_arguments_are_no_way_out_of_the_sandbox() -> None:
    """Whatever begins with an underscore is closed, and nothing can be changed."""
    call = "{% set a = messages[1].tool_calls[0].function.arguments %}"
    assert render(call + "{{ a._text }}{{ a.__class__ }}{{ a.city }}") == "Zürich"
    for reach in ("{{ a.update(x=1) }}", "{{ a.__radd__('x') }}", "{{ a.__class__.mro() }}"):
        with pytest.raises(JobError, match="fails on these messages"):
            render(call + reach)
