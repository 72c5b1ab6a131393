"""Where a member's events go, what they look like, and how they are signed. Nothing here waits or stores.

Names, shapes and signatures are those of OpenAI's webhooks, which follow the Standard Webhooks specification
(standardwebhooks.com): `webhook-signature` is `v1,` and the base64 of an HMAC-SHA256 over id, time and body.
"""

import base64
import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

from coordinator.core.jobs import AccountId, MemberId

SECRET_PREFIX: Final = "whsec_"  # noqa: S105 -- the beginning of every secret, not one
ROTATION_S: Final = 86_400.0  # for which an old secret may be kept
# After an attempt that failed, as the specification proposes; then it is given up.
RETRY_S: Final = (5.0, 300.0, 1_800.0, 7_200.0, 18_000.0, 36_000.0, 50_400.0)
GIVEN_UP_MAX: Final = 5  # deliveries in a row, after which the endpoint is switched off
SWITCHED_OFF: Final = "its member switched it off"
_SECRET_BYTES: Final = 24
_HINT_CHARS: Final = 4


class EventType(StrEnum):
    """The first seven are OpenAI's."""

    BATCH_COMPLETED = "batch.completed"
    BATCH_FAILED = "batch.failed"
    BATCH_EXPIRED = "batch.expired"
    BATCH_CANCELLED = "batch.cancelled"
    FINE_TUNING_SUCCEEDED = "fine_tuning.job.succeeded"
    FINE_TUNING_FAILED = "fine_tuning.job.failed"
    FINE_TUNING_CANCELLED = "fine_tuning.job.cancelled"
    JOB_SUCCEEDED = "job.succeeded"  # a stored job that is no batch and no fine-tune
    JOB_FAILED = "job.failed"
    JOB_CANCELLED = "job.cancelled"
    JOB_EXPIRED = "job.expired"
    BALANCE_RECEIVED = "balance.received"  # sent or granted by somebody
    BALANCE_LOW = "balance.low"  # a tenth of the credit line is left, or less


class DeliveryState(StrEnum):
    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """`why_off`: empty while it is told things. `low`: whether its member was told that little is left."""

    id: str
    member: MemberId
    account: AccountId
    name: str
    url: str
    event_types: tuple[EventType, ...]
    secret: str = field(repr=False)
    old_secret: str = field(default="", repr=False)
    old_secret_until: float = 0.0
    created_at: float
    updated_at: float
    given_up: int = 0
    why_off: str = ""
    low: bool = False

    @property
    def hint(self) -> str:
        return f"{SECRET_PREFIX}…{self.secret[-_HINT_CHARS:]}"

    def secrets(self, now: float) -> tuple[str, ...]:
        """Those that sign now."""
        return (self.secret, self.old_secret) if now < self.old_secret_until else (self.secret,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """`subject`: what it is about, by which the same event has the same id however often it is noticed."""

    type: EventType
    member: MemberId
    subject: str
    at: float
    data: Mapping[str, Any]

    @property
    def id(self) -> str:
        return "evt_" + hashlib.sha256(f"{self.type}/{self.subject}".encode()).hexdigest()[:32]

    @property
    def body(self) -> str:
        """The bytes that are signed and sent, as text."""
        shown = {"id": self.id, "object": "event", "created_at": int(self.at), "type": self.type.value}
        return json.dumps({**shown, "data": dict(self.data)}, separators=(",", ":"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One event on its way to one endpoint. `status`: the last answer; 0: there was none."""

    event: str
    endpoint: str
    type: EventType
    body: str
    created_at: float
    next_at: float
    attempts: int = 0
    state: DeliveryState = DeliveryState.PENDING
    status: int = 0
    why: str = ""


def new_secret() -> str:
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def signed(secret: str, message_id: str, at: int, body: str) -> str:
    """`v1,SIGNATURE`."""
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    covered = f"{message_id}.{at}.{body}".encode()
    return "v1," + base64.b64encode(hmac.digest(key, covered, "sha256")).decode()


def headers(secrets: Sequence[str], message_id: str, at: int, body: str) -> dict[str, str]:
    """Those of one attempt. A receiver takes the message if one of the signatures fits."""
    return {
        "content-type": "application/json",
        "webhook-id": message_id,
        "webhook-timestamp": str(at),
        "webhook-signature": " ".join(signed(secret, message_id, at, body) for secret in secrets),
    }


def after(delivery: Delivery, status: int, why: str, now: float) -> Delivery:
    """The delivery after an attempt: done, tried again later, or given up."""
    tried = replace(delivery, attempts=delivery.attempts + 1, status=status, why=why)
    if 200 <= status < 300:
        return replace(tried, state=DeliveryState.DELIVERED, why="")
    if delivery.attempts >= len(RETRY_S):
        return replace(tried, state=DeliveryState.FAILED)
    return replace(tried, next_at=now + RETRY_S[delivery.attempts])
