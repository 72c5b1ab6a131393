"""What members may do, as the database has it: roles, states, closings, and who lent whose line."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import update
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from coordinator import tables
from coordinator.core.jobs import AccountId, MemberId
from coordinator.core.ledger import Bucket
from coordinator.database import Database
from coordinator.members import admin_keys, member_of, with_account
from coordinator.records import Loan, Member, MemberState, Role
from coordinator.store_errors import LastAdmin, StoreConflict, Unknown

RETIRED = "/retire"  # what ends the id of the entry that closes an account


class Standings(Database):
    async def set_role(self, member_id: MemberId, role: Role, now: float) -> None:
        """Raises Unknown, or LastAdmin if nobody else could act as one."""
        async with self.changing() as session:
            row = await _row(session, member_id)
            if role is not Role.ADMIN and row.role == Role.ADMIN:
                await _check_other_admins(session, row, now)
            row.role = role.value
            session.add(row)

    async def set_state(self, member_id: MemberId, state: MemberState, why: str, now: float) -> None:
        """Freeze or unfreeze. Raises Unknown, LastAdmin, or StoreConflict if the account is closed."""
        assert state is not MemberState.CLOSED, "closing is more than a state"
        async with self.changing() as session:
            row = await _row(session, member_id)
            if row.state == MemberState.CLOSED:
                raise StoreConflict(f"the account of {row.name} is closed, and stays so")
            if state is MemberState.FROZEN:
                await _check_other_admins(session, row, now)
            row.state, row.why = state.value, why
            session.add(row)

    async def close_member(self, member_id: MemberId, why: str, now: float) -> None:
        """All that lets somebody in ends at once: keys, join tokens, open invitations, workers.

        The account itself follows by an entry. Again changes nothing. Raises Unknown or LastAdmin.
        """
        async with self.changing() as session:
            row = await _row(session, member_id)
            if row.state == MemberState.CLOSED:
                return
            await _check_other_admins(session, row, now)
            row.state, row.why = MemberState.CLOSED.value, why
            session.add(row)
            connection = await session.connection()
            for table in (tables.ApiKey, tables.Worker, tables.Invite):
                rows = tables.table_of(table)
                ends = update(rows).where(rows.c.member_id == member_id, rows.c.revoked_at.is_(None))
                if table is tables.Invite:
                    ends = ends.where(rows.c.accepted_at.is_(None))
                await connection.execute(ends.values(revoked_at=now))
            tokens = tables.table_of(tables.JoinToken)
            live = (tokens.c.member_id == member_id) & (tokens.c.expires_at > now)
            await connection.execute(update(tokens).where(live).values(expires_at=now))

    async def unretired(self) -> list[Member]:
        """Members whose accounts were closed, but not yet emptied, as a crash may leave them."""
        retired = (col(tables.Account.id) + RETIRED).in_(select(tables.Entry.id))
        return await self._closed(~retired)

    async def closed_with_money(self) -> list[Member]:
        """Closed accounts to which something came afterwards."""
        retired = (col(tables.Account.id) + RETIRED).in_(select(tables.Entry.id))
        return await self._closed(retired & ((col(tables.Account.main) > 0) | (col(tables.Account.held) > 0)))

    async def closed_lenders(self) -> list[Member]:
        """Emptied accounts whose loans nobody else answers for yet, as a crash may leave them."""
        lenders = select(tables.Account.lender_id).where(_alive())
        retired = (col(tables.Account.id) + RETIRED).in_(select(tables.Entry.id))
        return await self._closed(retired & col(tables.Account.id).in_(lenders))

    async def loan_of(self, account: AccountId) -> Loan:
        async with self.viewing() as session:
            return _loan(await session.get_one(tables.Account, account))

    async def loans_from(self, account: AccountId) -> list[Loan]:
        """Those of accounts that are not emptied yet, in the order of their ids."""
        found = select(tables.Account).where(tables.Account.lender_id == account, _alive())
        async with self.viewing() as session:
            rows = await session.exec(found.order_by(col(tables.Account.id)))
            return [_loan(row) for row in rows.all()]

    async def hand_loans_on(self, loans: Sequence[Loan]) -> None:
        """Somebody else answers for them from now on; all or none."""
        async with self.changing() as session:
            for loan in loans:
                row = await session.get_one(tables.Account, loan.account)
                row.lender_id, row.lent = loan.lender, loan.lent
                session.add(row)

    async def sent_since(self, account: AccountId, at: str) -> int:
        """What the account has sent since this moment (RFC 3339), by the ledger."""
        entries, postings = tables.table_of(tables.Entry), tables.table_of(tables.Posting)
        sent = (
            select(postings.c.amount)
            .join(entries, entries.c.number == postings.c.entry_number)
            .where(tables.IS_TRANSFER, entries.c.at >= at)
            .where(postings.c.account_id == account, postings.c.bucket == Bucket.MAIN.value)
            .where(postings.c.amount < 0)
        )
        async with self.reading() as connection:
            amounts: list[int] = list((await connection.execute(sent)).scalars())
            return -sum(amounts)

    async def _closed(self, condition: Any) -> list[Member]:
        closed = with_account().where(tables.Member.state == MemberState.CLOSED, condition)
        async with self.viewing() as session:
            rows = await session.exec(closed.order_by(col(tables.Member.id)))
            return [member_of(*row) for row in rows.all()]


def _alive() -> Any:
    return (col(tables.Account.id) + RETIRED).not_in(select(tables.Entry.id))


async def _row(session: AsyncSession, member_id: MemberId) -> tables.Member:
    row = await session.get(tables.Member, member_id, with_for_update=True)
    if row is None:
        raise Unknown(f"there is no member {member_id}")
    return row


async def _check_other_admins(session: AsyncSession, row: tables.Member, now: float) -> None:
    """Raises LastAdmin if the member is an admin, and nobody else could do an admin's work."""
    if row.role != Role.ADMIN or row.state != MemberState.ACTIVE:
        return
    others = admin_keys(now).where(tables.ApiKey.member_id != row.id)
    if (await session.exec(others)).first() is None:
        raise LastAdmin(
            f"{row.name} is the last admin with a usable key: make somebody else an admin first"
            " (`potluck members set MEMBER --role admin`)"
        )


def _loan(row: tables.Account) -> Loan:
    return Loan(
        account=AccountId(row.id),
        lender=None if row.lender_id is None else AccountId(row.lender_id),
        lent=row.lent,
    )
