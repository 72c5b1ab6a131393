"""Accounts at OpenID providers in the database, and the keys that they stand for."""

from dataclasses import dataclass

from sqlalchemy import select

from coordinator import dialect, tables
from coordinator.core.jobs import MemberId
from coordinator.database import Database
from coordinator.oidc.identity import Identity
from coordinator.table_base import table_of

_IDENTITIES = table_of(tables.Identity)
_KEYS = table_of(tables.ApiKey)


@dataclass(frozen=True, slots=True, kw_only=True)
class Linked:
    """`key_digest` is for whoever asks if the key, and so the link, still holds."""

    issuer: str
    email: str
    member: MemberId
    key_id: str
    key_digest: str
    linked_at: float


class Identities(Database):
    async def link_identity(self, identity: Identity, key_id: str, now: float) -> None:
        """From now on the account stands for this key, whatever it stood for before."""
        values = {
            "issuer": identity.issuer,
            "subject": identity.subject,
            "key_id": key_id,
            "email": identity.email,
            "linked_at": now,
        }
        async with self.writing() as connection:
            statement = dialect.upsert(connection.dialect, _IDENTITIES)
            await connection.execute(statement.values(**values))

    async def linked(self, identity: Identity) -> Linked | None:
        """Also if its key is revoked by now."""
        return next(iter(await self._linked(issuer=identity.issuer, subject=identity.subject)), None)

    async def identities(self, member: MemberId) -> list[Linked]:
        """Those of a member whose keys are not revoked."""
        return await self._linked(member_id=member, revoked_at=None)

    async def _linked(self, **where: str | None) -> list[Linked]:
        found = select(_IDENTITIES, _KEYS.c.member_id, _KEYS.c.digest).join(
            _KEYS, _KEYS.c.id == _IDENTITIES.c.key_id
        )
        for name, value in where.items():
            column = _IDENTITIES.c.get(name)
            column = _KEYS.c[name] if column is None else column
            found = found.where(column.is_(None) if value is None else column == value)
        async with self.reading() as connection:
            rows = (await connection.execute(found.order_by(_IDENTITIES.c.linked_at))).all()
        return [
            Linked(
                issuer=row.issuer,
                email=row.email,
                member=row.member_id,
                key_id=row.key_id,
                key_digest=row.digest,
                linked_at=row.linked_at,
            )
            for row in rows
        ]
