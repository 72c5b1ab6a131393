"""What is done at the start and about hourly: time ends invitations and files, crashes leave things to do."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import structlog

from coordinator.pool import Pool
from coordinator.refusal import Refusal
from coordinator.store_errors import StoreConflict, StoreError

log = structlog.get_logger(__name__)

EVERY_S = 3_600.0


class Sweeper(Protocol):
    async def sweep(self) -> int:
        """Remove what is over; how much. Raises StoreError, Refusal."""
        ...


async def tidy(pool: Pool, sweepers: Sequence[Sweeper]) -> None:
    """Once. What cannot be done now is done the next time."""
    try:
        await pool.invitations.resume(pool.now())
        await pool.membership.resume()
        for sweeper in sweepers:
            await sweeper.sweep()
    except StoreConflict:
        raise  # memory and disk disagree: a bug, as in the tick
    except (Refusal, StoreError) as trouble:
        log.warning("chores were left for later", action="chores_left", why=str(trouble))


async def keep_tidy(
    pool: Pool, sweepers: Sequence[Sweeper], sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> None:
    """Until cancelled."""
    while True:
        await sleep(EVERY_S)
        await tidy(pool, sweepers)
