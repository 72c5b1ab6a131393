"""Who may open a stream, and what signed statements are worth: over real TLS, with real keys, on a real pool."""

import asyncio
import base64
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest
from fixtures_sessions import ANSWER, TOKENS, House, RawWorker, delta, frame, open_house

from coordinator.app import coordinator
from coordinator.ca import CertificateAuthority
from coordinator.core.ledger import COMMONS
from coordinator.lock import AlreadyRunning
from coordinator.ports import PortTaken
from coordinator.settings import Settings, SettingsError
from coordinator.store_errors import StoreError
from potluck.identity import JoinToken, WorkerIdentity, renewal_message
from potluck.v1 import session_pb2, work_pb2

DAY_S = 86_400.0


async def refused_at_the_door(worker: RawWorker) -> None:
    """The handshake fails: no message of ours is ever read."""
    worker.open()
    with pytest.raises((grpc.aio.AioRpcError, asyncio.InvalidStateError)):
        await worker.send(session_pb2.WorkerMessage(hello=session_pb2.Hello(protocol=1)))
        await worker.call.read()
    code, _ = await worker.end()
    assert code is grpc.StatusCode.UNAVAILABLE
    await worker.close()
    assert worker.id not in house_streams(worker)


def house_streams(worker: RawWorker) -> dict[Any, Any]:
    return dict(worker.house.running.pool.sessions.streams)


def authority(house: House) -> CertificateAuthority:
    return CertificateAuthority.open(house.settings.home, "potluck", house.clock.now())


async def test_a_certificate_of_another_ca_is_not_let_in(house: House, tmp_path: Path) -> None:
    """Same worker id, same key, another pool's signature."""
    worker = await house.join("rig")
    other = CertificateAuthority.open(tmp_path / "other", "potluck", house.clock.now())
    sound = worker.certificate
    worker.certificate = other.sign_worker(worker.identity.csr(), worker.id, house.clock.now()).pem
    await refused_at_the_door(worker)
    worker.certificate = sound
    await worker.connect()


async def test_an_expired_certificate_is_not_let_in_and_can_be_renewed(house: House) -> None:
    """The daemon's own way back after a month away: renewal over HTTPS, signed by its receipt key."""
    worker = await house.join("rig")
    long_ago = house.clock.now() - 30 * DAY_S
    worker.certificate = authority(house).sign_worker(worker.identity.csr(), worker.id, long_ago).pem
    await refused_at_the_door(worker)
    csr, at = worker.identity.csr().decode(), int(house.clock.now())
    signature = worker.identity.sign(renewal_message(worker_id=worker.id, csr=csr, at=at))
    body = {
        "worker_id": worker.id,
        "csr": csr,
        "at": at,
        "signature": base64.b64encode(signature).decode(),
    }
    answer = (await house.http.post(f"{house.url}/pool/v1/renew", json=body)).raise_for_status().json()
    worker.certificate = answer["certificate"].encode()
    await worker.connect()


@pytest.mark.parametrize("stolen", ["name", "nobody"])
async def test_a_sound_certificate_with_a_wrong_name_or_key(house: House, stolen: str) -> None:
    """Signed by the pool's CA, but not what was enrolled: another worker's name with an own key, or no worker's."""
    victim = await house.join("victim")
    thief = await house.join("thief")
    thief.identity = WorkerIdentity.generate()
    name = victim.id if stolen == "name" else type(victim.id)("wrk_nobody")
    thief.certificate = authority(house).sign_worker(thief.identity.csr(), name, house.clock.now()).pem
    thief.open()
    await thief.send(session_pb2.WorkerMessage(hello=session_pb2.Hello(protocol=1)))
    code, sentence = await thief.end()
    assert (code, sentence) == (grpc.StatusCode.UNAUTHENTICATED, "this pool does not know the worker")


