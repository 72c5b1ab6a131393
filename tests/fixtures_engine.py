"""A loaded engine process for tests, and what it said."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from potluck.v1 import engine_pb2, work_pb2
from worker.hosts.process import EngineHost

WAIT_S_MAX = 120.0


@dataclass
class Heard:
    """Events of one engine; `until` waits for the one that makes a condition true."""

    events: list[engine_pb2.EngineEvent] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __call__(self, event: engine_pb2.EngineEvent) -> None:
        self.events.append(event)
        self.times.append(asyncio.get_running_loop().time())
        self._changed.set()

    def clear(self) -> None:
        """For the next test of an engine that several share."""
        self.events.clear()
        self.times.clear()

    async def until(self, condition: Callable[[], object], wait_s_max: float = WAIT_S_MAX) -> None:
        async with asyncio.timeout(wait_s_max):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def deltas(self, job: str = "job", number: int = 1, choice: int = 0) -> list[work_pb2.Delta]:
        return [
            delta
            for event in self.events
            if event.HasField("output")
            and (event.output.attempt.job_id, event.output.attempt.number) == (job, number)
            for delta in event.output.deltas
            if delta.choice == choice
        ]

    def text(self, job: str = "job", number: int = 1, choice: int = 0) -> str:
        return "".join(delta.text for delta in self.deltas(job, number, choice))

    def ids(self, job: str = "job", number: int = 1, choice: int = 0) -> list[int]:
        return [token for delta in self.deltas(job, number, choice) for token in delta.token_ids]

    def reason(self, job: str = "job", number: int = 1, choice: int = 0) -> str:
        return "".join(delta.finish_reason for delta in self.deltas(job, number, choice))

    def prompt(self, job: str = "job", number: int = 1) -> work_pb2.RenderedPrompt:
        return next(
            event.started.prompt
            for event in self.events
            if event.HasField("started")
            and (event.started.attempt.job_id, event.started.attempt.number) == (job, number)
        )

    def end(self, job: str = "job", number: int = 1) -> engine_pb2.EngineEvent | None:
        """The Done or Failed of an attempt; there must be at most one."""
        ends = [
            event
            for event in self.events
            for attempt in [event.done.attempt if event.HasField("done") else event.failed.attempt]
            if (event.HasField("done") or event.HasField("failed"))
            and (attempt.job_id, attempt.number) == (job, number)
        ]
        assert len(ends) <= 1, f"an attempt ended {len(ends)} times: {ends}"
        return ends[0] if ends else None

    async def ended(self, job: str = "job", number: int = 1) -> engine_pb2.EngineEvent:
        await self.until(lambda: self.end(job, number))
        event = self.end(job, number)
        assert event is not None
        return event


def sampling(**changes: Any) -> work_pb2.Sampling:
    values: dict[str, Any] = {"temperature": 0.0, "top_p": 1.0, "seed": 7, "max_tokens": 16, "choices": 1}
    return work_pb2.Sampling(**(values | changes))


def chat(text: str = "Say something.", **changes: Any) -> work_pb2.Work:
    message = work_pb2.ChatMessage(role="user", content=text)
    return work_pb2.Work(chat=work_pb2.ChatWork(messages=[message], sampling=sampling(**changes)))


def completion(prompt: str, **changes: Any) -> work_pb2.Work:
    work = work_pb2.CompletionWork(prompt=prompt, sampling=sampling(**changes))
    return work_pb2.Work(completion=work)


def embedding(*texts: str) -> work_pb2.Work:
    inputs = [work_pb2.EmbeddingInput(text=text) for text in texts]
    return work_pb2.Work(embedding=work_pb2.EmbeddingWork(inputs=inputs))


def start(
    work: work_pb2.Work,
    job: str = "job",
    number: int = 1,
    continuation: work_pb2.Continuation | None = None,
) -> engine_pb2.EngineCommand:
    attempt = work_pb2.Attempt(job_id=job, number=number)
    return engine_pb2.EngineCommand(
        start=engine_pb2.Start(attempt=attempt, work=work, continuation=continuation)
    )


def stop(job: str = "job", number: int = 1) -> engine_pb2.EngineCommand:
    attempt = work_pb2.Attempt(job_id=job, number=number)
    return engine_pb2.EngineCommand(stop=engine_pb2.Stop(attempt=attempt))


def going_on(
    prompt: work_pb2.RenderedPrompt, delivered: Sequence[work_pb2.Delivered]
) -> work_pb2.Continuation:
    return work_pb2.Continuation(prompt=prompt, delivered=delivered)


def delivered(deltas: Sequence[work_pb2.Delta]) -> work_pb2.Delivered:
    """What a member has after these pieces of one choice."""
    return work_pb2.Delivered(
        choice=deltas[0].choice if deltas else 0,
        text="".join(delta.text for delta in deltas),
        token_ids=[token for delta in deltas for token in delta.token_ids],
        tokens=sum(delta.tokens for delta in deltas),
        finish_reason="".join(delta.finish_reason for delta in deltas),
    )


@asynccontextmanager
async def hosted(load: engine_pb2.Load) -> AsyncIterator[tuple[EngineHost, Heard]]:
    """An engine process that is gone at the end, whatever happened."""
    heard = Heard()
    host = await EngineHost.start(load, heard)
    try:
        yield host, heard
    finally:
        await host.close()
