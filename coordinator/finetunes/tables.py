"""The tables of fine-tunes. Their parts are jobs."""

from sqlalchemy import Index
from sqlmodel import Field

from coordinator.finetunes.finetune import FinetuneState
from coordinator.table_base import Base, check, integer, key, one_of, text_column


class Finetune(Base, table=True):
    """The whole job is made when the files have been read, so `job_id` names it without a constraint."""

    __tablename__ = "finetunes"
    __table_args__ = (
        one_of("state", FinetuneState),
        check("quote >= 0 AND charge >= 0 AND charge <= quote", "amounts"),
        check("steps_done >= 0 AND trained_tokens >= 0", "counts"),
        check("(validation_file_id IS NULL) = (validation_sha256 IS NULL)", "validation"),
        Index(None, "member_id", "created_at"),
    )
    id: str = key()
    job_id: str = Field(unique=True)
    member_id: str = Field(foreign_key="members.id")
    key_id: str
    model: str
    result: str = Field(index=True)  # what the tuned model will be called
    training_file_id: str = Field(index=True)
    training_sha256: str
    training_bytes: int = integer()
    validation_file_id: str | None = Field(default=None, index=True)
    validation_sha256: str | None = None
    validation_bytes: int = integer()
    wanted: str = text_column()  # JSON: hyper-parameters as asked
    plan: str = text_column()  # JSON: as they are; empty until the files have been read
    created_at: float
    expires_at: float
    notes: str = text_column()  # JSON: the member's own metadata
    state: str
    quote: int = integer()
    charge: int = integer()
    steps_done: int
    trained_tokens: int = integer()
    fault: str = text_column()  # JSON: why it failed
    result_files: str = text_column()  # JSON: ids
    moments: str = text_column()  # JSON: when it came into each state


class FinetuneProgress(Base, table=True):
    """What an open fine-tune goes on from: the examples' lengths, and where its state machine stands."""

    __tablename__ = "finetune_progress"
    finetune_id: str = key(foreign_key="finetunes.id")
    training: bytes
    validation: bytes | None = None
    snapshot: str = text_column()  # JSON; empty before the first part


class FinetuneEvent(Base, table=True):
    __tablename__ = "finetune_events"
    finetune_id: str = key(foreign_key="finetunes.id")
    number: int = key(sa_column_kwargs={"autoincrement": False})
    at: float
    level: str
    message: str = text_column()
    data: str = text_column()  # JSON: the metrics of a step; empty for a message


class FinetuneCheckpoint(Base, table=True):
    """One that is listed: its adapter stays while the fine-tune's model does."""

    __tablename__ = "finetune_checkpoints"
    finetune_id: str = key(foreign_key="finetunes.id")
    number: int = key(sa_column_kwargs={"autoincrement": False})
    step: int
    at: float
    sha256: str
    bytes: int = integer()
    metrics: str = text_column()  # JSON
