"""Which of a fine-tune's adapters are listed and kept: the first of each epoch's end, and the newest few."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from coordinator.finetunes.finetune import Checkpoint

NEWEST: Final = 3


@dataclass(slots=True)
class Checkpoints:
    """`steps`: of an epoch, as the plan's steps count."""

    steps: float
    listed: list[Checkpoint] = field(default_factory=list)
    number: int = 0

    @classmethod
    def of(cls, steps: float, known: list[Checkpoint]) -> "Checkpoints":
        """After a restart."""
        return cls(steps, known, max((one.number for one in known), default=0))

    def add(self, step: int, sha256: str, size_bytes: int, at: float, said: Mapping[str, float]) -> bool:
        """Whether it is a new one; of one that is listed more may be known now."""
        for index, one in enumerate(self.listed):
            if one.sha256 == sha256:
                self.listed[index] = replace(one, metrics={**one.metrics, **said})
                return False
        self.number += 1
        made = Checkpoint(
            number=self.number, step=step, at=at, sha256=sha256, bytes=size_bytes, metrics=dict(said)
        )
        self.listed = self._kept([*self.listed, made])
        return True

    def _kept(self, known: list[Checkpoint]) -> list[Checkpoint]:
        """In their order."""
        kept, epochs = [], set[int]()
        for index, one in enumerate(known):
            epoch = int(one.step / self.steps)
            if index >= len(known) - NEWEST or (epoch and epoch not in epochs):
                kept.append(one)
            epochs.add(epoch)
        return kept
