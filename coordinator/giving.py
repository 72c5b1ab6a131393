"""Credits that are given: from member to member, and out of the commons. Amounts are microcredits.

Each gift is one entry, whose id follows from the giver and the Idempotency-Key: the same request twice is
answered twice and done once.
"""

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from coordinator.accounts import Accounts
from coordinator.clock import rfc3339
from coordinator.core import details, entries
from coordinator.core.allowances import left_today, sendable
from coordinator.core.jobs import MemberId
from coordinator.core.ledger import Entry, Overdrawn, Recorded
from coordinator.ids import new_id
from coordinator.records import Member, MemberState
from coordinator.refusal import Refusal, credits_of


@dataclass(slots=True)
class Giving:
    accounts: Accounts
    day_max: int  # of one sender
    followers: list[Callable[[Member, int, Recorded], None]] = field(default_factory=list)  # of each gift

    async def send(
        self, sender: Member, to: Member, amount: int, note: str, *, key: str | None, now: float
    ) -> Recorded:
        """Raises Refusal: 400 to oneself, 402 not enough, 409 closed or another request, 429 for the day."""
        if sender.id == to.id:
            message = "to: this is you; credits are sent to somebody else."
            raise Refusal(400, "invalid_value", message, param="to")
        said = details.of_transfer(sender.account, to.account, note)
        entry = entries.transfer(cause_id("trf", sender.id, key), sender.account, to.account, amount, said)

        def make() -> Entry:
            have = sendable(self.accounts.account(sender.account))
            if have < amount:
                raise self._too_little(sender, amount, have)
            return entry

        self.accounts.check_open()
        async with self.accounts.deciding:
            if await self.accounts.posted(entry.id) is None:
                await self._check_open(to)
                await self._check_day(sender, amount, now)
            written, _ = await self.accounts.decide(entry.id, make)
        return await self._recorded(entry, written, to, amount)

    async def grant(
        self, admin: Member, to: Member, amount: int, reason: str, *, key: str | None
    ) -> Recorded:
        """Raises Refusal: 402 if the commons would fall below its floor, 409 closed or another request."""
        said = details.of_grant(to.account, admin.account, reason)
        entry = entries.grant(cause_id("grt", admin.id, key), to.account, amount, said)
        self.accounts.check_open()
        async with self.accounts.deciding:
            if await self.accounts.posted(entry.id) is None:
                await self._check_open(to)
            try:
                written, _ = await self.accounts.decide(entry.id, lambda: entry)
            except Overdrawn as short:
                message = (
                    f"The commons cannot give {credits_of(amount)} credits: {credits_of(short.available)} are"
                    " left above its floor. It fills with the fee on all work."
                )
                extra = {"potluck": {"amount": amount, "available": short.available}}
                raise Refusal(
                    402, "commons_short", message, type="insufficient_credits", extra=extra
                ) from None
        return await self._recorded(entry, written, to, amount)

    async def granted(self, admin: Member, key: str | None) -> bool:
        """Whether a grant was made under this key already."""
        cause = cause_id("grt", admin.id, key)
        return key is not None and await self.accounts.posted(f"{cause}/grant") is not None

    async def _recorded(self, wanted: Entry, written: Entry, to: Member, amount: int) -> Recorded:
        if written != wanted:
            message = f"This Idempotency-Key was used for another request ({written.id})."
            raise Refusal(409, "idempotency_conflict", message, type="conflict_error")
        recorded = await self.accounts.store.entry(written.id)
        assert recorded is not None, "it was committed"
        for follow in self.followers:
            follow(to, amount, recorded)
        return recorded

    async def _check_open(self, to: Member) -> None:
        """As it is now: it may have been closed since the request began."""
        fresh = await self.accounts.store.member(to.id)
        if fresh is None or fresh.state is MemberState.CLOSED:
            message = f"The account of {to.name} is closed: nothing can be given to it any more."
            raise Refusal(409, "account_closed", message, type="conflict_error")
        self.accounts.know(to.account)

    async def _check_day(self, sender: Member, amount: int, now: float) -> None:
        """By the ledger, so that a restart forgets nothing."""
        day = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        sent = await self.accounts.store.sent_since(sender.account, rfc3339(day.timestamp()))
        left = left_today(sent, self.day_max)
        if amount <= left:
            return
        ends_at = (day + timedelta(days=1)).timestamp()
        message = (
            f"One account may send {credits_of(self.day_max)} credits a day in this pool, and"
            f" {credits_of(left)} are left for today. The next day begins at {rfc3339(ends_at)}."
        )
        extra = {"potluck": {"sent": sent, "limit": self.day_max, "left": left, "until": rfc3339(ends_at)}}
        raise Refusal(
            429,
            "transfer_limit",
            message,
            type="rate_limit_error",
            retry_after_s=ends_at - now,
            extra=extra,
        )

    def _too_little(self, sender: Member, amount: int, have: int) -> Refusal:
        balance = self.accounts.balance(sender.account)
        message = (
            f"{credits_of(amount)} credits are more than you have to send: {credits_of(have)} (balance"
            f" {credits_of(balance['balance'])}, reserved {credits_of(balance['reserved'])}). A credit line"
            " is for asking; it is not handed on."
        )
        extra = {"potluck": {"amount": amount, "sendable": have, **balance}}
        return Refusal(402, "insufficient_credits", message, type="insufficient_credits", extra=extra)


def cause_id(prefix: str, member: MemberId, key: str | None) -> str:
    """Random; or derived from the member and its Idempotency-Key, so that a retry names the same thing."""
    if key is None:
        return new_id(prefix)
    digest = hashlib.sha256(f"{prefix}\n{member}\n{key}".encode()).digest()[:15]
    return f"{prefix}_{base64.b32encode(digest).decode().lower()}"
