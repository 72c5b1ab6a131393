"""Between protobuf and the core's words: what the coordinator and the engines say becomes events, and the
core's instructions become messages. Everything from outside is checked here, once.
"""

import hashlib
from collections.abc import Iterable
from typing import Final, assert_never

from potluck.receipts import TEXT_CHARS_MAX
from potluck.v1 import engine_pb2, session_pb2, work_pb2
from worker.asked import AskedPause
from worker.journal import SignedReceipt
from worker.messages import (
    FINETUNE,
    Acknowledged,
    Assigned,
    AttemptId,
    Cancelled,
    Completed,
    Connected,
    EngineFailed,
    EngineFinished,
    EngineProduced,
    EngineStarted,
    Event,
    Failure,
    Fault,
    Output,
    Piece,
    Prompt,
    ReceiptAcknowledged,
    SendAccepted,
    SendFrame,
    SendRefused,
    SendResult,
    Step,
)
from worker.rules import Sharing

PROTOCOL: Final = 1
FRAME_BYTES_MIN: Final = 1024  # less would cut every token off
HEARTBEAT_MS_MAX: Final = 60_000
MESSAGE_CHARS_MAX: Final = 1000

_FAULTS: Final = {
    work_pb2.FAULT_JOB: Fault.JOB,
    work_pb2.FAULT_WORKER: Fault.WORKER,
    work_pb2.FAULT_NONE: Fault.NONE,
}
_FAULTS_OUT: Final = {fault: number for number, fault in _FAULTS.items()}


class WireError(Exception):
    """A message that no coordinator of this protocol sends; the sentence holds nothing of a job's text."""


# --- from the coordinator --------------------------------------------------------------------------------


def attempt_from(attempt: work_pb2.Attempt) -> AttemptId:
    """Raises WireError unless it can be signed for later."""
    if (
        not 0 < len(attempt.job_id) <= TEXT_CHARS_MAX
        or not attempt.job_id.isprintable()
        or not attempt.number
    ):
        raise WireError("an attempt without a usable name")
    return AttemptId(attempt.job_id, attempt.number)


def connected_from(welcome: session_pb2.Welcome) -> Connected:
    """Raises WireError."""
    resumed = tuple((attempt_from(item.attempt), item.acknowledged_sequence) for item in welcome.resume)
    return Connected(
        resumed,
        max(welcome.frame_bytes_max, FRAME_BYTES_MIN) if welcome.frame_bytes_max else 0,
        min(welcome.heartbeat_busy_ms, HEARTBEAT_MS_MAX) / 1000,
        min(welcome.heartbeat_idle_ms, HEARTBEAT_MS_MAX) / 1000,
    )


def event_from(message: session_pb2.CoordinatorMessage) -> Event | None:
    """None for what is no event of the core: Welcome, Drain, Pause and what a newer coordinator may say.

    Raises WireError.
    """
    match message.WhichOneof("body"):
        case "assign":
            assign = message.assign
            continuation = assign.continuation
            goes_on = assign.HasField("continuation") and bool(
                continuation.prompt.text or continuation.prompt.ids
            )
            kind = assign.work.WhichOneof("kind") or ""
            return Assigned(
                attempt_from(assign.attempt),
                assign.model,
                assign.member,
                goes_on,
                assign,
                kind=FINETUNE if kind == "training" else kind,
                steps=assign.work.training.plan.steps,
                adapts=assign.HasField("adapter"),
            )
        case "ack":
            return Acknowledged(attempt_from(message.ack.attempt), message.ack.sequence)
        case "cancel":
            return Cancelled(attempt_from(message.cancel.attempt), message.cancel.why)
        case "receipt_ack":
            return ReceiptAcknowledged(attempt_from(message.receipt_ack.attempt), message.receipt_ack.state)
        case _:
            return None


