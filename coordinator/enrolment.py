"""How workers come into the pool, stay in it, and are shut out: join tokens, workers, certificates."""

from collections.abc import Callable
from typing import Any, Final

from sqlmodel import col, func, select
from sqlmodel.ext.asyncio.session import AsyncSession

from coordinator import tables
from coordinator.core.jobs import AccountId, MemberId, WorkerId
from coordinator.database import Database
from coordinator.ids import new_id
from coordinator.naming import clean_name
from coordinator.records import EnrolledWorker, Issued, JoinTokenRow, MemberState
from coordinator.store_errors import (
    JoinTokenExpired,
    JoinTokenUnknown,
    JoinTokenUsed,
    StoreConflict,
    StoreError,
    Unknown,
    WorkerRevoked,
)

JOIN_TOKEN_USES_MAX: Final = 1_000
WORKERS_PER_MEMBER_MAX: Final = 10_000


class Enrolment(Database):
    async def create_join_token(
        self, member_id: MemberId, *, digest: str, uses: int, expires_at: float, now: float
    ) -> JoinTokenRow:
        """Remember a token by its digest (`JoinToken.digest`). Raises Unknown, or StoreError."""
        if not 1 <= uses <= JOIN_TOKEN_USES_MAX:
            raise StoreError(f"a join token is good for 1 to {JOIN_TOKEN_USES_MAX} workers")
        if expires_at <= now:
            raise StoreError("a join token must expire in the future")
        row = tables.JoinToken(
            id=new_id("tok"),
            member_id=member_id,
            digest=digest,
            uses_max=uses,
            created_at=now,
            expires_at=expires_at,
        )
        async with self.changing() as session:
            member = await session.get(tables.Member, member_id)
            if member is None:
                raise Unknown(f"there is no member {member_id}")
            if member.state == MemberState.CLOSED:
                raise StoreConflict(f"the account of {member.name} is closed: it lets no workers in any more")
            session.add(row)
            return _token_of(row)

    async def consume_join_token(self, digest: str, now: float) -> JoinTokenRow:
        """Spend one use. Raises JoinTokenUnknown, JoinTokenUsed or JoinTokenExpired."""
        async with self.changing() as session:
            return _token_of(await _consume(session, digest, now))

    async def join_token(self, token_id: str) -> JoinTokenRow | None:
        async with self.viewing() as session:
            row = await session.get(tables.JoinToken, token_id)
            return None if row is None else _token_of(row)

    async def enrol_worker(
        self,
        *,
        token_digest: str,
        name: str,
        receipt_key: bytes,
        tls_key: bytes,
        issue: Callable[[WorkerId], Issued],
        now: float,
    ) -> tuple[EnrolledWorker, Issued]:
        """Spend a use of the token, name the worker, issue its first certificate: all or nothing.

        `issue` makes the certificate for the id; when it raises, the token keeps its use. A worker that asks
        again with the same keys and token (the answer was lost on its way) gets a new certificate and stays
        the same worker. Raises JoinTokenRefused, WorkerRevoked, or StoreConflict if its keys belong to
        another worker.
        """
        name = clean_name(name)
        async with self.changing() as session:
            row = await _known(session, token_digest, receipt_key, tls_key)
            if row is None:
                token = await _consume(session, token_digest, now)
                row = tables.Worker(
                    id=new_id("wrk"),
                    name=await _free_name(session, token.member_id, name),
                    member_id=token.member_id,
                    join_token_id=token.id,
                    receipt_key=receipt_key,
                    tls_key=tls_key,
                    certificate_serial="",
                    certificate_until=now,
                    created_at=now,
                )
            issued = await _certify(session, row, issue)
            return _worker_of(row, await _account(session, row.member_id)), issued

    async def renew_certificate(
        self, worker_id: WorkerId, issue: Callable[[WorkerId], Issued]
    ) -> tuple[EnrolledWorker, Issued]:
        """A further certificate; whether the request was the worker's own is checked by the caller.

        Raises Unknown or WorkerRevoked.
        """
        async with self.changing() as session:
            row = await _live(session, worker_id)
            issued = await _certify(session, row, issue)
            return _worker_of(row, await _account(session, row.member_id)), issued

    async def workers(
        self, *, member: MemberId | None = None, token: str | None = None
    ) -> list[EnrolledWorker]:
        """All that were ever enrolled, revoked ones too, the oldest first; of a member, by a join token."""
        statement = _with_account().order_by(col(tables.Worker.created_at), tables.Worker.id)
        if member is not None:
            statement = statement.where(tables.Worker.member_id == member)
        if token is not None:
            statement = statement.where(tables.Worker.join_token_id == token)
        async with self.viewing() as session:
            return [_worker_of(*row) for row in (await session.exec(statement)).all()]

    async def worker(self, worker_id: WorkerId) -> EnrolledWorker | None:
        async with self.viewing() as session:
            row = (await session.exec(_with_account().where(tables.Worker.id == worker_id))).first()
            return None if row is None else _worker_of(*row)

    async def rename_worker(self, worker_id: WorkerId, name: str) -> EnrolledWorker:
        """A number is added if its member has another worker of that name. Raises Unknown, WorkerRevoked."""
        name = clean_name(name)
        async with self.changing() as session:
            row = await _live(session, worker_id)
            if row.name != name:
                row.name = await _free_name(session, row.member_id, name)
            session.add(row)
            return _worker_of(row, await _account(session, row.member_id))

    async def revoke_worker(self, worker_id: WorkerId, now: float) -> EnrolledWorker:
        """For good: its certificates are worth nothing from now on, and none will follow. Raises Unknown."""
        async with self.changing() as session:
            row = await session.get(tables.Worker, worker_id)
            if row is None:
                raise Unknown(f"there is no worker {worker_id}")
            if row.revoked_at is None:
                row.revoked_at = now
                session.add(row)
            return _worker_of(row, await _account(session, row.member_id))


