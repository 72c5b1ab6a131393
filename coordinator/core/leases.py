"""Which examples of a fine-tune in rounds are still to be trained: each is leased once in an epoch, and comes
back to the front if nothing came of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from coordinator.core.course import Course
from potluck.shuffle import order


@dataclass(slots=True)
class Leases:
    """`place`: how many of the epoch's order were ever leased. Rounds do not cross epochs."""

    course: Course
    epoch: int = 0
    place: int = 0
    returned: list[int] = field(default_factory=list)

    @property
    def left(self) -> int:
        """Of this epoch."""
        return len(self.returned) + self.course.examples - self.place

    @property
    def over(self) -> bool:
        return not self.left and self.epoch + 1 >= self.course.epochs

    def take(self) -> list[tuple[int, ...]]:
        """The shares of the next round: whole batches, as many for each, and rounds of about one length."""
        course = self.course
        if not self.left and not self.over:
            self.epoch, self.place = self.epoch + 1, 0
        batches = course.workers * course.batch_size  # examples of one step of all
        rounds = -(-self.left // (batches * course.local_steps))
        each = -(-self.left // (rounds * batches)) * course.batch_size if rounds else 0
        shares = (self._next(each) for _ in range(course.workers))
        return [share for share in shares if share]

    def back(self, lines: Sequence[int]) -> None:
        self.returned[:0] = lines

    def _next(self, count: int) -> tuple[int, ...]:
        course = self.course
        first, self.returned = self.returned[:count], self.returned[count:]
        begin, self.place = self.place, min(course.examples, self.place + count - len(first))
        if begin == self.place:
            return tuple(first)
        return (*first, *order(course.seed, self.epoch, course.examples)[begin : self.place])

    def snapshot(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "place": self.place, "returned": list(self.returned)}

    @classmethod
    def restored(cls, course: Course, kept: dict[str, Any]) -> Self:
        return cls(course, kept["epoch"], kept["place"], list(kept["returned"]))
