"""What `worker.core` hears and what it asks for: events in the past tense, instructions in the imperative.

Pure data. What goes over the wire unchanged (a delta, a rendered prompt, vectors) is an opaque `payload`
with its size; the core carries it and never looks inside. Times are seconds on one clock that never jumps.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from potluck.receipts import ReceiptBody

FINETUNE: Final = "finetune"  # the kind of work that trains


class Role(StrEnum):
    """What one engine does for a model: `ADAPT` answers with adapters on it where what serves it cannot."""

    SERVE = "serve"
    TRAIN = "train"
    ADAPT = "adapt"


class Fault(StrEnum):
    """Whose fault a failure is; only a worker's own costs it reliability."""

    JOB = "job"
    WORKER = "worker"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class AttemptId:
    """One worker's try at a job; the number is the fence that every message about it carries."""

    job_id: str
    number: int


@dataclass(frozen=True, slots=True)
class Failure:
    fault: Fault
    code: str  # a fixed word
    message: str  # for people


@dataclass(frozen=True, slots=True)
class Prompt:
    """The prompt as the engine rendered it."""

    tokens: int
    size_bytes: int
    payload: object
    bare: "Prompt | None" = None  # how its answer is to be read, without the text, which may be too long


@dataclass(frozen=True, slots=True)
class Piece:
    """Some output of one choice. `tokens` is the number of ids, or the engine's own count without ids."""

    choice: int
    text: str
    tokens: int
    size_bytes: int
    payload: object


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step of a training, `number` of all from 0. Its tokens are paid by the training's end."""

    number: int
    tokens: int
    size_bytes: int
    payload: object


Output = Piece | Step  # what an engine produces on its way


@dataclass(frozen=True, slots=True)
class Completed:
    """`tokens`: those of a training; None: the output's, as it was counted on the way."""

    prompt_tokens: int
    size_bytes: int
    payload: object
    digests: tuple[bytes, ...] = ()  # of vectors, of what training made; a text is digested as it goes
    tokens: int | None = None


# --- events: what happened -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Connected:
    """The coordinator welcomed us. `resumed` names the attempts that go on and what it has of each."""

    resumed: tuple[tuple[AttemptId, int], ...]
    frame_bytes_max: int
    heartbeat_busy_s: float
    heartbeat_idle_s: float


@dataclass(frozen=True, slots=True)
class Disconnected:
    pass


@dataclass(frozen=True, slots=True)
class Assigned:
    attempt: AttemptId
    model: str
    member: str
    goes_on: bool  # an earlier attempt's prompt is given: it need not be reported again
    payload: object
    kind: str = ""  # chat | completion | embedding | finetune
    steps: int = 0  # of the whole fine-tune
    files: object = None  # those it needs on this machine, once they are here
    adapts: bool = False  # it is answered with an adapter on the model

    @property
    def trains(self) -> bool:
        return self.kind == FINETUNE


@dataclass(frozen=True, slots=True)
class Acknowledged:
    attempt: AttemptId
    sequence: int


@dataclass(frozen=True, slots=True)
class Cancelled:
    attempt: AttemptId
    why: str


@dataclass(frozen=True, slots=True)
class DrainAsked:
    """Take no more work, finish what runs for at most `limit_s`, then close."""

    why: str
    limit_s: float


@dataclass(frozen=True, slots=True)
class Paused:
    """The machine is its owner's now: hand over what runs, take nothing, give the memory back."""

    why: str


@dataclass(frozen=True, slots=True)
class Resumed:
    """The machine may be shared again."""


@dataclass(frozen=True, slots=True)
class ModelOffered:
    """The model can be given work of this role from now on (it may still have to be loaded for it)."""

    model: str
    engine: str
    slots: int
    role: Role = Role.SERVE


@dataclass(frozen=True, slots=True)
class ModelWithdrawn:
    model: str
    why: str
    role: Role = Role.SERVE


@dataclass(frozen=True, slots=True)
class ModelsChanged:
    """Something about a model that the coordinator should hear of soon."""


@dataclass(frozen=True, slots=True)
class EngineStarted:
    attempt: AttemptId
    prompt: Prompt | None


@dataclass(frozen=True, slots=True)
class EngineProduced:
    attempt: AttemptId
    pieces: tuple[Output, ...]


@dataclass(frozen=True, slots=True)
class EngineFinished:
    attempt: AttemptId
    completed: Completed


@dataclass(frozen=True, slots=True)
class EngineFailed:
    attempt: AttemptId
    failure: Failure


@dataclass(frozen=True, slots=True)
class ReceiptKept:
    """The receipt is signed and safe on disk (also said for each one found there at start)."""

    attempt: AttemptId


@dataclass(frozen=True, slots=True)
class ReceiptAcknowledged:
    attempt: AttemptId
    state: str


@dataclass(frozen=True, slots=True)
class Congested:
    """The outbox is filling (or has emptied again): gather more into each frame."""

    on: bool


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time has passed; said at `Core.wake_at()` at the latest."""


Event = (
    Connected
    | Disconnected
    | Assigned
    | Acknowledged
    | Cancelled
    | DrainAsked
    | Paused
    | Resumed
    | ModelOffered
    | ModelWithdrawn
    | ModelsChanged
    | EngineStarted
    | EngineProduced
    | EngineFinished
    | EngineFailed
    | ReceiptKept
    | ReceiptAcknowledged
    | Congested
    | Ticked
)


# --- instructions: what to do ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SendAccepted:
    attempt: AttemptId


@dataclass(frozen=True, slots=True)
class SendRefused:
    attempt: AttemptId
    reason: Failure


@dataclass(frozen=True, slots=True)
class SendFrame:
    attempt: AttemptId
    sequence: int
    pieces: tuple[Output, ...]
    prompt: Prompt | None


@dataclass(frozen=True, slots=True)
class SendResult:
    attempt: AttemptId
    sequence: int
    outcome: Completed | Failure


@dataclass(frozen=True, slots=True)
class SendHeartbeat:
    pass


@dataclass(frozen=True, slots=True)
class SendReceipt:
    attempt: AttemptId


@dataclass(frozen=True, slots=True)
class SignReceipt:
    """Sign it, make it safe on disk, then say `ReceiptKept`."""

    attempt: AttemptId
    body: ReceiptBody


@dataclass(frozen=True, slots=True)
class ForgetReceipt:
    attempt: AttemptId


@dataclass(frozen=True, slots=True)
class StartEngine:
    assigned: Assigned


@dataclass(frozen=True, slots=True)
class StopEngine:
    attempt: AttemptId
    model: str
    why: str


@dataclass(frozen=True, slots=True)
class CloseEngines:
    """Every engine's process ends, and its memory is free."""

    why: str


@dataclass(frozen=True, slots=True)
class OpenEngines:
    """Models are served again as before."""


@dataclass(frozen=True, slots=True)
class Reconnect:
    why: str


@dataclass(frozen=True, slots=True)
class Close:
    """Everything is finished and told: end the session and the daemon."""

    why: str


Instruction = (
    SendAccepted
    | SendRefused
    | SendFrame
    | SendResult
    | SendHeartbeat
    | SendReceipt
    | SignReceipt
    | ForgetReceipt
    | StartEngine
    | StopEngine
    | CloseEngines
    | OpenEngines
    | Reconnect
    | Close
)
