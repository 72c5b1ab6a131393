"""How far a fine-tune is at the moment, as its member sees it."""

from collections.abc import Mapping
from dataclasses import dataclass

from coordinator.finetunes.finetune import Finetune


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """`steps_done`: those under way included.

    `stage` and `why`: what it waits for. `curve_tail`: the newest points, by the OpenAI API's names.
    """

    steps_done: int = 0
    tokens_per_second: float | None = None
    workers: tuple[str, ...] = ()  # that train it now, by name
    eta_s: float | None = None
    estimated_finish: int | None = None
    stage: str = ""
    why: str = ""
    curve_tail: tuple[Mapping[str, float], ...] = ()


def finished(finetune: Finetune) -> Progress:
    """Of one that has ended: nothing moves any more."""
    return Progress(steps_done=finetune.steps_done, stage=finetune.state.value)
