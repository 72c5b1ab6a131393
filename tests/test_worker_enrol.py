"""Joining a pool: nothing is kept unless everything fits, and every refusal is a sentence."""

import stat
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from fixtures_worker import SIGNING, FakeCa, FakeDoor, opened

from potluck.errors import ExitCode
from potluck.identity import WorkerIdentity
from worker.enrol import check_url, enrol
from worker.errors import CertificateRefused, NotJoined, Revoked, Unreachable, WorkerConflict, WorkerError
from worker.membership import Certificate, Membership
from worker.renewal import Renewal


async def joined(door: FakeDoor, folder: Path, *, ca: FakeCa | None = None, url: str = "") -> Membership:
    token = (ca or door.ca).token
    return await enrol(url=url or door.url, token=token, name="attic", folder=folder, now=datetime.now(UTC))


async def test_a_clock_set_back_does_not_delay_the_next_certificate(tmp_path: Path) -> None:
    """After a handshake that failed one is asked for once a minute, whatever minutes this clock had before."""
    asked: list[datetime] = []
    async with opened(FakeDoor(FakeCa())) as door:
        membership = await joined(door, tmp_path / "worker")

    class Counted(Renewal):
        async def renew(self) -> None:
            asked.append(self._now())

    at = [datetime.now(UTC)]
    renewal = Counted(
        membership=membership,
        identity=WorkerIdentity.load(tmp_path / "worker"),
        certificate=Certificate.load(tmp_path / "worker"),
        folder=tmp_path / "worker",
        now=lambda: at[0],
    )
    for later_s, tries in ((0, 1), (30, 1), (40, 2), (-7_200, 3), (10, 3)):
        at[0] += timedelta(seconds=later_s)
        await renewal.after_failed_handshake()
        assert len(asked) == tries


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


async def test_a_worker_that_joined_has_keys_certificate_and_address(tmp_path: Path) -> None:
    async with opened(FakeDoor(FakeCa())) as door:
        membership = await joined(door, tmp_path / "worker")
    assert (membership.worker_id, membership.member, membership.pool) == ("wrk_fake", "ada", "fake pool")
    assert Membership.load(tmp_path / "worker") == membership
    assert membership.public_key == SIGNING.public_key().public_bytes_raw().hex()
    identity = WorkerIdentity.load(tmp_path / "worker")
    assert identity.receipt_public_key() == door.receipt_key
    Certificate.load(tmp_path / "worker").check(identity.tls_key.public_key(), datetime.now(UTC))
    if sys.platform != "win32":
        for name in ("tls.key", "receipt.key", "certificate.pem"):
            assert stat.S_IMODE((tmp_path / "worker" / name).stat().st_mode) == 0o600


async def test_a_token_of_another_pool_is_found_out_and_nothing_is_kept(tmp_path: Path) -> None:
    async with opened(FakeDoor(FakeCa())) as door:
        with pytest.raises(WorkerConflict, match="another pool"):
            await joined(door, tmp_path / "worker", ca=FakeCa())
    assert kept(tmp_path / "worker") == []


async def test_who_has_joined_already_is_told_what_to_do(tmp_path: Path) -> None:
    async with opened(FakeDoor(FakeCa())) as door:
        await joined(door, tmp_path)
        with pytest.raises(WorkerConflict, match=r"already \(as attic\).*potluck worker start") as raised:
            await joined(door, tmp_path)
    assert raised.value.exit_code == ExitCode.INVALID
    assert len(door.requests) == 1


@pytest.mark.parametrize(
    ("status", "code", "sentence"),
    [
        (409, "join_token_used", "used already"),
        (410, "join_token_expired", "has expired"),
        (404, "join_token_unknown", "does not know this token"),
        (400, "something_new", "the coordinator refused: in its own words"),
    ],
)
async def test_a_refusal_of_the_pool_is_a_sentence(
    tmp_path: Path, status: int, code: str, sentence: str
) -> None:
    async with opened(FakeDoor(FakeCa())) as door:
        door.answer = (status, {"error": {"message": "in its own words", "code": code}})
        with pytest.raises(WorkerConflict, match=sentence) as raised:
            await joined(door, tmp_path / "worker")
    assert raised.value.code == code
    assert kept(tmp_path / "worker") == []


