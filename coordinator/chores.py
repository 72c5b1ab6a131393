"""What is done at the start and about hourly: time ends invitations, files and uploads, and crashes leave
things to do.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from coordinator.files import Files
from coordinator.pool import Pool
from coordinator.refusal import Refusal
from coordinator.store_errors import StoreConflict, StoreError
from coordinator.uploads.service import Uploads

log = structlog.get_logger(__name__)

EVERY_S = 3_600.0


async def tidy(pool: Pool, files: Files, uploads: Uploads) -> None:
    """Once. What cannot be done now is done the next time."""
    try:
        await pool.invitations.resume(pool.now())
        await pool.membership.resume()
        await uploads.sweep()
        await files.sweep()
    except StoreConflict:
        raise  # memory and disk disagree: a bug, as in the tick
    except (Refusal, StoreError) as trouble:
        log.warning("chores were left for later", action="chores_left", why=str(trouble))


async def keep_tidy(
    pool: Pool, files: Files, uploads: Uploads, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> None:
    """Until cancelled."""
    while True:
        await sleep(EVERY_S)
        await tidy(pool, files, uploads)
