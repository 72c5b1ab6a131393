"""How much of a memory a batch takes, and what of that fits under the owner's cap. Pure.

Keys and values lie in one buffer for all rows, each as long as the longest may become: rows times tokens
cells. A row is admitted when the buffer with it in, grown to its full size, stays below the cap; until then
it waits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

CONTEXT_TOKENS_MIN: Final = 256  # a model that has no room for so much is not served
ADAPTERS_PART: Final = 1 / 8  # of the room beside the weights is for adapters
_MASK_BYTES: Final = 2  # two of bool beside the one that is added to the scores
_WIDE: Final = 8  # vectors as wide as the model, as its feed-forward block and as its heads that a layer has
_INNER: Final = 4  # at once for each token, counted generously: a library keeps more than it needs
_HEADS: Final = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Of a model. `layer_bytes`: keys and values of one token in each layer; `kinds`: of attention masks."""

    layer_bytes: Sequence[int]
    item_bytes: int
    hidden: int
    inner: int
    heads: int
    heads_width: int  # of all heads together
    groups: int  # heads that share a key
    vocabulary: int
    kinds: int = 1
    scores: bool = False  # attention writes its scores down: keys and values differ in width

    @classmethod
    def of(
        cls, config: Any, layer_bytes: Sequence[int], item_bytes: int, *, kinds: int, scores: bool
    ) -> "Shape":
        """`config`: transformers' own."""
        heads = int(config.num_attention_heads)
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        experts = getattr(config, "moe_intermediate_size", 0) * getattr(config, "num_experts_per_tok", 0)
        return cls(
            layer_bytes=layer_bytes,
            item_bytes=item_bytes,
            hidden=int(config.hidden_size),
            inner=max(int(config.intermediate_size or 0), experts),
            heads=heads,
            heads_width=heads * int(width),
            groups=max(1, heads // (getattr(config, "num_key_value_heads", None) or heads)),
            vocabulary=int(config.vocab_size),
            kinds=kinds,
            scores=scores,
        )

    def step_bytes(self, tokens: int, rows: int) -> int:
        """What a step over so many new tokens computes with, and its logits for so many rows."""
        wide = _WIDE * self.hidden + _INNER * self.inner + _HEADS * self.heads_width
        return tokens * wide * self.item_bytes + rows * self.vocabulary * (self.item_bytes + 8)

    def column_bytes(self, tokens: int) -> int:
        """For each place that a step over so many new tokens looks at."""
        scores = 2 * 4 * self.heads if self.scores else 0
        return tokens * (self.kinds * (self.item_bytes + _MASK_BYTES) + scores)

    @property
    def cell_bytes(self) -> int:
        """Keys and values of one token, with what was outgrown by doubling and the allocator still keeps; one
        layer's also in its old buffer, and spread out over all heads.
        """
        return 3 * sum(self.layer_bytes) // 2 + (1 + self.groups) * max(self.layer_bytes)


@dataclass(frozen=True, slots=True)
class Footprint:
    """`cap_bytes` 0: no cap. `fixed_bytes` is there whatever the rows are."""

    cap_bytes: int = 0
    fixed_bytes: int = 0
    column_bytes: int = 0
    cell_bytes: int = 1
    adapters_bytes: int = 0  # the part of `fixed_bytes` that adapters may take

    @classmethod
    def of(cls, shape: Shape, *, cap_bytes: int, used_bytes: int, tokens: int, rows: int) -> "Footprint":
        """`used_bytes`: by the loaded model; a step is over so many new tokens, or one for so many rows."""
        if not cap_bytes:
            return cls()
        fixed = used_bytes + shape.step_bytes(tokens, rows)
        adapters = int(max(0, cap_bytes - fixed) * ADAPTERS_PART)
        return cls(cap_bytes, fixed + adapters, shape.column_bytes(tokens), shape.cell_bytes, adapters)

    def fits(self, rows: int, tokens: int) -> bool:
        """Whether so many rows of at most so many tokens stay below the cap."""
        return not self.cap_bytes or rows == 0 or tokens <= self.tokens_max(rows)

    def tokens_max(self, rows: int) -> int:
        """How long so many rows may become together. Only with a cap."""
        return max(0, self.cap_bytes - self.fixed_bytes) // (self.column_bytes + rows * self.cell_bytes)

    @property
    def missing_bytes(self) -> int:
        """How much more it would take to serve the shortest context; 0: nothing."""
        if self.fits(1, CONTEXT_TOKENS_MIN):
            return 0
        needed = self.fixed_bytes + CONTEXT_TOKENS_MIN * (self.column_bytes + self.cell_bytes)
        return needed - self.cap_bytes
