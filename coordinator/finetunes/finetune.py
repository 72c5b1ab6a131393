"""A fine-tune as the pool keeps it: what was asked for, how far it is, what became of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from coordinator.core.jobs import JobId, MemberId
from coordinator.finetunes.plan import Plan, Wanted
from coordinator.records import FileId

DAYS: Final = 30  # that a fine-tune may take


class FinetuneState(StrEnum):
    """`status` of the OpenAI API, and `paused`."""

    VALIDATING = "validating_files"
    QUEUED = "queued"  # paid for; no worker has begun
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED: Final = frozenset({FinetuneState.SUCCEEDED, FinetuneState.FAILED, FinetuneState.CANCELLED})


@dataclass(frozen=True, slots=True)
class Fault:
    """Why it failed. `param`: what of the request was wrong."""

    code: str
    message: str
    param: str | None = None


@dataclass(frozen=True, slots=True)
class Data:
    """A member's file and its bytes, which stay while something reads them."""

    file: FileId
    sha256: str
    bytes: int


def gone(data: Data) -> str:
    """Its record keeps the bytes, but disks fail."""
    return f"The file {data.file} is gone from the pool's disk. Upload it again, and start anew."


@dataclass(frozen=True, slots=True, kw_only=True)
class Finetune:
    """Times are seconds since the epoch; `moments` is when it came into each state. Amounts: microcredits.

    `job` is the whole whose parts are segments or shares of rounds. `plan` and `quote` are known once the
    files have been read; `steps_done` and `trained_tokens` count what is settled.
    """

    id: str
    job: JobId
    member: MemberId
    key: str  # the API key's id
    model: str  # the base, by its name in the catalogue
    result: str  # what the tuned model will be called
    training: Data
    validation: Data | None
    wanted: Wanted
    created_at: float
    expires_at: float
    metadata: Mapping[str, str] = field(default_factory=dict)
    state: FinetuneState = FinetuneState.VALIDATING
    plan: Plan | None = None
    quote: int = 0
    charge: int = 0  # what was settled
    steps_done: int = 0
    trained_tokens: int = 0
    fault: Fault | None = None
    result_files: tuple[str, ...] = ()
    moments: Mapping[str, float] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        return self.state in ENDED


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """`number` counts from 1. `data` of metrics: those of one step, by the OpenAI API's names."""

    number: int
    at: float
    level: str  # info | warn | error
    message: str
    data: Mapping[str, float] | None = None

    @property
    def kind(self) -> str:
        return "message" if self.data is None else "metrics"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The adapter after so many steps. `valid_*` where it was looked at with the validation file."""

    number: int
    step: int
    at: float
    sha256: str
    bytes: int
    metrics: Mapping[str, float] = field(default_factory=dict)
