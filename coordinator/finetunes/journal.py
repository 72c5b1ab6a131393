"""What a fine-tune tells its member: events, numbered, on the disk before anybody reads them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from coordinator.finetunes.finetune import Event
from coordinator.store import Store

KEPT_MAX: Final = 10_000  # of one fine-tune; older ones go
WAITING_MAX: Final = 2_000  # for the disk; more are left out
PAGE: Final = 500
LOOK_S: Final = 15.0


@dataclass(slots=True)
class Journal:
    finetune_id: str
    store: Store
    now: Callable[[], float]
    last: int = 0  # the number of the newest
    written: int = 0  # of the newest on the disk
    closed: bool = False  # the fine-tune has ended
    stopped: bool = False  # the coordinator stops: more will come after its restart
    _waiting: list[Event] = field(default_factory=list)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    async def open(self) -> None:
        """Go on behind what is on the disk."""
        self.last = self.written = await self.store.last_finetune_event(self.finetune_id)

    def say(self, message: str, *, level: str = "info", data: Mapping[str, float] | None = None) -> None:
        """Kept by the next `write`. What nobody could write down for long is left out."""
        if len(self._waiting) < WAITING_MAX:
            self.last += 1
            event = Event(number=self.last, at=self.now(), level=level, message=message, data=data)
            self._waiting.append(event)

    async def write(self) -> None:
        """Raises StoreError; what could not be written is written the next time."""
        if not self._waiting:
            return
        events = list(self._waiting)
        await self.store.add_finetune_events(self.finetune_id, events, keep=KEPT_MAX)
        del self._waiting[: len(events)]
        self.written = events[-1].number
        self._wake()

    def close(self) -> None:
        """Nothing more will come."""
        self.closed = True
        self._wake()

    def stop(self) -> None:
        self.stopped = True
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def follow(self, after: int) -> AsyncIterator[Event | None]:
        """Each event behind that number, as it is written, until the end or a stop. None: nothing yet."""
        while True:
            news, over = self._news, self.closed or self.stopped
            while page := await self.store.finetune_events(self.finetune_id, limit=PAGE, after=after):
                for event in page:
                    yield event
                after = page[-1].number
            if over:
                return
            try:
                async with asyncio.timeout(LOOK_S):
                    await news.wait()
            except TimeoutError:
                yield None
