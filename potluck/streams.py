"""An answer while it comes in."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from potluck.answers import Answer, Choice, Piece, ToolCall, Usage
from potluck.errors import UnexpectedAnswer
from potluck.results import read
from potluck.transport import Transport


@dataclass(slots=True)
class _Choice:
    """What came of one choice."""

    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: dict[int, dict[str, str]] = field(default_factory=dict)
    finish_reason: str | None = None

    def take(self, piece: Piece, calls: Iterable[Mapping[str, Any]]) -> None:
        self.texts.append(piece.text)
        self.thoughts.append(piece.reasoning)
        self.finish_reason = piece.finish_reason or self.finish_reason
        for call in calls:
            so_far = self.calls.setdefault(int(call.get("index", 0)), {"id": "", "name": "", "arguments": ""})
            more = ToolCall.of(call)
            so_far["id"], so_far["name"] = so_far["id"] or more.id, so_far["name"] or more.name
            so_far["arguments"] += more.arguments

    def value(self, index: int) -> Choice:
        return Choice(
            index=index,
            text="".join(self.texts),
            finish_reason=self.finish_reason,
            reasoning="".join(self.thoughts),
            tool_calls=tuple(ToolCall(**call) for _, call in sorted(self.calls.items())),
        )


class AnswerStream:
    """Iterate over it for pieces, inside `with`. Afterwards `answer` is the whole of what came.

    Leaving the `with` early closes the connection, which cancels the job. `text` and `answer` then hold what
    came until then, and `usage` is None: the coordinator says at the end only what it cost.
    """

    def __init__(self, transport: Transport, path: str, body: Mapping[str, Any]) -> None:
        self._transport, self._path = transport, path
        self._body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        self._stack = ExitStack()
        self._events: Iterator[Any] | None = None
        self._choices: dict[int, _Choice] = {}
        self._id, self._model = "", str(body.get("model", ""))
        self.usage: Usage | None = None
        self.job_id: str | None = None

    def __enter__(self) -> Self:
        headers, self._events = self._stack.enter_context(self._transport.stream(self._path, self._body))
        self.job_id = headers.get("x-potluck-job-id")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The stack gets the error too: there it becomes one of this client's classes.
        self._stack.__exit__(kind, error, trace)

    def __iter__(self) -> Iterator[Piece]:
        if self._events is None:
            raise RuntimeError("open the stream first: `with pool.stream(...) as pieces:`")
        for event in self._events:
            yield from self._pieces(event)

    @property
    def text(self) -> str:
        """The first choice's text so far."""
        return "".join(self._choices[0].texts) if 0 in self._choices else ""

    @property
    def answer(self) -> Answer:
        """All choices so far."""
        choices = tuple(choice.value(index) for index, choice in sorted(self._choices.items()))
        return Answer(id=self._id, model=self._model, choices=choices, usage=self.usage, job_id=self.job_id)

    def _pieces(self, event: Any) -> Iterator[Piece]:
        if not isinstance(event, dict) or not isinstance(event.get("choices"), list):
            raise UnexpectedAnswer(
                "An event of the stream is not what this client knows. Is this a Potluck pool?"
            )
        self._id, self._model = str(event.get("id", self._id)), str(event.get("model", self._model))
        if event.get("usage"):
            self.usage = read(Usage, event["usage"])
            if self.usage.potluck and self.usage.potluck.job_id:
                self.job_id = self.usage.potluck.job_id
        for choice in event["choices"]:
            delta, index = choice.get("delta") or {}, int(choice.get("index", 0))
            piece = Piece(
                text=delta.get("content") or "",
                choice=index,
                finish_reason=choice.get("finish_reason"),
                reasoning=delta.get("reasoning_content") or "",
            )
            self._choices.setdefault(index, _Choice()).take(piece, delta.get("tool_calls") or ())
            if piece.text or piece.reasoning or piece.finish_reason:
                yield piece