async def test_revoked_while_connected(house: House) -> None:
    """The stream closes with PERMISSION_DENIED, what it ran goes on elsewhere, and it does not come back."""
    worker = await house.join("rig")
    await worker.connect()
    asking = house.ask()
    assign = await worker.until("assign")
    await worker.send(frame(assign, 1, delta(0, 2)))
    await worker.until("ack")
    honest = await house.honest()
    assert (await house.api("DELETE", f"/pool/v1/workers/{worker.id}")).status_code == 200
    code, sentence = await worker.end()
    assert (code, "was revoked" in sentence) == (grpc.StatusCode.PERMISSION_DENIED, True)
    assert str((await asking).choices[0].message.content) == ANSWER
    job = await house.job(assign.attempt.job_id)
    assert [(a["state"], a["tokens"]) for a in job["attempts"]] == [("lost", 2), ("succeeded", TOKENS - 2)]
    worker.open()
    await worker.send(session_pb2.WorkerMessage(hello=session_pb2.Hello(protocol=1)))
    assert (await worker.end())[0] is grpc.StatusCode.PERMISSION_DENIED
    assert worker.id not in house.running.pool.engine.fleet.workers
    assert honest.seen.faults == 0
    await house.settled()


async def test_revoked_between_certificate_and_hello(house: House) -> None:
    """Identified, then revoked, then Hello: it does not slip into the fleet."""
    worker = await house.join("rig")
    worker.open()
    await worker.call.wait_for_connection()
    assert (await house.api("DELETE", f"/pool/v1/workers/{worker.id}")).status_code == 200
    await worker.flood(session_pb2.WorkerMessage(hello=session_pb2.Hello(protocol=1)), 1)
    assert (await worker.end())[0] is grpc.StatusCode.PERMISSION_DENIED
    assert worker.id not in house.running.pool.engine.fleet.workers


async def test_join_tokens_that_let_nobody_in(house: House) -> None:
    """Used, expired, mistyped, of another pool, unknown: each with its own code, and no worker comes of it."""

    async def code_of(token: str) -> str:
        answer = await house.enrol(token, "x", WorkerIdentity.generate())
        assert 400 <= answer.status_code < 500
        code: str = answer.json()["error"]["code"]
        return code

    used = await house.token()
    assert (await house.enrol(used, "rig", WorkerIdentity.generate())).status_code == 201
    assert await code_of(used) == "join_token_used"
    expired = await house.token(expires_s=60)
    house.clock.ahead_s += 61
    assert await code_of(expired) == "join_token_expired"
    mistyped = used[:-1] + ("0" if used[-1] != "0" else "1")
    assert await code_of(mistyped) == "join_token_malformed"
    assert await code_of(str(JoinToken.create("0" * 64))) == "join_token_of_another_pool"
    assert await code_of(str(JoinToken.create(authority(house).fingerprint()))) == "join_token_unknown"
    assert len(await house.running.store.workers()) == 1


# -- receipts ---------------------------------------------------------------------------------------------


async def served(house: House) -> tuple[RawWorker, work_pb2.Attempt]:
    """A worker that has just served an answer, and said nothing of it yet."""
    worker = await house.join("rig")
    await worker.connect()
    asking = house.ask()
    assign = await worker.until("assign")
    await worker.send(frame(assign, 1, delta(0, TOKENS, reason="length")))
    await asking
    return worker, assign.attempt


Said = Callable[[RawWorker, work_pb2.Attempt], session_pb2.WorkerMessage]
RECEIPTS: dict[str, tuple[Said, str, str, int]] = {
    "sound": (lambda w, a: w.receipt(a, TOKENS), "matched", "6 tokens", 0),
    "below the count": (lambda w, a: w.receipt(a, 1), "matched", "6 tokens", 0),
    "above the count": (lambda w, a: w.receipt(a, TOKENS + 1), "refused", "claims 7 tokens, 6 arrived", 1),
    "as much as there is": (lambda w, a: w.receipt(a, 2**53 - 1), "refused", "6 arrived", 1),
    "forged": (
        lambda w, a: w.receipt(a, TOKENS, signer=WorkerIdentity.generate()),
        "refused",
        "its signature is not the worker's",
        1,
    ),
    "in another's name": (
        lambda w, a: w.receipt(a, TOKENS, worker_id="wrk_other"),
        "refused",
        "it names another worker",
        1,
    ),
    "of another attempt": (
        lambda w, a: w.receipt(a, TOKENS, attempt=2),
        "refused",
        "the attempt is another worker's",
        1,
    ),
    "of attempt 2**31": (
        lambda w, a: w.receipt(a, TOKENS, attempt=2**31),
        "refused",
        "the attempt is another worker's",
        1,
    ),
    "of attempt 2**32 - 1": (
        lambda w, a: w.receipt(a, TOKENS, attempt=2**32 - 1),
        "refused",
        "the attempt is another worker's",
        1,
    ),
    "of no job": (
        lambda w, a: w.receipt(a, TOKENS, job_id="job_none"),
        "void",
        "the pool has no such job",
        0,
    ),
}


