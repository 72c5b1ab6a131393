"""What whoever runs the coordinator changed while it was stopped: settings, models, the authority.

They are files and flags of its machine, so nobody asks a route for them; what a starting coordinator finds is
compared with what the last one had.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from coordinator.audit_log.event import Action, AuditEvent
from coordinator.audit_log.log import AuditLog
from coordinator.registry import Registry
from coordinator.settings import Settings
from potluck.catalogue import Catalogue

_SETTING: Final = "last_start"


@dataclass(frozen=True, slots=True)
class Facts:
    """`settings` as `config view` shows them, secrets masked; `models`: the digest of each entry, by name;
    `authority`: the fingerprint of the CA.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)
    authority: str = ""


def facts_of(settings: Settings, catalogue: Catalogue, authority: str) -> Facts:
    return Facts(
        settings={name: shown["value"] for name, shown in settings.view().items()},
        models={
            entry.name: hashlib.sha256(entry.model_dump_json().encode()).hexdigest()
            for entry in catalogue.entries
        },
        authority=authority,
    )


def changes(before: Facts, now: Facts, at: float) -> list[AuditEvent]:
    """One event for each thing that is another now. A setting that is new is as it comes, and no change."""
    found = [
        AuditEvent(
            action=Action.SETTING_CHANGED,
            at=at,
            subject=name,
            details={"from": before.settings[name], "to": now.settings[name]},
        )
        for name in sorted(before.settings.keys() & now.settings.keys())
        if before.settings[name] != now.settings[name]
    ]
    for name in sorted(before.models.keys() | now.models.keys()):
        old, new = before.models.get(name), now.models.get(name)
        if old != new:
            action = (
                Action.MODEL_ADDED
                if old is None
                else Action.MODEL_REMOVED
                if new is None
                else Action.MODEL_CHANGED
            )
            found.append(AuditEvent(action=action, at=at, subject=name))
    if before.authority != now.authority:
        told = {"from": before.authority, "to": now.authority}
        found.append(AuditEvent(action=Action.AUTHORITY_ROTATED, at=at, details=told))
    return found


async def note_restart(log: AuditLog, store: Registry, now: Facts, at: float) -> None:
    """The first start of a pool is compared with nothing. Raises StoreError."""
    written = await store.setting(_SETTING)
    facts = {"settings": dict(now.settings), "models": dict(now.models), "authority": now.authority}
    if written == (text := json.dumps(facts, sort_keys=True)):
        return
    if written is not None:
        for event in changes(Facts(**json.loads(written)), now, at):
            await log.write(event)
    await store.put_setting(_SETTING, text)
