"""The tables of members' files. Their bytes lie on the disk under their digest, and may belong to several."""

from sqlalchemy import Index
from sqlmodel import Field

from coordinator.records import Purpose
from coordinator.table_base import Base, check, integer, key, one_of


class File(Base, table=True):
    """A file of a member. Its purpose is one that the pool knows, since something reads it for that."""

    __tablename__ = "files"
    __table_args__ = (
        one_of("purpose", Purpose),
        check("bytes >= 0", "bytes"),
        Index(None, "member_id", "created_at"),
    )
    id: str = key()
    member_id: str = Field(foreign_key="members.id")
    purpose: str
    filename: str
    bytes: int = integer()
    sha256: str = Field(index=True)
    created_at: float
    expires_at: float = Field(index=True)
