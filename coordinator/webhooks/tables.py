"""The tables of webhooks. A secret has to be known to sign with it, so it is kept as it is."""

from sqlalchemy import Index, Text
from sqlmodel import Field

from coordinator.table_base import Base, check, key, one_of, text_column
from coordinator.webhooks.endpoint import DeliveryState


class WebhookEndpoint(Base, table=True):
    __tablename__ = "webhook_endpoints"
    __table_args__ = (check("given_up >= 0", "given_up"),)
    id: str = key()
    member_id: str = Field(foreign_key="members.id", index=True)
    account_id: str = Field(foreign_key="accounts.id")
    name: str
    url: str = text_column()
    event_types: str = text_column()  # JSON list
    secret: str
    old_secret: str
    old_secret_until: float
    created_at: float
    updated_at: float
    given_up: int
    why_off: str = Field(sa_type=Text)
    low: bool


class WebhookDelivery(Base, table=True):
    """The same event goes to the same endpoint once."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        one_of("state", DeliveryState),
        check("attempts >= 0", "attempts"),
        Index(None, "state", "next_at"),
        Index(None, "endpoint_id", "created_at"),
    )
    event_id: str = key()
    endpoint_id: str = key(foreign_key="webhook_endpoints.id")
    type: str
    body: str = text_column()
    created_at: float
    next_at: float
    attempts: int
    state: str
    status: int
    why: str = text_column()
