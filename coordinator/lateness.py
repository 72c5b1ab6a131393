"""How late the event loop is: by how much a short sleep takes longer than it should.

Everything waits that long: heartbeats, health, first tokens. Where it stays beyond `SHED_S` the coordinator
takes no new work until it has caught up, since what it took would only make all else later.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

EVERY_S: Final = 0.1
KEPT_S: Final = 10.0
SHED_S: Final = 0.5  # a busy worker's lease is 4 s, and it beats once a second
LOOKS: Final = 3  # one after another that must be so late: one pause alone is over when it is seen


@dataclass(slots=True)
class Lateness:
    """Seconds."""

    _seen: deque[float] = field(default_factory=lambda: deque(maxlen=int(KEPT_S / EVERY_S)))

    async def run(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Until cancelled. By the loop's own clock: the host's may be set anew."""
        now = asyncio.get_running_loop().time
        while True:
            began = now()
            await sleep(EVERY_S)
            self.saw(now() - began - EVERY_S)

    def saw(self, late_s: float) -> None:
        self._seen.append(max(0.0, late_s))

    @property
    def worst_s(self) -> float:
        """Within the last seconds."""
        return max(self._seen, default=0.0)

    @property
    def too_late(self) -> bool:
        latest = list(self._seen)[-LOOKS:]
        return len(latest) == LOOKS and min(latest) > SHED_S
