"""All that the API asks, put together around the pool. Nothing of it runs yet."""

from collections.abc import Callable, Iterable

from coordinator.api.batches import keeper as batch_keeper
from coordinator.api.context import Clock, Context
from coordinator.audit_log.log import AuditLog
from coordinator.ca import CertificateAuthority
from coordinator.changes import JobChanges
from coordinator.community.energy import Meter
from coordinator.community.service import Community
from coordinator.core.jobs import Job
from coordinator.files import Files
from coordinator.finetunes.service import keeper as finetune_keeper
from coordinator.heads import Heads
from coordinator.lateness import Lateness
from coordinator.notices.board import Board
from coordinator.pool import Pool
from coordinator.presence import Presence
from coordinator.pulse import KEPT_S, Pulse
from coordinator.tuned.registry import TunedModels
from coordinator.uploads.service import Uploads
from coordinator.webhooks.service import Webhooks
from potluck.catalogue import Catalogue


async def context_of(
    pool: Pool,
    ca: CertificateAuthority,
    now: Callable[[], float],
    catalogue: Callable[[], Catalogue],
    wall: Callable[[], float],
) -> Context:
    """For the start, before anybody is let in. `now` and `wall` as in `Clock`."""
    files = await Files.open(pool.store, pool.settings, now)
    tuned = TunedModels(pool, pool.store)
    await tuned.load()
    pulse = Pulse(pool.engine, now)
    pulse.recall(await pool.store.tokens_by_minute(now() - KEPT_S))
    pool.followers.append(pulse.ended)
    audit_log, board, presence = AuditLog(pool.store), Board(pool.store), Presence(pool.store)
    community = Community(pool, pool.store, Meter(pool, pool.store, now), now)
    for remembered in (audit_log, board, presence, community):
        await remembered.load()
    changes = JobChanges(pool.engine)
    pool.ticker.changed = _both(changes.take, pool.traces.changed)
    context: Context
    context = Context(
        pool=pool,
        store=pool.store,
        ca=ca,
        settings=pool.settings,
        counter=pool.counter,
        catalogue=catalogue,
        clock=Clock(now=now, wall=wall),
        heads=Heads(pool.store, ca.sign, now),
        files=files,
        uploads=Uploads(files),
        batches=batch_keeper(pool, pool.store, files, lambda: context),
        finetunes=finetune_keeper(pool, pool.store, files, tuned),
        tuned=tuned,
        pulse=pulse,
        lateness=(lateness := Lateness()),
        webhooks=Webhooks(pool, pool.store),
        audit_log=audit_log,
        board=board,
        presence=presence,
        changes=changes,
        community=community,
    )
    tuned.users.append(context.batches.uses_model)
    context.metrics.watch(pool, pulse, lateness)
    await context.webhooks.load()
    pool.followers.append(context.webhooks.job_ended)
    pool.giving.followers.append(context.webhooks.received)
    context.batches.followers.append(context.webhooks.batch_ended)
    context.finetunes.followers.append(context.webhooks.finetune_ended)
    pool.ticker.timed = context.metrics.turned
    pool.training = context.finetunes
    return context


def _both(
    take: Callable[[Iterable[Job]], None], trace: Callable[[Iterable[Job]], None]
) -> Callable[[Iterable[Job]], None]:
    def changed(jobs: Iterable[Job]) -> None:
        listed = tuple(jobs)
        take(listed)
        trace(listed)

    return changed
