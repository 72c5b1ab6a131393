"""What a worker keeps of the pool's answers to its receipts, so that its owner needs to trust nobody."""

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.core.receipts import ReceiptState
from coordinator.records import ReceiptRow
from coordinator.tick import ReceiptChain
from potluck.identity import WorkerIdentity
from potluck.receipts import ReceiptBody
from potluck.v1 import session_pb2, work_pb2
from worker import evidence
from worker.evidence import Evidence
from worker.journal import SignedReceipt
from worker.messages import AttemptId

AT = "2027-01-15T08:00:00.000Z"
POOL = Ed25519PrivateKey.generate()
KEY = POOL.public_key().public_bytes_raw()


def signed(number: int = 1) -> SignedReceipt:
    identity = WorkerIdentity.generate()
    body = ReceiptBody(
        job_id=f"job_{number}",
        attempt=1,
        worker_id="wrk_1",
        model="m",
        engine="torch",
        prompt_tokens=1,
        output_tokens=2,
        started_at=1,
        ended_at=2,
        output_sha256="0" * 64,
    ).encode()
    return SignedReceipt(AttemptId(f"job_{number}", 1), body, identity.sign(body))


def answered(chain: ReceiptChain, receipt: SignedReceipt, **changes: Any) -> session_pb2.ReceiptAck:
    """The acknowledgement as the pool sends it, from its own chain."""
    row = ReceiptRow(
        job_id=receipt.attempt.job_id,  # type: ignore[arg-type]  # a JobId by another name
        attempt=1,
        worker_id="wrk_1",  # type: ignore[arg-type]  # as above
        body=receipt.body,
        signature=receipt.signature,
        state=ReceiptState.MATCHED,
    )
    (recorded,) = chain.extend([row], AT)
    ack = session_pb2.ReceiptAck(
        attempt=work_pb2.Attempt(job_id=receipt.attempt.job_id, number=1),
        state="matched",
        number=recorded.number,
        at=recorded.at,
        previous=recorded.previous,
        hash=recorded.hash,
        countersignature=recorded.countersignature,
    )
    for name, value in changes.items():
        setattr(ack, name, value)
    return ack


def test_a_countersigned_receipt_is_kept_whole(tmp_path: Path) -> None:
    """Body and both signatures: with the pool's key that is proof enough."""
    chain, kept, receipt = ReceiptChain(POOL.sign), Evidence(tmp_path, "wrk_1", KEY), signed()
    assert kept.add(answered(chain, receipt), receipt)
    (line,) = [json.loads(line) for line in (tmp_path / evidence.FILE).read_text().splitlines()]
    assert line["body"].encode() == receipt.body
    assert bytes.fromhex(line["signature"]) == receipt.signature
    assert (line["number"], line["state"], line["worker"]) == (1, "matched", "wrk_1")
    assert Evidence(tmp_path, "wrk_1", KEY).kept == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"state": "refused"},
        {"number": 7},
        {"hash": "ab" * 32},
        {"countersignature": bytes(64)},
        {"countersignature": b""},
        {"previous": "ab" * 32},
    ],
)
def test_what_the_pool_did_not_sign_is_not_kept(tmp_path: Path, changes: dict[str, Any]) -> None:
    kept, receipt = Evidence(tmp_path, "wrk_1", KEY), signed()
    assert not kept.add(answered(ReceiptChain(POOL.sign), receipt, **changes), receipt)
    assert (kept.kept, kept.refused) == (0, 1)
    assert not (tmp_path / evidence.FILE).exists()


def test_answers_without_a_place_and_repeated_ones_are_not_kept(tmp_path: Path) -> None:
    """A pool that never had the job keeps no receipt; a forgotten receipt was kept before."""
    kept, receipt = Evidence(tmp_path, "wrk_1", KEY), signed()
    assert not kept.add(session_pb2.ReceiptAck(state="void"), receipt)
    assert not kept.add(answered(ReceiptChain(POOL.sign), receipt), None)
    assert (kept.kept, kept.refused) == (0, 0)


def test_without_the_pools_key_it_is_kept_as_it_came(tmp_path: Path) -> None:
    """Workers that joined before pools handed their key out."""
    kept, receipt = Evidence(tmp_path, "wrk_1", b""), signed()
    assert kept.add(answered(ReceiptChain(POOL.sign), receipt), receipt)


def test_the_files_are_bounded_and_the_oldest_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "FILE_BYTES_MAX", 3_000)
    chain, kept = ReceiptChain(POOL.sign), Evidence(tmp_path, "wrk_1", KEY)
    for number in range(1, 11):
        receipt = signed(number)
        assert kept.add(answered(chain, receipt), receipt)
    files = [tmp_path / evidence.OLDER, tmp_path / evidence.FILE]
    assert all(path.stat().st_size <= 3_000 for path in files)
    numbers = [json.loads(line)["number"] for path in files for line in path.read_text().splitlines()]
    assert numbers == list(range(11 - len(numbers), 11))
    assert kept.kept == len(numbers) == Evidence(tmp_path, "wrk_1", KEY).kept


def test_a_disk_that_refuses_stops_nothing(tmp_path: Path) -> None:
    """A worker without its proof still works and is paid."""
    (tmp_path / evidence.FILE).mkdir()
    kept, receipt = Evidence(tmp_path, "wrk_1", KEY), signed()
    assert not kept.add(answered(ReceiptChain(POOL.sign), receipt), receipt)
    assert kept.kept == 0
