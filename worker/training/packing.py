"""Sequences of token ids, and how they share a row without seeing each other. Pure.

An example is one sequence, a preference pair is two. Those of a micro-batch lie one behind the other in one
row without any padding: positions begin anew for each, and attention stays within each
(worker/training/attention.py).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Tokens:
    """One sequence. `targets`: the places, from 1, of the tokens that are learned, in order."""

    ids: tuple[int, ...]
    targets: tuple[int, ...]


Unit = tuple[Tokens, ...]  # of one example: what must be computed together


def size_of(unit: Unit) -> int:
    return sum(len(tokens.ids) for tokens in unit)


def squares_of(unit: Unit) -> int:
    """What attention costs."""
    return sum(len(tokens.ids) ** 2 for tokens in unit)


def learns(unit: Unit) -> bool:
    """Whether there is anything to learn; what was cut off may have been all of an answer."""
    return all(tokens.targets for tokens in unit)


def micro_batches(units: Sequence[Unit], tokens_max: int) -> Iterator[list[Unit]]:
    """In their order, so many at once that they have at most `tokens_max` together; a longer one is alone."""
    batch: list[Unit] = []
    size = 0
    for unit in units:
        if batch and size + size_of(unit) > tokens_max:
            yield batch
            batch, size = [], 0
        batch.append(unit)
        size += size_of(unit)
    if batch:
        yield batch


@dataclass(slots=True)
class Row:
    """`bounds`: begin and end of each sequence. `places`: where in the row the targets are predicted from."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    bounds: list[tuple[int, int]] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)  # of each sequence's targets

    @classmethod
    def of(cls, units: Sequence[Unit]) -> "Row":
        row = cls()
        for unit in units:
            for tokens in unit:
                begin = len(row.ids)
                row.ids.extend(tokens.ids)
                row.positions.extend(range(len(tokens.ids)))
                row.bounds.append((begin, len(row.ids)))
                row.places.extend(begin + place - 1 for place in tokens.targets)
                row.targets.extend(tokens.ids[place] for place in tokens.targets)
                row.counts.append(len(tokens.targets))
        return row
