"""Who is asking: the bearer key's digest finds the member; wrong keys and busy members are slowed down.

A route says which scope it needs: a key may do what its scopes and its member's role both allow, as they are
when it is used.

Nobody is authenticated by address. Addresses only bound how often wrong keys may be tried: a failure counts
against the address and against the address with the key's beginning, and beyond the limit a request is
answered without asking the database. Keys that worked before are always looked up, so that one confused
script does not lock out everybody behind the same router.

A browser that is signed in (`browser`) stands for the key that signed in, and may what that key may.
"""

import asyncio
import ipaddress
from collections import OrderedDict
from dataclasses import dataclass
from typing import TypeVar

from starlette.requests import Request

from coordinator.api.browser import READING, check_csrf, session_of
from coordinator.api.context import Clock
from coordinator.api.errors import ApiError
from coordinator.api.frozen import refuse_frozen, refuse_unaccepted
from coordinator.api.limits import Window
from coordinator.bounds import bounds_of, owner_of, too_many_requests
from coordinator.core.budgets import Bound, Limit
from coordinator.keys import digest_of, looks_like_key
from coordinator.lateness import Lateness
from coordinator.notices.board import Board
from coordinator.presence import Presence
from coordinator.records import ApiKey, Authenticated, Member, Role, Scope
from coordinator.settings import Settings
from coordinator.store import Store

CACHE_S = 5.0
CACHE_MAX = 10_000
KNOWN_MAX = 10_000
FAILURES_MAX = 10
FAILURES_S = 300.0
FAILURE_KEYS_MAX = 50_000
LIMITED_MAX = 20_000  # members and keys
MINUTE_S = 60.0
KEY_CHARS_MAX = 256
KEY_PREFIX_CHARS = 16
BUSY_S = 2.0
ANY_SCOPE = tuple(Scope)

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Caller:
    """The member behind a request, and the key it came with; `bounds` are the limits of both."""

    member: Member
    key: ApiKey
    bounds: tuple[Bound, ...]
    scopes: frozenset[Scope]

    @property
    def admin(self) -> bool:
        return Scope.ADMIN in self.scopes

    def may(self, scopes: tuple[Scope, ...]) -> None:
        """Raises ApiError 403 if it has none of them."""
        if self.scopes.isdisjoint(scopes):
            has = ", ".join(sorted(self.scopes)) or "none that its member may use"
            wanted = " or ".join(scopes)
            message = (
                f"Key {self.key.name} may not do this: it needs the scope {wanted}, and the key has {has}. "
                f"`potluck keys create NAME --scope {scopes[0]}` makes one that may."
            )
            raise ApiError(403, "scope_missing", message)

    def may_give(self) -> None:
        """Raises ApiError 403 for a key with a budget: what it can give away, the budget would not bound."""
        of_keys = (bound.limits for bound in self.bounds if bound.subject != self.member.id)
        if any(
            limits.credits_per_day is not None or limits.credits_per_month is not None for limits in of_keys
        ):
            message = (
                f"Key {self.key.name} has a limit of credits, which is for jobs: it cannot give credits or a"
                " credit line away. Use a key of yours without one."
            )
            raise ApiError(403, "key_limited", message)


