"""Receipts on disk: safe when said to be, gone when acknowledged, and never a reason not to start."""

import asyncio
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from potluck.receipts import ReceiptBody, output_digest, sign
from worker.journal import Journal, JournalError, ReceiptKeeper, SignedReceipt
from worker.messages import AttemptId

KEY = Ed25519PrivateKey.generate()


def receipt(number: int = 1) -> SignedReceipt:
    body = ReceiptBody(
        job_id="job_a", attempt=number, worker_id="wrk_a", model="m", engine="e", prompt_tokens=1,
        output_tokens=2, started_at=3, ended_at=4, output_sha256=output_digest([]),
    ).encode()  # fmt: skip
    return SignedReceipt(AttemptId("job_a", number), body, sign(KEY, body))


def opened(path: Path) -> Journal:
    journal, warning = Journal.open(path)
    assert not warning
    return journal


def test_what_was_kept_is_there_in_order_after_a_restart(tmp_path: Path) -> None:
    journal = opened(tmp_path / "j")
    journal.apply([receipt(2), receipt(1)], [])
    journal.apply([receipt(3)], [AttemptId("job_a", 2)])
    journal.close()
    again = opened(tmp_path / "j")
    assert again.load() == [receipt(1), receipt(3)]
    again.close()


def test_keeping_and_forgetting_twice_changes_nothing(tmp_path: Path) -> None:
    journal = opened(tmp_path / "j")
    journal.apply([receipt(1), receipt(1)], [])
    journal.apply([receipt(1)], [])
    assert journal.load() == [receipt(1)]
    journal.apply([], [receipt(1).attempt, receipt(1).attempt, AttemptId("unknown", 1)])
    assert journal.load() == []
    journal.close()


@pytest.mark.parametrize("damage", [b"garbage" * 1000, b"", b"SQLite format 3\x00" + b"\xff" * 5000])
def test_a_damaged_file_is_set_aside_with_a_warning(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "j"
    path.write_bytes(damage)
    journal, warning = Journal.open(path)
    journal.apply([receipt()], [])
    assert journal.load() == [receipt()]
    journal.close()
    if damage:
        assert "cannot be read" in warning
        assert (tmp_path / "j.unreadable-0").read_bytes() == damage


def test_damage_in_the_middle_is_found_when_opening(tmp_path: Path) -> None:
    path = tmp_path / "j"
    journal = opened(path)
    journal.apply([receipt(n) for n in range(1, 200)], [])
    journal.close()
    whole = bytearray(path.read_bytes())
    whole[4096 : 4096 * 3] = b"\xa5" * 8192
    path.write_bytes(whole)
    again, warning = Journal.open(path)
    assert "cannot be read" in warning
    assert again.load() == []
    again.close()


def test_a_file_of_a_newer_version_is_kept_aside_not_overwritten(tmp_path: Path) -> None:
    journal = opened(tmp_path / "j")
    journal._connection.execute("PRAGMA user_version = 99")
    journal.close()
    again, warning = Journal.open(tmp_path / "j")
    assert "another version" in warning
    again.close()


def test_rows_that_are_no_receipts_are_left_out(tmp_path: Path) -> None:
    journal = opened(tmp_path / "j")
    good, swapped = receipt(1), receipt(2)
    journal.apply([good, SignedReceipt(AttemptId("job_b", 2), swapped.body, swapped.signature)], [])
    journal.apply([SignedReceipt(AttemptId("job_c", 1), b"{}", b"x" * 64)], [])
    assert journal.load() == [good]
    journal.close()


async def test_a_receipt_is_said_to_be_safe_only_when_it_is_on_disk(tmp_path: Path) -> None:
    journal = opened(tmp_path / "j")
    safe: asyncio.Queue[AttemptId] = asyncio.Queue()
    keeper = ReceiptKeeper(journal, safe.put_nowait)
    task = asyncio.create_task(keeper.run())
    for number in range(1, 50):
        keeper.keep(receipt(number))
    assert safe.empty()
    seen = [await asyncio.wait_for(safe.get(), 10) for _ in range(1, 50)]
    assert [attempt.number for attempt in seen] == list(range(1, 50))
    other = opened(tmp_path / "j")
    assert len(other.load()) == 49
    other.close()
    keeper.forget(AttemptId("job_a", 1))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await keeper.close()
    again = opened(tmp_path / "j")
    assert len(again.load()) == 48
    again.close()


async def test_a_full_disk_keeps_receipts_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = opened(tmp_path / "j")

    def full(kept: list[SignedReceipt], forgotten: list[AttemptId]) -> None:
        raise JournalError("database or disk is full")

    monkeypatch.setattr(journal, "apply", full)
    safe: list[AttemptId] = []
    keeper = ReceiptKeeper(journal, safe.append)
    keeper.keep(receipt())
    await keeper.close()
    assert safe == [receipt().attempt]
    assert keeper.receipts == {receipt().attempt: receipt()}
