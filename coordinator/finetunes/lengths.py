"""How many tokens each example of a file has, by the coordinator's own count: what a fine-tune may cost, and
what its workers' counts are measured against.

No template is rendered here: the texts are counted, and what the catalogue says that the model's template
adds to them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from coordinator.tokens import Message, TokenCounter
from potluck.training_data import Chat, Completion, Example, Preference, Turn, examples

ENDS: Final = 2  # tokens before and behind a prompt with its completion, which no template writes
METHODS: Final = {Chat: "sft", Completion: "sft", Preference: "dpo"}

Counts = npt.NDArray[np.uint32]


@dataclass(slots=True)
class Said:
    """A turn as the counter reads it."""

    role: str
    content: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Lengths:
    """`counts`: a row for each example, a column for each of its sequences (two of a preference pair), uncut.

    `exact`: False where the model's tokenizer is not known and these are upper bounds.
    """

    counts: Counts
    exact: bool = True

    @property
    def examples(self) -> int:
        return len(self.counts)

    def cut(self, most: int, lines: Sequence[int] | None = None) -> int:
        """How many examples, of all or of these, are longer than a sequence may be."""
        return int((self._of(lines) > most).any(axis=1).sum())

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence, uncut."""
        return int(self.counts.max(initial=0))

    def sums(self, most: int, lines: Sequence[int] | None = None) -> tuple[int, int]:
        """Tokens and the sum of the squares of the sequences' lengths, each cut; of all examples or these."""
        counts = self._of(lines)
        capped = np.minimum(counts, most).astype(np.uint64)
        return int(capped.sum()), int((capped * capped).sum())

    def _of(self, lines: Sequence[int] | None) -> Counts:
        return self.counts if lines is None else self.counts[np.asarray(lines, np.intp)]

    def to_bytes(self) -> bytes:
        head = np.array([self.counts.shape[1] if self.counts.size else 1, self.exact], "<u4")
        return head.tobytes() + self.counts.astype("<u4").tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Lengths":
        width, exact = np.frombuffer(data[:8], "<u4")
        return cls(np.frombuffer(data[8:], "<u4").reshape(-1, int(width)), bool(exact))


def lengths_of(counter: TokenCounter, model: str, path: Path) -> Lengths:
    """Of a file that was checked when it was uploaded; for a thread. Raises OSError, ExampleError."""
    exact = counter.exact(model)
    rows = [_counts(counter, model, example) for example in examples(path)]
    return Lengths(np.array(rows, np.uint32).reshape(len(rows), -1), exact)


def method_of(path: Path) -> str:
    """What the file is for: sft, or dpo for preference pairs. Raises OSError, ExampleError."""
    return METHODS[type(next(examples(path)))]


def _counts(counter: TokenCounter, model: str, example: Example) -> tuple[int, ...]:
    if isinstance(example, Completion):
        texts = (example.prompt, example.completion)
        return (sum(counter.count_text(model, text) for text in texts) + ENDS,)
    if isinstance(example, Chat):
        return (counter.count_chat(model, _said(example.turns)),)
    asked = _said(example.turns)
    return tuple(
        counter.count_chat(model, [*asked, Said("assistant", answer)])
        for answer in (example.preferred, example.non_preferred)
    )


def _said(turns: Sequence[Turn]) -> list[Message]:
    return [Said(turn.role, turn.content) for turn in turns]
