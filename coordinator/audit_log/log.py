"""The audit log while the pool runs: what is written also stands in the coordinator's own log."""

from dataclasses import dataclass

import structlog

from coordinator.audit_log.event import AuditEvent
from coordinator.audit_log.rows import AuditEvents

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class AuditLog:
    """`last`: the number of the newest event. Whoever shows what an event may have changed looks at it."""

    store: AuditEvents
    last: int = 0

    async def load(self) -> None:
        self.last = await self.store.last_event()

    async def write(self, event: AuditEvent) -> None:
        """Raises StoreError; the change itself has been made then, and the coordinator's log tells of it."""
        log.info(
            "audit", action=event.action.value, by=event.member or "", key=event.key, subject=event.subject
        )
        self.last = max(self.last, await self.store.record_event(event))
