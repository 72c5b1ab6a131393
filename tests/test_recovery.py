"""A lost admin key, found again by whoever has the coordinator's files; and a restart that finishes a closing."""

import asyncio
import stat
from pathlib import Path

import httpx2
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.x509 import load_pem_x509_certificate
from typer.testing import CliRunner

from coordinator.app import LOCK_FILE, coordinator
from coordinator.cli import app
from coordinator.core.jobs import WorkerId
from coordinator.core.ledger import COMMONS
from coordinator.keys import read_admin_key
from coordinator.lock import FileLock
from coordinator.settings import PREFIX, Settings
from coordinator.store import Store
from potluck.identity import WorkerIdentity

NOW = 1_800_000_000.0


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in Settings.model_fields:
        monkeypatch.delenv(PREFIX + name.upper(), raising=False)
    monkeypatch.setenv("POTLUCK_HOME", str(tmp_path))
    return tmp_path


def settings() -> Settings:
    return Settings(http="127.0.0.1:0", grpc="127.0.0.1:0")


def admin_key(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["admin-key", *arguments])
    return result.exit_code, result.output


async def me(url: str, key: str) -> httpx2.Response:
    async with httpx2.AsyncClient() as client:
        return await client.get(f"{url}/pool/v1/me", headers={"authorization": f"Bearer {key}"})


async def ran(home: Path) -> str:
    """A pool that was started once; the admin's first key."""
    async with coordinator(settings()):
        return read_admin_key(home / "coordinator").text


async def test_a_new_admin_key_is_made_beside_the_old_ones_while_nothing_runs(home: Path) -> None:
    """In a new file that nobody else can read; a second one replaces none; the first keys still work."""
    first = await ran(home)
    texts = []
    for number in (1, 2):
        code, said = await asyncio.to_thread(admin_key)
        path = home / "coordinator" / f"admin-{number}.key"
        assert code == 0, said
        assert str(path) in said
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        texts.append(path.read_text().strip())
    async with coordinator(settings()) as running:
        for key in (first, *texts):
            answer = await me(f"http://{running.http}", key)
            assert answer.json()["member"]["role"] == "admin"
        code, said = await asyncio.to_thread(admin_key)
        assert code == 1
        assert "already runs a coordinator" in said


def test_where_there_is_no_pool_none_is_made(home: Path) -> None:
    code, said = admin_key()
    assert code == 1
    assert "there is no pool" in said
    assert not (home / "coordinator" / "potluck.db").exists()


async def test_only_an_admin_gets_one(home: Path) -> None:
    await ran(home)
    code, said = await asyncio.to_thread(admin_key, "--member", "mallory")
    assert code == 1
    assert "its admins: admin" in said
    assert not list((home / "coordinator").glob("admin-*.key"))
    lock = FileLock.acquire(home / "coordinator" / LOCK_FILE)
    try:
        assert (await asyncio.to_thread(admin_key))[0] == 1
    finally:
        lock.release()


async def test_a_coordinator_killed_between_state_and_entry_finishes_the_closing(home: Path) -> None:
    """The row says closed and the books say nothing: the next start empties the account, and not twice."""
    async with coordinator(settings()) as running:
        admin = read_admin_key(home / "coordinator").text
        async with httpx2.AsyncClient(base_url=f"http://{running.http}") as client:
            client.headers["authorization"] = f"Bearer {admin}"
            made = await client.post("/pool/v1/members", json={"name": "bob"})
            grant = {"member": "bob", "amount": 77, "reason": "x"}
            assert (await client.post("/pool/v1/grants", json=grant)).status_code == 201
    store = await Store.open(settings().database_url, NOW)
    await store.close_member(made.json()["id"], "gone", NOW)
    await store.close()
    for _ in range(2):
        async with coordinator(settings()) as running:
            member = await running.store.member_by_name("bob")
            assert member is not None
            balance = running.pool.accounts.balance(member.account)
            assert (balance["balance"], balance["credit_line"]) == (0, 0)
            assert await running.store.entry(f"{member.account}/retire") is not None
            assert running.pool.accounts.balance(COMMONS)["balance"] == 0
            assert await running.store.verify() == []
            assert (await me(f"http://{running.http}", made.json()["key"])).status_code == 401


async def test_a_new_ca_lets_no_old_worker_in_and_signs_on_with_the_pools_key(home: Path) -> None:
    """Only while nothing runs, and only where there is one; join tokens name the new CA."""
    rotate = ["rotate-ca", "--yes"]
    result = await asyncio.to_thread(CliRunner().invoke, app, rotate)
    assert (result.exit_code, "there is no CA" in result.output) == (1, True), result.output
    async with coordinator(settings()) as running:
        before = running.context.ca
        worker = before.sign_worker(WorkerIdentity.generate().csr(), WorkerId("wrk_a"), NOW)
        result = await asyncio.to_thread(CliRunner().invoke, app, rotate)
        assert (result.exit_code, "already runs" in result.output) == (1, True), result.output
    result = await asyncio.to_thread(CliRunner().invoke, app, rotate)
    assert result.exit_code == 0, result.output
    async with coordinator(settings()) as running:
        after = running.context.ca
        assert after.fingerprint() in result.output
        assert after.public_key == before.public_key
        with pytest.raises(InvalidSignature):
            load_pem_x509_certificate(worker.pem).verify_directly_issued_by(after.certificate)
