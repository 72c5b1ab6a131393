"""Chats' answers read on their way to the member, where there is anything to read in them.

A transcript begins when the first attempt says how its model writes, and follows the job through all
attempts. Jobs whose text is content from end to end have none, and their pieces pass as they are.
"""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Final

from coordinator.core.jobs import Job, JobId
from coordinator.core.output import Piece
from coordinator.core.parts import Part, Reasoning
from coordinator.core.reading import Format, Reader, needed
from coordinator.relay import Output

PORTION_CHARS: Final = 4_096
PORTION_CHARS_MAX: Final = 16_384
_CUT: Final = re.compile(r"(?<=[^\W\d_])(?= [^\W\d_])")  # where no tokenizer joins what is on both sides


@dataclass(slots=True)
class Tally:
    """Tokens of a text that comes in pieces. Counted in portions, so that its end keeps nobody waiting."""

    count: Callable[[str], int]
    tokens: int = 0
    _parts: list[str] = field(default_factory=list)
    _chars: int = 0

    def add(self, text: str) -> None:
        self._parts.append(text)
        self._chars += len(text)
        if self._chars < PORTION_CHARS:
            return
        text = "".join(self._parts)
        found = _CUT.search(text, PORTION_CHARS - 1)
        if found is not None or self._chars >= PORTION_CHARS_MAX:
            end = len(text) if found is None else found.start()
            self.tokens += self.count(text[:end])
            self._parts, self._chars = [text[end:]], len(text) - end

    @property
    def total(self) -> int:
        return self.tokens + (self.count("".join(self._parts)) if self._chars else 0)


@dataclass(slots=True)
class Transcript:
    """One job's choices, each with its reader."""

    form: Format
    readers: list[Reader]
    tallies: list[Tally]
    ended: set[int] = field(default_factory=set)

    def read(self, pieces: Sequence[Piece]) -> list[Output]:
        """What the pieces, which the core has taken, made certain."""
        outputs = []
        for piece in pieces:
            reader = self.readers[piece.choice]
            parts, reason = reader.feed(piece.text), piece.finish_reason or None
            if reason:
                parts += reader.finish()
                self.ended.add(piece.choice)
                reason = "tool_calls" if reason == "stop" and reader.called else reason
            outputs.append(self._output(piece, parts, reason))
        return outputs

    def cut_off(self) -> list[Output]:
        """What was held back of choices that will not go on."""
        going = [choice for choice in range(len(self.readers)) if choice not in self.ended]
        self.ended.update(going)
        return [self._output(Piece(choice, 0, ""), self.readers[choice].finish(), None) for choice in going]

    @property
    def reasoning_tokens(self) -> int | None:
        """By the coordinator's own count, tags not included; None of a model that does not reason."""
        return sum(tally.total for tally in self.tallies) if self.form.reasons else None

    def _output(self, piece: Piece, parts: list[Part], reason: str | None) -> Output:
        for part in parts:
            if isinstance(part, Reasoning):
                self.tallies[piece.choice].add(part.text)
        return Output(
            piece.choice,
            piece.text,
            piece.token_ids,
            piece.logprobs,
            reason,
            parts=tuple(parts),
            reasons=self.form.reasons,
        )


@dataclass(slots=True)
class Transcripts:
    open: dict[JobId, Transcript] = field(default_factory=dict)

    def begin(self, job: Job, form: Format, tools: Collection[str], count: Callable[[str], int]) -> None:
        """`form` is the first that was told: later attempts inherit it, and change nothing here."""
        if job.id not in self.open and needed(form, tools):
            readers = [Reader(job.id, choice, form, tools) for choice in range(job.choices)]
            self.open[job.id] = Transcript(form, readers, [Tally(count) for _ in readers])

    def reasoning_tokens(self, job: Job) -> int | None:
        """Never more than the output that was counted in all: markup is counted with its neighbours there."""
        transcript = self.open.get(job.id)
        tokens = None if transcript is None else transcript.reasoning_tokens
        return None if tokens is None else min(tokens, job.output_tokens)
