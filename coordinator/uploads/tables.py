"""The tables of uploads in parts. The bytes of parts lie where those of files do, under their digest."""

from sqlalchemy import Index, UniqueConstraint
from sqlmodel import Field

from coordinator.records import Purpose
from coordinator.table_base import Base, check, integer, key, one_of
from coordinator.uploads.upload import UploadState


class Upload(Base, table=True):
    __tablename__ = "uploads"
    __table_args__ = (
        one_of("purpose", Purpose),
        one_of("state", UploadState),
        check("bytes > 0", "bytes"),
        check("(state = 'completed') = (file_id IS NOT NULL)", "file"),
        Index(None, "member_id", "state"),
    )
    id: str = key()
    member_id: str = Field(foreign_key="members.id")
    purpose: str
    filename: str
    bytes: int = integer()
    file_expires_s: float | None
    created_at: float
    expires_at: float = Field(index=True)
    state: str
    file_id: str | None  # which may be deleted since


class UploadPart(Base, table=True):
    __tablename__ = "upload_parts"
    __table_args__ = (check("bytes > 0", "bytes"), UniqueConstraint("upload_id", "sha256"))
    id: str = key()
    upload_id: str = Field(foreign_key="uploads.id")
    bytes: int = integer()
    sha256: str = Field(index=True)
    created_at: float
