"""What the pool did lately: points in time with the tokens that were delivered, and who was there.

Kept in memory, for a day. A coordinator that starts again begins with what its books say of each minute.
"""

import asyncio
from bisect import bisect_left
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from coordinator.core.engine import Engine
from coordinator.core.jobs import Job

EVERY_S: Final = 5.0
RATE_S: Final = 15.0  # over which tokens/s now is a mean
KEPT_S: Final = 86_400.0
SPAN_POINTS_MAX: Final = 288


@dataclass(frozen=True, slots=True)
class Point:
    """A moment. `tokens`: delivered until then; attempts are running, jobs waiting, workers sharing and
    enrolled.
    """

    at: float
    tokens: int
    running: int = 0
    waiting: int = 0
    sharing: int = 0
    enrolled: int = 0


@dataclass(frozen=True, slots=True)
class Span:
    """`at`: its begin."""

    at: float
    tokens_per_s: float
    running: float
    waiting: float


@dataclass(slots=True)
class Pulse:
    engine: Engine
    now: Callable[[], float]
    points: deque[Point] = field(default_factory=lambda: deque(maxlen=int(KEPT_S / EVERY_S)))
    _ended: int = 0  # tokens of jobs that are over
    _before: int = 0  # tokens until the first point that is kept

    def recall(self, ended: Iterable[tuple[float, int]]) -> None:
        """What the books know of the last day: (when a job ended, its tokens), oldest first."""
        latest = self.now() - EVERY_S
        for at, tokens in ended:
            self._ended += tokens
            self._keep(Point(min(at, latest), self._ended))

    def ended(self, job: Job) -> None:
        if not job.has_parts:
            self._ended += job.output_tokens

    def take(self) -> Point:
        """Look now."""
        lives, workers = self.engine.lives.values(), self.engine.fleet.workers.values()
        point = Point(
            at=self.now(),
            tokens=max(
                self._ended + sum(live.output.so_far for live in lives),
                self.points[-1].tokens if self.points else 0,  # what was delivered and not counted at the end
            ),
            running=sum(len(w.running) for w in workers),
            waiting=len(self.engine.queue),
            sharing=sum(w.sharing for w in workers),
            enrolled=len(workers),
        )
        self._keep(point)
        return point

    @property
    def latest(self) -> Point:
        """At most EVERY_S old, however many ask."""
        fresh = self.points and self.now() - self.points[-1].at < EVERY_S
        return self.points[-1] if fresh else self.take()

    def tokens_per_s(self) -> float:
        """Now."""
        if len(self.points) < 2:
            return 0.0
        last = self.points[-1]
        first = self.points[max(0, self._index(last.at - RATE_S))]
        return (last.tokens - first.tokens) / (last.at - first.at) if last.at > first.at else 0.0

    def spans(self, length_s: float, spans: int) -> list[Span]:
        """The last `spans` of that length until now, oldest first; nothing is known of what has no point."""
        end = self.now()
        edges = [end - length_s * n for n in range(min(spans, SPAN_POINTS_MAX), -1, -1)]
        found = []
        for begin, until in pairwise(edges):
            low, high = self._index(begin), self._index(until)
            within = [self.points[n] for n in range(low, high)]
            before = self.points[low - 1].tokens if low else self._before
            made = (within[-1].tokens - before) if within else 0
            count = max(1, len(within))
            found.append(
                Span(
                    at=begin,
                    tokens_per_s=made / length_s,
                    running=sum(point.running for point in within) / count,
                    waiting=sum(point.waiting for point in within) / count,
                )
            )
        return found

    async def run(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Until cancelled."""
        while True:
            self.take()
            await sleep(EVERY_S)

    def _keep(self, point: Point) -> None:
        if len(self.points) == self.points.maxlen:
            self._before = self.points[0].tokens
        self.points.append(point)

    def _index(self, at: float) -> int:
        """Of the first point at that time or later."""
        return bisect_left(self.points, at, key=lambda point: point.at)