@pytest.mark.parametrize(("said", "state", "why", "faults"), RECEIPTS.values(), ids=RECEIPTS)
async def test_receipts_are_judged_and_move_nothing(
    house: House, said: Said, state: str, why: str, faults: int
) -> None:
    """Said twice, since the answer may be lost: acknowledged twice, blamed once at most, kept once at most."""
    worker, attempt = await served(house)
    before = await house.get("/pool/v1/balance", "alice")
    message = said(worker, attempt)
    for _ in range(2):
        await worker.send(message)
        ack = await worker.until("receipt_ack")
        assert ack.state == state
        assert why in ack.why
    job = await house.job(attempt.job_id)
    kept = [receipt["state"] for receipt in job["receipts"]]
    assert kept == ([] if state == "void" else [state])
    assert worker.seen.faults == faults
    assert await house.get("/pool/v1/balance", "alice") == before
    await house.settled()


async def test_receipts_that_cannot_be_read_do_no_harm(house: House) -> None:
    """No JSON, other fields, another spelling, too long, numbers out of range: the stream goes on."""
    worker, attempt = await served(house)
    sound = worker.receipt(attempt, TOKENS).receipt
    deep = b"[" * 4_000
    for body in (
        b"",
        b"\xff",
        b"{}",
        deep,
        sound.body + b" ",
        sound.body.replace(b'"attempt":1', b'"attempt":-1'),
        sound.body.replace(b'"attempt":1', b'"attempt":1.0'),
        sound.body.replace(b'"attempt":1', b'"attempt":' + b"9" * 30),
        worker.receipt(attempt, TOKENS, attempt=2**32).receipt.body,
        worker.receipt(attempt, TOKENS, attempt=2**53 - 1).receipt.body,
        sound.body.replace(b'"model":"emulator-small"', b'"model":"\\ud800"'),
        b"x" * 1_000_000,
    ):
        signature = worker.identity.sign(body)
        said = session_pb2.Receipt(body=body, signature=signature)
        await worker.send(session_pb2.WorkerMessage(receipt=said))
    wrong = session_pb2.Receipt(body=sound.body, signature=b"short")
    await worker.send(session_pb2.WorkerMessage(receipt=wrong))
    assert (await worker.until("receipt_ack")).state == "refused"
    assert (await house.job(attempt.job_id))["receipts"] == [], "what is no signature is in no chain"
    assert worker.seen.connected
    await house.settled()


async def test_anothers_receipt_is_not_taken(house: House) -> None:
    """Signed by its owner, sent by somebody else: refused, and the sender is blamed, not the owner."""
    worker, attempt = await served(house)
    thief = await house.join("thief")
    await thief.connect()
    await thief.send(worker.receipt(attempt, TOKENS))
    assert (await thief.until("receipt_ack")).state == "refused"
    assert (worker.seen.faults, thief.seen.faults) == (0, 1)
    await worker.send(worker.receipt(attempt, TOKENS))
    assert (await worker.until("receipt_ack")).state == "matched"


