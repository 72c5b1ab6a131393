"""Invitations in the database: who may come in, by whom, and what became of it.

A row decides whether an invitation was accepted or taken back; its line moves by entries that follow the row
(`invitations`), under ids that let only one of the two happen.
"""

from typing import Any, Final

from sqlmodel import col, func, select
from sqlmodel.ext.asyncio.session import AsyncSession

from coordinator import keys, tables
from coordinator.core.jobs import AccountId, MemberId
from coordinator.core.ledger import LINES
from coordinator.database import Database
from coordinator.members import add_member
from coordinator.records import Invite, Member, MemberState, Role
from coordinator.store_errors import (
    InviteEnded,
    InviteRefused,
    InviteSuspended,
    InviteUnknown,
    InviteUsed,
    StoreConflict,
    Unknown,
)

INVITES_OPEN_MAX: Final = 100  # of one member
INVITES_LISTED_MAX: Final = 200
INVITES_AT_ONCE: Final = 1_000  # swept in one go
NOTE_CHARS_MAX: Final = 200


class Invites(Database):
    async def create_invite(self, invite: Invite, digest: str) -> None:
        """Remember it by its token's digest. Raises StoreConflict at the limit or for a closed account."""
        mine = select(func.count()).where(
            tables.Invite.member_id == invite.member,
            col(tables.Invite.accepted_at).is_(None),
            col(tables.Invite.revoked_at).is_(None),
        )
        async with self.changing() as session:
            member = await session.get(tables.Member, invite.member)
            if member is None or member.state != MemberState.ACTIVE:
                raise StoreConflict("only a member whose account is open may invite")
            if (await session.exec(mine)).one() >= INVITES_OPEN_MAX:
                raise StoreConflict(
                    f"a member has at most {INVITES_OPEN_MAX} open invitations: take one back first"
                )
            session.add(
                tables.Invite(
                    id=invite.id,
                    member_id=invite.member,
                    digest=digest,
                    credit_line=invite.credit_line,
                    from_pool=invite.from_pool,
                    note=invite.note,
                    created_at=invite.created_at,
                    expires_at=invite.expires_at,
                )
            )

    async def accept_invite(
        self, digest: str, name: str, key_name: str, key: keys.NewKey, now: float
    ) -> tuple[Invite, Member]:
        """Make the member and spend the invitation, in one transaction; its line follows by an entry.

        Raises InviteRefused, NameTaken, or StoreError for a name that cannot be one.
        """
        async with self.changing() as session:
            found = select(tables.Invite).where(tables.Invite.digest == digest).with_for_update()
            row = (await session.exec(found)).first()
            if row is None:
                raise InviteUnknown("this pool does not know this invitation: ask for a new one")
            inviter = await session.get(tables.Member, row.member_id)
            assert inviter is not None
            if refused := _refusal(row, inviter, now):
                raise refused
            lender = None if row.from_pool else await _account_of(session, row.member_id)
            account = tables.Account(lender_id=lender, lent=0 if lender is None else row.credit_line)
            member = await add_member(session, name, Role.MEMBER, account, key_name, key, now)
            await session.flush()  # the invitation refers to it
            row.accepted_by, row.accepted_at = member.id, now
            session.add(row)
            return _invite_of(row, lender, member.account), member

    async def revoke_invite(self, invite_id: str, now: float, *, member: MemberId | None = None) -> Invite:
        """The invitation as it ends; with `member`, only one of that member. Again changes nothing.

        Raises Unknown, or InviteUsed if somebody accepted it.
        """
        async with self.changing() as session:
            row = await session.get(tables.Invite, invite_id, with_for_update=True)
            if row is None or (member is not None and row.member_id != member):
                raise Unknown(f"there is no invitation {invite_id}")
            if row.accepted_at is not None:
                raise InviteUsed("somebody has accepted this invitation already: it cannot be taken back")
            if row.revoked_at is None:
                row.revoked_at = now
                session.add(row)
            return _invite_of(row, await _account_of(session, row.member_id), None)

    async def forget_invite(self, invite_id: str) -> None:
        """One whose line was never set aside: nobody has its token."""
        async with self.changing() as session:
            if (row := await session.get(tables.Invite, invite_id)) is not None:
                await session.delete(row)

    async def invite(self, invite_id: str) -> Invite | None:
        found = await self._invites(tables.Invite.id == invite_id)
        return found[0] if found else None

    async def invite_by_digest(self, digest: str) -> Invite | None:
        found = await self._invites(tables.Invite.digest == digest)
        return found[0] if found else None

    async def invites(self, *, member: MemberId | None = None) -> list[Invite]:
        """The newest first, at most INVITES_LISTED_MAX."""
        return await self._invites(
            True if member is None else tables.Invite.member_id == member, limit=INVITES_LISTED_MAX
        )

    async def expired_invites(self, now: float) -> list[Invite]:
        """Still open in the books, and past their time."""
        return await self._invites(
            col(tables.Invite.accepted_at).is_(None)
            & col(tables.Invite.revoked_at).is_(None)
            & (col(tables.Invite.expires_at) <= now)
        )

    async def unlent_invites(self) -> list[Invite]:
        """Open, but their lines were never set aside, as a crash may leave them."""
        return await self._invites(
            col(tables.Invite.accepted_at).is_(None)
            & col(tables.Invite.revoked_at).is_(None)
            & (col(tables.Invite.id) + "/lend/line").not_in(select(tables.Entry.id))
        )

    async def unsettled_invites(self, *, member: MemberId | None = None) -> list[Invite]:
        """Ended, while their lines still wait, as a crash may leave them."""
        condition = (
            (col(tables.Invite.accepted_at).is_not(None) | col(tables.Invite.revoked_at).is_not(None))
            & (col(tables.Invite.id) + "/lend/line").in_(select(tables.Entry.id))
            & (col(tables.Invite.id) + "/end/line").not_in(select(tables.Entry.id))
        )
        return await self._invites(
            condition if member is None else condition & (col(tables.Invite.member_id) == member)
        )

    async def _invites(self, condition: Any, limit: int = INVITES_AT_ONCE) -> list[Invite]:
        newest = select(tables.Invite).where(condition)
        newest = newest.order_by(col(tables.Invite.created_at).desc(), col(tables.Invite.id).desc())
        async with self.viewing() as session:
            rows = (await session.exec(newest.limit(limit))).all()
            people = {row.member_id for row in rows} | {row.accepted_by for row in rows if row.accepted_by}
            owned = select(tables.Account.member_id, tables.Account.id).where(
                col(tables.Account.member_id).in_(sorted(people))
            )
            accounts: dict[Any, str] = dict((await session.exec(owned)).all())
            return [_invite_of(row, accounts[row.member_id], accounts.get(row.accepted_by)) for row in rows]


