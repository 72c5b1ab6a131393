"""Whole answers: the pieces of a job's choices put together."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from coordinator.core.parts import Part
from coordinator.relay import Embedded, JobEvent, Output
from potluck.v1.work_pb2 import TokenLogprob


@dataclass(slots=True)
class Choice:
    parts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None
    read: list[Part] | None = None  # what was found in the text, of an answer that is read
    reasons: bool = False

    @property
    def text(self) -> str:
        return "".join(self.parts)

    def take(self, output: Output) -> None:
        self.parts.append(output.text)
        if output.parts is not None:
            self.read = self.read or []
            self.read.extend(output.parts)
            self.reasons = output.reasons
        self.logprobs.extend(output.logprobs)
        self.finish_reason = output.finish_reason or self.finish_reason


async def collect_choices(
    events: AsyncIterator[tuple[int, JobEvent]], jobs: int, choices: int
) -> list[Choice]:
    """All choices of all jobs, the first job's first."""
    collected = [Choice() for _ in range(jobs * choices)]
    async for job, event in events:
        if isinstance(event, Output):
            collected[job * choices + event.choice].take(event)
    return collected


async def collect_vectors(events: AsyncIterator[tuple[int, JobEvent]]) -> list[list[float]]:
    vectors: list[list[float]] = []
    async for _, event in events:
        if isinstance(event, Embedded):
            vectors.extend(event.vectors)
    return vectors
