"""How many tokens examples have as they are trained: real ones, no padding, of both answers of a pair."""

from collections.abc import Iterable

from potluck.training_data import Example
from worker.training.packing import learns, size_of
from worker.training.reading import Reader


def lengths(reader: Reader, examples: Iterable[Example], method: str) -> list[int]:
    """Of each example; 0 where nothing is left to learn, since it is then passed over. Raises JobError."""
    units = (reader.read(example, method) for example in examples)
    return [size_of(unit) if learns(unit) else 0 for unit in units]
