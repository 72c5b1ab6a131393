"""A fine-tune on one worker after the other: each segment goes on from the checkpoint of the one before."""

from dataclasses import dataclass
from typing import Any

from coordinator.core.course import QUARTERS, Aggregated, OpenTrain, PartDone, PartFailed
from coordinator.core.evaluation import Evaluation
from coordinator.core.tuning import Tuning


@dataclass(slots=True)
class Segments(Tuning):
    """`state`: the optimizer's, that belongs to the adapter. `open`: the part that trains; 0: none."""

    state: str | None = None
    open: int = 0
    evaluated_at: int = -1  # the step of the newest evaluation

    @property
    def artifacts(self) -> set[str]:
        evaluated = set() if self.evaluation is None else {self.evaluation.adapter}
        return {self.adapter, self.first} | evaluated | ({self.state} if self.state else set())

    def _training(self) -> list[int]:
        return [self.open] if self.open else []

    def _advance(self, now: float) -> None:
        """Whoever evaluates holds up nobody who trains, and is asked first if one worker does both."""
        course = self.course
        if self.step >= course.steps:
            if self.evaluation is None:
                self._last(now)
            return
        if self._evaluation_due():
            self.evaluated_at = self.step
            self._evaluate(self.adapter, now, full=False)
        if not self.open and not self.paused and now >= self.retries.ready_at:
            self.open = self._next()
            opened = OpenTrain(
                part=self.open,
                first_step=self.step,
                last_step=course.steps,
                leased=(),
                adapter=self.adapter,
                state=self.state,
                seconds_max=max(1, round(course.segment_s)),
                delta=False,
            )
            self.out.append(opened)

    def _evaluation_due(self) -> bool:
        """At the begin, and where a segment ends a quarter later or more: nothing is cut for it."""
        course = self.course
        if not course.validation or self.evaluation is not None or self.paused:
            return False
        if self.samples >= course.samples_max:
            return False
        since = self.step - self.evaluated_at
        return self.evaluated_at < 0 or since >= -(-course.steps // QUARTERS)

    def _done(self, event: PartDone, now: float) -> None:
        self.open = 0
        steps = min(event.steps, self.course.steps - self.step)
        if steps < 1 or len(event.artifact) != 2:
            self._trouble("no_progress", "a segment came back without a step", now)
            return
        self.step += steps
        self.adapter, self.state = event.artifact
        self.retries.went_well()
        self._checkpoint(self.adapter, self.step, event.valid_loss)

    def _lost(self, part: int, event: PartFailed | None, now: float) -> None:
        del part
        self.open = 0
        if event is not None:
            self._trouble(event.code, event.why, now)

    def _evaluated(self, evaluation: Evaluation, now: float) -> None:
        del now
        if evaluation.loss is not None:
            self._checkpoint(evaluation.adapter, evaluation.step, evaluation.loss, full=evaluation.full)

    def _aggregated(self, event: Aggregated, now: float) -> None:
        """There is nothing to put together, so it was never asked for."""

    def snapshot(self) -> dict[str, Any]:
        return {
            **Tuning.snapshot(self),
            "state": self.state,
            "open": self.open,
            "evaluated_at": self.evaluated_at,
        }
