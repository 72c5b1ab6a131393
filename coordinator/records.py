"""What goes into the store and comes out of it: plain values, no SQL.

Times are seconds since the epoch, amounts microcredits, digests lower-case hex, bodies bytes as received.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NewType

from coordinator.core.budgets import NO_LIMITS, Limits
from coordinator.core.jobs import AccountId, Job, JobId, MemberId, WorkerId
from coordinator.core.ledger import Account, Entry, Recorded
from coordinator.core.receipts import ReceiptState
from coordinator.core.standing import Standing
from potluck.chain import GENESIS


class Role(StrEnum):
    MEMBER = "member"
    ADMIN = "admin"


class Scope(StrEnum):
    """What a key may do of all that its member may."""

    INFERENCE = "inference"  # ask: chat, completions, embeddings, jobs, quotes
    READ = "read"  # look at what is one's own
    ACCOUNT = "account"  # send, invite, make keys and join tokens, remove workers
    ADMIN = "admin"  # what only admins may


class MemberState(StrEnum):
    ACTIVE = "active"
    FROZEN = "frozen"  # may look, and earn, and nothing else
    CLOSED = "closed"  # for good


class HeadReason(StrEnum):
    DAILY = "daily"
    REQUEST = "request"


class Purpose(StrEnum):
    """What a file is for, in the OpenAI API's words."""

    FINE_TUNE = "fine-tune"
    BATCH = "batch"
    FINE_TUNE_RESULTS = "fine-tune-results"
    BATCH_OUTPUT = "batch_output"


FileId = NewType("FileId", str)
MADE_BY_POOL: Final = frozenset({Purpose.FINE_TUNE_RESULTS, Purpose.BATCH_OUTPUT})


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A member's file. Its bytes are an artifact, which other files may share."""

    id: FileId
    member: MemberId
    purpose: Purpose
    filename: str
    bytes: int
    sha256: str
    created_at: float
    expires_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptRow:
    """A worker's signed statement as it came, and what the coordinator made of it."""

    job_id: JobId
    attempt: int
    worker_id: WorkerId
    body: bytes
    signature: bytes
    state: ReceiptState
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedReceipt:
    """A receipt in its place in the chain of receipts; `countersignature` is the pool's, over `hash`."""

    number: int  # from 1, without gaps
    at: str  # RFC 3339 UTC
    receipt: ReceiptRow
    previous: str  # hash of the receipt before, or GENESIS
    hash: str
    countersignature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """The last entry and the last receipt; number 0 and GENESIS before the first."""

    number: int
    hash: str
    receipts_number: int
    receipts_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Head(Ends):
    """The ends of the ledger and of the receipts at a moment, signed by the pool (`chain.head_bytes`)."""

    at: str  # RFC 3339 UTC
    reason: HeadReason
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """All that one tick changes; it is committed whole or not at all.

    `records` and `receipts` continue their chains. `accounts` carry the new cached sums of every account that
    the records touch. `jobs` are written with all their attempts. `requests` and
    `results` belong to stored jobs and travel with them, so that neither is without the other after a crash.
    """

    records: Sequence[Recorded] = ()
    accounts: Sequence[Account] = ()
    jobs: Sequence[Job] = ()
    receipts: Sequence[RecordedReceipt] = ()
    standings: Mapping[WorkerId, Standing] = field(default_factory=dict)
    requests: Mapping[JobId, bytes] = field(default_factory=dict)
    results: Mapping[JobId, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What a coordinator needs to go on: all accounts, the end of the chain, and all that had not ended.

    `entries` are those of open jobs (their holds), for the book; `requests` those of open stored jobs.
    """

    accounts: tuple[Account, ...]
    last_number: int = 0
    last_hash: str = GENESIS
    last_receipt_number: int = 0
    last_receipt_hash: str = GENESIS
    open_jobs: tuple[Job, ...] = ()
    entries: tuple[Entry, ...] = ()
    requests: Mapping[JobId, bytes] = field(default_factory=dict)
    standings: Mapping[WorkerId, Standing] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    id: MemberId
    name: str
    role: Role
    account: AccountId
    created_at: float
    state: MemberState = MemberState.ACTIVE
    why: str = ""
    limits: Limits = NO_LIMITS  # where they differ from the pool's; 0 is none

    @property
    def scopes(self) -> frozenset[Scope]:
        """All that the member may."""
        return frozenset(s for s in Scope if s is not Scope.ADMIN or self.role is Role.ADMIN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ancestor:
    """A limited key with which another was made: the other's use counts here, too."""

    id: str
    name: str
    limits: Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key without its secret. `display` is its beginning, enough to tell keys apart.

    No `scopes` are all that its member may, no `models` are all models.
    """

    id: str
    member: MemberId
    name: str
    display: str
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None
    scopes: frozenset[Scope] = frozenset()
    models: tuple[str, ...] = ()
    limits: Limits = NO_LIMITS
    within: tuple[Ancestor, ...] = ()

    def scopes_for(self, member: Member) -> frozenset[Scope]:
        """What it may now: an admin who is one no longer has keys that are admins' no longer."""
        return self.scopes & member.scopes if self.scopes else member.scopes


@dataclass(frozen=True, slots=True, kw_only=True)
class Authenticated:
    member: Member
    key: ApiKey


class InviteState(StrEnum):
    OPEN = "open"
    ACCEPTED = "accepted"
    REVOKED = "revoked"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Invite:
    """An invitation without its secret. `lender` is the account that its line comes from."""

    id: str
    member: MemberId
    lender: AccountId
    credit_line: int
    from_pool: bool
    note: str
    created_at: float
    expires_at: float
    accepted_by: MemberId | None = None
    accepted_account: AccountId | None = None
    accepted_at: float | None = None
    revoked_at: float | None = None

    @property
    def state(self) -> InviteState:
        """As it was written down; one that is open in the books may be past its time."""
        if self.accepted_at is not None:
            return InviteState.ACCEPTED
        if self.revoked_at is None:
            return InviteState.OPEN
        return InviteState.EXPIRED if self.revoked_at >= self.expires_at else InviteState.REVOKED


@dataclass(frozen=True, slots=True, kw_only=True)
class Loan:
    """What of an account's line a member lent; `lender` is None where all of it is the pool's."""

    account: AccountId
    lender: AccountId | None
    lent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinTokenRow:
    """A join token without its secret: `uses` of `uses_max` are spent."""

    id: str
    member: MemberId
    uses: int
    uses_max: int
    created_at: float
    expires_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolledWorker:
    """A worker as it was enrolled; whether it is here now is the fleet's knowledge.

    `receipt_key` is the raw Ed25519 public key (32 bytes), `tls_key` the P-256 key as SubjectPublicKeyInfo
    in DER. `certificate_serial` (hex) and `certificate_until` are of its newest certificate.
    """

    id: WorkerId
    name: str
    member: MemberId
    account: AccountId
    receipt_key: bytes
    tls_key: bytes
    certificate_serial: str
    certificate_until: float
    created_at: float
    revoked_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A certificate that the pool's CA made. `serial` is hex; the times bound its validity."""

    pem: bytes
    serial: str
    not_before: float
    not_after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRow:
    """A catalogue entry that an admin added, as JSON."""

    name: str
    entry: bytes
    added_by: MemberId
    added_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong with the books: `subject` is an entry, account or job."""

    subject: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What an audit found, and how much it has seen."""

    findings: list[Finding]
    entries: int
    receipts: int
    heads: int
