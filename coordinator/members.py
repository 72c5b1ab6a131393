"""Members, their accounts and their API keys."""

import json
from collections.abc import Iterable
from typing import Any, Final

from sqlmodel import and_, col, func, or_, select
from sqlmodel.ext.asyncio.session import AsyncSession

from coordinator import keys, tables
from coordinator.bounds import limits_of, limits_text
from coordinator.core.budgets import NO_LIMITS, Limits
from coordinator.core.entries import OPENED
from coordinator.core.jobs import AccountId, MemberId
from coordinator.core.ledger import COMMONS, LINES
from coordinator.database import Database
from coordinator.ids import new_id
from coordinator.naming import clean_name, folded, member_name
from coordinator.records import Ancestor, ApiKey, Authenticated, Member, MemberState, Role, Scope
from coordinator.store_errors import LastAdmin, LastKey, NameTaken, StoreConflict, StoreError, Unknown

KEYS_PER_MEMBER_MAX: Final = 100


class Members(Database):
    async def create_own_accounts(self, commons_line: int) -> None:
        """The pool's own two accounts: the commons, and the one that lends credit lines. Once."""
        _check_line(commons_line)
        async with self.changing() as session:
            for account, line in ((LINES, 0), (COMMONS, commons_line)):
                if await session.get(tables.Account, account) is None:
                    session.add(tables.Account(id=account, opening_line=line))

    async def create_member(
        self,
        name: str,
        role: Role,
        opening_line: int,
        key_name: str,
        now: float,
        *,
        key: keys.NewKey | None = None,
    ) -> tuple[Member, str]:
        """A member with an account and a first key; the key's text is known only here and now.

        The line is lent by an entry that the caller posts; until then it stands in `unopened`. Raises
        NameTaken, or StoreError for a name or a line that cannot be one.
        """
        _check_line(opening_line)
        key = key or keys.generate()
        async with self.changing() as session:
            account = tables.Account(opening_line=opening_line)
            return await add_member(session, name, role, account, key_name, key, now), key.text

    async def members(self) -> list[Member]:
        """All, by name."""
        async with self.viewing() as session:
            rows = await session.exec(with_account().order_by(tables.Member.name_folded))
            return [member_of(*row) for row in rows.all()]

    async def member(self, member_id: MemberId) -> Member | None:
        return await self._one(tables.Member.id == member_id)

    async def member_by_name(self, name: str) -> Member | None:
        """Alice is found by alice."""
        return await self._one(tables.Member.name_folded == folded(name))

    async def unopened(self) -> list[tuple[AccountId, int]]:
        """Accounts whose opening line is not yet in the ledger, as a crash may leave them."""
        opened = select(tables.Entry.id)
        waiting = select(tables.Account.id, tables.Account.opening_line).where(
            col(tables.Account.opening_line) > 0,
            (col(tables.Account.id) + OPENED).not_in(opened),
        )
        async with self.viewing() as session:
            rows = await session.exec(waiting.order_by(tables.Account.id))
            return [(AccountId(account), line) for account, line in rows.all()]

    async def authenticate(self, key_digest: str, now: float) -> Authenticated | None:
        """Whose key this is; None if it is unknown, revoked or expired."""
        found = (
            select(tables.ApiKey, tables.Member, tables.Account)
            .join(tables.Member, col(tables.Member.id) == tables.ApiKey.member_id)
            .join(tables.Account, col(tables.Account.member_id) == tables.Member.id)
            .where(tables.ApiKey.digest == key_digest)
        )
        async with self.viewing() as session:
            row = (await session.exec(found)).first()
            if row is None:
                return None
            key, member, account = row
            expired = key.expires_at is not None and key.expires_at <= now
            if key.revoked_at is not None or expired or not keys.same_digest(key.digest, key_digest):
                return None
            if member.state == MemberState.CLOSED:
                return None
            return Authenticated(member=member_of(member, account), key=_key_of(key))

    async def set_limits(self, member_id: MemberId, limits: Limits) -> Member:
        """The member's own limits from now on. Raises Unknown. The caller forgets what it remembers."""
        async with self.changing() as session:
            row = (await session.exec(with_account().where(tables.Member.id == member_id))).first()
            if row is None:
                raise Unknown(f"there is no member {member_id}")
            row[0].limits = limits_text(limits)
            session.add(row[0])
            return member_of(*row)

    async def create_key(
        self,
        member_id: MemberId,
        name: str,
        now: float,
        *,
        expires_at: float | None = None,
        scopes: Iterable[Scope] = (),
        models: Iterable[str] = (),
        limits: Limits = NO_LIMITS,
        within: tuple[Ancestor, ...] = (),
        key: keys.NewKey | None = None,
    ) -> tuple[ApiKey, str]:
        """A further key; its text is known only here.

        Raises Unknown, or StoreConflict at the limit and for a member whose account is closed.
        """
        key = key or keys.generate()
        row = _key_row(member_id, name, key, now, expires_at)
        row.scopes = json.dumps(sorted(scopes))
        row.models = json.dumps(list(models))
        row.limits = limits_text(limits, within)
        mine = select(func.count()).where(
            tables.ApiKey.member_id == member_id, col(tables.ApiKey.revoked_at).is_(None)
        )
        async with self.changing() as session:
            member = await session.get(tables.Member, member_id)
            if member is None:
                raise Unknown(f"there is no member {member_id}")
            if member.state == MemberState.CLOSED:
                raise StoreConflict(f"the account of {member.name} is closed: it gets no key any more")
            if (await session.exec(mine)).one() >= KEYS_PER_MEMBER_MAX:
                raise StoreConflict(f"a member has at most {KEYS_PER_MEMBER_MAX} keys: revoke one first")
            session.add(row)
            return _key_of(row), key.text

    async def list_keys(self, member_id: MemberId) -> list[ApiKey]:
        """Revoked ones too, the oldest first."""
        mine = select(tables.ApiKey).where(tables.ApiKey.member_id == member_id)
        async with self.viewing() as session:
            rows = await session.exec(mine.order_by(col(tables.ApiKey.created_at), tables.ApiKey.id))
            return [_key_of(row) for row in rows.all()]

    async def revoke_key(
        self, key_id: str, now: float, *, member: MemberId | None = None, keep_one_of: MemberId | None = None
    ) -> ApiKey:
        """The key from now on. With `member`, only a key of that member; a second call changes nothing.

        The last usable key of all admins is never revoked, and of `keep_one_of` not the last one either.
        Raises Unknown, LastKey or LastAdmin. The caller forgets what it remembers of the key.
        """
        async with self.changing() as session:
            row = await session.get(tables.ApiKey, key_id)
            if row is None or (member is not None and row.member_id != member):
                raise Unknown(f"there is no key {key_id}")
            if row.revoked_at is None:
                await _check_others(session, row, now, keep_one_of)
                row.revoked_at = now
                session.add(row)
            return _key_of(row)

    async def _one(self, condition: Any) -> Member | None:
        async with self.viewing() as session:
            row = (await session.exec(with_account().where(condition))).first()
            return None if row is None else member_of(*row)


