"""How workers come in, stay in and are shut out."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from fixtures_store import NOW, World, world

from coordinator.ca import CsrError
from coordinator.core.jobs import MemberId, WorkerId
from coordinator.records import EnrolledWorker, Issued
from coordinator.store_errors import (
    JoinTokenExpired,
    JoinTokenUnknown,
    JoinTokenUsed,
    StoreConflict,
    StoreError,
    Unknown,
    WorkerRevoked,
)

pytestmark = pytest.mark.usefixtures("on_both")


def issue(worker: WorkerId) -> Issued:
    issue_count.append(worker)
    return Issued(
        pem=b"pem", serial=f"{len(issue_count):x}", not_before=NOW, not_after=NOW + len(issue_count)
    )


issue_count: list[WorkerId] = []


async def token(pool: World, digest: str, *, uses: int = 1, member: int = 0) -> None:
    await pool.store.create_join_token(
        pool.members[member].id, digest=digest, uses=uses, expires_at=NOW + 60, now=NOW
    )


async def enrol(pool: World, digest: str, seed: int, **more: Any) -> EnrolledWorker:
    asked: dict[str, Any] = {
        "token_digest": digest,
        "name": "desk",
        "receipt_key": seed.to_bytes(32),
        "tls_key": seed.to_bytes(91),
        "issue": issue,
        "now": NOW,
    }
    return (await pool.store.enrol_worker(**(asked | more)))[0]


async def test_unknown_used_and_expired_tokens_are_told_apart(tmp_path: Path) -> None:
    async with world(tmp_path) as pool:
        await token(pool, "a" * 64, uses=2)
        with pytest.raises(JoinTokenUnknown):
            await pool.store.consume_join_token("b" * 64, NOW)
        with pytest.raises(JoinTokenExpired):
            await pool.store.consume_join_token("a" * 64, NOW + 60)
        assert (await pool.store.consume_join_token("a" * 64, NOW)).uses == 1
        assert (await pool.store.consume_join_token("a" * 64, NOW)).uses == 2
        with pytest.raises(JoinTokenUsed):
            await pool.store.consume_join_token("a" * 64, NOW)


async def test_a_token_is_spent_once_by_whoever_races(tmp_path: Path) -> None:
    async with world(tmp_path) as pool:
        await token(pool, "a" * 64, uses=3)
        tries = [enrol(pool, "a" * 64, 100 + n) for n in range(10)]
        results = await asyncio.gather(*tries, return_exceptions=True)
        assert sum(isinstance(result, EnrolledWorker) for result in results) == 3
        assert sum(isinstance(result, JoinTokenUsed) for result in results) == 7
        names = [worker.name for worker in await pool.store.workers(member=pool.members[0].id)]
        assert names == ["worker-0", "desk", "desk-2", "desk-3"]


async def test_a_bad_request_does_not_spend_the_token(tmp_path: Path) -> None:
    """The certificate is made inside the transaction: when it cannot be, nothing happened."""
    async with world(tmp_path) as pool:
        await token(pool, "a" * 64)

        def refuse(_: WorkerId) -> Issued:
            raise CsrError("no P-256 key")

        with pytest.raises(CsrError):
            await enrol(pool, "a" * 64, 100, issue=refuse)
        with pytest.raises(StoreError, match="1 to 64 characters"):
            await enrol(pool, "a" * 64, 100, name="\n")
        assert len(await pool.store.workers()) == 2
        worker = await enrol(pool, "a" * 64, 100)
        assert worker.account == pool.members[0].account
        assert await pool.store.worker(worker.id) == worker


async def test_a_worker_that_asks_again_is_the_same_worker(tmp_path: Path) -> None:
    """Its answer was lost: same token and keys, a new certificate, no further use."""
    async with world(tmp_path) as pool:
        await token(pool, "a" * 64)
        first = await enrol(pool, "a" * 64, 100)
        again = await enrol(pool, "a" * 64, 100)
        assert again.id == first.id
        assert again.certificate_serial != first.certificate_serial
        await token(pool, "b" * 64)
        with pytest.raises(StoreConflict, match="enrolled already"):
            await enrol(pool, "b" * 64, 100)
        with pytest.raises(StoreConflict, match="enrolled already"):
            await enrol(pool, "a" * 64, 100, tls_key=bytes(91))
        await enrol(pool, "b" * 64, 101)


async def test_a_revoked_worker_stays_out(tmp_path: Path) -> None:
    async with world(tmp_path) as pool:
        await token(pool, "a" * 64)
        worker = await enrol(pool, "a" * 64, 100)
        renewed, issued = await pool.store.renew_certificate(worker.id, issue)
        assert (renewed.certificate_serial, renewed.certificate_until) == (issued.serial, issued.not_after)
        revoked = await pool.store.revoke_worker(worker.id, NOW + 5)
        assert revoked.revoked_at == NOW + 5
        assert (await pool.store.revoke_worker(worker.id, NOW + 9)).revoked_at == NOW + 5
        with pytest.raises(WorkerRevoked):
            await pool.store.renew_certificate(worker.id, issue)
        with pytest.raises(WorkerRevoked):
            await pool.store.rename_worker(worker.id, "other")
        with pytest.raises(WorkerRevoked):
            await enrol(pool, "a" * 64, 100)
        await token(pool, "b" * 64)
        assert (await enrol(pool, "b" * 64, 101)).name == "desk"  # the name is free again


async def test_a_worker_is_renamed(tmp_path: Path) -> None:
    async with world(tmp_path) as pool:
        first, second = pool.workers
        await token(pool, "a" * 64, member=0)
        third = await enrol(pool, "a" * 64, 100)
        assert (await pool.store.rename_worker(third.id, first.name)).name == "worker-0-2"
        assert (await pool.store.rename_worker(second.id, first.name)).name == "worker-0"  # of another member
        assert (await pool.store.rename_worker(first.id, first.name)).name == "worker-0"


async def test_what_does_not_exist_is_said(tmp_path: Path) -> None:
    async with world(tmp_path) as pool:
        nobody = WorkerId("wrk_nobody")
        assert await pool.store.worker(nobody) is None
        for ask in (
            pool.store.revoke_worker(nobody, NOW),
            pool.store.renew_certificate(nobody, issue),
            pool.store.rename_worker(nobody, "x"),
            pool.store.create_join_token(
                MemberId("mem_nobody"), digest="d", uses=1, expires_at=NOW + 1, now=NOW
            ),
        ):
            with pytest.raises(Unknown):
                await ask
        for uses, expires_at in ((0, NOW + 1), (1_001, NOW + 1), (1, NOW)):
            with pytest.raises(StoreError):
                await pool.store.create_join_token(
                    pool.members[0].id, digest="d", uses=uses, expires_at=expires_at, now=NOW
                )


async def test_models_and_settings_are_kept(tmp_path: Path) -> None:
    async with world(tmp_path) as pool:
        admin = pool.members[0].id
        await pool.store.put_model("b", b"{}", admin, NOW)
        await pool.store.put_model("a", b"1", admin, NOW)
        await pool.store.put_model("a", b"2", admin, NOW + 1)
        assert [(m.name, m.entry, m.added_at) for m in await pool.store.models()] == [
            ("a", b"2", NOW + 1),
            ("b", b"{}", NOW),
        ]
        assert await pool.store.delete_model("a")
        assert not await pool.store.delete_model("a")
        await pool.store.put_setting("pool_name", "lab")
        assert await pool.store.setting("pool_name") == "lab"
        assert await pool.store.setting("nothing") is None
