"""A model's way to chat: its template, how its answers are read, and the grammar that holds them."""

from collections.abc import Callable, Mapping
from datetime import datetime

from potluck.v1 import work_pb2
from worker.engines.formats import dialect_of
from worker.engines.structure import grammar_of
from worker.engines.template import ChatTemplate


class Chat:
    """`control`: the ids of the vocabulary's control tokens by their text. Raises EngineError."""

    def __init__(
        self, source: str, *, bos: str, eos: str, control: Mapping[str, int], now: Callable[[], datetime]
    ) -> None:
        self._template = ChatTemplate(source, bos=bos, eos=eos, now=now)
        self._dialect = dialect_of(source)
        self._special = {mark: control[mark] for mark in self._dialect.marks if mark in control}
        self.features = self._dialect.features
        self.marks = self._dialect.marks

    def render(self, chat: work_pb2.ChatWork) -> work_pb2.RenderedPrompt:
        """The prompt's text and how its answer is to be read. Raises JobError."""
        text = self._template.render(chat)
        return work_pb2.RenderedPrompt(text=text, format=self._dialect.output_format(text))

    def grammar(
        self, chat: work_pb2.ChatWork, reading: work_pb2.OutputFormat, *, spelled: bool = False
    ) -> str:
        """As structure.grammar_of: in a thread. `spelled`: marks as text, not as tokens. Raises JobError."""
        return grammar_of(chat, self._dialect, reading, {} if spelled else self._special)
