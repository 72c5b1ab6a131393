"""The leader's beat, from a thread of its own with a connection of its own.

The event loop may be busy for seconds, above all right after a takeover on a loaded machine, and
must not lose the pool for it. But a loop that does not come round any more is of no use to anybody: then the
thread stops beating, and whoever waits takes over. A process that is stopped or starved stops both.
"""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar

from sqlalchemy.ext.asyncio import AsyncEngine

BUSY_S_MAX: Final = 20.0

T = TypeVar("T")


class Beats(Generic[T]):
    """From its making until `cancel`. `heard` gets what each beat brought, in the loop that made it."""

    def __init__(
        self,
        engine: Callable[[], AsyncEngine],
        beat: Callable[[AsyncEngine], Awaitable[T]],
        heard: Callable[[T], None],
        every_s: float,
    ) -> None:
        self.busy_s_max = BUSY_S_MAX
        self._engine, self._beat, self._heard, self._every_s = engine, beat, heard, every_s
        self._home = asyncio.get_running_loop()
        self._came_round_at, self._knocked = time.monotonic(), False
        self._over = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._run(),), name="beats", daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        self._over.set()

    async def ended(self) -> None:
        """After `cancel`: until its connection is closed."""
        await asyncio.to_thread(self._thread.join)

    async def _run(self) -> None:
        engine = self._engine()  # made here: its connections belong to this loop
        try:
            while not await asyncio.to_thread(self._over.wait, self._every_s):
                if time.monotonic() - self._came_round_at <= self.busy_s_max:
                    told = await self._beat(engine)
                    self._home.call_soon_threadsafe(self._come_round, told)
                elif not self._knocked:
                    self._knocked = True
                    self._home.call_soon_threadsafe(self._come_round, None)
        except RuntimeError:  # the loop at home was closed
            return
        finally:
            await engine.dispose()

    def _come_round(self, told: T | None) -> None:
        self._came_round_at, self._knocked = time.monotonic(), False
        if told is not None and not self._over.is_set():
            self._heard(told)
