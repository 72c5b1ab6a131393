"""The simulated network: links that lose, double, delay, reorder, and are cut in one direction or in both."""

import heapq
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Network:
    """Loses, doubles and delays; keeps the order of a link only if it is told to."""

    rng: random.Random
    loss: float
    duplicate: float
    delay_s: float
    ordered: bool
    queue: list[tuple[float, int, str, str, Any]] = field(default_factory=list)
    count: int = 0
    last: dict[tuple[str, str], float] = field(default_factory=dict)

    def send(self, now: float, sender: str, to: str, message: Any) -> None:
        for _ in range(2 if self.rng.random() < self.duplicate else 1):
            if self.rng.random() < self.loss:
                continue
            due = now + self.rng.uniform(0, self.delay_s)
            if self.ordered:
                due = max(due, self.last.get((sender, to), 0.0))
                self.last[sender, to] = due
            self.count += 1
            heapq.heappush(self.queue, (due, self.count, sender, to, message))

    def due(self, now: float) -> Iterator[tuple[str, str, Any]]:
        while self.queue and self.queue[0][0] <= now:
            _, _, sender, to, message = heapq.heappop(self.queue)
            yield sender, to, message

    def cut(self, worker: str) -> None:
        """A stream broke: what was on it is gone."""
        self.queue = [m for m in self.queue if worker not in (m[2], m[3])]
        heapq.heapify(self.queue)

    def heal(self) -> None:
        self.loss = self.duplicate = 0.0
        self.delay_s, self.ordered = 0.1, True
