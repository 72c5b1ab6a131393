"""A fine-tune on several workers at once: in each round everybody trains a share of the examples from the
same adapter, and what changed is put together.

A share that fails or is too late gives its examples back; a round that worsens the held-out loss is rolled
back, and its examples count as used.
"""

from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final

from coordinator.core.course import Aggregate, Aggregated, Course, OpenTrain, PartDone, PartFailed
from coordinator.core.evaluation import Evaluation
from coordinator.core.leases import Leases
from coordinator.core.tuning import Tuning

ENOUGH: Final = 0.7  # of what was leased must be in before those who are late are closed out
LATE_TIMES: Final = 3.0  # median deviations after the median arrival
LATE_S_MIN: Final = 10.0
TRAINING_SHARE: Final = 0.6  # of a round's time, after which a share ends with what it has
WORSE: Final = 1.02  # times the best held-out loss
WORSE_MAX: Final = 2  # rounds in succession


@dataclass(slots=True)
class Share:
    """`lines` in the order in which they are trained. `trained`: so many of them, once it ended."""

    lines: tuple[int, ...]
    ended_at: float | None = None
    trained: int = 0
    delta: str = ""
    tokens: int = 0

    def written(self) -> list[Any]:
        return [list(self.lines), self.ended_at, self.trained, self.delta, self.tokens]


