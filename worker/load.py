"""The machine's load for heartbeats: looked at in a thread, since a driver may hang, and not too often."""

import asyncio
import contextlib

import psutil

from potluck.v1 import session_pb2
from worker.probe import Probe

FRESH_S = 1.0


class Load:
    def __init__(self, probe: Probe) -> None:
        """Must be made inside the running loop."""
        self._probe = probe
        self._loop = asyncio.get_running_loop()
        self._last = probe.load()
        self._looked_at = self._loop.time()
        self._looking: asyncio.Task[None] | None = None

    def now(self) -> session_pb2.MachineLoad:
        """The last that was seen. If it is old, it is looked at again for the next one who asks."""
        idle = self._looking is None or self._looking.done()
        if idle and self._loop.time() - self._looked_at >= FRESH_S:
            self._looking = asyncio.create_task(self._look())
        return self._last

    async def _look(self) -> None:
        with contextlib.suppress(OSError, psutil.Error):
            self._last = await asyncio.to_thread(self._probe.load)
        self._looked_at = self._loop.time()

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._looking
        self._probe.close()
