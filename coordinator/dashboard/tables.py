"""The table of browser sessions."""

from sqlmodel import Field

from coordinator.table_base import Base, key


class BrowserSession(Base, table=True):
    """A signed-in browser. It may what its key may, and ends with it."""

    __tablename__ = "browser_sessions"
    digest: str = key()  # of the cookie's value, which nobody keeps
    key_id: str = Field(foreign_key="api_keys.id", index=True)
    created_at: float
    expires_at: float = Field(index=True)
