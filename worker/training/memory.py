"""How much is computed at once: decided from numbers alone, so that no card is needed to test it. Pure.

Beside the weights, a forward pass keeps what the backward pass needs, in proportion to its tokens. Where that
is too much, each layer keeps its input alone and computes the rest once more (gradient checkpointing), which
takes a third more time. Sizes are powers of two, so that a machine decides the same from one segment to the
next though its free memory is never quite the same: the same tokens share a row, and the same sums are
rounded in the same order.
"""

from dataclasses import dataclass
from typing import Final

TOKENS_MAX: Final = {"cpu": 512, "mps": 4096, "cuda": 16384}  # of a micro-batch: more is no faster
# What an allocator takes for what is asked of it: glibc's heap has gaps once sizes have changed a few times.
SLACK_PERCENT: Final = {"cpu": 200, "mps": 125, "cuda": 110}
FREE_PART: Final = {"cpu": 0.5, "mps": 0.5, "cuda": 0.8}
TOKENS_MIN: Final = 64  # a machine that has no room for so much trains nothing
EFFICIENT_PART: Final = 8  # a smaller part of the most than this one leaves the device idle
_WIDE: Final = 6  # vectors as wide as the model that are at both ends of it


@dataclass(frozen=True, slots=True)
class Cost:
    """Bytes for each token of a pass that keeps all, and of one in which each layer keeps its input alone."""

    plain: int
    thin: int

    @classmethod
    def of(cls, device: str, *, kept: int, layers: int, hidden: int, item_bytes: int) -> "Cost":
        """`kept`: as measured over all layers. Of the layer that is computed again, it is there as well."""
        width = hidden * item_bytes
        plain = kept + kept // layers + _WIDE * width
        thin = min(plain, layers * width + 2 * kept // layers + _WIDE * width)
        return cls(*(each * SLACK_PERCENT[device] // 100 for each in (plain, thin)))


@dataclass(frozen=True, slots=True)
class Room:
    """Tokens of a micro-batch that fit without checkpoints, and with them; and how many are put together."""

    plain: int
    thin: int
    packed: int

    @classmethod
    def of(cls, cost: Cost, free_bytes: int, device: str) -> "Room":
        most = TOKENS_MAX[device]
        plain, thin = (_power(free_bytes // each) for each in (cost.plain, cost.thin))
        wide = min(plain, most)
        return cls(plain, thin, wide if wide * EFFICIENT_PART >= most else min(thin, most))

    def halved(self) -> "Room":
        """After it was too much all the same."""
        return Room(self.plain // 2, self.thin // 2, self.packed // 2)

    def checkpoints(self, tokens: int) -> bool:
        """Whether a micro-batch of so many must save memory."""
        return tokens > self.plain


def _power(count: int) -> int:
    """The largest power of two that is not above it; 0 below TOKENS_MIN."""
    return 1 << (count.bit_length() - 1) if count >= TOKENS_MIN else 0


def free_bytes(device: str, *, cap: int, used: int, device_free: int, fixed: int) -> int:
    """What micro-batches may take: below the owner's cap, or a part of what is free where there is none.

    `fixed`: what training adds whatever its micro-batches are: the factors, their gradient and moments.
    """
    return max(0, (cap - used if cap else int(device_free * FREE_PART[device])) - fixed)
