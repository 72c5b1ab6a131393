"""What the core tells the shell to do, once what it decided is safe in the database."""

from dataclasses import dataclass, field

from coordinator.core.jobs import AccountId, Job, JobId, WorkerId
from coordinator.core.ledger import Entry
from coordinator.core.standing import Standing


@dataclass(frozen=True, slots=True)
class SendAssign:
    worker: WorkerId
    job: JobId
    number: int
    why: str


@dataclass(frozen=True, slots=True)
class SendCancel:
    worker: WorkerId
    job: JobId
    number: int
    why: str


@dataclass(frozen=True, slots=True)
class SendAck:
    worker: WorkerId
    job: JobId
    number: int
    sequence: int


Send = SendAssign | SendCancel | SendAck


@dataclass(slots=True)
class Effects:
    """Everything since the last tick: to commit together, then to send, then to tell."""

    entries: list[Entry] = field(default_factory=list)
    accounts: set[AccountId] = field(default_factory=set)
    jobs: dict[JobId, Job] = field(default_factory=dict)
    standings: dict[WorkerId, Standing] = field(default_factory=dict)
    sends: list[Send] = field(default_factory=list)
    closed: list[Job] = field(default_factory=list)

    @property
    def durable(self) -> bool:
        """Whether there is anything to commit."""
        return bool(self.entries or self.jobs or self.standings)

    def __bool__(self) -> bool:
        return bool(self.durable or self.sends or self.closed)
