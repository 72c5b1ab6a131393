"""The simulated network: links that lose, double, delay and reorder, and that go dead in one direction or in both."""

import heapq
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

COORDINATOR = "c"
Link = tuple[str, str]  # from, to


@dataclass
class Network:
    """Keeps the order of a link, and what is on it while it is dead, only where it is `ordered`, as TCP does."""

    rng: random.Random
    loss: float
    duplicate: float
    delay_s: float
    ordered: bool
    slow: dict[str, float] = field(default_factory=dict)  # so many times the delay, for whose links
    queue: list[tuple[float, int, str, str, Any]] = field(default_factory=list)
    count: int = 0
    last: dict[Link, float] = field(default_factory=dict)
    dead: dict[Link, float] = field(default_factory=dict)  # until when

    def send(self, now: float, sender: str, to: str, message: Any) -> None:
        for _ in range(2 if self.rng.random() < self.duplicate else 1):
            if self.rng.random() < self.loss:
                continue
            worker = to if sender == COORDINATOR else sender
            due = now + self.rng.uniform(0, self.delay_s * self.slow.get(worker, 1.0))
            until = self.dead.get((sender, to), 0.0)
            if self.ordered:
                due = max(due, until, self.last.get((sender, to), 0.0))
                self.last[sender, to] = due
            elif now < until:
                continue
            self.count += 1
            heapq.heappush(self.queue, (due, self.count, sender, to, message))

    def due(self, now: float, *, frozen: bool = False) -> Iterator[tuple[str, str, Any]]:
        """What arrives by now; where the coordinator is frozen, what is for it waits in its socket."""
        waiting = []
        while self.queue and self.queue[0][0] <= now:
            found = heapq.heappop(self.queue)
            if frozen and found[3] == COORDINATOR:
                waiting.append(found)
            else:
                yield found[2:]
        for found in waiting:
            heapq.heappush(self.queue, found)

    def cut(self, links: list[Link], until: float) -> None:
        for link in links:
            self.dead[link] = max(until, self.dead.get(link, 0.0))

    def through(self, worker: str, now: float) -> bool:
        """Whether both directions work."""
        links = (worker, COORDINATOR), (COORDINATOR, worker)
        return all(now >= self.dead.get(link, 0.0) for link in links)

    def heal(self) -> None:
        self.loss = self.duplicate = 0.0
        self.delay_s, self.ordered = 0.1, True
        self.slow.clear()
        self.dead.clear()
