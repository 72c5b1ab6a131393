"""The table of the audit log, which only grows."""

from sqlalchemy import BigInteger, Index, Integer
from sqlmodel import Field

from coordinator.dialect import append_only
from coordinator.table_base import Base, check, key, table_of, text_column

_NUMBER = BigInteger().with_variant(Integer(), "sqlite")


class AuditEvent(Base, table=True):
    """`action` is a word of `audit_log.event.Action`; there will be more, so SQL does not list them."""

    __tablename__ = "audit_events"
    __table_args__ = (
        check("number >= 1", "number"),
        Index(None, "member_id", "number"),
        Index(None, "action", "number"),
        Index(None, "subject", "number"),
    )
    number: int = key(sa_type=_NUMBER, sa_column_kwargs={"autoincrement": False})
    at: float
    member_id: str | None = Field(default=None, foreign_key="members.id")
    key_id: str
    action: str
    subject: str
    details: str = text_column()  # JSON


append_only(table_of(AuditEvent), "number = NEW.number", of="audit log")
