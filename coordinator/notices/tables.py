"""The tables of terms: every version that ever held, and who accepted which."""

from sqlmodel import Field

from coordinator.dialect import append_only
from coordinator.table_base import Base, check, key, table_of, text_column


class Terms(Base, table=True):
    __tablename__ = "terms"
    __table_args__ = (check("version >= 1", "version"),)
    version: int = key(sa_column_kwargs={"autoincrement": False})
    text: str = text_column()
    at: float
    member_id: str = Field(foreign_key="members.id")  # who wrote it


class TermsAcceptance(Base, table=True):
    __tablename__ = "terms_acceptances"
    member_id: str = key(foreign_key="members.id")
    version: int = key(foreign_key="terms.version", sa_column_kwargs={"autoincrement": False})
    at: float


append_only(table_of(Terms), "version = NEW.version", of="history of the terms")