class Auth:
    def __init__(
        self,
        store: Store,
        clock: Clock,
        settings: Settings,
        board: Board,
        presence: Presence,
        lateness: Lateness,
    ) -> None:
        self._store, self._clock, self._settings, self._lateness = store, clock, settings, lateness
        self._board, self._presence = board, presence
        self._cache: OrderedDict[str, tuple[float, Caller]] = OrderedDict()
        self._known: OrderedDict[str, None] = OrderedDict()
        self._asked: dict[str, asyncio.Task[Authenticated | None]] = {}  # being looked up, by digest
        self._epoch = 0
        self._failures = Window(FAILURES_S, FAILURE_KEYS_MAX)
        # Two budgets, so that a member whose jobs used one up can still look at them and cancel them.
        self._work = Window(MINUTE_S, LIMITED_MAX)
        self._looks = Window(MINUTE_S, LIMITED_MAX)

    async def work(self, request: Request) -> Caller:
        """The caller of a route that costs work, by the scope inference. Raises ApiError 401, 403, 429, 503.

        Whoever it is, is noted in the request's state: what a 429 says of the limits is said to them.
        """
        if self._lateness.too_late:
            message = "The coordinator is behind with what it has taken. Try again in a moment."
            raise ApiError(503, "coordinator_busy", message, retry_after_s=BUSY_S)
        caller = request.state.caller = await self._caller(request)
        self._slow_down(self._work, caller, self._clock.now())
        caller.may((Scope.INFERENCE,))
        await self._refuse(caller.member)
        return caller

    async def look(self, request: Request, *scopes: Scope) -> Caller:
        """The caller of any other route, by one of the scopes. Raises ApiError 401, 403 or 429.

        Where a route names none, reading needs `read` and changing anything needs `account`.
        """
        caller = await self._caller(request)
        self._slow_down(self._looks, caller, self._clock.now())
        caller.may(scopes or ((Scope.READ if request.method in READING else Scope.ACCOUNT),))
        return caller

    async def act(self, request: Request) -> Caller:
        """The caller of a route that gives or changes something. Raises ApiError 401, 403 or 429."""
        caller = await self.look(request)
        await self._refuse(caller.member)
        return caller

    async def admin(self, request: Request) -> Caller:
        """The caller of a route for admins. Raises ApiError 401, 403 or 429."""
        caller = await self.look(request, *ANY_SCOPE)
        if caller.member.role is not Role.ADMIN:
            message = (
                f"This needs an admin's key; {caller.member.name} has the role {caller.member.role.value}."
            )
            raise ApiError(403, "admin_needed", message)
        await refuse_frozen(self._store, caller.member)
        caller.may((Scope.ADMIN,))
        return caller

    async def _refuse(self, member: Member) -> None:
        """Raises ApiError 403 for a member who may only look just now."""
        await refuse_frozen(self._store, member)
        if self._settings.terms_required:
            refuse_unaccepted(self._board, member)

    def requests(self, subject: str) -> tuple[int, float]:
        """Requests for work in the last minute, and when none will be counted if none comes until then."""
        now = self._clock.now()
        return self._work.used(subject, now), self._work.empty_at(subject, now)

    def forget(self) -> None:
        """Something was revoked or changed: every key is looked up again, also those being looked up now."""
        self._cache.clear()
        self._asked.clear()
        self._epoch += 1

    async def _caller(self, request: Request) -> Caller:
        caller = request.state.by = await self._found_caller(request)
        self._presence.saw(caller.member.id, self._clock.now())
        return caller

    async def _found_caller(self, request: Request) -> Caller:
        now = self._clock.now()
        secret, browser = _secret_of(request)
        key_digest = digest_of(secret)
        cached = self._cache.get(key_digest)
        if cached is not None and cached[0] > now:
            return cached[1]
        counted = self._counted(request, "browser" if browser else secret[:KEY_PREFIX_CHARS])
        if key_digest not in self._known:
            self._refuse_counted(counted, now)
        epoch = self._epoch
        found = await self._look_up(key_digest, browser=browser)
        if found is None:
            self._cache.pop(key_digest, None)
            self._known.pop(key_digest, None)
            for name in counted:
                self._failures.add(name, FAILURES_MAX, now)
            raise _signed_out() if browser else _wrong_key()
        _remember(self._known, key_digest, None, KNOWN_MAX)
        caller = self.caller_of(found)
        if epoch == self._epoch:
            expires_at = self._clock.now() + CACHE_S
            if found.key.expires_at is not None:
                expires_at = min(expires_at, found.key.expires_at)
            _remember(self._cache, key_digest, (expires_at, caller), CACHE_MAX)
        return caller

    def caller_of(self, found: Authenticated) -> Caller:
        member, key = found.member, found.key
        return Caller(member, key, bounds_of(member, key, self._settings), key.scopes_for(member))

    async def _look_up(self, secret_digest: str, *, browser: bool) -> Authenticated | None:
        """One question for all requests of a key: a busy member's come together when the cache ends."""
        task = self._asked.get(secret_digest)
        if task is None:
            task = asyncio.create_task(self._found(secret_digest, browser=browser))
            self._asked[secret_digest] = task
        try:
            return await asyncio.shield(task)
        finally:
            if self._asked.get(secret_digest) is task:
                del self._asked[secret_digest]

    async def _found(self, secret_digest: str, *, browser: bool) -> Authenticated | None:
        now = self._clock.now()
        if not browser:
            return await self._store.authenticate(secret_digest, now)
        key_digest = await self._store.key_of_session(secret_digest, now)
        return None if key_digest is None else await self._store.authenticate(key_digest, now)

    async def sign_in(self, request: Request, key: str) -> Caller:
        """Whose key this is, which came in a form. Raises ApiError 401 or 429."""
        counted = self._counted(request, key[:KEY_PREFIX_CHARS])
        self._refuse_counted(counted, now := self._clock.now())
        found = await self._store.authenticate(digest_of(key), now) if looks_like_key(key) else None
        if found is None:
            for name in counted:
                self._failures.add(name, FAILURES_MAX, now)
            raise _wrong_key()
        return self.caller_of(found)

    def refuse_guessers(self, request: Request) -> None:
        """For routes whose secret is in the body. Raises ApiError 429."""
        self._refuse_counted(self._counted(request, ""), self._clock.now())

    def count_failure(self, request: Request, secret: str) -> None:
        """A wrong secret of another kind than a key: join tokens, signatures."""
        for name in self._counted(request, secret):
            self._failures.add(name, FAILURES_MAX, self._clock.now())

    def _counted(self, request: Request, beginning: str) -> tuple[str, str]:
        """The names that a failure counts under."""
        address = client_address(request, behind_proxy=self._settings.behind_proxy)
        return address, f"{address} {beginning}"

    def _refuse_counted(self, counted: tuple[str, ...], now: float) -> None:
        wait_s = max(self._failures.wait_s(name, FAILURES_MAX, now) for name in counted)
        if wait_s > 0:
            message = (
                f"More than {FAILURES_MAX} requests with a wrong secret came from your address within "
                f"{FAILURES_S / 60:.0f} minutes. Check it, then try again in {wait_s:.0f} s."
            )
            raise ApiError(429, "too_many_failures", message, retry_after_s=wait_s, retry=False)

    def _slow_down(self, window: Window, caller: Caller, now: float) -> None:
        limited = [(b, most) for b in caller.bounds if (most := b.limits.requests_per_minute) is not None]
        for bound, most in limited:
            if (wait_s := window.wait_s(bound.subject, most, now)) > 0:
                owner = owner_of(bound, Limit.REQUESTS, caller.member, caller.key)
                message = too_many_requests(owner, most, wait_s)
                raise ApiError(429, "rate_limit_exceeded", message, retry_after_s=wait_s)
        for bound, most in limited:
            window.add(bound.subject, most, now)