def _refusal(row: tables.Invite, inviter: tables.Member, now: float) -> InviteRefused | None:
    if row.accepted_at is not None:
        return InviteUsed("this invitation was used already: ask for another one")
    if row.revoked_at is not None and row.revoked_at < row.expires_at:
        return InviteEnded("this invitation was taken back: ask whoever invited you")
    if row.revoked_at is not None or row.expires_at <= now:
        return InviteEnded("this invitation has expired: ask for another one")
    if inviter.state != MemberState.ACTIVE:
        return InviteSuspended(f"{inviter.name}, who invited you, may not do so just now: ask an admin")
    return None


async def _account_of(session: AsyncSession, member_id: str) -> str:
    found = select(tables.Account.id).where(tables.Account.member_id == member_id)
    return (await session.exec(found)).one()


def _invite_of(row: tables.Invite, inviter: str | None, accepted: str | None) -> Invite:
    return Invite(
        id=row.id,
        member=MemberId(row.member_id),
        lender=LINES if row.from_pool or inviter is None else AccountId(inviter),
        credit_line=row.credit_line,
        from_pool=row.from_pool,
        note=row.note,
        created_at=row.created_at,
        expires_at=row.expires_at,
        accepted_by=None if row.accepted_by is None else MemberId(row.accepted_by),
        accepted_account=None if accepted is None else AccountId(accepted),
        accepted_at=row.accepted_at,
        revoked_at=row.revoked_at,
    )
