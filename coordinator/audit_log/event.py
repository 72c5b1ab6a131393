"""One thing that somebody did to the pool, and the fixed words for what can be done.

The audit log is for administration and security. What moves credits stands in the ledger, and what jobs did
in their attempts; here stands who gave, changed or took away what others may do.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from coordinator.core.jobs import MemberId

DETAILS_CHARS_MAX: Final = 4_000
TEXT_CHARS_MAX: Final = 300  # of one detail


class Action(StrEnum):
    MEMBER_ADDED = "member_added"
    MEMBER_JOINED = "member_joined"  # by an invitation
    MEMBER_CHANGED = "member_changed"  # role or credit line
    MEMBER_LIMITED = "member_limited"
    MEMBER_FROZEN = "member_frozen"
    MEMBER_UNFROZEN = "member_unfrozen"
    MEMBER_CLOSED = "member_closed"
    CREDITS_GRANTED = "credits_granted"
    INVITATION_MADE = "invitation_made"
    INVITATION_REVOKED = "invitation_revoked"
    KEY_MADE = "key_made"
    KEY_REVOKED = "key_revoked"
    KEY_RECOVERED = "key_recovered"  # on the coordinator's own machine
    JOIN_TOKEN_MADE = "join_token_made"  # noqa: S105 -- a word, no secret
    WORKER_ENROLLED = "worker_enrolled"
    WORKER_REVOKED = "worker_revoked"
    WORKER_LEFT = "worker_left"  # by its own request
    WORKER_RENAMED = "worker_renamed"
    WORKER_PAUSED = "worker_paused"
    WORKER_RESUMED = "worker_resumed"
    WORKER_DRAINED = "worker_drained"
    WORKER_TRUSTED = "worker_trusted"  # an admin vouches for it
    MODEL_SHARED = "model_shared"
    MODEL_DELETED = "model_deleted"
    MODEL_ADDED = "model_added"  # to the catalogue, as a starting coordinator finds it
    MODEL_CHANGED = "model_changed"
    MODEL_REMOVED = "model_removed"
    SETTING_CHANGED = "setting_changed"  # likewise
    AUTHORITY_ROTATED = "authority_rotated"  # likewise
    TERMS_CHANGED = "terms_changed"
    TERMS_ACCEPTED = "terms_accepted"
    ANNOUNCEMENT_CHANGED = "announcement_changed"
    WEBHOOK_MADE = "webhook_made"
    WEBHOOK_CHANGED = "webhook_changed"
    WEBHOOK_DELETED = "webhook_deleted"
    SIGNED_IN = "signed_in"
    IDENTITY_LINKED = "identity_linked"  # an account at the OpenID provider signs a member in from now on


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEvent:
    """`member` and `key`: who did it, and with which key; without a member it was the pool itself, or whoever
    sits at its machine. `subject`: the id of what was changed.
    """

    action: Action
    at: float
    member: MemberId | None = None
    key: str = ""
    subject: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded(AuditEvent):
    """In its place."""

    number: int  # from 1, without gaps


def details_text(details: Mapping[str, Any]) -> str:
    """As JSON of bounded length, whatever was sent: what does not fit is shortened and then left out."""
    kept = {name: _short(value) for name, value in details.items() if value is not None}
    while len(text := json.dumps(kept, sort_keys=True, separators=(",", ":"))) > DETAILS_CHARS_MAX:
        del kept[max(kept, key=lambda name: len(json.dumps(kept[name])))]
    return text


def _short(value: Any) -> Any:
    if isinstance(value, str) and len(value) > TEXT_CHARS_MAX:
        return value[: TEXT_CHARS_MAX - 1] + "…"
    return value
