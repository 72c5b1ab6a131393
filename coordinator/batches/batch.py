"""A batch as the pool keeps it: what was asked for, how far it is, what became of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from coordinator.core.jobs import JobId, Kind, MemberId

ENDPOINTS: Final[Mapping[str, Kind]] = {
    "/v1/chat/completions": Kind.CHAT,
    "/v1/completions": Kind.COMPLETION,
    "/v1/embeddings": Kind.EMBEDDING,
}
LINES_MAX: Final = 50_000
FAULTS_MAX: Final = 100  # told of a file that cannot be taken; more are counted
HOUR_S: Final = 3_600


class BatchState(StrEnum):
    """`status` of the OpenAI API."""

    VALIDATING = "validating"
    FAILED = "failed"  # the file could not be taken, or could not be paid; nothing was done
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


ENDED: Final = frozenset({BatchState.FAILED, BatchState.COMPLETED, BatchState.EXPIRED, BatchState.CANCELLED})


@dataclass(frozen=True, slots=True)
class LineFault:
    """Why a line cannot be taken. `line` counts from 1; None: it is of the whole file."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """A line that came to nothing: what its request would have been answered with."""

    line: int
    status: int
    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Times are seconds since the epoch; `moments` is when it came into each state. Amounts: microcredits.

    `job` is the whole whose parts are the lines, by their numbers in the file. `total`, `completed` and
    `failed` count requests; the last two are up to date once it has ended.
    """

    id: str
    job: JobId
    member: MemberId
    key: str  # the API key's id
    input_file: str
    endpoint: str
    window_s: int
    created_at: float
    expires_at: float
    state: BatchState = BatchState.VALIDATING
    model: str = ""
    total: int = 0
    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict)
    faults: tuple[LineFault, ...] = ()
    output_file: str | None = None
    error_file: str | None = None
    moments: Mapping[str, float] = field(default_factory=dict)

    @property
    def kind(self) -> Kind:
        return ENDPOINTS[self.endpoint]

    @property
    def ended(self) -> bool:
        return self.state in ENDED
