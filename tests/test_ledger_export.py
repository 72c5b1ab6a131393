"""The export of a real pool verifies, shows others nothing but pseudonyms, and its heads are signed and kept."""

import json
from pathlib import Path
from typing import Any

import pytest
from fixtures_sessions import House, RawWorker, open_house

from coordinator.records import HeadReason
from potluck.proof.lines import Fault
from potluck.proof.verify import read_head, verify

NAMES = ("alice", "bob", "carol")


async def lived_in(house: House) -> RawWorker:
    """Jobs paid, refunded, cancelled half-way, free on own workers, embedded; receipts of several kinds."""
    await house.member("carol")
    worker = await house.honest()
    await house.ask("alice")
    await house.ask("carol", n=2)
    await house.ask("bob")  # on the own worker
    await house.embed("one", "two")
    await house.settled()
    count = 4
    await house.eventually(
        lambda: house.running.ticker.receipts.number >= count - 1, "the receipts are on the disk"
    )
    return worker


async def exported(house: House, folder: Path, by: str = "alice") -> Path:
    answer = await house.api("GET", "/pool/v1/ledger/export", by)
    path = folder / f"{by}.jsonl"
    path.write_bytes(answer.raise_for_status().content)
    return path


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_the_export_of_a_pool_that_was_lived_in_verifies_for_everybody(
    house: House, tmp_path: Path
) -> None:
    """Whoever exports it, with the pool's key known before; own charges are recomputed."""
    await lived_in(house)
    key = bytes.fromhex((await house.get("/pool/v1/status"))["coordinator_public_key"])
    for name in ("alice", "bob", "carol", "admin"):
        summary = verify(await exported(house, tmp_path, name), key=key)
        assert not summary.key_from_file
        assert summary.jobs_closed == 4
        assert summary.jobs_open == 0
        assert summary.receipts["matched"] == 3
        assert summary.charges_not_recomputed == 0
        assert summary.receipts_uncountersigned == 0
        print(name, summary)
    assert verify(tmp_path / "alice.jsonl").charges_recomputed == 2
