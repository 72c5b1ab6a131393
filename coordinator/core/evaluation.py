"""The held-out loss of one adapter, read by several workers at once, each of whom has some of the lines."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Any, Self

from coordinator.core.retries import Retries


@dataclass(slots=True)
class Evaluation:
    """`full`: over all lines of the validation. `todo`: lines that nobody has; `open`: those of each part."""

    adapter: str
    step: int
    full: bool
    todo: list[int]
    open: dict[int, list[int]] = field(default_factory=dict)
    read: dict[int, tuple[float, int]] = field(default_factory=dict)  # loss and its tokens, by part
    retries: Retries = field(default_factory=Retries)

    def split(self, workers: int) -> list[list[int]]:
        """What nobody has, for those who read nothing yet, each of whom gets every so-many-th line."""
        free = max(1, workers - len(self.open))
        shares = [self.todo[n::free] for n in range(free)]
        self.todo = []
        return [share for share in shares if share]

    def done(self, part: int, loss: float | None, tokens: int) -> None:
        """A loss that is no number is as bad as can be."""
        del self.open[part]
        if tokens > 0 and loss is not None:
            self.read[part] = loss if isfinite(loss) else inf, tokens

    def back(self, part: int) -> None:
        """Its lines are to be read by somebody else."""
        self.todo = sorted(self.todo + self.open.pop(part))

    def ready(self, now: float) -> bool:
        """Whether there are lines that somebody may be given."""
        return bool(self.todo) and not self.retries.exhausted and now >= self.retries.ready_at

    @property
    def over(self) -> bool:
        return not self.open and (not self.todo or self.retries.exhausted)

    @property
    def loss(self) -> float | None:
        """The mean over all tokens that count; None: not all of it could be read."""
        tokens = sum(count for _, count in self.read.values())
        if self.todo or not tokens:
            return None
        return sum(loss * count for _, (loss, count) in sorted(self.read.items())) / tokens

    def snapshot(self) -> dict[str, Any]:
        return {
            "adapter": self.adapter,
            "step": self.step,
            "full": self.full,
            "todo": list(self.todo),
            "open": _pairs(self.open),
            "read": [[part, loss if isfinite(loss) else None, n] for part, (loss, n) in self.read.items()],
            "retries": self.retries.snapshot(),
        }

    @classmethod
    def restored(cls, kept: dict[str, Any]) -> Self:
        return cls(
            adapter=kept["adapter"],
            step=kept["step"],
            full=kept["full"],
            todo=list(kept["todo"]),
            open={part: list(lines) for part, lines in kept["open"]},
            read={part: (inf if loss is None else loss, n) for part, loss, n in kept["read"]},
            retries=Retries(**kept["retries"]),
        )


def _pairs(of: dict[int, list[int]]) -> list[list[int | Sequence[int]]]:
    """JSON knows no numbers as keys."""
    return [[number, list(lines)] for number, lines in of.items()]
