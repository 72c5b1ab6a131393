"""An answer's message and its deltas in the OpenAI API's shapes, reasoning as in DeepSeek's API: beside
`content` stands `reasoning_content`, and both are there, null where there is nothing of one.
"""

from collections.abc import Iterable
from typing import Any, assert_never

from coordinator.core.parts import CallArguments, CallStart, Content, Part, Reasoning


def message_of(parts: Iterable[Part], *, reasons: bool) -> dict[str, Any]:
    """`content` is null where the answer is nothing but tool calls."""
    texts, thoughts = list[str](), list[str]()
    calls: list[dict[str, Any]] = []
    for part in parts:
        match part:
            case Content(text):
                texts.append(text)
            case Reasoning(text):
                thoughts.append(text)
            case CallStart(_, id_, name):
                calls.append({"id": id_, "type": "function", "function": {"name": name, "arguments": ""}})
            case CallArguments(index, text):
                calls[index]["function"]["arguments"] += text
            case _:
                assert_never(part)
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts), "refusal": None}
    if calls:
        message |= {"content": message["content"] or None, "tool_calls": calls}
    if reasons:
        message["reasoning_content"] = "".join(thoughts) or None
    return message


def delta_of(part: Part, *, reasons: bool) -> dict[str, Any]:
    """Of a chunk that brings this part and nothing else."""
    match part:
        case Content(text):
            delta: dict[str, Any] = {"content": text}
        case Reasoning(text):
            return {"content": None, "reasoning_content": text}
        case CallStart(index, id_, name):
            function = {"name": name, "arguments": ""}
            delta = {"tool_calls": [{"index": index, "id": id_, "type": "function", "function": function}]}
        case CallArguments(index, text):
            delta = {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
        case _:
            assert_never(part)
    return {"content": None, "reasoning_content": None, **delta} if reasons else delta


def details_of(reasoning_tokens: int | None) -> dict[str, Any]:
    """For the usage object, of a model that reasons."""
    if reasoning_tokens is None:
        return {}
    return {"completion_tokens_details": {"reasoning_tokens": reasoning_tokens}}
