"""One trace from a request over its job to each attempt: what of it the coordinator knows.

A span stands for the request, one inside it for each of its jobs, from the queue to the end, and in that one
for each attempt; the worker goes on from there (`worker.traces`). The core knows nothing of it: spans begin
where a job is queued and sent, and end with what was committed.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from coordinator.core.jobs import ATTEMPT_ENDED, JOB_ENDED, Attempt, AttemptState, Job, JobId, JobState
from potluck.tracing import Tracing, end

if TYPE_CHECKING:
    from opentelemetry.trace import Span

_WELL: Final = frozenset(
    {JobState.SUCCEEDED, JobState.CANCELLED, AttemptState.SUCCEEDED, AttemptState.CANCELLED}
)


@dataclass(slots=True)
class Request:
    """Its answer, as far as the span tells it."""

    route: str = ""
    status: int = 0


@dataclass(slots=True)
class OpenJob:
    span: "Span"
    attempts: "dict[int, Span]" = field(default_factory=dict)


class Traces(Protocol):
    """What the pool says of its jobs."""

    def queued(self, job: Job) -> None:
        """By whoever asks just now."""

    def assigned(self, job: Job, attempt: Attempt) -> str:
        """The `traceparent` for the worker; "" without one."""

    def changed(self, jobs: Iterable[Job]) -> None:
        """These are other than they were, and on the disk."""

    def close(self) -> None:
        """Blocking: what was not sent yet is."""


class Untraced(Traces):
    """Nobody collects spans."""

    def queued(self, job: Job) -> None:
        pass

    def assigned(self, job: Job, attempt: Attempt) -> str:
        del job, attempt
        return ""

    def changed(self, jobs: Iterable[Job]) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass(slots=True)
class Spans(Traces):
    tracing: Tracing
    _jobs: dict[JobId, OpenJob] = field(default_factory=dict)  # those that are open

    @contextlib.contextmanager
    def request(self, method: str, headers: Mapping[str, str], request_id: str) -> Iterator[Request]:
        """What is begun inside belongs to it. The caller's own trace goes on, if there is one."""
        from opentelemetry import context

        carried, asked = self.tracing.carried(headers), Request()
        named = {"http__request__method": method, "potluck__request__id": request_id}
        span = self.tracing.begin(method, carried, kind="server", **named)
        token = context.attach(self.tracing.within(span))
        try:
            yield asked
        finally:
            context.detach(token)
            if asked.route:
                span.update_name(f"{method} {asked.route}")
            told = {"http__route": asked.route, "http__response__status_code": asked.status}
            end(span, str(asked.status) if asked.status >= 500 or not asked.status else "", **told)

    def queued(self, job: Job) -> None:
        self._begin(job)

    def assigned(self, job: Job, attempt: Attempt) -> str:
        opened = self._jobs.get(job.id) or self._begin(job)  # after a restart nobody knows who asked
        span = self.tracing.begin(
            "attempt",
            self.tracing.within(opened.span),
            kind="producer",
            potluck__job__id=job.id,
            potluck__attempt__number=attempt.number,
            potluck__worker__id=attempt.worker,
        )
        opened.attempts[attempt.number] = span
        opened.span.add_event("planned", {"potluck.attempt.number": attempt.number})
        return self.tracing.carry(span)

    def changed(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            if (opened := self._jobs.get(job.id)) is None:
                continue
            for attempt in job.attempts:
                if attempt.state in ATTEMPT_ENDED and (span := opened.attempts.pop(attempt.number, None)):
                    _end(span, attempt.state, potluck__attempt__state=attempt.state.value)
            if job.state in JOB_ENDED:
                del self._jobs[job.id]
                for span in opened.attempts.values():  # of refusals that the job does not keep
                    end(span)
                _end(opened.span, job.state, **_told(job))

    def close(self) -> None:
        self.tracing.close()

    def _begin(self, job: Job) -> OpenJob:
        span = self.tracing.begin(
            "job",
            potluck__job__id=job.id,
            potluck__job__kind=job.kind.value,
            potluck__member__id=job.member,
            gen_ai__request__model=job.model,
        )
        opened = self._jobs[job.id] = OpenJob(span)
        return opened


def _end(span: "Span", state: JobState | AttemptState, **attributes: Any) -> None:
    end(span, "" if state in _WELL else state.value, **attributes)


def _told(job: Job) -> dict[str, Any]:
    return {
        "potluck__job__state": job.state.value,
        "potluck__job__charge": job.charge or 0,
        "gen_ai__usage__input_tokens": job.prompt_tokens,
        "gen_ai__usage__output_tokens": job.output_tokens,
    }


def traces_of() -> Traces:
    tracing = Tracing.open("potluck-coordinator")
    return Untraced() if tracing is None else Spans(tracing)
