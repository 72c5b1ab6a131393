"""The table of accounts at OpenID providers that sign members in."""

from sqlmodel import Field

from coordinator.table_base import Base, key


class Identity(Base, table=True):
    """Stands for a key whose text nobody knows; revoking the key ends what the account may."""

    __tablename__ = "identities"
    issuer: str = key()
    subject: str = key()
    key_id: str = Field(foreign_key="api_keys.id", index=True)
    email: str  # as it was when the two were linked, for people; may be empty
    linked_at: float
