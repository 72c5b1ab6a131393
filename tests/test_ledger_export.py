"""The export of a real pool verifies, shows others nothing but pseudonyms, and its heads are signed and kept."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from fixtures_sessions import TOKENS, House, RawWorker

from coordinator.api.pool_ledger import EXPORTS_MAX
from coordinator.records import HeadReason
from potluck.cli.main import run
from potluck.errors import InvalidRequest
from potluck.pool import Pool
from potluck.proof.verify import verify


async def lived_in(house: House) -> RawWorker:
    """Jobs paid, refunded, cancelled half-way, free on own workers, embedded; receipts of several kinds."""
    await house.member("carol")
    worker = await house.honest()
    await house.ask("alice")
    await house.ask("carol", n=2)
    await house.ask("bob")  # on the own worker
    await house.embed("one", "two")
    await house.settled()
    await house.eventually(lambda: house.running.ticker.receipts.number >= 3, "three receipts were chained")
    await house.running.ticker.committed()
    return worker


async def exported(house: House, folder: Path, by: str = "alice") -> Path:
    answer = await house.api("GET", "/pool/v1/ledger/export", by)
    path = folder / f"{by}.jsonl"
    path.write_bytes(answer.raise_for_status().content)
    return path


def left_over(folder: Path) -> list[Path]:
    return list(folder.glob(".ledger*"))


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
    assert verify(tmp_path / "alice.jsonl").charges_recomputed == 2


async def test_the_commands_export_keep_a_head_and_verify_offline(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Login remembers the pool's key; later the file, the head and the key are all it takes."""
    await lived_in(house)
    monkeypatch.setenv("POTLUCK_HOME", str(tmp_path / "client"))
    key_file = tmp_path / "alice.key"
    key_file.write_text(house.keys["alice"])
    file, head = tmp_path / "ledger.jsonl", tmp_path / "head.json"

    async def command(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = await asyncio.to_thread(run, [*arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    assert (await command("login", house.url, "--key", f"file:{key_file}"))[0] == 0
    code, out, _ = await command("ledger", "head", "--save", str(head))
    assert code == 0
    public_key = house.running.pool.public_key
    assert public_key in out
    code, out, err = await command("ledger", "export", str(file))
    assert (code, out.startswith(f"{file}: 13 entries and 3 receipts")) == (0, True)
    assert f"--key {public_key}" in err
    code, out, _ = await command("ledger", "verify", str(file), "--head", str(head))
    assert code == 0
    assert f"{public_key}, saved in" in out
    assert "for profile default" in out
    assert "lies on the chain, at entry 13" in out
    assert out.endswith("Nothing is wrong.\n")
    code, out, _ = await command("ledger", "verify", str(file), "--key", public_key, "-o", "json")
    said = json.loads(out)
    assert (code, said["entries"], said["key_from_file"], said["key_origin"]) == (
        0,
        13,
        False,
        "given by --key",
    )

    code, _, err = await command("ledger", "verify", str(file), "--key", "ab" * 32)
    assert code == 5
    assert "line 1: it names the public key" in err
    assert "give another one with --key" in err
    assert (await command("ledger", "verify", str(file), "--key", "k"))[0] == 2
    assert (await command("ledger", "verify", str(tmp_path / "none")))[0] == 2
    assert (await command("ledger", "verify", str(file), "--head", str(file)))[0] == 5
    monkeypatch.setenv("POTLUCK_HOME", str(tmp_path / "stranger"))
    code, out, err = await command("ledger", "verify", str(file))
    assert code == 0
    assert "from the file itself" in out
    assert "proves consistency and not whose ledger" in err
    text = file.read_text()
    file.write_text(text.replace('"code":"close"', '"code":"grant"', 1))
    code, _, err = await command("ledger", "verify", str(file), "-o", "json")
    error = json.loads(err)["error"]
    assert (code, error["code"], error["record"], error["number"]) == (5, "ledger_fault", "entry", 7)


async def test_others_are_pseudonyms_and_their_details_digests(house: House, tmp_path: Path) -> None:
    """No member's name stands in it, no text of a job, and nobody's details but the caller's own and grants."""
    await lived_in(house)
    path = await exported(house, tmp_path, "alice")
    text = path.read_text()
    for name in ("bob", "carol", "a b c", *(key for key in house.keys.values())):
        assert name not in text
    mine = lines_of(path)[0]["account"]
    assert mine == (await house.get("/pool/v1/balance", "alice"))["account"]
    for line in lines_of(path):
        if line["type"] == "entry":
            party = any(posting[0] == mine for posting in line["postings"])
            assert ("details" in line) == party


async def test_a_head_is_signed_once_for_what_was_recorded(house: House) -> None:
    """Asked again, the pool answers the one it keeps; after something new, another one."""
    first = await house.get("/pool/v1/ledger/head", "alice")
    assert await house.get("/pool/v1/ledger/head", "bob") == first
    await house.honest()
    await house.ask("alice")
    await house.settled()
    second = await house.get("/pool/v1/ledger/head", "alice")
    assert second["number"] > first["number"]
    kept = await house.running.store.last_head()
    assert kept is not None
    assert (kept.number, kept.reason) == (second["number"], HeadReason.REQUEST)


async def test_an_export_that_breaks_off_leaves_no_file(house: House, tmp_path: Path) -> None:
    """The old file stays as it was."""
    with Pool(house.url, house.keys["alice"], retries_max=0) as pool:
        file = tmp_path / "ledger.jsonl"
        file.write_text("old")

        def stop(_done: int, _total: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            await asyncio.to_thread(pool.export_ledger, file, stop)
        assert file.read_text() == "old"
        assert not left_over(tmp_path)
        nowhere = tmp_path / "admin.key" / "x"
        (tmp_path / "admin.key").write_text("")
        with pytest.raises(InvalidRequest, match="cannot be written"):
            await asyncio.to_thread(pool.export_ledger, nowhere)


async def test_exports_at_once_are_bounded_and_give_their_places_back(house: House) -> None:
    for _ in range(2 * EXPORTS_MAX):
        assert (await house.api("GET", "/pool/v1/ledger/export", "alice")).status_code == 200


async def test_a_job_shows_its_receipts(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    worker = await lived_in(house)
    monkeypatch.setenv("POTLUCK_HOME", str(tmp_path / "client"))
    with Pool(house.url, house.keys["carol"]) as pool:
        (listed,) = (await asyncio.to_thread(pool.jobs)).data
        job = await asyncio.to_thread(pool.job, listed.id)
    (receipt,) = job.receipts
    assert (receipt.worker, receipt.state, receipt.claimed_tokens) == (worker.id, "matched", 2 * TOKENS)
    assert receipt.countersigned
    arguments = ["jobs", "show", job.id, "--url", house.url, "--key", house.keys["carol"]]
    assert await asyncio.to_thread(run, arguments) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    (row,) = [line for line in lines if line[:2] == [str(receipt.number), "1"]]
    assert row[2:6] == [worker.id, "matched", str(2 * TOKENS), "yes"]
    assert await asyncio.to_thread(run, [*arguments, "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["receipts"][0]["hash"] == receipt.hash
