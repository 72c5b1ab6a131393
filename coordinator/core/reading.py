"""How the text of a chat's answer is read: reasoning, content and tool calls, told apart while it comes in.

The engine says with the prompt how its model writes (`Format`); the text on the wire stays what the model
wrote, so that failover, counting and ids know nothing of all this. One `Reader` follows one choice through
all attempts.
"""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass

from coordinator.core.parts import Content, Part
from coordinator.core.reasoning import Thinking
from coordinator.core.syntax import SYNTAXES
from coordinator.core.toolcalls import ToolCalls

CALL_ID_CHARS = 24


@dataclass(frozen=True, slots=True)
class Format:
    """As OutputFormat of work.proto. A word that is not known here is as good as none: all is content."""

    reasoning: str = ""  # think
    opened: bool = False  # the prompt ended inside of the reasoning
    tools: str = ""  # hermes | mistral | llama3 | deepseek

    @property
    def reasons(self) -> bool:
        return self.reasoning == "think"


def call_id(job: str, choice: int, index: int) -> str:
    """The id of a tool call. It follows from the job, so that it survives a change of worker."""
    cause = f"{job}\n{choice}\n{index}".encode()
    return "call_" + hashlib.sha256(cause).hexdigest()[:CALL_ID_CHARS]


class Reader:
    """Text of one choice in, parts out; see `parts` for what is the same however the text is cut.

    `tools`: the names of the functions that may be called. Without any, calls are not looked for.
    """

    def __init__(self, job: str, choice: int, form: Format, tools: Collection[str]) -> None:
        self._thinking = Thinking(opened=form.opened) if form.reasons else None
        syntax = SYNTAXES.get(form.tools) if tools else None
        self._calls: ToolCalls | None = None
        if syntax is not None:
            self._calls = ToolCalls(syntax, tools, lambda index: call_id(job, choice, index))

    @property
    def called(self) -> bool:
        """Whether a tool call has begun."""
        return self._calls is not None and self._calls.calls > 0

    def feed(self, text: str) -> list[Part]:
        """The parts that became certain with this text."""
        return self._called([Content(text)] if self._thinking is None else self._thinking.feed(text))

    def finish(self) -> list[Part]:
        """The text has ended: whatever was held back."""
        parts = self._called([] if self._thinking is None else self._thinking.finish())
        return parts if self._calls is None else parts + self._calls.finish()

    def _called(self, parts: list[Part]) -> list[Part]:
        """Tool calls are looked for in the content alone."""
        if self._calls is None:
            return [part for part in parts if not isinstance(part, Content) or part.text]
        found: list[Part] = []
        for part in parts:
            found += self._calls.feed(part.text) if isinstance(part, Content) else [part]
        return found


def needed(form: Format, tools: Collection[str]) -> bool:
    """Whether the text has to be read at all: most is content from the first to the last character."""
    return form.reasons or (bool(tools) and form.tools in SYNTAXES)
