"""The tables, and the invariants that SQL repeats: what must never be wrong is checked twice.

Migrations create them (`migrations/`); a test proves that both say the same. Amounts are microcredits in 64
bits, times seconds since the epoch except in entries, whose RFC 3339 text is covered by their hash.
"""

from sqlalchemy import (
    BigInteger,
    Index,
    Integer,
    Text,
    UniqueConstraint,
    text,
)
from sqlmodel import Field

from coordinator.audit_log.tables import AuditEvent as AuditEvent  # noqa: PLC0414 -- one of the tables
from coordinator.batches.tables import Batch as Batch  # noqa: PLC0414 -- one of the tables
from coordinator.batches.tables import BatchFailure as BatchFailure  # noqa: PLC0414 -- one of the tables
from coordinator.community.tables import Profile as Profile  # noqa: PLC0414 -- one of the tables
from coordinator.community.tables import Team as Team  # noqa: PLC0414 -- one of the tables
from coordinator.core.jobs import AttemptState, JobState, Kind
from coordinator.core.ledger import LINES, Bucket, Code
from coordinator.core.receipts import ReceiptState
from coordinator.dashboard.tables import BrowserSession as BrowserSession  # noqa: PLC0414 -- one of the tables
from coordinator.dialect import append_only
from coordinator.file_tables import File as File  # noqa: PLC0414 -- one of the tables
from coordinator.finetunes.tables import Finetune as Finetune  # noqa: PLC0414 -- one of the tables
from coordinator.finetunes.tables import FinetuneCheckpoint as FinetuneCheckpoint  # noqa: PLC0414 -- likewise
from coordinator.finetunes.tables import FinetuneEvent as FinetuneEvent  # noqa: PLC0414 -- likewise
from coordinator.finetunes.tables import FinetuneProgress as FinetuneProgress  # noqa: PLC0414 -- likewise
from coordinator.leadership_tables import Leader as Leader  # noqa: PLC0414 -- one of the tables
from coordinator.leadership_tables import Standby as Standby  # noqa: PLC0414 -- likewise
from coordinator.notices.tables import Terms as Terms  # noqa: PLC0414 -- one of the tables
from coordinator.notices.tables import TermsAcceptance as TermsAcceptance  # noqa: PLC0414 -- likewise
from coordinator.oidc.tables import Identity as Identity  # noqa: PLC0414 -- one of the tables
from coordinator.presence_tables import Sighting as Sighting  # noqa: PLC0414 -- one of the tables
from coordinator.records import HeadReason, MemberState, Role
from coordinator.table_base import Base as Base  # noqa: PLC0414 -- for whoever wants all of them
from coordinator.table_base import check, integer, key, one_of, text_column
from coordinator.table_base import table_of as table_of  # noqa: PLC0414 -- likewise
from coordinator.tuned.tables import TunedModel as TunedModel  # noqa: PLC0414 -- one of the tables
from coordinator.uploads.tables import Upload as Upload  # noqa: PLC0414 -- one of the tables
from coordinator.uploads.tables import UploadPart as UploadPart  # noqa: PLC0414 -- one of the tables
from coordinator.webhooks.tables import WebhookDelivery as WebhookDelivery  # noqa: PLC0414 -- one of the tables
from coordinator.webhooks.tables import WebhookEndpoint as WebhookEndpoint  # noqa: PLC0414 -- one of the tables

# INTEGER PRIMARY KEY is SQLite's own row number: one B-tree instead of two.
_NUMBER = BigInteger().with_variant(Integer(), "sqlite")
_OPEN = text("ended_at IS NULL")
_PART = text("whole_id IS NOT NULL")
_HELD = text("held")
IS_TRANSFER = text("code = 'transfer'")  # as the index on them says it


class Setting(Base, table=True):
    """What the pool itself remembers: its name, when it was founded."""

    __tablename__ = "settings"
    name: str = key()
    value: str = text_column()


class Member(Base, table=True):
    __tablename__ = "members"
    __table_args__ = (one_of("role", Role), one_of("state", MemberState))
    id: str = key()
    name: str
    name_folded: str = Field(unique=True)  # alice and Alice are one name
    role: str
    created_at: float
    state: str = MemberState.ACTIVE.value
    why: str = Field(default="", sa_type=Text)  # in words, of a state that is not active
    limits: str = Field(default="{}", sa_type=Text)  # JSON, where they differ from the pool's


