"""Who sees whom in a batch: additive attention masks in the form that transformers' models take.

A model with one kind of layers takes one mask; one whose layers differ takes a mask for each kind, by the
names of `config.layer_types`.
"""

from dataclasses import dataclass
from typing import Any

import torch

FULL = "full_attention"
SLIDING = "sliding_attention"


def layer_kinds(config: Any) -> set[str]:
    """As the configuration names them; without names, every layer slides where there is a window."""
    named = getattr(config, "layer_types", None)
    return set(named) if named else {SLIDING if getattr(config, "sliding_window", None) else FULL}


@dataclass(frozen=True, slots=True)
class Masks:
    kinds: frozenset[str]
    window: int | None  # of sliding layers: a token sees itself and the window - 1 before it
    dtype: Any

    @classmethod
    def of(cls, model: Any) -> "Masks":
        kinds = frozenset(layer_kinds(model.config))
        window = getattr(model.config, "sliding_window", None) if SLIDING in kinds else None
        return cls(kinds, window, model.dtype)

    def make(self, positions: Any, end: int) -> Any:
        """For queries at `positions` [rows, tokens] and keys at 0..end: 0 where one sees, -inf elsewhere.

        [rows, 1, tokens, end], or such a mask for each kind of layer.
        """
        keys, queries = torch.arange(end, device=positions.device), positions[:, None, :, None]
        masks = dict.fromkeys(self.kinds, keys <= queries)
        if self.window is not None:
            masks[SLIDING] = masks[SLIDING] & (keys > queries - self.window)
        made = {kind: self._additive(mask) for kind, mask in masks.items()}
        return made if len(made) > 1 else next(iter(made.values()))

    def _additive(self, mask: Any) -> Any:
        """Once, instead of in every layer."""
        return torch.zeros_like(mask, dtype=self.dtype).masked_fill_(~mask, -torch.inf)
