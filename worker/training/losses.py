"""What a micro-batch's loss is, as sums: the step divides by what all its micro-batches count."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from worker.training.packing import Row


@dataclass(slots=True)
class Sums:
    """`loss`: the sum that is learned from, and `right`: how often the model was right, of `count`.

    `count` are target tokens, and pairs for DPO.
    """

    loss: float = 0.0
    right: int = 0
    count: int = 0
    tokens: int = 0
    square_tokens: int = 0
    target_tokens: int = 0

    def add(self, other: "Sums") -> None:
        self.loss += other.loss
        self.right += other.right
        self.count += other.count
        self.tokens += other.tokens
        self.square_tokens += other.square_tokens
        self.target_tokens += other.target_tokens

    @property
    def mean(self) -> float:
        return self.loss / self.count if self.count else 0.0

    @property
    def accuracy(self) -> float:
        return self.right / self.count if self.count else 0.0


def log_likelihoods(losses: Any, row: Row) -> Any:
    """Of each sequence's targets together, from the cross-entropy of each target, in nats."""
    return torch.stack([-part.sum() for part in losses.split(list(row.counts))])


def preferences(policy: Any, reference: Any, beta: float) -> tuple[Any, int]:
    """DPO (arXiv 2305.18290, equation 7) summed over the pairs, and how often the preferred answer gained
    more.

    Both: log-likelihoods of preferred and other answer, in turns.
    """
    gains = policy - reference
    margins = beta * (gains[0::2] - gains[1::2])
    right = int((margins.detach() > 0).sum())
    return -torch.nn.functional.logsigmoid(margins).sum(), right


def counted(units: Sequence[Any], row: Row, loss: float, right: int, *, pairs: bool) -> Sums:
    lengths = [end - begin for begin, end in row.bounds]
    return Sums(
        loss=loss,
        right=right,
        count=len(units) if pairs else len(row.targets),
        tokens=sum(lengths),
        square_tokens=sum(length * length for length in lengths),
        target_tokens=len(row.targets),
    )
