"""Browser sessions in the database."""

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import delete, select

from coordinator import tables
from coordinator.database import Database
from coordinator.table_base import table_of

_SESSIONS = table_of(tables.BrowserSession)
_KEYS = table_of(tables.ApiKey)


class BrowserSessions(Database):
    async def open_session(self, digest: str, key_id: str, now: float, expires_at: float) -> None:
        values = {"digest": digest, "key_id": key_id, "created_at": now, "expires_at": expires_at}
        async with self.writing() as connection:
            await connection.execute(_SESSIONS.insert().values(**values))

    async def key_of_session(self, digest: str, now: float) -> str | None:
        """The digest of the key that signed in, which may be revoked by now; None if the session is over."""
        found = select(_KEYS.c.digest).join(_SESSIONS, _SESSIONS.c.key_id == _KEYS.c.id)
        async with self.reading() as connection:
            return (
                await connection.execute(
                    found.where(_SESSIONS.c.digest == digest, _SESSIONS.c.expires_at > now)
                )
            ).scalar_one_or_none()

    async def end_session(self, digest: str) -> None:
        async with self.writing() as connection:
            await connection.execute(delete(_SESSIONS).where(_SESSIONS.c.digest == digest))

    async def sweep_sessions(self, now: float) -> int:
        """Forget those that are over; how many."""
        async with self.writing() as connection:
            gone = await connection.execute(delete(_SESSIONS).where(_SESSIONS.c.expires_at <= now))
            return int(gone.rowcount)


@dataclass(frozen=True, slots=True)
class SignedIn:
    """Browsers that are signed in, for the chores."""

    store: BrowserSessions
    now: Callable[[], float]

    async def sweep(self) -> int:
        return await self.store.sweep_sessions(self.now())
