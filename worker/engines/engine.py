"""What an engine is, and the words in which it answers.

One engine serves one model in a process of its own. It hears `Start` and `Stop` and speaks `EngineEvent`s.
Every Start is answered by exactly one Done or Failed: after a Stop by Failed with fault NONE and code
`stopped`, once the work has truly ended and the slot is free, unless a Done or another Failed came first.

The piece rule: an engine that has token ids sends text only up to a token boundary at which all of it is
certain (no incomplete UTF-8, no possible start of a stop string). What was delivered is then always whole
tokens, and another engine goes on from prompt ids + delivered ids and generates anew what was withheld.
"""

from collections.abc import Callable
from typing import Protocol

from potluck.v1 import engine_pb2, work_pb2

Emit = Callable[[engine_pb2.EngineEvent], None]
RUNTIME_DIR = (
    "POTLUCK_ENGINE_DIR"  # a variable: the folder that is private to one engine process, for sockets
)
Key = tuple[str, int]  # an attempt: job id and number


class Engine(Protocol):
    """All methods are called on the event loop's thread and do not block it."""

    async def load(self, load: engine_pb2.Load) -> engine_pb2.Loaded:
        """Bring the model into memory; progress goes out as LoadProgress. Raises EngineError."""

    def start(self, start: engine_pb2.Start) -> None:
        """Begin an attempt. Raises EngineError, which becomes its Failed."""

    def stop(self, attempt: work_pb2.Attempt) -> None:
        """End an attempt now; unknown ones are ignored."""

    async def close(self) -> None:
        """Give everything back; running attempts are dropped without a word."""


class EngineError(Exception):
    """Why a load or an attempt cannot go on: a fixed code for programs, a sentence for people."""

    def __init__(
        self, code: str, message: str, *, fault: work_pb2.Fault.ValueType = work_pb2.FAULT_WORKER
    ) -> None:
        super().__init__(message)
        self.code = code
        self.fault = fault

    @property
    def failure(self) -> work_pb2.Failure:
        return work_pb2.Failure(fault=self.fault, code=self.code, message=str(self))


class JobError(EngineError):
    """The request cannot be done by anybody: no other worker is tried."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message, fault=work_pb2.FAULT_JOB)


def context_too_long(prompt_tokens: int, context_tokens: int) -> JobError:
    return JobError(
        "context_too_long",
        f"the prompt has {prompt_tokens} tokens and the context of this model holds {context_tokens}, "
        f"answer included: shorten the prompt",
    )


def key_of(attempt: work_pb2.Attempt) -> Key:
    return attempt.job_id, attempt.number


def knows_prompt(start: engine_pb2.Start) -> bool:
    """An earlier attempt told the prompt as it was rendered; a bridge never sees it."""
    return bool(start.continuation.prompt.text or start.continuation.prompt.ids)


def sampling_of(work: work_pb2.Work) -> work_pb2.Sampling:
    """The decoding parameters of chat and completion work."""
    return work.chat.sampling if work.HasField("chat") else work.completion.sampling


def failed(attempt: work_pb2.Attempt, error: EngineError) -> engine_pb2.EngineEvent:
    return engine_pb2.EngineEvent(failed=engine_pb2.Failed(attempt=attempt, failure=error.failure))


def stopped(attempt: work_pb2.Attempt) -> engine_pb2.EngineEvent:
    """The answer to a Stop."""
    return failed(attempt, EngineError("stopped", "stopped as asked", fault=work_pb2.FAULT_NONE))


def done(attempt: work_pb2.Attempt, prompt_tokens: int, output_tokens: int) -> engine_pb2.EngineEvent:
    usage = work_pb2.Usage(prompt_tokens=prompt_tokens, output_tokens=output_tokens)
    return engine_pb2.EngineEvent(done=engine_pb2.Done(attempt=attempt, usage=usage))


def output(attempt: work_pb2.Attempt, deltas: list[work_pb2.Delta]) -> engine_pb2.EngineEvent:
    return engine_pb2.EngineEvent(output=engine_pb2.Output(attempt=attempt, deltas=deltas))


def started(attempt: work_pb2.Attempt, prompt: work_pb2.RenderedPrompt) -> engine_pb2.EngineEvent:
    return engine_pb2.EngineEvent(started=engine_pb2.Started(attempt=attempt, prompt=prompt))
