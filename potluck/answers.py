"""Answers of models, whole and as they come in, as values with names; read as in `potluck.results`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """What the pool adds to the usage object. Several jobs where one request had several prompts."""

    charge: int
    job_id: str = ""
    job_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputDetails:
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int = 0
    total_tokens: int = 0
    completion_tokens_details: OutputDetails | None = None  # of a model that reasons
    potluck: Charge | None = None

    @property
    def charge(self) -> int | None:
        """What it cost, in microcredits."""
        return self.potluck.charge if self.potluck else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A function that the model asks for. `arguments` are JSON as the model wrote it: check them."""

    id: str
    name: str
    arguments: str

    @classmethod
    def of(cls, call: Mapping[str, Any]) -> "ToolCall":
        """From its shape in the OpenAI API."""
        function = call.get("function") or {}
        return cls(
            id=str(call.get("id", "")),
            name=str(function.get("name", "")),
            arguments=str(function.get("arguments", "")),
        )

    @property
    def message(self) -> dict[str, Any]:
        """As an assistant's message has it in `tool_calls`."""
        return {
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    index: int
    text: str
    finish_reason: str | None = None
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A whole answer; `text`, `reasoning`, `tool_calls` are those of its first choice."""

    id: str
    model: str
    choices: tuple[Choice, ...]
    usage: Usage | None = None
    job_id: str | None = None

    @property
    def text(self) -> str:
        return self.choices[0].text if self.choices else ""

    @property
    def reasoning(self) -> str:
        return self.choices[0].reasoning if self.choices else ""

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        return self.choices[0].tool_calls if self.choices else ()

    @property
    def message(self) -> dict[str, Any]:
        """The first choice as a message of the conversation that goes on."""
        calls = [call.message for call in self.tool_calls]
        return {"role": "assistant", "content": self.text} | ({"tool_calls": calls} if calls else {})

    @property
    def finish_reason(self) -> str | None:
        return self.choices[0].finish_reason if self.choices else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A bit of an answer as it comes in: text or reasoning; a choice's last one has the `finish_reason`."""

    text: str
    choice: int = 0
    finish_reason: str | None = None
    reasoning: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    model: str
    vectors: tuple[tuple[float, ...], ...]
    usage: Usage | None = None
    job_id: str | None = None
