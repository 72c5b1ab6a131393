"""One attempt on this worker: what its engine produced, what of it is acknowledged, what it may claim.

An attempt is running while its engine works, then ended until its result is acknowledged. Frames and the
result share one numbering: it starts at 1, has no gaps and never uses a number twice. Pure, as the core.
"""

from collections import deque
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from potluck.receipts import ReceiptBody, output_digest
from worker.messages import (
    Assigned,
    AttemptId,
    Completed,
    Failure,
    Output,
    Piece,
    Prompt,
    SendFrame,
    SendResult,
    Step,
)

if TYPE_CHECKING:
    from hashlib import _Hash

FRAME_STEPS_MAX: Final = 128  # the coordinator takes twice as many


@dataclass(frozen=True, slots=True)
class Sent:
    message: SendFrame | SendResult
    size_bytes: int
    at: float


@dataclass(slots=True)
class RunningAttempt:
    assigned: Assigned
    engine: str
    started_at: float
    prompt: Prompt | None = None  # to be told with the first frame
    prompt_tokens: int = 0
    pending: list[Output] = field(default_factory=list)  # not yet in a numbered frame
    pending_bytes: int = 0
    unacknowledged: deque[Sent] = field(default_factory=deque)
    unacknowledged_bytes: int = 0
    sequence: int = 0  # the last produced
    acknowledged: int = 0
    tokens: int = 0  # produced, or trained
    steps_done: int = 0  # of the whole fine-tune
    tokens_acknowledged: int = 0
    digests: "dict[int, _Hash]" = field(default_factory=dict)  # of the acknowledged text of each choice
    ended: bool = False

    @property
    def id(self) -> AttemptId:
        return self.assigned.attempt

    @property
    def done(self) -> bool:
        """Nothing more will be said about it."""
        return self.ended and not self.unacknowledged

    def produce(self, pieces: tuple[Output, ...]) -> None:
        self.pending += pieces
        self.pending_bytes += sum(piece.size_bytes for piece in pieces)
        self.tokens += sum(piece.tokens for piece in pieces)
        if pieces and isinstance(step := pieces[-1], Step):
            self.steps_done = step.number + 1

    def forget_pending(self) -> None:
        """Output that was never numbered: nobody will miss it, and no receipt claims it."""
        self.tokens -= sum(piece.tokens for piece in self.pending)
        self.pending, self.pending_bytes = [], 0

    def flush(self, now: float, *, frame_bytes_max: int) -> list[SendFrame]:
        """Numbers all that waits, in frames of at most so many bytes (a larger piece goes alone)."""
        frames: list[SendFrame] = []
        gathered: list[Output] = []
        room = frame_bytes_max - (self.prompt.size_bytes if self.prompt else 0)
        for piece in self.pending:
            crowded = isinstance(piece, Step) and len(gathered) >= FRAME_STEPS_MAX
            if gathered and (crowded or piece.size_bytes > room):
                frames.append(self._frame(gathered, now))
                gathered, room = [], frame_bytes_max
            gathered.append(piece)
            room -= piece.size_bytes
        if gathered:
            frames.append(self._frame(gathered, now))
        self.pending, self.pending_bytes = [], 0
        return frames

    def _frame(self, pieces: list[Output], now: float) -> SendFrame:
        self.sequence += 1
        frame = SendFrame(self.id, self.sequence, tuple(pieces), self.prompt)
        size = sum(piece.size_bytes for piece in pieces) + (self.prompt.size_bytes if self.prompt else 0)
        self.prompt = None
        self._keep(Sent(frame, size, now))
        return frame

    def end(self, outcome: Completed | Failure, now: float) -> SendResult:
        assert not self.ended, "an attempt ends once"
        assert not self.pending, "what was produced is told before the end"
        self.ended = True
        self.sequence += 1
        result = SendResult(self.id, self.sequence, outcome)
        size = outcome.size_bytes if isinstance(outcome, Completed) else len(outcome.message)
        self._keep(Sent(result, size, now))
        return result

    def _keep(self, sent: Sent) -> None:
        self.unacknowledged.append(sent)
        self.unacknowledged_bytes += sent.size_bytes

    def acknowledge(self, sequence: int) -> int:
        """Forgets what is safe; returns how many tokens that is."""
        tokens = 0
        while self.unacknowledged and self.unacknowledged[0].message.sequence <= sequence:
            sent = self.unacknowledged.popleft()
            self.unacknowledged_bytes -= sent.size_bytes
            self.acknowledged = sent.message.sequence
            for piece in _pieces(sent):
                tokens += piece.tokens
                _digest(self.digests, piece)
        self.tokens_acknowledged += tokens
        return tokens

    def resend(self, now: float) -> list[SendFrame | SendResult]:
        """All that is not acknowledged, in order, for a connection that came back."""
        self.unacknowledged = deque(Sent(sent.message, sent.size_bytes, now) for sent in self.unacknowledged)
        return [sent.message for sent in self.unacknowledged]

    def receipt(self, worker_id: str, outcome: Completed | Failure | None, now: float) -> ReceiptBody | None:
        """What may be claimed: all of a completed attempt, of any other what is acknowledged, if anything.

        Of training, nothing before its end.
        """
        digests = {choice: digest.copy() for choice, digest in self.digests.items()}
        tokens = self.tokens_acknowledged
        vectors: tuple[bytes, ...] = ()
        if isinstance(outcome, Completed):
            tokens = self.tokens if outcome.tokens is None else outcome.tokens
            vectors = outcome.digests
            for sent in self.unacknowledged:
                for piece in _pieces(sent):
                    _digest(digests, piece)
        elif tokens == 0 or self.assigned.trains:
            return None
        choices = [digests[choice].digest() for choice in sorted(digests)]
        return ReceiptBody(
            job_id=self.id.job_id,
            attempt=self.id.number,
            worker_id=worker_id,
            model=self.assigned.model,
            engine=self.engine,
            prompt_tokens=self.prompt_tokens,
            output_tokens=tokens,
            started_at=int(self.started_at * 1000),
            ended_at=int(now * 1000),
            output_sha256=output_digest([*choices, *vectors]),
        )


def _pieces(sent: Sent) -> tuple[Output, ...]:
    return sent.message.pieces if isinstance(sent.message, SendFrame) else ()


def _digest(digests: "dict[int, _Hash]", piece: Output) -> None:
    if isinstance(piece, Piece):
        digests.setdefault(piece.choice, sha256()).update(piece.text.encode("utf-8", "surrogatepass"))