@dataclass(slots=True)
class Rounds(Tuning):
    """`candidate`: what a round made, until it is known to be good, and the momentum that goes with it."""

    leases: Leases = field(kw_only=True)
    round: int = 0
    shares: dict[int, Share] = field(default_factory=dict)  # of the round, by part
    opened_at: float = 0.0
    aggregating: bool = False
    momentum: str = ""
    candidate: tuple[str, str] | None = None
    best: float | None = None
    worse: int = 0  # rounds in succession
    trained: int = 0  # examples, those of rounds that were rolled back included
    begun: bool = False  # the loss before the first round was asked for
    trouble: tuple[str, str] | None = None  # why a share of the round failed

    @property
    def artifacts(self) -> set[str]:
        kept = {self.adapter, self.first, self.momentum, *(self.candidate or ())}
        return {name for name in (*kept, *(share.delta for share in self.shares.values())) if name}

    def due(self, now: float) -> float:
        times = [Tuning.due(self, now)]
        if self._training() and not self.ended:
            times += [at for at in (self._closes_at(), self.opened_at + self.course.round_s) if at > now]
        return min(times)

    def _training(self) -> list[int]:
        return [part for part, share in self.shares.items() if share.ended_at is None]

    def _advance(self, now: float) -> None:
        if self.shares and not self._closed(now):
            return
        if self.verdict is not None or self.evaluation is not None:
            return
        if self.course.validation and not self.begun:
            self.begun = True
            self._evaluate(self.adapter, now, full=False)
        elif self.leases.over:
            self._last(now)
        elif not self.paused and now >= self.retries.ready_at:
            self._lease(now)

    # -- a round

    def _lease(self, now: float) -> None:
        course = self.course
        self.round += 1
        self.opened_at, self.trouble = now, None
        for lines in self.leases.take():
            steps = -(-len(lines) // course.batch_size)
            first = max(0, min(self.step, course.steps - steps))
            part = self._next()
            self.shares[part] = Share(lines)
            opened = OpenTrain(
                part=part,
                first_step=first,
                last_step=first + steps,
                leased=lines,
                adapter=self.adapter,
                state=None,
                seconds_max=max(1, round(course.round_s * TRAINING_SHARE)),
                delta=True,
            )
            self.out.append(opened)

    def _done(self, event: PartDone, now: float) -> None:
        share = self.shares[event.part]
        trained = min(len(share.lines), max(0, event.steps) * self.course.batch_size)
        if not trained or len(event.artifact) != 1:
            self.trouble = "no_progress", "a share came back without a step"
            trained = 0
        self._give_back(event.part, trained, now)
        share.delta, share.tokens = (event.artifact[0], event.tokens) if trained else ("", 0)

    def _lost(self, part: int, event: PartFailed | None, now: float) -> None:
        if event is not None:
            self.trouble = event.code, event.why
        self._give_back(part, 0, now)

    def _give_back(self, part: int, trained: int, now: float) -> None:
        share = self.shares[part]
        share.ended_at, share.trained = now, trained
        self.leases.back(share.lines[trained:])

    def _closed(self, now: float) -> bool:
        """Whether nothing is left of the round, so that the next one may begin."""
        if running := self._training():
            if now >= self.opened_at + self.course.round_s and self._arrivals():
                late = f"the round is closed after {self.course.round_s:.0f} s"
            elif now > self._closes_at():
                late = "the others of the round are done since long"
            else:
                return False
            for part in running:
                self._cancel(part, late)
            return False
        parts = tuple((n, s.delta, s.tokens) for n, s in sorted(self.shares.items()) if s.trained)
        if parts:
            if not self.aggregating:
                self.aggregating = True
                asked = Aggregate(round=self.round, adapter=self.adapter, momentum=self.momentum, parts=parts)
                self.out.append(asked)
            return False
        self.shares.clear()
        if self.trouble is not None:
            self._trouble(*self.trouble, now)
        return True

    def _arrivals(self) -> list[float]:
        return [s.ended_at for s in self.shares.values() if s.trained and s.ended_at is not None]

    def _closes_at(self) -> float:
        """After this, who has not answered is too late; infinity: not enough is in."""
        arrivals = self._arrivals()
        counted = [s for s in self.shares.values() if s.trained or s.ended_at is None]
        leased = sum(len(share.lines) for share in counted)
        if sum(len(share.lines) for share in counted if share.trained) < ENOUGH * leased or not arrivals:
            return float("inf")
        middle = median(arrivals)
        deviation = median(abs(at - middle) for at in arrivals)
        return middle + max(LATE_S_MIN, LATE_TIMES * deviation)

    # -- what it came to

    def _aggregated(self, event: Aggregated, now: float) -> None:
        if not self.aggregating or event.round != self.round:
            return
        self.aggregating = False
        used = {part for part, share in self.shares.items() if share.trained}
        self.trained += sum(share.trained for share in self.shares.values())
        self.step = self.course.steps * self.trained // self.course.total
        self.shares.clear()
        if used <= set(event.rejected):
            self._trouble("no_usable_update", f"no update of round {self.round} could be used", now)
            return
        self.candidate = event.adapter, event.momentum
        if self.course.validation and self.samples < self.course.samples_max:
            self._evaluate(event.adapter, now, full=False)
        else:
            self._accept(None, full=False)

    def _evaluated(self, evaluation: Evaluation, now: float) -> None:
        del now
        loss = evaluation.loss
        if self.candidate is None:  # before the first round, or after the last
            self.best = loss if self.best is None else self.best
            if loss is not None:
                self._checkpoint(evaluation.adapter, evaluation.step, loss, full=evaluation.full)
        elif loss is not None and self.best is not None and loss > self.best * WORSE:
            self.candidate = None
            self.worse += 1
            if self.worse >= WORSE_MAX:
                why = f"the held-out loss rose to {loss:.4f} in {WORSE_MAX} rounds in succession"
                self._fail("diverged", f"{why}; the best was {self.best:.4f}")
        else:
            self._accept(loss, full=evaluation.full)

    def _accept(self, loss: float | None, *, full: bool) -> None:
        assert self.candidate is not None, "a round made something"
        (self.adapter, self.momentum), self.candidate = self.candidate, None
        self.worse = 0
        self.retries.went_well()
        if loss is not None:
            self.best = loss if self.best is None else min(self.best, loss)
        self._checkpoint(self.adapter, self.step, loss, full=full)

    def _restarted(self, now: float) -> None:
        super(Rounds, self)._restarted(
            now
        )  # a dataclass with slots is another class than the one written here
        self.aggregating = False
        self.opened_at = min(self.opened_at, now)

    # -- kept between steps

    def snapshot(self) -> dict[str, Any]:
        return {
            **Tuning.snapshot(self),
            "leases": self.leases.snapshot(),
            "round": self.round,
            "shares": [[part, *share.written()] for part, share in self.shares.items()],
            "opened_at": self.opened_at,
            "aggregating": self.aggregating,
            "momentum": self.momentum,
            "candidate": None if self.candidate is None else list(self.candidate),
            "best": self.best,
            "worse": self.worse,
            "trained": self.trained,
            "begun": self.begun,
            "trouble": None if self.trouble is None else list(self.trouble),
        }

    @classmethod
    def _read(cls, course: Course, known: dict[str, Any]) -> dict[str, Any]:
        shares = {part: Share(tuple(lines), *rest) for part, lines, *rest in known["shares"]}
        pairs = {name: None if known[name] is None else tuple(known[name]) for name in PAIRS}
        return {**known, **pairs, "leases": Leases.restored(course, known["leases"]), "shares": shares}


PAIRS: Final = ("candidate", "trouble")
