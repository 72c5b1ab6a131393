"""The signed ends of both chains: made once a day and when a member asks, and kept.

A head says: until here, this is what the books said. Whoever keeps one can show later that what lies before
it was changed. Only what is on the disk is signed.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import structlog

from coordinator.clock import rfc3339
from coordinator.core.heads import due
from coordinator.records import Ends, Head, HeadReason
from coordinator.store import Store
from coordinator.store_errors import StoreError
from potluck import chain

log = structlog.get_logger(__name__)

CHECK_S: Final = 600.0  # a new day is noticed so late


@dataclass(slots=True)
class Heads:
    store: Store
    sign: Callable[[bytes], bytes]
    now: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    _one: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def run(self) -> None:
        """Until cancelled. A disk that refuses is asked again at the next look."""
        while True:
            try:
                await self.daily()
            except StoreError as error:
                log.warning("no head was signed", action="head_refused", why=str(error))
            await self.sleep(CHECK_S)

    async def daily(self) -> Head | None:
        """Sign one if it is due."""
        async with self._one:
            ends, newest = await self.store.ends(), await self.store.last_head()
            last = await self.store.last_head(HeadReason.DAILY)
            if not due(self.now(), None if last is None else _seconds(last.at), moved=_moved(ends, newest)):
                return None
            return await self._keep(ends, HeadReason.DAILY)

    async def newest(self) -> Head:
        """Of the books as they are: the last one kept if nothing was recorded since, else a new one."""
        async with self._one:
            ends, newest = await self.store.ends(), await self.store.last_head()
            if newest is not None and not _moved(ends, newest):
                return newest
            return await self._keep(ends, HeadReason.REQUEST)

    def made(self, ends: Ends, reason: HeadReason = HeadReason.REQUEST) -> Head:
        """One that is not kept, as the last line of an export."""
        at = rfc3339(self.now())
        covered = chain.head_bytes(
            number=ends.number,
            hash=ends.hash,
            receipts_number=ends.receipts_number,
            receipts_hash=ends.receipts_hash,
            at=at,
        )
        return Head(
            number=ends.number,
            hash=ends.hash,
            receipts_number=ends.receipts_number,
            receipts_hash=ends.receipts_hash,
            at=at,
            reason=reason,
            signature=self.sign(covered),
        )

    async def _keep(self, ends: Ends, reason: HeadReason) -> Head:
        head = self.made(ends, reason)
        await self.store.put_head(head)
        log.info("head signed", action="head_signed", number=head.number, reason=reason.value)
        return head


def _moved(ends: Ends, newest: Head | None) -> bool:
    """Whether anything was recorded that no head covers."""
    if newest is None:
        return bool(ends.number or ends.receipts_number)
    return (ends.number, ends.receipts_number) != (newest.number, newest.receipts_number)


def _seconds(at: str) -> float:
    return datetime.fromisoformat(at).timestamp()
