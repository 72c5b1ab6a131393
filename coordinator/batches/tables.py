"""The tables of batches. A line is no row here: it is a job, or a failure before it could be one."""

from sqlmodel import Field

from coordinator.batches.batch import BatchState
from coordinator.table_base import Base, check, integer, key, one_of, text_column


class Batch(Base, table=True):
    """The whole job is made when the file has been checked, so `job_id` names it without a constraint."""

    __tablename__ = "batches"
    __table_args__ = (
        one_of("state", BatchState),
        check("total >= 0 AND completed >= 0 AND failed >= 0", "counts"),
    )
    id: str = key()
    job_id: str = Field(unique=True)
    member_id: str = Field(foreign_key="members.id", index=True)
    key_id: str
    input_file_id: str = Field(index=True)
    endpoint: str
    window_s: int
    created_at: float
    expires_at: float
    state: str
    model: str
    total: int
    completed: int
    failed: int
    input_tokens: int = integer()
    output_tokens: int = integer()
    notes: str = text_column()  # JSON: the member's own metadata
    faults: str = text_column()  # JSON: why the file could not be taken
    output_file_id: str | None
    error_file_id: str | None
    moments: str = text_column()  # JSON: when it came into each state


class BatchFailure(Base, table=True):
    __tablename__ = "batch_failures"
    batch_id: str = key(foreign_key="batches.id")
    line: int = key(sa_column_kwargs={"autoincrement": False})
    status: int
    code: str
    message: str = text_column()
