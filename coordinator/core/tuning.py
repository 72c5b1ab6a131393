"""One fine-tune as a state machine: what happened goes in, what is to be done comes out.

`Segments` trains on one worker after the other, `Rounds` on several at once; here is what both share: parts
and their numbers, pausing and stopping, failures, the held-out loss. Pure, and kept as JSON: whoever drives
it writes the `snapshot` down before carrying the actions out, and after a restart says `Began(resumed=True)`.

Each part that is opened ends once, by PartDone or PartFailed, also after CancelPart; only then is what it had
given to somebody else. So nothing is trained and paid twice.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Any, Final, Self

from coordinator.core.course import (
    Action,
    Aggregated,
    Began,
    CancelPart,
    Checkpointed,
    Course,
    Event,
    Fail,
    Finish,
    OpenEvaluate,
    PartDone,
    PartFailed,
    Paused,
    Resumed,
    Stopped,
    Ticked,
)
from coordinator.core.evaluation import Evaluation
from coordinator.core.retries import Retries

LOSS_NOT_FINITE: Final = "loss_not_finite"  # a worker's word for it, which two must have given


@dataclass(slots=True)
class Tuning(ABC):
    """`adapter`: the last good one, `first` the one that it began with. `closing`: parts that were told to
    end. `verdict`: how it ends, which waits while it is paused.
    """

    course: Course
    adapter: str
    first: str = ""
    step: int = 0
    number: int = 0  # of the newest part
    samples: int = 0  # how often the sample was evaluated
    paused: bool = False
    ended: bool = False
    verdict: Finish | Fail | None = None
    evaluation: Evaluation | None = None
    full: bool = False  # the last evaluation, over all lines, was begun
    known: str = ""  # the adapter whose loss over all lines is known
    retries: Retries = field(default_factory=Retries)
    closing: set[int] = field(default_factory=set)
    out: list[Action] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.first = self.first or self.adapter

    def handle(self, event: Event, now: float) -> list[Action]:
        """The one way in. What comes after the end changes nothing, but a resumption tells it again."""
        if self.ended:
            again = isinstance(event, Began) and event.resumed
            return [self.verdict] if again and self.verdict is not None else []
        match event:
            case Began(resumed, ended):
                if resumed:
                    self._resume(ended, now)
            case PartDone():
                self._part_done(event, now)
            case PartFailed():
                self._part_failed(event, now)
            case Aggregated():
                self._aggregated(event, now)
            case Paused():
                self.paused = True
                self._cancel_all("paused by its member")
            case Resumed():
                self.paused = False
                self.retries.went_well()
            case Stopped():
                self._cancel_all("cancelled by its member")
                self.ended, self.verdict = True, None
            case Ticked():
                pass
        if self.verdict is None and not self.ended:
            self._open_lines(now)
            self._advance(now)
        if self.verdict is not None and not self.paused:
            self._cancel_all("the fine-tune ended")
            self.ended = True
            self.out.append(self.verdict)
        out, self.out = self.out, []
        return out

    def due(self, now: float) -> float:
        """When time alone changes something the next time; infinity: never."""
        waits = [self.retries.ready_at]
        if self.evaluation is not None and self.evaluation.todo:
            waits.append(self.evaluation.retries.ready_at)
        return min((at for at in waits if at > now and not self.ended), default=inf)

    @property
    def artifacts(self) -> set[str]:
        """Whatever it still needs of what was made."""
        return {self.adapter, self.first}

    # -- what the two ways fill in

    @abstractmethod
    def _advance(self, now: float) -> None:
        """Open whatever is to be done next, if nothing is in the way."""

    @abstractmethod
    def _done(self, event: PartDone, now: float) -> None:
        """A training part came back."""

    @abstractmethod
    def _lost(self, part: int, event: PartFailed | None, now: float) -> None:
        """Nothing came of a training part; `event` says why if it was nobody's wish."""

    @abstractmethod
    def _training(self) -> list[int]:
        """The parts that train now."""

    @abstractmethod
    def _evaluated(self, evaluation: Evaluation, now: float) -> None:
        """It is over; its loss is None if not all of it could be read."""

    @abstractmethod
    def _aggregated(self, event: Aggregated, now: float) -> None:
        """What was asked of the coordinator is there."""

    def _restarted(self, now: float) -> None:
        """What was asked of the coordinator is to be asked again, and times are those of another clock."""
        self.retries.restarted(now)
        if self.evaluation is not None:
            self.evaluation.retries.restarted(now)

    def _resume(self, ended: Iterable[PartDone], now: float) -> None:
        """Whatever is still open is lost, and that was nobody's fault."""
        for event in ended:
            self._part_done(event, now)
        self.closing.clear()
        for part in self._training():
            self._lost(part, None, now)
        for part in list(self.evaluation.open if self.evaluation is not None else ()):
            assert self.evaluation is not None, "its part is open"
            self.evaluation.back(part)
        self._restarted(now)

    # -- parts

    def _part_done(self, event: PartDone, now: float) -> None:
        self.closing.discard(event.part)
        evaluation = self.evaluation
        if evaluation is not None and event.part in evaluation.open:
            evaluation.done(event.part, event.valid_loss, event.valid_tokens)
            self._close_evaluation(now)
        elif event.part in self._training():
            self._done(event, now)

    def _part_failed(self, event: PartFailed, now: float) -> None:
        wanted = event.part in self.closing
        self.closing.discard(event.part)
        evaluation = self.evaluation
        if evaluation is not None and event.part in evaluation.open:
            evaluation.back(event.part)
            if not wanted:
                evaluation.retries.failed(now)
                if not event.retryable:
                    evaluation.retries.give_up()
            self._close_evaluation(now)
        elif event.part in self._training():
            fatal = not wanted and (event.code == LOSS_NOT_FINITE or not event.retryable)
            self._lost(event.part, None if wanted or fatal else event, now)
            if fatal:
                self._fail(event.code, event.why)

    def _next(self) -> int:
        self.number += 1
        return self.number

    def _cancel(self, part: int, why: str) -> None:
        if part not in self.closing:
            self.closing.add(part)
            self.out.append(CancelPart(part, why))

    def _cancel_all(self, why: str) -> None:
        evaluated = self.evaluation.open if self.evaluation is not None else {}
        for part in sorted([*self._training(), *evaluated]):
            self._cancel(part, why)

    # -- the end

    def _fail(self, code: str, why: str) -> None:
        good = None if self.adapter == self.first else self.adapter
        self.verdict = self.verdict or Fail(code=code, why=why, adapter=good)

    def _trouble(self, code: str, why: str, now: float) -> None:
        """No progress, once more."""
        self.retries.failed(now)
        if self.retries.exhausted:
            self._fail(code, f"{self.retries.failures} tries in succession came to nothing, the last: {why}")

    # -- the held-out loss

    def _evaluate(self, adapter: str, now: float, *, full: bool) -> None:
        course = self.course
        lines = range(course.validation) if full else course.sample
        self.samples += not full
        self.full = self.full or full
        whole = len(lines) == course.validation
        self.evaluation = Evaluation(adapter, self.step, whole, list(lines))
        self._open_lines(now)

    def _open_lines(self, now: float) -> None:
        evaluation = self.evaluation
        if evaluation is None or self.paused or not evaluation.ready(now):
            return
        for lines in evaluation.split(self.course.workers):
            part = self._next()
            evaluation.open[part] = lines
            opened = OpenEvaluate(part=part, adapter=evaluation.adapter, validated=tuple(lines))
            self.out.append(opened)

    def _close_evaluation(self, now: float) -> None:
        """If that was the last of it."""
        evaluation = self.evaluation
        if evaluation is None or not evaluation.over:
            return
        self.evaluation = None
        self._evaluated(evaluation, now)

    def _last(self, now: float) -> None:
        """All is trained: the loss over all lines, if it is not known, and then the end."""
        if self.course.validation and self.known != self.adapter and not self.full:
            self._evaluate(self.adapter, now, full=True)
        elif self.evaluation is None:
            self.verdict = Finish(self.adapter)

    def _checkpoint(self, adapter: str, step: int, loss: float | None = None, *, full: bool = False) -> None:
        known = loss if loss is not None and isfinite(loss) else None
        if full and known is not None:
            self.known = adapter
        self.out.append(Checkpointed(step=step, adapter=adapter, valid_loss=known, full=full))

    # -- kept between steps

    def snapshot(self) -> dict[str, Any]:
        """As JSON can hold it; the course is kept beside."""
        assert not self.out, "it is between two steps"
        return {
            "adapter": self.adapter,
            "first": self.first,
            "step": self.step,
            "number": self.number,
            "samples": self.samples,
            "paused": self.paused,
            "ended": self.ended,
            "verdict": _written(self.verdict),
            "evaluation": None if self.evaluation is None else self.evaluation.snapshot(),
            "full": self.full,
            "known": self.known,
            "retries": self.retries.snapshot(),
            "closing": sorted(self.closing),
        }

    @classmethod
    def restored(cls, course: Course, kept: dict[str, Any]) -> Self:
        known = dict(kept)
        evaluation = known.pop("evaluation")
        return cls(
            course=course,
            verdict=_read(known.pop("verdict")),
            evaluation=None if evaluation is None else Evaluation.restored(evaluation),
            retries=Retries(**known.pop("retries")),
            closing=set(known.pop("closing")),
            **cls._read(course, known),
        )

    @classmethod
    def _read(cls, course: Course, known: dict[str, Any]) -> dict[str, Any]:
        """The fields of `known` that a way has for itself, as they are in memory."""
        del course
        return known


def _written(verdict: Finish | Fail | None) -> dict[str, Any] | None:
    if verdict is None:
        return None
    if isinstance(verdict, Finish):
        return {"adapter": verdict.adapter}
    return {"code": verdict.code, "why": verdict.why, "adapter": verdict.adapter}


def _read(kept: dict[str, Any] | None) -> Finish | Fail | None:
    if kept is None:
        return None
    return Fail(**kept) if "code" in kept else Finish(**kept)
