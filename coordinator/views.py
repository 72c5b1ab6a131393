"""What the pool shows of itself, in the shapes of the design, section 9. Amounts are microcredits."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from coordinator.chatwork import LORA
from coordinator.core.jobs import Job, Kind
from coordinator.core.ledger import COMMONS
from coordinator.core.live import Live
from coordinator.core.place import place_of
from coordinator.core.pricing import Demand, quote
from coordinator.pool import Pool
from coordinator.tuned.model import TunedModel
from potluck.catalogue import ModelEntry
from potluck.version import version


def status(pool: Pool) -> dict[str, Any]:
    fleet = pool.engine.fleet.workers.values()
    running = sum(len(w.running) for w in fleet)
    return {
        "pool": pool.settings.pool_name,
        "version": version(),
        "workers": {"sharing": sum(w.sharing for w in fleet), "enrolled": len(fleet)},
        "jobs": {"running": running, "queued": len(pool.engine.queue)},
        "models": sorted({m for w in fleet if w.sharing for m, s in w.models.items() if s.state == "ready"}),
        "commons": pool.accounts.balance(COMMONS)["balance"],
        "ledger_sum": pool.engine.book.total(),
        "coordinator_public_key": pool.public_key,
    }


def queue(pool: Pool, live: Live) -> dict[str, Any]:
    """Where a job that waits stands, and why; nothing of one that does not."""
    engine = pool.engine
    if live.job.id not in engine.queue:
        return {}
    waiting = live.waiting(pool.now())
    place = place_of(engine.line, engine.fleet, engine.running, engine.rules.policy, waiting)
    return {"queue": asdict(place)}


def timing(pool: Pool, job: Job) -> dict[str, float | None]:
    """Seconds that a job waited for its first worker, from then until its first output, and from then on.

    None: it is not so far, or not known. When the first output came is remembered of open and recent jobs.
    """
    known = pool.engine.lives.get(job.id) or pool.engine.recent.get(job.id)
    first = None if known is None else known.first_output_at
    until = pool.now() if job.ended_at is None else job.ended_at
    begun = job.started_at
    return {
        "waited_s": round((until if begun is None else begun) - job.created_at, 3),
        "prefill_s": None if begun is None or first is None else round(first - begun, 3),
        "decode_s": None if first is None else round(until - first, 3),
        "total_s": round(until - job.created_at, 3),
    }


def models(pool: Pool) -> list[dict[str, Any]]:
    return [_model(pool, entry) for entry in pool.catalogue().entries]


def tuned(pool: Pool, models: Iterable[TunedModel]) -> list[dict[str, Any]]:
    """As their bases, where they are served with adapters; those whose base is gone are left out."""
    catalogue, shown = pool.catalogue(), []
    for model in models:
        if (entry := catalogue.get(model.base)) is not None:
            of_base = _model(pool, entry, frozenset({LORA}))
            owner = pool.names.get(model.member, model.member)
            shown.append(
                of_base | {"name": model.name, "base": entry.name, "member": owner, "shared": model.shared}
            )
    return shown


def _model(pool: Pool, entry: ModelEntry, needs: frozenset[str] = frozenset()) -> dict[str, Any]:
    serving = [
        s
        for w in pool.engine.fleet.workers.values()
        if w.sharing and (s := w.models.get(entry.name)) is not None and s.state != "failed"
        if not s.lacks(needs)
    ]
    order = ["ready", "loading", "downloading", "present", "absent"]
    states = [s.state for s in serving]
    shape = pool.shape(entry.name)
    thousand = Demand(Kind.CHAT, shape, (1_000,), 0, 1)
    answer = Demand(Kind.CHAT, shape, (0,), 1_000, 1)
    return {
        "name": entry.name,
        "family": entry.family,
        "licence": entry.licence,
        "kinds": list(entry.kinds),
        "context_tokens": entry.context_tokens,
        "parameters": entry.parameters,
        "state": next((s for s in order if s in states), "unserved"),
        "workers": len(serving),
        "engines": sorted({s.engine for s in serving}),
        "features": sorted(frozenset().union(*(s.features for s in serving))),
        "decode_tokens_per_s": max((s.decode for s in serving), default=0.0),
        "price": {
            "prompt_1000_tokens": quote(thousand, pool.tariff),
            "output_1000_tokens": quote(answer, pool.tariff),
        },
    }