async def _consume(session: AsyncSession, digest: str, now: float) -> tables.JoinToken:
    found = select(tables.JoinToken).where(tables.JoinToken.digest == digest).with_for_update()
    token = (await session.exec(found)).first()
    if token is None:
        raise JoinTokenUnknown("this pool does not know this join token: ask its member for a new one")
    if token.uses >= token.uses_max:
        raise JoinTokenUsed(
            "this join token is used up: make another with `potluck coordinator join-token`, or ask for one"
        )
    if token.expires_at <= now:
        raise JoinTokenExpired(
            "this join token has expired: make another with `potluck coordinator join-token`, or ask for one"
        )
    token.uses += 1
    session.add(token)
    return token


async def _known(
    session: AsyncSession, token_digest: str, receipt_key: bytes, tls_key: bytes
) -> tables.Worker | None:
    """The worker that has these keys already, if this token let it in."""
    found = select(tables.Worker, tables.JoinToken).join(
        tables.JoinToken, col(tables.JoinToken.id) == tables.Worker.join_token_id
    )
    either = (col(tables.Worker.receipt_key) == receipt_key) | (col(tables.Worker.tls_key) == tls_key)
    row = (await session.exec(found.where(either))).first()
    if row is None:
        return None
    worker, token = row
    if token.digest != token_digest or (worker.receipt_key, worker.tls_key) != (receipt_key, tls_key):
        raise StoreConflict(
            "these keys are enrolled already: start the worker as it is, or make new keys to join anew"
        )
    if worker.revoked_at is not None:
        raise _revoked(worker)
    return worker


async def _live(session: AsyncSession, worker_id: WorkerId) -> tables.Worker:
    row = await session.get(tables.Worker, worker_id)
    if row is None:
        raise Unknown(f"there is no worker {worker_id}")
    if row.revoked_at is not None:
        raise _revoked(row)
    return row


def _revoked(row: tables.Worker) -> WorkerRevoked:
    return WorkerRevoked(f"the worker {row.name} was shut out of this pool; ask an admin, or join anew")


async def _free_name(session: AsyncSession, member_id: str, name: str) -> str:
    """The name, or with a number behind it: a reinstalled machine need not think of a new one."""
    mine = (col(tables.Worker.member_id) == member_id) & col(tables.Worker.revoked_at).is_(None)
    count = (await session.exec(select(func.count()).select_from(tables.Worker).where(mine))).one()
    if count >= WORKERS_PER_MEMBER_MAX:
        raise StoreConflict(f"a member has at most {WORKERS_PER_MEMBER_MAX} workers: revoke some first")
    like_it = col(tables.Worker.name).startswith(name, autoescape=True)
    taken = set((await session.exec(select(tables.Worker.name).where(mine, like_it))).all())
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}-{number}"
    return free


async def _certify(session: AsyncSession, row: tables.Worker, issue: Callable[[WorkerId], Issued]) -> Issued:
    issued = issue(WorkerId(row.id))
    row.certificate_serial, row.certificate_until = issued.serial, issued.not_after
    session.add(row)
    await session.flush()  # the certificate refers to it
    session.add(
        tables.Certificate(
            serial=issued.serial,
            worker_id=row.id,
            not_before=issued.not_before,
            not_after=issued.not_after,
        )
    )
    return issued


async def _account(session: AsyncSession, member_id: str) -> tables.Account:
    found = select(tables.Account).where(tables.Account.member_id == member_id)
    return (await session.exec(found)).one()


def _with_account() -> Any:
    return select(tables.Worker, tables.Account).join(
        tables.Account, col(tables.Account.member_id) == tables.Worker.member_id
    )


def _token_of(row: tables.JoinToken) -> JoinTokenRow:
    return JoinTokenRow(
        id=row.id,
        member=MemberId(row.member_id),
        uses=row.uses,
        uses_max=row.uses_max,
        created_at=row.created_at,
        expires_at=row.expires_at,
    )


def _worker_of(row: tables.Worker, account: tables.Account) -> EnrolledWorker:
    return EnrolledWorker(
        id=WorkerId(row.id),
        name=row.name,
        member=MemberId(row.member_id),
        account=AccountId(account.id),
        receipt_key=row.receipt_key,
        tls_key=row.tls_key,
        certificate_serial=row.certificate_serial,
        certificate_until=row.certificate_until,
        created_at=row.created_at,
        revoked_at=row.revoked_at,
    )
