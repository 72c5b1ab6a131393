"""Attention for a row that holds several sequences: each sees itself alone.

For transformers' models, under a name of its own. Each sequence is one call of torch's fused attention, which
then needs no mask and computes no pair of different sequences: measured on two Zen 4 cores, SmolLM2 with
eight examples of GSM8K trains twice as fast as with rows padded to the longest.
"""

from collections.abc import Sequence
from typing import Any, Final

import torch
import transformers

NAME: Final = "potluck_packed"


def packed_attention(
    module: Any,  # noqa: ARG001 -- transformers' interface
    query: Any,
    keys: Any,
    values: Any,
    attention_mask: Any,  # noqa: ARG001 -- transformers' interface; for this name it makes none
    *,
    bounds: Sequence[tuple[int, int]],
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Any, None]:
    """All [1, heads, tokens, width]; the answer [1, tokens, heads, width]."""
    groups = query.shape[1] != keys.shape[1]
    parts = []
    for begin, end in bounds:
        mask = _window(end - begin, sliding_window, query.device)
        part = torch.nn.functional.scaled_dot_product_attention(
            query[:, :, begin:end],
            keys[:, :, begin:end],
            values[:, :, begin:end],
            attn_mask=mask,
            is_causal=mask is None,
            scale=scaling,
            enable_gqa=groups,
        )
        parts.append(part)
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def _window(tokens: int, window: int | None, device: Any) -> Any:
    """Who is seen where only the last so many are; None where that is everybody before."""
    if window is None or tokens <= window:
        return None
    places = torch.arange(tokens, device=device)
    ahead = places[:, None] - places[None, :]
    return (ahead >= 0) & (ahead < window)


def use(model: Any) -> None:
    """From now on the model's forward pass needs `bounds`."""
    transformers.AttentionInterface.register(NAME, packed_attention)
    model.set_attn_implementation(NAME)