async def add_member(
    session: AsyncSession,
    name: str,
    role: Role,
    account: tables.Account,
    key_name: str,
    key: keys.NewKey,
    now: float,
) -> Member:
    """A member with this account and key, in the caller's transaction. Raises NameTaken or StoreError."""
    name = member_name(name)
    row = tables.Member(
        id=new_id("mem"), name=name, name_folded=folded(name), role=role.value, created_at=now
    )
    account.id, account.member_id = new_id("acc"), row.id
    named = select(tables.Member.id).where(tables.Member.name_folded == row.name_folded)
    if (await session.exec(named)).first() is not None:
        raise NameTaken(f"there is a member named {name} already: choose another name")
    session.add(row)
    await session.flush()  # others refer to it
    session.add_all((account, _key_row(MemberId(row.id), key_name, key, now)))
    return member_of(row, account)


def usable(now: float) -> Any:
    """The condition that a key opens something."""
    expires_at = col(tables.ApiKey.expires_at)
    return and_(col(tables.ApiKey.revoked_at).is_(None), or_(expires_at.is_(None), expires_at > now))


def admin_keys(now: float) -> Any:
    """The usable keys of admins who may act."""
    return (
        select(tables.ApiKey.id)
        .join(tables.Member, col(tables.Member.id) == tables.ApiKey.member_id)
        .where(
            tables.Member.role == Role.ADMIN,
            tables.Member.state == MemberState.ACTIVE,
            usable(now),
            or_(tables.ApiKey.scopes == "[]", col(tables.ApiKey.scopes).contains(f'"{Scope.ADMIN}"')),
        )
    )


async def _check_others(
    session: AsyncSession, row: tables.ApiKey, now: float, keep_one_of: MemberId | None
) -> None:
    """Raises LastAdmin or LastKey if the key is the last usable one of its kind."""
    others = (await session.exec(admin_keys(now).where(tables.ApiKey.id != row.id))).first()
    mine = (await session.exec(admin_keys(now).where(tables.ApiKey.id == row.id))).first()
    if mine is not None and others is None:
        raise LastAdmin(
            "this is the last key of the last admin: make another one first (`potluck keys create`)"
        )
    if row.member_id != keep_one_of:
        return
    rest = select(tables.ApiKey.id).where(
        tables.ApiKey.member_id == row.member_id, tables.ApiKey.id != row.id, usable(now)
    )
    if (await session.exec(rest)).first() is None:
        raise LastKey(
            "this is your last key: without it only an admin can let you in again. Make another one first"
            " (`potluck keys create`), or say that you mean it (--force, `?force=true`)"
        )


def _check_line(credit_line: int) -> None:
    if credit_line < 0:
        raise StoreError("a credit line is 0 or more microcredits")


def with_account() -> Any:
    return select(tables.Member, tables.Account).join(
        tables.Account, col(tables.Account.member_id) == tables.Member.id
    )


def _key_row(
    member: MemberId, name: str, key: keys.NewKey, now: float, expires_at: float | None = None
) -> tables.ApiKey:
    return tables.ApiKey(
        id=new_id("key"),
        member_id=member,
        name=clean_name(name),
        digest=key.digest,
        display=key.display,
        created_at=now,
        expires_at=expires_at,
    )


def member_of(row: tables.Member, account: tables.Account) -> Member:
    return Member(
        id=MemberId(row.id),
        name=row.name,
        role=Role(row.role),
        account=AccountId(account.id),
        created_at=row.created_at,
        state=MemberState(row.state),
        why=row.why,
        limits=limits_of(row.limits)[0],
    )


def _key_of(row: tables.ApiKey) -> ApiKey:
    limits, within = limits_of(row.limits)
    return ApiKey(
        id=row.id,
        member=MemberId(row.member_id),
        name=row.name,
        display=row.display,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        scopes=frozenset(Scope(scope) for scope in json.loads(row.scopes)),
        models=tuple(json.loads(row.models)),
        limits=limits,
        within=within,
    )