def asked_from(pause: session_pb2.Pause) -> AskedPause:
    """`heard_at` is not set: it is the machine's own time."""
    why = "".join(c if c.isprintable() else " " for c in pause.why[:MESSAGE_CHARS_MAX])
    until = pause.until_ms / 1000 if pause.until_ms else None
    return AskedPause(number=pause.number, until=until, why=why or "it was paused from afar")


def start_command(assigned: Assigned) -> engine_pb2.EngineCommand:
    assign = assigned.payload
    assert isinstance(assign, session_pb2.Assign), "assignments come from `event_from`"
    continuation = assign.continuation if assign.HasField("continuation") else None
    start = engine_pb2.Start(attempt=assign.attempt, work=assign.work, continuation=continuation)
    if isinstance(assigned.files, engine_pb2.LoadedAdapter):
        start.adapter.CopyFrom(assigned.files)
    elif isinstance(assigned.files, engine_pb2.TrainingFiles):
        start.files.CopyFrom(assigned.files)
    return engine_pb2.EngineCommand(start=start)


def stop_command(attempt: AttemptId) -> engine_pb2.EngineCommand:
    return engine_pb2.EngineCommand(stop=engine_pb2.Stop(attempt=attempt_to(attempt)))


# --- from an engine --------------------------------------------------------------------------------------


def engine_event_from(event: engine_pb2.EngineEvent) -> Event | None:
    """None for what is about the engine and not about an attempt."""
    match event.WhichOneof("body"):
        case "started":
            prompt = event.started.prompt if event.started.HasField("prompt") else None
            attempt = attempt_from(event.started.attempt)
            if prompt is None:
                return EngineStarted(attempt, None)
            return EngineStarted(attempt, _prompt(prompt))
        case "output":
            pieces: list[Output] = [_piece(delta) for delta in event.output.deltas]
            pieces += [_step(step) for step in event.output.steps]
            return EngineProduced(attempt_from(event.output.attempt), tuple(pieces))
        case "done":
            return EngineFinished(attempt_from(event.done.attempt), _completed(event.done))
        case "failed":
            return EngineFailed(attempt_from(event.failed.attempt), failure_from(event.failed.failure))
        case _:
            return None


def _prompt(prompt: work_pb2.RenderedPrompt) -> Prompt:
    bare = None
    if prompt.HasField("format"):
        alone = work_pb2.RenderedPrompt(format=prompt.format)
        bare = Prompt(0, alone.ByteSize(), alone)
    return Prompt(len(prompt.ids), prompt.ByteSize(), prompt, bare)


def _piece(delta: work_pb2.Delta) -> Piece:
    tokens = len(delta.token_ids) or delta.tokens
    return Piece(delta.choice, delta.text, tokens, delta.ByteSize(), delta)


def _step(step: work_pb2.TrainingStep) -> Step:
    return Step(step.step, step.tokens, step.ByteSize(), step)


def _completed(done: engine_pb2.Done) -> Completed:
    if done.HasField("trained"):
        return trained(done.trained)
    completed = session_pb2.Completed(usage=done.usage)
    digests: list[bytes] = []
    if done.embeddings:
        completed.embedding.embeddings.extend(done.embeddings)
        completed.embedding.prompt_tokens.extend(done.embedding_tokens)
        digests = [
            hashlib.sha256(item.SerializeToString(deterministic=True)).digest() for item in done.embeddings
        ]
    return Completed(done.usage.prompt_tokens, completed.ByteSize(), completed, tuple(digests))


def trained(said: work_pb2.Trained) -> Completed:
    """What a training came to, with as many of its artifacts as have their names already."""
    completed = session_pb2.Completed(trained=said)
    names = [artifact.sha256 for artifact in (said.adapter, said.state) if artifact.sha256]
    return Completed(0, completed.ByteSize(), completed, tuple(map(bytes.fromhex, names)), tokens=said.tokens)