class Account(Base, table=True):
    """Cached sums of postings. The commons belongs to nobody, and neither does what lends for the pool.

    `opening_line` is what is lent to it at its opening, in an entry of its own; `lent` of its line came from
    `lender_id`, who answers for as much, and the rest from the pool.
    """

    __tablename__ = "accounts"
    __table_args__ = (
        check(f"id = '{LINES}' OR credit_line >= 0", "credit_line"),
        check(f"id = '{LINES}' OR main >= -credit_line", "floor"),
        check("reserved >= 0", "reserved"),
        check("held >= 0", "held"),
        check("opening_line >= 0 AND lent >= 0", "lines"),
    )
    id: str = key()
    member_id: str | None = Field(default=None, foreign_key="members.id", unique=True)
    opening_line: int = Field(default=0, sa_type=BigInteger)
    lender_id: str | None = Field(default=None, foreign_key="accounts.id", index=True)
    lent: int = Field(default=0, sa_type=BigInteger)
    main: int = Field(default=0, sa_type=BigInteger)
    reserved: int = Field(default=0, sa_type=BigInteger)
    held: int = Field(default=0, sa_type=BigInteger)
    credit_line: int = Field(default=0, sa_type=BigInteger)


class ApiKey(Base, table=True):
    __tablename__ = "api_keys"
    id: str = key()
    member_id: str = Field(foreign_key="members.id", index=True)
    name: str
    digest: str = Field(unique=True)
    display: str
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None
    scopes: str = Field(default="[]", sa_type=Text)  # JSON list; empty: all that its member may
    models: str = Field(default="[]", sa_type=Text)  # JSON list; empty: all
    limits: str = Field(default="{}", sa_type=Text)  # JSON, beside the member's own


class Invite(Base, table=True):
    """An invitation: single-use. Its credit line is set aside when it is made."""

    __tablename__ = "invites"
    __table_args__ = (
        check("credit_line >= 0", "credit_line"),
        check("accepted_at IS NULL OR revoked_at IS NULL", "ended"),
    )
    id: str = key()
    member_id: str = Field(foreign_key="members.id", index=True)  # who invites
    digest: str = Field(unique=True)
    credit_line: int = integer()
    from_pool: bool  # lent by the pool, not by whoever invites
    note: str = text_column()
    created_at: float
    expires_at: float
    accepted_by: str | None = Field(default=None, foreign_key="members.id", unique=True)
    accepted_at: float | None = None
    revoked_at: float | None = None  # taken back, or expired


class JoinToken(Base, table=True):
    __tablename__ = "join_tokens"
    __table_args__ = (check("uses >= 0 AND uses <= uses_max", "uses"),)
    id: str = key()
    member_id: str = Field(foreign_key="members.id", index=True)
    digest: str = Field(unique=True)
    uses: int = 0
    uses_max: int
    created_at: float
    expires_at: float


class Worker(Base, table=True):
    __tablename__ = "workers"
    id: str = key()
    name: str
    member_id: str = Field(foreign_key="members.id", index=True)
    join_token_id: str = Field(foreign_key="join_tokens.id")
    receipt_key: bytes = Field(unique=True)
    tls_key: bytes = Field(unique=True)
    certificate_serial: str
    certificate_until: float
    created_at: float
    revoked_at: float | None = None
    good_jobs: int = 0  # in a row, without a dispute
    first_job_at: float | None = None
    proven_at: float | None = None


class WorkerPause(Base, table=True):
    """A pause that somebody asked for from afar, until it is taken back or over.

    `by_owner`: its own member asked for it.
    """

    __tablename__ = "worker_pauses"
    worker_id: str = key(foreign_key="workers.id")
    number: int = integer()  # tells it from another one: when it was given, in milliseconds since the epoch
    member_id: str = Field(foreign_key="members.id")
    by_owner: bool
    until: float | None = None
    why: str = text_column()


class Certificate(Base, table=True):
    """Every certificate that the CA issued to a worker."""

    __tablename__ = "certificates"
    serial: str = key()
    worker_id: str = Field(foreign_key="workers.id", index=True)
    not_before: float
    not_after: float


class Model(Base, table=True):
    __tablename__ = "models"
    name: str = key()
    entry: bytes
    added_by: str = Field(foreign_key="members.id")
    added_at: float


class Job(Base, table=True):
    __tablename__ = "jobs"
    __table_args__ = (
        one_of("kind", Kind),
        one_of("state", JobState),
        check("hold >= 0 AND quote >= 0", "amounts"),
        check("charge IS NULL OR (charge >= 0 AND charge <= hold)", "charge"),
        check("settled >= 0 AND settled <= hold", "settled"),
        check("(whole_id IS NULL) = (part = 0) AND part >= 0", "part"),
        check("(ended_at IS NULL) = (state IN ('queued', 'running', 'paused'))", "ended"),
        Index(None, "member_id", "created_at"),
        Index(None, "ended_at"),
        # What a starting coordinator looks for is a handful among all jobs that ever were.
        Index("ix_jobs_open", "id", sqlite_where=_OPEN, postgresql_where=_OPEN),
        Index("ix_jobs_parts", "whole_id", "part", unique=True, sqlite_where=_PART, postgresql_where=_PART),
    )
    id: str = key()
    kind: str
    model: str
    member_id: str = Field(foreign_key="members.id")
    account_id: str = Field(foreign_key="accounts.id")
    created_at: float = Field(index=True)
    quote: int = integer()
    hold: int = integer()
    prompt_tokens: int = integer()
    max_tokens: int = integer()
    choices: int
    key_id: str  # of the API key that asked; empty if it came without one
    whole_id: str | None = Field(default=None, foreign_key="jobs.id")  # of which it is a part
    part: int
    settled: int = integer()
    settlements: int
    stored: bool
    own_only: bool
    only_workers: str = text_column()  # JSON list of worker ids
    expires_at: float | None
    state: str
    charge: int | None = Field(sa_type=BigInteger)
    output_tokens: int = integer()
    started_at: float | None
    ended_at: float | None
    why: str = text_column()
    code: str


