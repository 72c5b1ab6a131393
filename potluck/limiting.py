"""The part of the SDK that is about keys and limits; `potluck.Pool` has it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from potluck.results import Key, Limits, NewKey, plain, read, read_listed
from potluck.transport import Transport, path_of, path_of_name


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitUse:
    """One limit with what is used of it. `of` is what is counted: a member over all keys, or a key.

    `allowed` None: no limit. `limit` is a field of `Limits`; credits are microcredits, and count what running
    jobs hold. `set_by`: pool, member or key.
    """

    of: str
    name: str
    limit: str
    allowed: int | None = None
    used: int = 0
    renews_at: str | None = None
    set_by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberLimits:
    """A member's own limits, and those that hold, the pool's included."""

    id: str
    name: str
    limits: Limits = field(default_factory=Limits)
    effective: Limits = field(default_factory=Limits)


class Limiting:
    _transport: Transport

    def keys(self) -> list[Key]:
        return read_listed(Key, self._transport.get("/pool/v1/keys"))

    def create_key(
        self,
        name: str,
        *,
        member: str | None = None,
        expires_s: int | None = None,
        scopes: Sequence[str] | None = None,
        models: Sequence[str] | None = None,
        limits: Limits | None = None,
    ) -> NewKey:
        """The new key's secret is in this answer and nowhere else.

        `member`: for another member who lost theirs, by name or id (for admins).
        What is left out is as with the key that asks. Scopes: `inference`, `read`, `account`, `admin`.
        """
        given: dict[str, Any] = {
            "expires_s": expires_s,
            "scopes": None if scopes is None else list(scopes),
            "models": None if models is None else list(models),
            "limits": None if limits is None else _set(limits) or None,
        }
        body = {"name": name} | {key: value for key, value in given.items() if value is not None}
        path = "/pool/v1/keys" if member is None else path_of_name("/pool/v1/members", member, "keys")
        return read(NewKey, self._transport.post(path, body))

    def revoke_key(self, key_id: str, *, force: bool = False) -> None:
        """`force`: also your own last key, without which only an admin can let you in again."""
        params = {"force": "true"} if force else None
        self._transport.delete(path_of("/pool/v1/keys", key_id), params)

    def limits(self) -> list[LimitUse]:
        """All that limits this key and its member, with what is used now."""
        return read_listed(LimitUse, self._transport.get("/pool/v1/limits"))

    def member_limits(self, member: str) -> MemberLimits:
        """For admins; by name or id."""
        return read(MemberLimits, self._transport.get(path_of_name("/pool/v1/members", member, "limits")))

    def set_member_limits(self, member: str, limits: Limits) -> MemberLimits:
        """For admins. All of the member's own limits: None is as the pool has it, 0 is none in any case."""
        path = path_of_name("/pool/v1/members", member, "limits")
        return read(MemberLimits, self._transport.put(path, _set(limits)))


def _set(limits: Limits) -> Mapping[str, Any]:
    return {name: value for name, value in plain(limits).items() if value is not None}