def _remember(cache: OrderedDict[str, Value], key: str, value: Value, items_max: int) -> None:
    cache[key] = value
    cache.move_to_end(key)
    if len(cache) > items_max:
        cache.popitem(last=False)


def _secret_of(request: Request) -> tuple[str, bool]:
    """The key, or the cookie of a browser that sends none; which of them. Raises ApiError 401 or 403."""
    session = session_of(request)
    if session is None or "authorization" in request.headers:
        return bearer_key(request), False
    check_csrf(request, session)
    return session, True


def _wrong_key() -> ApiError:
    message = (
        "This API key is not valid here: it is mistyped, expired, revoked, or of another pool. "
        "`potluck login URL` stores a new one."
    )
    return ApiError(401, "invalid_api_key", message)


def _signed_out() -> ApiError:
    return ApiError(401, "signed_out", "You are not signed in any more. Sign in again.")


def bearer_key(request: Request) -> str:
    """The key of `Authorization: Bearer KEY` (RFC 6750). Raises ApiError 401."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    key = key.strip()
    if scheme.lower() != "bearer" or not key:
        message = "An API key is needed: send the header `Authorization: Bearer sk-potluck-...`."
        raise ApiError(401, "missing_api_key", message)
    if len(key) > KEY_CHARS_MAX or not key.isascii():
        raise ApiError(401, "invalid_api_key", "This is no API key of a Potluck pool.")
    return key


def client_address(request: Request, *, behind_proxy: bool) -> str:
    """The client's address; an IPv6 one as its /64, since a home has that many. For limits only.

    Behind a proxy it is the last one that the proxy itself wrote; what stands left of it is hearsay.
    """
    address = request.client.host if request.client else "unknown"
    if behind_proxy:
        forwarded = request.headers.getlist("x-forwarded-for")
        if forwarded:
            address = forwarded[-1].rsplit(",", 1)[-1].strip()[:64] or address
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is None:
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
