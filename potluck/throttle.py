"""A limit on bytes per second, shared by all that are given the same one."""

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Final

BURST_S: Final = 0.5  # that may be taken at once after a pause


class Throttle:
    """`now` and `sleep` are the clock's; both in seconds."""

    def __init__(
        self,
        bytes_per_s: float,
        *,
        now: Callable[[], float] = monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._bytes_per_s, self._now, self._sleep = bytes_per_s, now, sleep
        self._paid_until = now()

    async def take(self, size_bytes: int) -> None:
        """Waits until so many bytes are within the limit. Whoever comes meanwhile waits behind."""
        now = self._now()
        self._paid_until = max(self._paid_until, now - BURST_S) + size_bytes / self._bytes_per_s
        if self._paid_until > now:
            await self._sleep(self._paid_until - now)
