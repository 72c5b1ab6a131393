"""An attempt's part of its trace: what the engine did, inside the span that the coordinator sent along.

Three spans follow each other in the attempt's: `engine.load` until the engine has the work, which takes no
time where the model is in memory; `engine.prefill` until the first output; `engine.decode` until the end. A
training has `engine.train` instead of the last two.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from potluck.tracing import Tracing, end
from potluck.v1 import session_pb2
from worker.messages import Assigned, AttemptId, Completed, Failure

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span

LOAD: Final = "engine.load"
PREFILL: Final = "engine.prefill"
DECODE: Final = "engine.decode"
TRAIN: Final = "engine.train"


@dataclass(slots=True)
class OpenAttempt:
    span: "Span"
    inside: "Context"
    trains: bool
    doing: str
    phase: "Span"


class Traces:
    """What the daemon says of its attempts, to nobody."""

    def started(self, assigned: Assigned) -> None:
        """From here on it waits for its files and its model."""

    def handed(self, attempt: AttemptId) -> None:
        """To the engine, which computes from now on."""

    def produced(self, attempt: AttemptId) -> None:
        """Some output."""

    def ended(self, attempt: AttemptId, outcome: Completed | Failure | None) -> None:
        """None: it was stopped from elsewhere."""

    def close(self) -> None:
        """Blocking: what was not sent yet is."""


@dataclass(slots=True)
class Spans(Traces):
    tracing: Tracing
    _open: dict[AttemptId, OpenAttempt] = field(default_factory=dict)

    def started(self, assigned: Assigned) -> None:
        payload, attempt = assigned.payload, assigned.attempt
        traceparent = payload.traceparent if isinstance(payload, session_pb2.Assign) else ""
        span = self.tracing.begin(
            "serve",
            self.tracing.carried({"traceparent": traceparent}),
            kind="consumer",
            potluck__job__id=attempt.job_id,
            potluck__attempt__number=attempt.number,
            potluck__job__kind=assigned.kind,
            gen_ai__request__model=assigned.model,
        )
        inside = self.tracing.within(span)
        load = self.tracing.begin(LOAD, inside)
        self._open[attempt] = OpenAttempt(span, inside, assigned.trains, LOAD, load)

    def handed(self, attempt: AttemptId) -> None:
        if (opened := self._open.get(attempt)) is not None:
            self._go_on(opened, TRAIN if opened.trains else PREFILL)

    def produced(self, attempt: AttemptId) -> None:
        if (opened := self._open.get(attempt)) is not None and opened.doing == PREFILL:
            self._go_on(opened, DECODE)

    def ended(self, attempt: AttemptId, outcome: Completed | Failure | None) -> None:
        if (opened := self._open.pop(attempt, None)) is None:
            return
        failed = outcome.code if isinstance(outcome, Failure) else ""
        end(opened.phase, failed)
        end(opened.span, failed, potluck__attempt__stopped=outcome is None)

    def close(self) -> None:
        self.tracing.close()

    def _go_on(self, opened: OpenAttempt, doing: str) -> None:
        end(opened.phase)
        opened.doing, opened.phase = doing, self.tracing.begin(doing, opened.inside)


def traces_of() -> Traces:
    tracing = Tracing.open("potluck-worker")
    return Traces() if tracing is None else Spans(tracing)
