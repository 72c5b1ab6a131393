"""What the API needs from the rest of the coordinator; the composition root fills it in."""

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from coordinator.audit_log.log import AuditLog
from coordinator.batches.service import Batches
from coordinator.ca import CertificateAuthority
from coordinator.changes import JobChanges
from coordinator.community.service import Community
from coordinator.files import Files
from coordinator.finetunes.service import Finetunes
from coordinator.heads import Heads
from coordinator.lateness import Lateness
from coordinator.metrics import Metrics
from coordinator.notices.board import Board
from coordinator.pool import Pool
from coordinator.presence import Presence
from coordinator.pulse import Pulse
from coordinator.settings import Settings
from coordinator.store import Store
from coordinator.tokens import TokenCounter
from coordinator.tuned.registry import TunedModels
from coordinator.uploads.service import Uploads
from coordinator.webhooks.service import Webhooks
from potluck.catalogue import Catalogue


@dataclass(frozen=True, slots=True)
class Clock:
    """`now`: seconds since the epoch that never jump while the coordinator runs (`SteadyClock.now`).

    `wall`: the time of day as the machine has it now. By it TLS looks at certificates and workers date what
    they sign, so that both are made and judged by it: a clock that was set right must not leave `now` wrong
    for them until the next start.
    """

    now: Callable[[], float]
    wall: Callable[[], float]


@dataclass(slots=True)
class Listening:
    """What is known once the sockets are bound: `grpc` is the workers' HOST:PORT, with the real port."""

    grpc: str = ""


def draw_seed() -> int:
    return secrets.randbits(63)


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """`catalogue` is a function because admins add models while the pool runs."""

    pool: Pool
    store: Store
    ca: CertificateAuthority
    settings: Settings
    counter: TokenCounter
    catalogue: Callable[[], Catalogue]
    clock: Clock
    heads: Heads
    files: Files
    uploads: Uploads
    batches: Batches
    finetunes: Finetunes
    tuned: TunedModels
    pulse: Pulse
    lateness: Lateness
    audit_log: AuditLog
    board: Board
    presence: Presence
    changes: JobChanges
    community: Community
    webhooks: Webhooks
    metrics: Metrics = field(default_factory=Metrics)
    listening: Listening = field(default_factory=Listening)
    closing: asyncio.Event = field(default_factory=asyncio.Event)  # the coordinator is told to stop
    draw_seed: Callable[[], int] = draw_seed