async def test_a_receipt_after_a_restart_of_the_coordinator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job was cut off: its hold is back, its receipt is void and moves nothing, as long as it is repeated."""
    async with open_house(tmp_path, monkeypatch) as first:
        worker = await first.join("rig")
        await worker.connect()
        asking = first.ask()
        assign = await worker.until("assign")
        await worker.send(frame(assign, 1, delta(0, 2)))
        await worker.until("ack")
        keys, [client] = first.keys, first.clients
        first.clients.clear()  # it stays, and hears the end
    with pytest.raises(openai.InternalServerError, match="he coordinator was stopped"):
        await asking
    await client.close()
    async with open_house(tmp_path, monkeypatch, keys) as again:
        worker.house, worker.channel = again, None
        again.workers.append(worker)
        assert not (await worker.connect(running=[session_pb2.Running(attempt=assign.attempt)])).resume
        for _ in range(2):
            await worker.send(worker.receipt(assign.attempt, 2))
            assert (await worker.until("receipt_ack")).state == "void"
        job = await again.job(assign.attempt.job_id)
        assert (job["state"], job["charge"]) == ("failed", 0)
        assert (await again.get("/pool/v1/balance", "alice"))["balance"] == 0
        assert worker.seen.faults == 0
        await again.settled()


# -- the house --------------------------------------------------------------------------------------------


async def test_a_second_coordinator_on_the_same_home_is_refused(house: House, tmp_path: Path) -> None:
    """Wherever its database lies: two would hand out certificates and artifacts of one folder."""
    elsewhere = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    second = house.settings.model_copy(update={"database": elsewhere})
    with pytest.raises(AlreadyRunning, match="already runs a coordinator on"):
        async with coordinator(second):
            pass
    assert not (tmp_path / "elsewhere.db").exists()
    assert (await house.get("/pool/v1/status"))["ledger_sum"] == 0


@pytest.mark.parametrize("flag", ["http", "grpc"])
async def test_a_port_in_use_ends_the_start_before_anything_is_made(tmp_path: Path, flag: str) -> None:
    """Either door. Otherwise the first admin's key would be made by a start that cannot tell where it lies."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        settings = Settings(home=tmp_path, http="127.0.0.1:0", grpc="127.0.0.1:0")
        settings = settings.model_copy(update={flag: taken})
        with pytest.raises(PortTaken, match=rf"{taken} cannot be bound: .*in use.*--{flag} HOST:PORT"):
            async with coordinator(settings):
                pass
    assert not (tmp_path / "coordinator" / "admin.key").exists()
    async with coordinator(settings) as running:
        assert running.new_admin_key is not None


@pytest.mark.parametrize("host", ["no-such-host.invalid", "☃", "x" * 300])
async def test_an_address_that_is_not_this_machines_is_said_with_its_reason(
    tmp_path: Path, host: str
) -> None:
    settings = Settings(home=tmp_path, http="127.0.0.1:0", grpc=f"{host}:0")
    with pytest.raises(PortTaken, match="Choose an address of this machine with --grpc HOST:PORT"):
        async with coordinator(settings):
            pass


async def test_a_home_that_is_none_is_said_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "coordinator" / "coordinator.lock").mkdir(parents=True)
    settings = Settings(home=tmp_path, http="127.0.0.1:0", grpc="127.0.0.1:0")
    with pytest.raises(StoreError, match=re.escape(f"{tmp_path / 'coordinator'} cannot be written to")):
        async with coordinator(settings):
            pass


async def test_tls_files_that_are_none_are_said_in_a_sentence(tmp_path: Path) -> None:
    """And not waited for without end."""
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).write_text("no PEM", encoding="utf-8")
    settings = Settings(
        home=tmp_path,
        http="127.0.0.1:0",
        grpc="127.0.0.1:0",
        tls_cert=tmp_path / "cert.pem",
        tls_key=tmp_path / "key.pem",
    )
    with pytest.raises(SettingsError, match=r"cert\.pem and .*key\.pem cannot be used"):
        async with coordinator(settings):
            pass


async def test_the_commons_takes_its_fee_whatever_the_workers_say(house: House) -> None:
    """charge = pay + fee, to the microcredit, after an answer that two workers gave and one lied about."""
    liar = await house.join("liar")
    await liar.connect()
    asking = house.ask()
    assign = await liar.until("assign")
    await house.honest()
    await liar.send(frame(assign, 1, delta(0, 3)), frame(assign, 9, delta(3, 4)))
    await asking
    job = await house.job(assign.attempt.job_id)
    fee = house.running.pool.accounts.balance(COMMONS)["balance"]
    assert job["charge"] == sum(a["paid"] for a in job["attempts"]) + fee
    assert (await house.get("/pool/v1/balance", "bob"))["balance"] == job["charge"] - fee
    await house.settled()
