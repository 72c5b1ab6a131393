"""The loss as it falls: a point for each optimizer step, those that are still under way included.

Steps of a part that nobody finishes are done again by another worker: of a step, what was settled counts,
and until then what was said last. Shares of a round take the same steps side by side; their point is the mean
over the tokens that count.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Final

from potluck.v1 import work_pb2

TAIL: Final = 32
SPEED_STEPS: Final = 64  # of one part, over which its speed is measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One step of one part. `targets`: the tokens that `loss` and `accuracy` are means of."""

    step: int
    loss: float
    accuracy: float
    tokens: int
    targets: int
    norm: float
    rate: float


def point_of(step: work_pb2.TrainingStep) -> Point:
    return Point(
        step=step.step,
        loss=step.train_loss,
        accuracy=step.train_accuracy,
        tokens=step.tokens,
        targets=step.target_tokens,
        norm=step.gradient_norm,
        rate=step.learning_rate,
    )


def mean(points: Sequence[Point]) -> Point:
    """Of one step as several took it."""
    if len(points) == 1:
        return points[0]
    targets = sum(point.targets for point in points)

    def weighted(of: str) -> float:
        return sum(float(getattr(p, of)) * p.targets for p in points) / max(1, targets)

    return Point(
        step=points[0].step,
        loss=weighted("loss"),
        accuracy=weighted("accuracy"),
        tokens=sum(point.tokens for point in points),
        targets=targets,
        norm=weighted("norm"),
        rate=points[0].rate,
    )


def means(of: Iterable[Point]) -> list[Point]:
    """One for each step, in their order."""
    by_step: dict[int, list[Point]] = {}
    for point in of:
        by_step.setdefault(point.step, []).append(point)
    return [mean(by_step[step]) for step in sorted(by_step)]


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast it goes. `steps`: of one part, also where several take the same steps side by side."""

    tokens: float  # a second
    steps: float  # a second
    at: float  # when it was measured


@dataclass(slots=True)
class Live:
    """A part under way, by one attempt: its steps, and when each was heard of."""

    attempt: int
    worker: str
    points: list[Point] = field(default_factory=list)
    heard: list[tuple[float, int, int]] = field(default_factory=list)  # moment; tokens and steps until then

    def add(self, points: Sequence[Point], now: float) -> None:
        self.points += points
        self.heard.append((now, sum(point.tokens for point in self.points), len(self.points)))
        del self.heard[:-SPEED_STEPS]

    @property
    def pace(self) -> Pace | None:
        if len(self.heard) < 2:
            return None
        (begin, tokens, steps), (end, more_tokens, more_steps) = self.heard[0], self.heard[-1]
        took = end - begin
        return Pace((more_tokens - tokens) / took, (more_steps - steps) / took, end) if took > 0 else None


@dataclass(slots=True)
class Curve:
    """`settled`: the newest points that stay. `live`: by number of the part. `pace`: of all parts together,
    as it was measured last; a part that has just begun has none of its own yet.
    """

    settled: list[Point] = field(default_factory=list)
    valid: dict[int, dict[str, float]] = field(default_factory=dict)  # by step, of the newest
    live: dict[int, Live] = field(default_factory=dict)
    told: int = -1  # the last step that an event told of
    pace: Pace | None = None

    def measure(self) -> None:
        """After steps were heard of. Who has no pace yet is taken to be as fast as the others."""
        known = [live.pace for live in self.live.values()]
        if paces := [pace for pace in known if pace is not None]:
            self.pace = Pace(
                tokens=fmean(pace.tokens for pace in paces) * len(known),
                steps=fmean(pace.steps for pace in paces),
                at=max(pace.at for pace in paces),
            )

    def settle(self, points: Iterable[Point]) -> list[Point]:
        """These stay; which of them are news."""
        fresh = means(points)
        known = {point.step for point in fresh}
        self.settled = [p for p in self.settled if p.step not in known] + fresh
        self.settled.sort(key=lambda point: point.step)
        del self.settled[:-TAIL]
        return self.untold(fresh)

    def untold(self, points: Iterable[Point]) -> list[Point]:
        """Those that no event told of yet; from now on one does."""
        news = [point for point in points if point.step > self.told]
        if news:
            self.told = news[-1].step
        return news

    def at(self, step: int) -> Point | None:
        """A step that stays, if it is one of the newest."""
        return next((point for point in self.settled if point.step == step), None)

    def look(self, step: int, losses: Mapping[str, float]) -> None:
        """What a validation after so many steps found."""
        self.valid[step] = {**self.valid.get(step, {}), **losses}
        for old in sorted(self.valid)[:-TAIL]:
            del self.valid[old]

    def tail(self) -> tuple[dict[str, float], ...]:
        """The newest points by the OpenAI API's names, steps counted from 1."""
        running = means(point for live in self.live.values() for point in live.points)
        known = {point.step: point for point in (*self.settled, *running)}
        points = {step + 1: metrics(point) for step, point in known.items()}
        for step, losses in self.valid.items():
            points[step] = {"step": step, **points.get(step, {}), **losses}
        return tuple(points[step] for step in sorted(points)[-TAIL:])


def metrics(point: Point) -> dict[str, float]:
    return {
        "step": point.step + 1,
        "train_loss": point.loss,
        "train_mean_token_accuracy": point.accuracy,
        "tokens": point.tokens,
        "learning_rate": point.rate,
        "gradient_norm": point.norm,
    }
