"""Which examples each optimizer step of a fine-tune takes: the same everywhere, from the seed alone.

Worker and coordinator both need it, the one to train, the other to know what a segment may cost, so it uses
no library's generator: examples are sorted by a hash.
"""

from functools import lru_cache
from hashlib import blake2b

EPOCHS_KEPT = 2


@lru_cache(EPOCHS_KEPT)
def order(seed: int, epoch: int, examples: int) -> tuple[int, ...]:
    """All examples (lines of the file, from 0) in the order of this epoch, from 0."""
    return tuple(sorted(range(examples), key=lambda line: _place(seed, epoch, line)))


def _place(seed: int, epoch: int, line: int) -> bytes:
    return blake2b(f"{seed}/{epoch}/{line}".encode(), digest_size=16).digest()


def steps_in_epoch(examples: int, batch_size: int) -> int:
    """The last step of an epoch takes what is left."""
    return -(-examples // batch_size)


def examples_of(seed: int, examples: int, batch_size: int, step: int) -> tuple[int, ...]:
    """Of one step, counted from 0 over all epochs."""
    epoch, place = divmod(step, steps_in_epoch(examples, batch_size))
    begin = place * batch_size
    return order(seed, epoch, examples)[begin : begin + batch_size]
