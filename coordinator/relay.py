"""From the core to whoever waits for a job: one queue for each, ended by exactly one `Closed`.

A queue needs no bound of its own: a job delivers at most `max_tokens` pieces for each choice.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from coordinator.core.jobs import Job, JobId, JobState, Loading
from coordinator.core.output import Piece
from coordinator.core.parts import Part
from coordinator.core.parts import joined as neighbours
from potluck.v1.work_pb2 import TokenLogprob


class Output(NamedTuple):
    """A piece of one choice; `finish_reason` is None while it goes on. One for each token, as `Piece`.

    `parts` are what was found in the text of an answer that is read (None: it is content as it stands), of a
    model that reasons or does not. They may come later than their text.
    """

    choice: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: Sequence[TokenLogprob]
    finish_reason: str | None
    parts: tuple[Part, ...] | None = None
    reasons: bool = False


@dataclass(frozen=True, slots=True)
class Embedded:
    vectors: list[list[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """The end. `charge` in microcredits; `code` and `why` of a job that did not succeed, and
    `loading` where it waited in vain for a model."""

    state: JobState
    charge: int
    prompt_tokens: int
    output_tokens: int
    code: str = ""
    why: str = ""
    loading: Loading | None = None
    reasoning_tokens: int | None = None  # of the output tokens; None of a model that does not reason


JobEvent = Output | Embedded | Closed


@dataclass(slots=True)
class Relay:
    """Several may follow one job; each sees everything from when it began to follow."""

    queues: dict[JobId, list[asyncio.Queue[JobEvent]]] = field(default_factory=dict)

    def follow(self, job_id: JobId) -> AsyncIterator[JobEvent]:
        """Events of this job from now on. Leaving the iterator early forgets the queue, not the job."""
        queue: asyncio.Queue[JobEvent] = asyncio.Queue()
        self.queues.setdefault(job_id, []).append(queue)
        return self._events(job_id, queue)

    async def _events(self, job_id: JobId, queue: asyncio.Queue[JobEvent]) -> AsyncIterator[JobEvent]:
        try:
            while True:
                event = await queue.get()
                while not queue.empty():
                    later = queue.get_nowait()
                    if (joined := _joined(event, later)) is None:
                        yield event
                        event = later
                    else:
                        event = joined
                yield event
                if isinstance(event, Closed):
                    return
        finally:
            if queue in (followers := self.queues.get(job_id, [])):
                followers.remove(queue)

    def outputs(self, job_id: JobId, outputs: Sequence[Output]) -> None:
        """As `pieces`, of an answer that was read."""
        for queue in self.queues.get(job_id, ()):
            for output in outputs:
                queue.put_nowait(output)

    def pieces(self, job_id: JobId, pieces: Sequence[Piece]) -> None:
        if followers := self.queues.get(job_id):
            for p in pieces:
                output = Output(p.choice, p.text, p.token_ids, p.logprobs, p.finish_reason or None)
                for queue in followers:
                    queue.put_nowait(output)

    def vectors(self, job_id: JobId, vectors: list[list[float]]) -> None:
        for queue in self.queues.get(job_id, ()):
            queue.put_nowait(Embedded(vectors))

    def closed(self, job: Job, reasoning_tokens: int | None = None) -> None:
        """Tell the end, once: whoever still reads has its own hold on the queue."""
        for queue in self.queues.pop(job.id, ()):
            queue.put_nowait(replace(ended(job), reasoning_tokens=reasoning_tokens))


def _joined(first: JobEvent, second: JobEvent) -> Output | None:
    """Pieces of one choice that wait together go out together: a reader that falls behind catches up."""
    if not isinstance(first, Output) or not isinstance(second, Output):
        return None
    if first.choice != second.choice or first.finish_reason is not None:
        return None
    return Output(
        first.choice,
        first.text + second.text,
        first.token_ids + second.token_ids,
        [*first.logprobs, *second.logprobs],
        second.finish_reason,
        None if first.parts is None else tuple(neighbours((*first.parts, *(second.parts or ())))),
        first.reasons,
    )


def ended(job: Job) -> Closed:
    return Closed(
        state=job.state,
        charge=job.charge or 0,
        prompt_tokens=job.prompt_tokens,
        output_tokens=job.output_tokens,
        code=job.code,
        why=job.why,
        loading=job.loading,
    )