def failure_from(failure: work_pb2.Failure) -> Failure:
    fault = _FAULTS.get(failure.fault, Fault.WORKER)
    return Failure(fault, failure.code or "engine_error", failure.message[:MESSAGE_CHARS_MAX])


# --- to the coordinator ----------------------------------------------------------------------------------


def attempt_to(attempt: AttemptId) -> work_pb2.Attempt:
    return work_pb2.Attempt(job_id=attempt.job_id, number=attempt.number)


def failure_to(failure: Failure) -> work_pb2.Failure:
    return work_pb2.Failure(fault=_FAULTS_OUT[failure.fault], code=failure.code, message=failure.message)


def running_to(running: Iterable[tuple[AttemptId, int]]) -> list[session_pb2.Running]:
    return [session_pb2.Running(attempt=attempt_to(a), last_sequence=sequence) for a, sequence in running]


def sharing_to(sharing: Sharing) -> session_pb2.Sharing:
    return session_pb2.Sharing(
        kinds=sharing.kinds, members=sharing.members, members_refused=sharing.members_refused
    )


def moment_to(at: float | None) -> int:
    """Milliseconds since the epoch; 0: unknown."""
    return 0 if at is None else max(0, round(at * 1000))


def message_to(
    instruction: SendAccepted | SendRefused | SendFrame | SendResult,
) -> session_pb2.WorkerMessage:
    attempt = attempt_to(instruction.attempt)
    match instruction:
        case SendAccepted():
            return session_pb2.WorkerMessage(accepted=session_pb2.Accepted(attempt=attempt))
        case SendRefused(_, reason):
            refused = session_pb2.Refused(attempt=attempt, reason=failure_to(reason))
            return session_pb2.WorkerMessage(refused=refused)
        case SendFrame(_, sequence, pieces, prompt):
            frame = session_pb2.Frame(attempt=attempt, sequence=sequence, deltas=merged(pieces))
            frame.steps.extend(steps(pieces))
            if prompt is not None:
                assert isinstance(prompt.payload, work_pb2.RenderedPrompt)
                frame.prompt.CopyFrom(prompt.payload)
            return session_pb2.WorkerMessage(frame=frame)
        case SendResult(_, sequence, outcome):
            result = session_pb2.Result(attempt=attempt, sequence=sequence)
            if isinstance(outcome, Failure):
                result.failed.CopyFrom(failure_to(outcome))
            else:
                assert isinstance(outcome.payload, session_pb2.Completed)
                result.completed.CopyFrom(outcome.payload)
            return session_pb2.WorkerMessage(result=result)
        case _:
            assert_never(instruction)


def steps(pieces: tuple[Output, ...]) -> list[work_pb2.TrainingStep]:
    return [piece.payload for piece in pieces if isinstance(piece.payload, work_pb2.TrainingStep)]


def merged(pieces: tuple[Output, ...]) -> list[work_pb2.Delta]:
    """The texts of one frame, neighbours of one choice joined: fewer to relay, the same text."""
    deltas: list[work_pb2.Delta] = []
    owned = False  # whether the last delta is a copy of ours that may be added to
    for piece in pieces:
        delta = piece.payload
        if not isinstance(delta, work_pb2.Delta):
            continue
        if not deltas or deltas[-1].choice != delta.choice or deltas[-1].finish_reason:
            deltas.append(delta)
            owned = False
            continue
        if not owned:
            copy = work_pb2.Delta()
            copy.CopyFrom(deltas[-1])
            deltas[-1], owned = copy, True
        last = deltas[-1]
        last.text += delta.text
        last.token_ids.extend(delta.token_ids)
        last.tokens += delta.tokens
        last.logprobs.extend(delta.logprobs)
        last.finish_reason = delta.finish_reason
    return deltas


def receipt_to(receipt: SignedReceipt) -> session_pb2.WorkerMessage:
    body = session_pb2.Receipt(body=receipt.body, signature=receipt.signature)
    return session_pb2.WorkerMessage(receipt=body)
