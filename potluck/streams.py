"""An answer while it comes in."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from potluck.errors import UnexpectedAnswer
from potluck.results import Answer, Choice, Piece, Usage, read
from potluck.transport import Transport


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
        self._texts: dict[int, list[str]] = {}
        self._reasons: dict[int, str | None] = {}
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
        return "".join(self._texts.get(0, ()))

    @property
    def answer(self) -> Answer:
        """All choices so far."""
        choices = tuple(
            Choice(index=index, text="".join(texts), finish_reason=self._reasons.get(index))
            for index, texts in sorted(self._texts.items())
        )
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
                text=delta.get("content") or "", choice=index, finish_reason=choice.get("finish_reason")
            )
            self._texts.setdefault(index, []).append(piece.text)
            if piece.finish_reason:
                self._reasons[index] = piece.finish_reason
            if piece.text or piece.finish_reason:
                yield piece
