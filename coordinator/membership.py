"""What admins do with members' accounts: credit lines, roles, freezing, closing.

Closing has two steps: the row, by which nobody gets in any more, and the entry that empties the account. The
second follows the first also after a crash (`resume`), and both happen once however often they are asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass

import structlog

from coordinator.accounts import Accounts
from coordinator.core import details, entries
from coordinator.core.allowances import borrowed, commons_share, handed_on, lowest_line, owed
from coordinator.core.jobs import MemberId, WorkerId
from coordinator.core.ledger import COMMONS, LINES, Bucket, Entry, Overdrawn
from coordinator.ids import new_id
from coordinator.invitations import Invitations
from coordinator.records import Loan, Member, MemberState, Role
from coordinator.refusal import Refusal, credits_of
from coordinator.standings import RETIRED

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Membership:
    """`end_jobs(member, why)` cancels what is open, `expel` closes a worker's stream; both act at once."""

    accounts: Accounts
    invitations: Invitations
    end_jobs: Callable[[MemberId, str], None]
    expel: Callable[[WorkerId], None]

    async def change(
        self, member: Member, *, credit_line: int | None, role: Role | None, by: Member, now: float
    ) -> Member:
        """Raises Refusal: 409 if the line cannot be that short, or LastAdmin."""
        self.accounts.check_open()
        store = self.accounts.store
        async with self.accounts.deciding:
            member = await self._open(member)
            loan = await store.loan_of(member.account)
            if credit_line is not None:
                await self._check_line(member, loan, credit_line)
            if role is not None:
                await store.set_role(member.id, role, now)
            if credit_line is not None:
                await self._set_line(member, loan, credit_line, by)
            return await self._fresh(member)

    async def freeze(self, member: Member, why: str, now: float) -> Member:
        """Raises LastAdmin or StoreConflict."""
        await self.accounts.store.set_state(member.id, MemberState.FROZEN, why, now)
        return await self._fresh(member)

    async def unfreeze(self, member: Member, now: float) -> Member:
        """Raises StoreConflict if the account is closed."""
        await self.accounts.store.set_state(member.id, MemberState.ACTIVE, "", now)
        return await self._fresh(member)

    async def close(self, member: Member, why: str, now: float) -> Member:
        """Raises LastAdmin, or Refusal 409 if the commons could not bear the debt. Again changes nothing."""
        self.accounts.check_open()
        async with self.accounts.deciding:
            member = await self._fresh(member)
            if member.state is not MemberState.CLOSED:
                await self._check_commons(member)
                await self.accounts.store.close_member(member.id, why, now)
                member = await self._fresh(member)
            await self._finish(member)
        return member

    async def resume(self) -> None:
        """Finish the closings that a crash cut off, and clear what came to closed accounts since."""
        store = self.accounts.store
        async with self.accounts.deciding:
            for member in await store.unretired():
                try:
                    await self._finish(member)
                except Overdrawn as short:  # grants were made meanwhile; the fee fills it again
                    log.warning(
                        "an account is not emptied yet", action="retire_waits", account=member.account,
                        why=str(short),
                    )  # fmt: skip
            for member in await store.closed_lenders():
                await self._hand_on(member)
            for member in await store.closed_with_money():
                await self._clear(member)

    async def _finish(self, member: Member) -> None:
        """After the row says that it is closed: all that is open ends, then the account is emptied."""
        await self.invitations.settle_of(member.id)
        workers = await self.accounts.store.workers(member=member.id)
        loan = await self.accounts.store.loan_of(member.account)
        self.accounts.know(member.account)

        def make() -> Entry:
            for worker in workers:
                self.accounts.engine.forfeit(worker.id, self.accounts.now())
                self.expel(worker.id)
            self.end_jobs(member.id, "the account was closed")
            account = self.accounts.account(member.account)
            return entries.retire(account, loan.lender or LINES, loan.lent, details.of_retire(member.why))

        await self.accounts.decide(member.account + RETIRED, make)
        await self._hand_on(member)
        log.info("account closed", action="account_closed", account=member.account)

    async def _hand_on(self, member: Member) -> None:
        """Loans of the closed account are owed to its own lender now, as far as that one is owed anything."""
        store = self.accounts.store
        loans = await store.loans_from(member.account)
        if not loans:
            return
        own = await store.loan_of(member.account)
        retired = await self.accounts.posted(member.account + RETIRED)
        assert retired is not None, "it was closed before"
        returned = sum(
            p.amount for p in retired.postings if p.account == own.lender and p.bucket is Bucket.CREDIT_LINE
        )
        shares = handed_on([loan.lent for loan in loans], own.lent - returned)
        await store.hand_loans_on(
            [
                Loan(account=loan.account, lender=own.lender if share else None, lent=share)
                for loan, share in zip(loans, shares, strict=True)
            ]
        )

    async def _clear(self, member: Member) -> None:
        number = 1
        while await self.accounts.posted(f"{member.account}{RETIRED}/{number}") is not None:
            number += 1

        def make() -> Entry:
            account = self.accounts.account(member.account)
            return entries.leftover(
                account, number, details.of_retire("it came after the account was closed")
            )

        await self.accounts.decide(f"{member.account}{RETIRED}/{number}", make)

    async def _check_commons(self, member: Member) -> None:
        """What neither the member nor its lender pays falls to the commons, which has a floor."""
        account, loan = (
            self.accounts.account(member.account),
            await self.accounts.store.loan_of(member.account),
        )
        debt, left = commons_share(account, loan.lent), self.accounts.account(COMMONS).available
        if debt > left:
            message = (
                f"{member.name} may owe the pool {credits_of(debt)} credits, more than the commons can bear"
                f" ({credits_of(left)}). Freeze the account until the commons has filled or the debt is paid."
            )
            extra = {"potluck": {"debt": debt, "commons_available": left}}
            raise Refusal(409, "commons_short", message, type="conflict_error", extra=extra)

    async def _check_line(self, member: Member, loan: Loan, wanted: int) -> None:
        """Raises Refusal if the line cannot be that short."""
        account = self.accounts.account(member.account)
        if wanted >= min(account.credit_line, lowest_line(account, loan.lent)):
            return
        debt, lent = owed(account), borrowed(account, loan.lent)
        extra = {"potluck": {"credit_line": wanted, "owed": debt, "lent_by_member": lent}}
        if debt >= lent:
            message = (
                f"{member.name} owes {credits_of(debt)} credits, open holds included: the credit line cannot"
                f" be {credits_of(wanted)} before that is earned back."
            )
            raise Refusal(409, "line_in_use", message, type="conflict_error", extra=extra)
        message = (
            f"{credits_of(lent)} of the credit line of {member.name} was lent by another member, not by the"
            f" pool: it cannot be shortened to {credits_of(wanted)}, only to {credits_of(lent)}."
        )
        raise Refusal(409, "line_lent_by_member", message, type="conflict_error", extra=extra)

    async def _set_line(self, member: Member, loan: Loan, wanted: int, by: Member) -> None:
        cause = new_id("lin")

        def make() -> Entry:
            change = wanted - self.accounts.account(member.account).credit_line
            return entries.line(cause, LINES, member.account, change, details.of_line(by.account))

        self.accounts.know(member.account)
        if wanted != self.accounts.account(member.account).credit_line:
            try:
                await self.accounts.decide(f"{cause}/line", make)
            except Overdrawn:  # a job was taken since it was looked at
                await self._check_line(member, loan, wanted)
                raise

    async def _open(self, member: Member) -> Member:
        fresh = await self._fresh(member)
        if fresh.state is MemberState.CLOSED:
            message = f"The account of {member.name} is closed, and stays so."
            raise Refusal(409, "account_closed", message, type="conflict_error")
        return fresh

    async def _fresh(self, member: Member) -> Member:
        found = await self.accounts.store.member(member.id)
        assert found is not None, "members are never deleted"
        return found
