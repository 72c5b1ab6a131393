"""When each member was last here, by any key: in memory at once, on the disk about once a minute."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import structlog
from sqlalchemy import select

from coordinator import dialect, tables
from coordinator.core.jobs import MemberId
from coordinator.database import Database
from coordinator.store_errors import StoreError
from coordinator.table_base import table_of

EVERY_S: Final = 60.0
_SIGHTINGS = table_of(tables.Sighting)

log = structlog.get_logger(__name__)


class Sightings(Database):
    async def sightings(self) -> dict[MemberId, float]:
        async with self.reading() as connection:
            rows = (await connection.execute(select(_SIGHTINGS.c.member_id, _SIGHTINGS.c.at))).all()
            return {MemberId(member): at for member, at in rows}

    async def put_sightings(self, seen: dict[MemberId, float]) -> None:
        rows = [{"member_id": member, "at": at} for member, at in seen.items()]
        async with self.writing() as connection:
            await connection.execute(dialect.upsert(connection.dialect, _SIGHTINGS), rows)


@dataclass(slots=True)
class Presence:
    store: Sightings
    last: dict[MemberId, float] = field(default_factory=dict)
    _fresh: set[MemberId] = field(default_factory=set)

    async def load(self) -> None:
        self.last = await self.store.sightings()

    def saw(self, member: MemberId, now: float) -> None:
        self.last[member] = now
        self._fresh.add(member)

    async def keep(self) -> None:
        """Write down who was seen since the last time. Raises StoreError; they are kept for the next time."""
        fresh, self._fresh = self._fresh, set()
        try:
            if fresh:
                await self.store.put_sightings({member: self.last[member] for member in sorted(fresh)})
        except StoreError:
            self._fresh |= fresh
            raise

    async def close(self) -> None:
        """A disk that refuses does not keep a coordinator from stopping."""
        with contextlib.suppress(StoreError):
            await self.keep()

    async def run(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Until cancelled."""
        while True:
            await sleep(EVERY_S)
            try:
                await self.keep()
            except StoreError as trouble:
                log.warning("who was here is written later", action="presence_left", why=str(trouble))
