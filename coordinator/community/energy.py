"""What the pool's cards used in a month, as far as it was measured: their power, added up while they worked.

Every few seconds each worker that has jobs is looked at: what did it last say that its cards draw? The power
counts until the next look, all of it, also what the card would have drawn idle. A worker whose cards do not
tell, or that has none, counts as time that was not measured; nothing is guessed for it.
"""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

import structlog

from coordinator.pool import Pool
from coordinator.registry import Registry
from coordinator.store_errors import StoreError

EVERY_S: Final = 5.0
KEEP_EVERY: Final = 12  # looks between two writings
_LOOK_S_MAX: Final = 60.0  # a machine that slept worked no longer than that
_SETTING: Final = "energy_"  # and the month

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Energy:
    """Of a month (`2026-11`). Seconds are those in which a worker worked, measured and not."""

    month: str
    joules: float = 0.0
    measured_s: float = 0.0
    unmeasured_s: float = 0.0

    def plus(self, watts: Iterable[float | None], seconds: float) -> "Energy":
        """After so long a time in which each working worker's cards drew this much; None: nobody knows."""
        joules, measured_s, unmeasured_s = self.joules, self.measured_s, self.unmeasured_s
        for power in watts:
            if power is None:
                unmeasured_s += seconds
            else:
                joules, measured_s = joules + power * seconds, measured_s + seconds
        return Energy(self.month, joules, measured_s, unmeasured_s)

    @property
    def kwh(self) -> float | None:
        """None where nothing was measured."""
        return self.joules / 3_600_000 if self.measured_s else None

    @property
    def measured_share(self) -> float:
        """Of the time in which workers worked."""
        worked_s = self.measured_s + self.unmeasured_s
        return self.measured_s / worked_s if worked_s else 0.0


def month_of(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m")


@dataclass(slots=True)
class Meter:
    pool: Pool
    store: Registry
    now: Callable[[], float]
    energy: Energy = Energy("")
    _looked_at: float | None = None

    async def load(self) -> None:
        month = month_of(self.now())
        written = await self.store.setting(_SETTING + month)
        self.energy = Energy(month, **json.loads(written)) if written else Energy(month)

    def look(self) -> None:
        """Count what was drawn since the last look."""
        now = self.now()
        since, self._looked_at = self._looked_at, now
        if self.energy.month != (month := month_of(now)):
            self.energy = Energy(month)
        if since is not None and (watts := self._watts()):
            self.energy = self.energy.plus(watts, min(max(0.0, now - since), _LOOK_S_MAX))

    async def keep(self) -> None:
        facts = {
            "joules": self.energy.joules,
            "measured_s": self.energy.measured_s,
            "unmeasured_s": self.energy.unmeasured_s,
        }
        if any(facts.values()):
            await self.store.put_setting(_SETTING + self.energy.month, json.dumps(facts))

    async def close(self) -> None:
        """A disk that refuses does not keep a coordinator from stopping."""
        with contextlib.suppress(StoreError):
            await self.keep()

    async def run(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Until cancelled."""
        looks, kept = 0, replace(self.energy)
        while True:
            self.look()
            looks += 1
            if looks % KEEP_EVERY == 0 and self.energy != kept:
                try:
                    await self.keep()
                    kept = self.energy
                except StoreError as trouble:
                    log.warning("energy is written later", action="energy_left", why=str(trouble))
            await sleep(EVERY_S)

    def _watts(self) -> list[float | None]:
        """Of each worker that works just now."""
        found: list[float | None] = []
        for worker in self.pool.engine.fleet.workers.values():
            if worker.running:
                load = self.pool.loads.get(worker.id)
                power = sum(gpu.power_w for gpu in load.gpus) if load is not None else 0
                found.append(float(power) if power else None)
        return found