class Attempt(Base, table=True):
    __tablename__ = "attempts"
    __table_args__ = (
        one_of("state", AttemptState),
        check("paid >= 0 AND tokens >= 0", "amounts"),
        Index("ix_attempts_held", "worker_id", sqlite_where=_HELD, postgresql_where=_HELD),
        # What a worker earned, in all and lately, is summed from the index alone.
        Index("ix_attempts_earned", "worker_id", "ended_at", "paid"),
    )
    job_id: str = key(foreign_key="jobs.id")
    number: int = key(sa_column_kwargs={"autoincrement": False})
    worker_id: str = Field(foreign_key="workers.id")
    owner_id: str = Field(foreign_key="accounts.id")
    assigned_at: float
    why: str = text_column()
    state: str
    ended_at: float | None
    tokens: int = integer()
    paid: int = integer()
    held: bool


class StoredRequest(Base, table=True):
    """Only stored jobs have one: prompts of interactive jobs never reach the disk."""

    __tablename__ = "stored_requests"
    job_id: str = key(foreign_key="jobs.id")
    request: bytes


class StoredResult(Base, table=True):
    __tablename__ = "stored_results"
    job_id: str = key(foreign_key="jobs.id")
    result: bytes


class Entry(Base, table=True):
    __tablename__ = "entries"
    __table_args__ = (
        one_of("code", Code),
        check("number >= 1", "number"),
        UniqueConstraint("id"),
        # What was sent today is asked before each transfer.
        Index("ix_entries_transfers", "at", sqlite_where=IS_TRANSFER, postgresql_where=IS_TRANSFER),
    )
    number: int = key(sa_type=_NUMBER, sa_column_kwargs={"autoincrement": False})
    id: str
    at: str = Field(index=True)  # a statement of one month finds its entries by it
    code: str
    job_id: str | None = Field(foreign_key="jobs.id", index=True)
    details: str = text_column()
    previous: str
    hash: str


class Posting(Base, table=True):
    __tablename__ = "postings"
    __table_args__ = (one_of("bucket", Bucket), Index(None, "account_id", "entry_number"))
    entry_number: int = key(foreign_key="entries.number", sa_type=_NUMBER)
    position: int = key()
    account_id: str = Field(foreign_key="accounts.id")
    bucket: str
    amount: int = integer()


class Receipt(Base, table=True):
    """Evidence, not money, so it names its job without a constraint: a job may be unknown to the pool.

    A chain of its own: `hash` covers the receipt, what was made of it and the hash before; the pool signs it.
    """

    __tablename__ = "receipts"
    __table_args__ = (
        one_of("state", ReceiptState),
        check("number >= 1", "number"),
        UniqueConstraint("job_id", "attempt", "worker_id"),
    )
    number: int = key(sa_type=_NUMBER, sa_column_kwargs={"autoincrement": False})
    job_id: str
    attempt: int = integer()
    worker_id: str = Field(index=True)
    body: bytes
    signature: bytes
    state: str
    why: str = text_column()
    at: str
    previous: str
    hash: str
    countersignature: bytes


class Head(Base, table=True):
    """The ends of both chains at a moment, signed by the pool."""

    __tablename__ = "heads"
    __table_args__ = (one_of("reason", HeadReason),)
    number: int = key(sa_type=_NUMBER, sa_column_kwargs={"autoincrement": False})
    hash: str
    receipts_number: int = key(sa_type=BigInteger, sa_column_kwargs={"autoincrement": False})
    receipts_hash: str
    at: str
    reason: str
    signature: bytes


append_only(table_of(Entry), "number = NEW.number OR id = NEW.id")
append_only(table_of(Posting), "entry_number = NEW.entry_number AND position = NEW.position")
append_only(
    table_of(Receipt),
    "number = NEW.number OR (job_id = NEW.job_id AND attempt = NEW.attempt AND worker_id = NEW.worker_id)",
)
append_only(table_of(Head), "number = NEW.number AND receipts_number = NEW.receipts_number")
