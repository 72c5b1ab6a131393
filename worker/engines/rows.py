"""Keys and values of a running batch, one row a sequence, each at its own length.

The first `decoding` rows take part in every step; rows after them still read their prompts. Rows are kept
dense by moving the last one into a gap, so that a step sees a plain slice of the buffers. Every row begins
at position 0: what lies behind its length is masked, and nothing moves when others join or leave.
"""

import sys
from collections.abc import Iterator
from typing import Any

import torch

TOKENS_FIRST = 256  # of capacity; doubled when it is not enough


class Rows:
    """Also the `past_key_values` of transformers' models: `update` is what their attention layers call.

    Shapes: keys and values of each layer are [rows, heads, tokens, width].
    """

    def __init__(self, layers: int, tokens_max: int) -> None:
        self.layers = layers
        self.tokens_max = tokens_max
        self.lengths: list[int] = []
        self.layer_bytes = [0] * layers  # keys and values of one token, once a pass has shown them
        self.scores = False  # keys and values differ in width
        self._granted = (sys.maxsize, tokens_max)
        self._keys: list[Any] = [None] * layers
        self._values: list[Any] = [None] * layers
        self._rows = slice(0, 0)  # of the forward pass that is under way
        self._index: Any = None  # [rows, 1] 0, 1, 2...
        self._positions: Any = None  # [rows, tokens]
        self._end = 0

    def begin(self, first: int, positions: Any, end: int) -> None:
        """The next forward pass is for the rows from `first` on, of which the longest then ends at `end`.

        `positions` [rows, tokens] are the places of the new tokens. A row with fewer new tokens than others
        is padded behind its end, where nobody looks before something else is written there.
        """
        self._rows = slice(first, first + positions.shape[0])
        self._positions = positions
        self._index = torch.arange(positions.shape[0], device=positions.device)[:, None]
        self._end = end

    def update(self, keys: Any, values: Any, layer: int) -> tuple[Any, Any]:
        """Store what a layer computed for the new tokens; returns all that its rows now hold."""
        self._reserve(layer, keys, values)
        for buffers, new in ((self._keys, keys), (self._values, values)):
            buffers[layer][self._rows][self._index, :, self._positions] = new.transpose(1, 2)
        rows, end = self._rows, self._end
        return self._keys[layer][rows, :, :end], self._values[layer][rows, :, :end]

    @property
    def capacity(self) -> tuple[int, int]:
        """(rows, tokens) that the buffers have now."""
        keys = self._keys[0]
        return (0, 0) if keys is None else (keys.shape[0], keys.shape[2])

    def grant(self, rows: int, tokens: int) -> None:
        """So far the buffers may grow ahead of what is needed."""
        self._granted = (rows, tokens)

    def _reserve(self, layer: int, keys: Any, values: Any) -> None:
        old = self._keys[layer]
        have = (0, 0) if old is None else (old.shape[0], old.shape[2])
        rows, tokens = have
        if self._rows.stop > rows:
            rows = min(self._granted[0], max(self._rows.stop, 2 * rows))
        if self._end > tokens:
            tokens = min(self._granted[1], max(self._end, 2 * tokens, TOKENS_FIRST))
        if (rows, tokens) == have:
            return
        widths = (keys.shape[1] * keys.shape[3], values.shape[1] * values.shape[3])
        self.layer_bytes[layer] = sum(widths) * keys.element_size()
        self.scores = widths[0] != widths[1]
        for buffers, new in ((self._keys, keys), (self._values, values)):
            old = buffers[layer]
            buffers[layer] = new.new_zeros((rows, new.shape[1], tokens, new.shape[3]))
            if old is not None:
                buffers[layer][: old.shape[0], :, : old.shape[2]] = old

    def add(self) -> int:
        """A new empty row at the end."""
        self.lengths.append(0)
        return len(self.lengths) - 1

    def pop(self) -> None:
        """Forget the last row; the buffers go with the last of all."""
        self.lengths.pop()
        if not self.lengths:
            self._keys, self._values = [None] * self.layers, [None] * self.layers

    def copy(self, source: int, target: int, tokens: int) -> None:
        """The first tokens of one row into another, which then has that length."""
        self.lengths[target] = tokens
        for buffer in self._held(source, target):
            buffer[target, :, :tokens] = buffer[source, :, :tokens]

    def swap(self, one: int, other: int) -> None:
        if one == other:
            return
        tokens = max(self.lengths[one], self.lengths[other])
        self.lengths[one], self.lengths[other] = self.lengths[other], self.lengths[one]
        for buffer in self._held(one, other):
            kept = buffer[one, :, :tokens].clone()
            buffer[one, :, :tokens] = buffer[other, :, :tokens]
            buffer[other, :, :tokens] = kept

    def _held(self, *rows: int) -> Iterator[Any]:
        """Every buffer that exists, with room for these rows: one that was just added may have none yet."""
        self._rows, self._end = slice(0, max(rows) + 1), 0
        for layer, keys in enumerate(self._keys):
            if keys is not None:
                self._reserve(layer, keys, self._values[layer])
                yield self._keys[layer]
                yield self._values[layer]
