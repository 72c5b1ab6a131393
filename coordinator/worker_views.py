"""Workers as the pool shows them, in the shapes of the design, section 9. Amounts are microcredits."""

from typing import Any

from coordinator.clock import rfc3339
from coordinator.core.fleet import Worker
from coordinator.core.standing import missing
from coordinator.pool import Pool
from coordinator.records import EnrolledWorker
from potluck.v1 import session_pb2


def workers(pool: Pool) -> list[dict[str, Any]]:
    return [worker(pool, w) for w in sorted(pool.engine.fleet.workers.values(), key=lambda w: w.name)]


def enrolled(pool: Pool, row: EnrolledWorker) -> dict[str, Any]:
    """As `worker`, also of one that was revoked."""
    if row.revoked_at is None and (here := pool.engine.fleet.workers.get(row.id)) is not None:
        return worker(pool, here)
    gone = pool.engine.fleet.departed.get(row.id) or Worker(row.id, row.name, row.member, row.account)
    why = (
        f"it was shut out of this pool on {rfc3339(row.revoked_at)[:10]}"
        if row.revoked_at
        else "not connected"
    )
    return worker(pool, gone) | {"state": "revoked" if row.revoked_at else "away", "why": why}


def worker(pool: Pool, w: Worker) -> dict[str, Any]:
    state, why = ("sharing", "") if w.sharing else ("away", "not connected")
    if w.connected and (w.draining or w.state != "sharing"):
        state, why = ("draining", w.why) if w.draining else (w.state, w.why)
    return {
        "id": w.id,
        "name": w.name,
        "member": pool.names.get(w.member, w.member),
        "state": state,
        "why": why,
        "pause": _pause(pool, w),
        "next_change": rfc3339(w.next_change) if w.connected and w.next_change is not None else None,
        "models": [
            {
                "name": s.name,
                "engine": s.engine,
                "state": s.state,
                "why": s.why,
                "slots": s.slots,
                "features": sorted(s.features),
                "bytes_done": s.bytes_done,
                "bytes_total": s.bytes_total,
            }
            for s in w.models.values()
        ],
        "engines": sorted({s.engine for s in w.models.values()}),
        "hardware": _hardware(pool.hardware.get(w.id)),
        "load": _load(pool.loads.get(w.id)),
        "speed": {s.name: {"prefill": s.prefill, "decode": s.decode} for s in w.models.values()},
        "running": len(w.running),
        "reliability": round(w.reliability, 4),
        "earned": pool.earned.of(w.id),
        "heard_at": rfc3339(w.heard_at) if w.heard_at else None,
        **_trust(pool, w),
    }


def _pause(pool: Pool, w: Worker) -> dict[str, Any] | None:
    """What was asked for from afar and is in force, whether or not its machine knows by now."""
    pause = pool.pauses.of(w.id)
    if pause is None:
        return None
    until = None if pause.until is None else rfc3339(pause.until)
    return {
        "by": pool.names.get(pause.member, pause.member),
        "owner": pause.by_owner,
        "until": until,
        "why": pool.pauses.words(pause),
    }


def _trust(pool: Pool, w: Worker) -> dict[str, Any]:
    """In a pool of strangers: whether the worker is proven, and what is missing until it is."""
    proof = pool.engine.rules.proof
    if not proof.needed:
        return {}
    left = "" if w.standing.proven_at is not None else missing(w.standing, proof, pool.now())
    return {"proven": w.standing.proven_at is not None, "missing": left, "held": w.standing.held}


def _hardware(hardware: session_pb2.Hardware | None) -> dict[str, Any] | None:
    """As it was translated when it came, that is bounded and printable."""
    if hardware is None:
        return None
    return {
        "system": hardware.system,
        "cpu": hardware.cpu,
        "cpu_features": list(hardware.cpu_features),
        "cores": hardware.cores,
        "memory_bytes": hardware.memory_bytes,
        "disk_free_bytes": hardware.disk_free_bytes,
        "battery": hardware.battery,
        "nodes": hardware.nodes,
        "gpus": [
            {
                "name": g.name,
                "memory_bytes": g.memory_bytes,
                "backend": g.backend,
                "driver": g.driver,
                "capability": g.capability,
            }
            for g in hardware.gpus
        ],
    }


def _load(load: session_pb2.MachineLoad | None) -> dict[str, Any] | None:
    """The machine when it last beat; its cards stand in the order of those of the hardware."""
    if load is None:
        return None
    return {
        "cpu_percent": load.cpu_percent,
        "memory_free_bytes": load.memory_free_bytes,
        "disk_free_bytes": load.disk_free_bytes,
        "on_battery": load.on_battery,
        "gpus": [
            {
                "memory_used_bytes": g.memory_used_bytes,
                "utilisation_percent": g.utilisation_percent,
                "temperature_c": g.temperature_c,
                "power_w": g.power_w,
            }
            for g in load.gpus
        ],
    }
