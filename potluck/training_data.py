"""Training examples as JSON Lines: chats, prompts with completions, or preference pairs; one kind in a file.

The formats are those of the OpenAI fine-tuning API:

    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "...", "weight": 1}]}
    {"prompt": "...", "completion": "..."}
    {"input": {"messages": [...]}, "preferred_output": [{...}], "non_preferred_output": [{...}]}

A validator and a reader are one here: what `problems` finds nothing in is what `examples` reads. A key that
nobody knows is refused, since one that is spelt wrong would be left out in silence.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from potluck.jsonl import PROBLEMS_MAX, Line, Problem, read, split

EXAMPLES_MIN: Final = 10
EXAMPLES_MAX: Final = 1_000_000
MESSAGES_MAX: Final = 2_048
CHUNK_BYTES: Final = 1 << 20
ROLES: Final = ("system", "developer", "user", "assistant")


class ExampleError(ValueError):
    """The example cannot be learned from; the message says which field and why."""


@dataclass(frozen=True, slots=True)
class Turn:
    """`weight` 0: an assistant's turn that is read but not learned."""

    role: str
    content: str
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Chat:
    """Ends with a turn of the assistant; one at least is learned."""

    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Completion:
    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class Preference:
    """Two answers to one conversation, for DPO (Rafailov et al., 2023)."""

    turns: tuple[Turn, ...]
    preferred: str
    non_preferred: str


Example = Chat | Completion | Preference
KINDS: Final[Mapping[type[Example], str]] = {
    Chat: "a chat (messages)",
    Completion: "a prompt with its completion",
    Preference: "a preference pair (input, preferred_output, non_preferred_output)",
}


def check(path: Path) -> list[Problem]:
    """`problems` of a file. Raises OSError."""
    return problems(_lines(path))


def problems(lines: Iterable[bytes]) -> list[Problem]:
    """What is wrong, the first PROBLEMS_MAX; `lines` with their ends. Raises nothing."""
    found: list[Problem] = []
    first: tuple[int, type[Example]] | None = None
    count = 0
    for line in read(lines):
        count += 1
        if count > EXAMPLES_MAX:
            return [*found, Problem(f"more than {EXAMPLES_MAX:,} examples; that is the most allowed")]
        try:
            if isinstance(line, Problem):
                found.append(line)
            else:
                kind = type(example_of(line.value))
                first = first or (line.number, kind)
                if kind is not first[1]:
                    raise ExampleError(
                        f"this is {KINDS[kind]}, and line {first[0]} is {KINDS[first[1]]}:"
                        " a file has one kind"
                    )
        except ExampleError as error:
            found.append(Problem(str(error), line.number if isinstance(line, Line) else 0))
        if len(found) >= PROBLEMS_MAX:
            return found
    if count < EXAMPLES_MIN:
        found.append(Problem(f"at least {EXAMPLES_MIN} examples are needed, and there are {count}"))
    return found


def examples(path: Path) -> Iterator[Example]:
    """All of a file without problems, in its order. Raises OSError, or ExampleError if it has some."""
    for line in read(_lines(path)):
        if isinstance(line, Problem):
            raise ExampleError(str(line))
        yield example_of(line.value)


def example_of(value: Mapping[str, Any]) -> Example:
    """One line's object. Raises ExampleError."""
    if "messages" in value:
        _only(value, ("messages",))
        return _chat(value["messages"])
    if "prompt" in value or "completion" in value:
        _only(value, ("prompt", "completion"))
        prompt = _text(value.get("prompt"), "prompt")
        return Completion(prompt, _filled(value.get("completion"), "completion"))
    if "input" in value or "preferred_output" in value or "non_preferred_output" in value:
        _only(value, ("input", "preferred_output", "non_preferred_output"))
        return _preference(value)
    raise ExampleError(
        "this is no example: `messages`, or `prompt` and `completion`, or `input`, `preferred_output` and"
        " `non_preferred_output` are needed"
    )


def _chat(value: Any) -> Chat:
    turns = _turns(value, "messages")
    if not any(turn.role == "assistant" for turn in turns):
        raise ExampleError("messages: there is no turn of the assistant, so there is nothing to learn")
    if turns[-1].role != "assistant":
        raise ExampleError("messages: the last one must be of the assistant")
    if not any(turn.role == "assistant" and turn.weight for turn in turns):
        raise ExampleError(
            "messages: every turn of the assistant has the weight 0, so there is nothing to learn"
        )
    return Chat(turns)


def _preference(value: Mapping[str, Any]) -> Preference:
    asked = value.get("input")
    if not isinstance(asked, dict):
        raise ExampleError("input: an object with `messages` is needed")
    _only(asked, ("messages", "tools", "parallel_tool_calls"), "input.")
    if asked.get("tools") not in (None, []):
        raise ExampleError("input.tools: training with tools is not supported; leave it out")
    turns = _turns(asked.get("messages"), "input.messages")
    if turns[-1].role == "assistant":
        raise ExampleError("input.messages: the last one must not be of the assistant, whose answers follow")
    preferred = _answer(value.get("preferred_output"), "preferred_output")
    other = _answer(value.get("non_preferred_output"), "non_preferred_output")
    if preferred == other:
        raise ExampleError("non_preferred_output: it is the same as preferred_output")
    return Preference(turns, preferred, other)


def _answer(value: Any, name: str) -> str:
    turns = _turns(value, name)
    if len(turns) != 1 or turns[0].role != "assistant":
        raise ExampleError(f"{name}: a list of one message of the assistant is needed")
    return turns[0].content


def _turns(value: Any, name: str) -> tuple[Turn, ...]:
    if not isinstance(value, list) or not value:
        raise ExampleError(f"{name}: a list of messages is needed")
    if len(value) > MESSAGES_MAX:
        raise ExampleError(f"{name}: at most {MESSAGES_MAX} messages are allowed, and there are {len(value)}")
    return tuple(_turn(one, f"{name}.{index}") for index, one in enumerate(value))


def _turn(value: Any, name: str) -> Turn:
    if not isinstance(value, dict):
        raise ExampleError(f"{name}: a message is an object with `role` and `content`")
    _only(value, ("role", "content", "weight"), f"{name}.")
    role = value.get("role")
    if role not in ROLES:
        raise ExampleError(f"{name}.role: one of {', '.join(ROLES)} is needed")
    if role != "assistant":
        if "weight" in value:
            raise ExampleError(f"{name}.weight: only turns of the assistant have one")
        return Turn(role, _text(value.get("content"), f"{name}.content"))
    weight = value.get("weight", 1)
    if type(weight) is not int or weight not in (0, 1):
        raise ExampleError(f"{name}.weight: 0 or 1 is needed")
    return Turn(role, _filled(value.get("content"), f"{name}.content"), weight)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ExampleError(f"{name}: a text is needed")
    return value


def _filled(value: Any, name: str) -> str:
    text = _text(value, name)
    if not text.strip():
        raise ExampleError(f"{name}: it is empty, so there is nothing to learn")
    return text


def _only(value: Mapping[str, Any], known: tuple[str, ...], within: str = "") -> None:
    for key in value:
        if key not in known:
            allowed = ", ".join(known)
            raise ExampleError(f"{within}{key[:64]}: there is no such field here; these are known: {allowed}")


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from split(iter(lambda: file.read(CHUNK_BYTES), b""))
