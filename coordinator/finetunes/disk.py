"""Writing that must happen: tried again until the disk takes it. Who waits for room loses nothing."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

import structlog

from coordinator.artifacts import StoreFull
from coordinator.refusal import Refusal
from coordinator.store_errors import DISK_FULL, StoreUnavailable

PAUSE_S: Final = 1.0

Result = TypeVar("Result")
log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Disk:
    """`about`: which fine-tune waits."""

    about: str
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    async def insist(self, act: Callable[[], Awaitable[Result]]) -> Result:
        """Raises what is no want of room."""
        while True:
            try:
                return await act()
            except (StoreUnavailable, StoreFull, Refusal, OSError) as error:
                if not _passes(error):
                    raise
                log.error(  # noqa: TRY400 -- a full disk is no mistake of ours: no traceback
                    "a fine-tune waits for the disk",
                    action="finetune_waits",
                    finetune=self.about,
                    why=str(error),
                )
                await self.sleep(PAUSE_S)


def _passes(error: Exception) -> bool:
    if isinstance(error, Refusal):
        return error.status >= 500
    return not isinstance(error, OSError) or error.errno in DISK_FULL
