"""The part of the SDK about accounts: send, grant, invite, and what admins do with members.

Amounts are integer microcredits. Whatever moves credits carries an Idempotency-Key, drawn here unless one is
given, so that a second try after a lost answer never pays twice.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote

from potluck.errors import NotFound
from potluck.results import Key, MemberRef, read, read_all
from potluck.transport import Transport

IDEMPOTENCY_BYTES: Final = 16
PART_CHARS_MAX: Final = 128
ACCEPT_TIMEOUT_S: Final = 60.0
ACCEPT_RETRIES_MAX: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """What was sent, and what the sender has left."""

    id: str
    to: MemberRef
    amount: int
    at: str
    note: str | None = None
    balance: int
    reserved: int
    available: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Commons:
    balance: int
    available: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    id: str
    to: MemberRef
    amount: int
    at: str
    reason: str
    commons: Commons


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberAccount:
    """A member with its account, as admins see it. `why` says so, where the state is not active."""

    id: str
    name: str
    role: str
    state: str
    why: str | None = None
    account: str
    balance: int
    credit_line: int
    created_at: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Invite:
    """`state`: open, accepted, revoked or expired."""

    id: str
    state: str
    by: str
    credit_line: int
    from_pool: bool = False
    note: str | None = None
    created_at: str | None = None
    expires_at: str
    accepted_by: str | None = None
    ended_at: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewInvite:
    """An invitation with its token, which is shown this once."""

    id: str
    token: str = field(repr=False)
    credit_line: int
    from_pool: bool = False
    note: str | None = None
    expires_at: str
    commands: tuple[str, ...] = field(default=(), repr=False)  # they hold the token


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """The new member with the first key, which is shown this once."""

    id: str
    name: str
    key: str = field(repr=False)
    credit_line: int
    pool: str = ""


class Membership:
    """Inherited by `Pool`, which has the connection."""

    _transport: Transport

    def send(self, to: str, amount: int, *, note: str = "", idempotency_key: str | None = None) -> Transfer:
        """Send what you have to another member, by name or id. Raises InsufficientCredits, LimitReached."""
        body = {"to": to, "amount": amount} | ({"note": note} if note else {})
        return read(Transfer, self._pay("/pool/v1/transfers", body, idempotency_key))

    def grant(self, member: str, amount: int, reason: str, *, idempotency_key: str | None = None) -> Grant:
        """Give out of the commons. For admins."""
        body = {"member": member, "amount": amount, "reason": reason}
        return read(Grant, self._pay("/pool/v1/grants", body, idempotency_key))

    def member(self, member: str) -> MemberAccount:
        """One member by name or id. For admins."""
        return read(MemberAccount, self._transport.get(_member_path(member)))

    def set_member(
        self, member: str, *, credit_line: int | None = None, role: str | None = None
    ) -> MemberAccount:
        """Change what is given; the rest stays. For admins."""
        given = {"credit_line": credit_line, "role": role}
        body = {name: value for name, value in given.items() if value is not None}
        return read(MemberAccount, self._transport.patch(_member_path(member), body))

    def freeze(self, member: str, reason: str) -> MemberAccount:
        """The member may look and earn, and nothing else. For admins."""
        return self._move(member, "freeze", {"reason": reason})

    def unfreeze(self, member: str) -> MemberAccount:
        return self._move(member, "unfreeze", {})

    def close_member(
        self, member: str, *, reason: str | None = None, confirm: str | None = None
    ) -> MemberAccount:
        """Close an account for good; the own one with its name as `confirm`, any other as an admin."""
        given = {"reason": reason, "confirm": confirm}
        return self._move(member, "close", {name: text for name, text in given.items() if text is not None})

    def invite(
        self,
        *,
        credit_line: int | None = None,
        expires_s: int | None = None,
        note: str = "",
        from_pool: bool = False,
        idempotency_key: str | None = None,
    ) -> NewInvite:
        """Let one person in; the line is lent out of your own (`from_pool`: the pool's, for admins)."""
        given = {"credit_line": credit_line, "expires_s": expires_s, "note": note or None}
        body: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if from_pool:
            body["from_pool"] = True
        return read(NewInvite, self._pay("/pool/v1/invites", body, idempotency_key))

    def invites(self, *, everybody: bool = False) -> list[Invite]:
        """Your own, or as an admin all."""
        answer = self._transport.get("/pool/v1/invites", {"all": "true"} if everybody else None)
        return read_all(Invite, answer.get("data") if isinstance(answer, dict) else None)

    def revoke_invite(self, invite_id: str) -> None:
        """Take it back while nobody has accepted it."""
        self._transport.delete(f"/pool/v1/invites/{_part(invite_id, 'invitation')}")

    def member_keys(self, member: str) -> list[Key]:
        """For admins."""
        answer = self._transport.get(_member_path(member, "keys"))
        return read_all(Key, answer.get("data") if isinstance(answer, dict) else None)

    def _move(self, member: str, verb: str, body: Mapping[str, Any]) -> MemberAccount:
        path = _member_path(member, verb)
        return read(MemberAccount, self._pay(path, body, None))

    def _pay(self, path: str, body: Mapping[str, Any], idempotency_key: str | None) -> Any:
        return self._transport.post(path, body, idempotency_key=idempotency_key or drawn_key())


def accept_invite(url: str, token: str, name: str, *, retries_max: int = ACCEPT_RETRIES_MAX) -> Accepted:
    """Become a member of the pool at this address. No key is needed; the answer brings one."""
    transport = Transport(url, None, timeout_s=ACCEPT_TIMEOUT_S, retries_max=retries_max)
    try:
        body = {"token": token, "name": name}
        answer = transport.post("/pool/v1/invites/accept", body, idempotency_key=drawn_key())
    finally:
        transport.close()
    return read(Accepted, answer)


def _member_path(member: str, *more: str) -> str:
    return "/".join(("/pool/v1/members", _part(member, "member"), *more))


def _part(named: str, what: str) -> str:
    """A name or id as a part of a path: what could not be one is not sent, nor becomes another path."""
    if not named.strip(". ") or "/" in named or len(named) > PART_CHARS_MAX or not named.isprintable():
        raise NotFound(f"{named[:PART_CHARS_MAX]!r} names no {what}. Give an id as the lists show them.")
    return quote(named, safe="")


def drawn_key() -> str:
    return secrets.token_hex(IDEMPOTENCY_BYTES)