async def test_a_revoked_worker_is_told(tmp_path: Path) -> None:
    async with opened(FakeDoor(FakeCa())) as door:
        door.answer = (403, {"error": {"message": "no", "code": "worker_revoked"}})
        with pytest.raises(Revoked):
            await joined(door, tmp_path / "worker")


@pytest.mark.parametrize(
    "answer", [b"<html>", b"[" * 10_000, {}, {"worker_id": "x"}, [], b"\xff", b"x" * 300_000, {"error": "no"}]
)
@pytest.mark.parametrize("status", [200, 404])
async def test_what_is_no_pool_is_said_to_be_none(tmp_path: Path, answer: Any, status: int) -> None:
    async with opened(FakeDoor(FakeCa())) as door:
        door.answer = (status, answer)
        with pytest.raises(WorkerConflict, match="not a pool's coordinator"):
            await joined(door, tmp_path / "worker")
    assert kept(tmp_path / "worker") == []


async def test_a_certificate_for_another_key_is_not_taken(tmp_path: Path) -> None:
    ca = FakeCa()
    other = generate_private_key(SECP256R1()).public_key()
    answer = {"worker_id": "w", "name": "n", "member": "m", "pool": "p", "grpc": "h:1", "ca": ca.pem.decode()}
    async with opened(FakeDoor(ca)) as door:
        door.answer = (200, answer | {"certificate": ca.certify(other).decode()})
        with pytest.raises(CertificateRefused, match="another key"):
            await joined(door, tmp_path / "worker")
        door.answer = (200, answer | {"certificate": FakeCa().certify(other).decode()})
        with pytest.raises(CertificateRefused, match="did not sign"):
            await joined(door, tmp_path / "worker")
    assert kept(tmp_path / "worker") == []


async def test_a_lost_answer_is_asked_for_again_with_the_same_keys(tmp_path: Path) -> None:
    """The token is used up by then: only the keys show that it is the same worker."""
    async with opened(FakeDoor(FakeCa())) as door:
        door.answer = (503, {"error": {"message": "busy", "code": ""}})
        with pytest.raises(Unreachable) as raised:
            await joined(door, tmp_path / "worker")
        assert raised.value.exit_code == ExitCode.UNREACHABLE
        assert kept(tmp_path / "worker") == ["receipt.key", "tls.key"]
        with pytest.raises(NotJoined):
            Membership.load(tmp_path / "worker")
        door.answer = None
        await joined(door, tmp_path / "worker")
    assert door.requests[0][1]["receipt_key"] == door.requests[1][1]["receipt_key"]


async def test_nobody_at_the_address_is_unreachable(tmp_path: Path) -> None:
    door = FakeDoor(FakeCa())
    await door.start()
    await door.stop()
    with pytest.raises(Unreachable, match="no coordinator answers"):
        await joined(door, tmp_path / "worker")


@pytest.mark.parametrize("name", ["", "x" * 101, "two\nlines"])
async def test_a_name_that_cannot_be_shown_is_refused_before_anything_is_sent(
    tmp_path: Path, name: str
) -> None:
    async with opened(FakeDoor(FakeCa())) as door:
        with pytest.raises(WorkerConflict, match="name"):
            await enrol(url=door.url, token=door.ca.token, name=name, folder=tmp_path, now=datetime.now(UTC))
    assert not door.requests


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("https://pool.example.org/", "https://pool.example.org"),
        ("pool.example.org", "https://pool.example.org"),
        ("localhost:8420", "http://localhost:8420"),
        ("127.0.0.1:8420", "http://127.0.0.1:8420"),
        ("http://[::1]:8420", "http://[::1]:8420"),
    ],
)
def test_addresses_are_completed_safely(given: str, used: str) -> None:
    assert check_url(given) == used


@pytest.mark.parametrize(
    "given",
    [
        "http://pool.example.org",
        "ftp://x",
        "",
        "https://",
        "https://a:b@x",
        "http://localhost.evil.org",
        "https://x?y",
        "http://[::1",
        "https://x:99999999",
        "https://☃.example",
    ],
)
def test_unsafe_and_senseless_addresses_are_refused(given: str) -> None:
    with pytest.raises(WorkerError):
        check_url(given)
