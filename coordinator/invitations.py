"""Invitations: one member lets another in, and lends the new one a line out of the own.

The line is set aside when the invitation is made (`<invite>/lend/line`). At its end it goes to whoever
accepted, or back; both would be written as `<invite>/end/line`, so that only one of them can be. The row says
which before the entry does, and what a crash cuts off in between is finished by `resume`.
"""

import base64
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Final

import structlog

from coordinator import keys
from coordinator.accounts import Accounts
from coordinator.core import details, entries
from coordinator.core.allowances import lendable
from coordinator.core.jobs import MemberId
from coordinator.core.ledger import LINES, Entry, Overdrawn
from coordinator.giving import cause_id
from coordinator.records import Invite, InviteState, Member
from coordinator.refusal import Refusal, credits_of
from coordinator.store_errors import InviteUsed

log = structlog.get_logger(__name__)

TOKEN_PREFIX: Final = "pli_"  # noqa: S105 -- what a token begins with is no secret
FIRST_KEY_NAME: Final = "first"
_TOKEN = re.compile(r"pli_[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an invitation is asked for with; `credit_line` None takes the pool's usual one."""

    credit_line: int | None
    expires_s: int
    note: str
    from_pool: bool


@dataclass(slots=True)
class Invitations:
    """`sign` is the pool's own signature: what follows from it, nobody else can guess."""

    accounts: Accounts
    usual_line: int
    sign: Callable[[bytes], bytes] = field(repr=False)

    async def create(self, by: Member, wanted: Wanted, *, key: str | None, now: float) -> tuple[Invite, str]:
        """An invitation and its token, which is known only here. Raises Refusal or StoreConflict."""
        token = TOKEN_PREFIX + self._secret("invite", by.id, key)
        self.accounts.check_open()
        async with self.accounts.deciding:
            known = await self.accounts.store.invite(cause_id("inv", by.id, key))
            if known is not None:
                return self._known(known, wanted), token
            lender = LINES if wanted.from_pool else by.account
            invite = Invite(
                id=cause_id("inv", by.id, key),
                member=by.id,
                lender=lender,
                credit_line=self._line(by, wanted),
                from_pool=wanted.from_pool,
                note=wanted.note,
                created_at=now,
                expires_at=now + wanted.expires_s,
            )
            await self.accounts.store.create_invite(invite, digest_of(token))
            try:
                await self.accounts.decide(f"{invite.id}/lend/line", lambda: self._lend(invite))
            except Overdrawn:  # a job of the inviter was taken since it was looked at
                await self.accounts.store.forget_invite(invite.id)
                raise self._too_little(by, invite.credit_line) from None
            return invite, token

    async def accept(self, token: str, name: str, *, key: str | None, now: float) -> tuple[Member, str]:
        """A new member and its first key, which is known only here.

        With the same `key` (an Idempotency-Key) the same answer is given again, should it have been lost.
        Raises InviteRefused, NameTaken, StoreError or Refusal.
        """
        first = keys.NewKey(keys.PREFIX + self._secret("accept", digest_of(token), key))
        self.accounts.check_open()
        async with self.accounts.deciding:
            await self._expire(now)
            store = self.accounts.store
            try:
                invite, member = await store.accept_invite(digest_of(token), name, FIRST_KEY_NAME, first, now)
            except InviteUsed:
                again = await store.authenticate(first.digest, now)
                used = await store.invite_by_digest(digest_of(token))
                if again is None or used is None or used.accepted_by != again.member.id:
                    raise
                if again.member.name != name.strip():
                    message = "This Idempotency-Key was used for another name."
                    raise Refusal(409, "idempotency_conflict", message, type="conflict_error") from None
                invite, member = used, again.member
            await self._settle(invite)
        return member, first.text

    async def revoke(self, invite_id: str, *, member: MemberId | None, now: float) -> Invite:
        """The line goes back to who lent it. Raises Unknown, InviteUsed or Refusal."""
        self.accounts.check_open()
        async with self.accounts.deciding:
            invite = await self.accounts.store.revoke_invite(invite_id, now, member=member)
            await self._settle(invite)
        return invite

    async def sweep(self, now: float) -> None:
        """Lines of invitations whose time is over go back."""
        if self.accounts.trouble or not await self.accounts.store.expired_invites(now):
            return
        async with self.accounts.deciding:
            await self._expire(now)

    async def resume(self, now: float) -> None:
        """Finish what a crash cut off, and what time has ended."""
        async with self.accounts.deciding:
            for invite in await self.accounts.store.unlent_invites():
                await self.accounts.store.forget_invite(invite.id)
            for invite in await self.accounts.store.unsettled_invites():
                await self._settle(invite)
            await self._expire(now)

    async def settle_of(self, member: MemberId) -> None:
        """Of a member whose account is closed. The caller decides alone (`Accounts.deciding`)."""
        for invite in await self.accounts.store.unsettled_invites(member=member):
            await self._settle(invite)

    async def _expire(self, now: float) -> None:
        for invite in await self.accounts.store.expired_invites(now):
            ended = await self.accounts.store.revoke_invite(invite.id, now)
            await self._settle(ended)
            log.info("invitation expired", action="invite_expired", invite=invite.id)

    async def _settle(self, invite: Invite) -> None:
        """The line goes where the row says, once."""
        state = invite.state
        assert state is not InviteState.OPEN, "it has ended"
        to = invite.lender if invite.accepted_account is None else invite.accepted_account
        self.accounts.know(to)
        said = details.of_invite(invite.id, invite.lender, state.value)
        await self.accounts.record(entries.ended(invite.id, to, invite.credit_line, said))

    def _lend(self, invite: Invite) -> Entry:
        said = details.of_invite(invite.id, invite.lender, InviteState.OPEN.value)
        return entries.set_aside(invite.id, invite.lender, invite.credit_line, said)

    def _line(self, by: Member, wanted: Wanted) -> int:
        """What is set aside. Raises Refusal if more was asked for than can be lent."""
        if wanted.from_pool:
            return self.usual_line if wanted.credit_line is None else wanted.credit_line
        can = lendable(self.accounts.account(by.account))
        if wanted.credit_line is None:
            return min(self.usual_line, can)
        if wanted.credit_line > can:
            raise self._too_little(by, wanted.credit_line)
        return wanted.credit_line

    def _too_little(self, by: Member, line: int) -> Refusal:
        can = lendable(self.accounts.account(by.account))
        message = (
            f"You cannot lend a credit line of {credits_of(line)}: {credits_of(can)} of your own is neither"
            " owed nor lent. Ask for less, or leave credit_line out."
        )
        extra = {"potluck": {"credit_line": line, "lendable": can}}
        return Refusal(402, "insufficient_credits", message, type="insufficient_credits", extra=extra)

    def _known(self, known: Invite, wanted: Wanted) -> Invite:
        line = known.credit_line if wanted.credit_line is None else wanted.credit_line
        asked = replace(
            known,
            credit_line=line,
            note=wanted.note,
            from_pool=wanted.from_pool,
            expires_at=known.created_at + wanted.expires_s,
        )
        if asked != known:
            message = f"This Idempotency-Key was used for another invitation ({known.id})."
            raise Refusal(409, "idempotency_conflict", message, type="conflict_error")
        return known

    def _secret(self, purpose: str, who: str, key: str | None) -> str:
        """43 characters, random; or, with a key, the same for the same request, and only for this pool."""
        if key is None:
            return secrets.token_urlsafe(32)
        signed = self.sign(f"potluck {purpose} v1\n{who}\n{key}".encode())
        return base64.urlsafe_b64encode(sha256(signed).digest()).decode("ascii").rstrip("=")


def looks_like_invite(text: str) -> bool:
    """Tells a mistyped token from an unknown one, without asking the database."""
    return _TOKEN.fullmatch(text) is not None


def digest_of(token: str) -> str:
    """What the database keeps: 256 random bits need no slow hash."""
    return sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
