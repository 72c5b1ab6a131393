"""`potluck coordinator check` reads a database that is in use or at rest, and changes nothing in it."""

import asyncio
import hashlib
import shutil
import sqlite3
from pathlib import Path

import pytest
from fixtures_pool import Process, RealPool
from fixtures_proof import open_books, small_life
from fixtures_sessions import House
from fixtures_store import NOW, url_in
from test_store_audit import NO_TRIGGERS

from coordinator.core.heads import DAY_S, due
from coordinator.heads import Heads
from coordinator.records import HeadReason
from coordinator.store import Store
from coordinator.store_errors import StoreConflict, StoreError
from potluck import chain
from potluck.cli.main import run
from potluck.receipts import verify


async def life(folder: Path) -> bytes:
    """A small life of a pool whose coordinator has stopped; its public key."""
    async with open_books(folder) as books:
        await small_life(books)
        assert (await books.store.audit(books.ca.public_key)).findings == []
        return books.ca.public_key


def checked(folder: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = run(["coordinator", "check", "--database", url_in(folder), *more])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_books_at_rest_are_checked_without_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither a lock nor a migration nor a new authority: only what SQLite itself needs to read."""
    monkeypatch.setenv("POTLUCK_HOME", str(tmp_path))
    asyncio.run(life(tmp_path))
    before = hashlib.sha256((tmp_path / "potluck.db").read_bytes()).hexdigest()
    (tmp_path / "potluck.db.lock").unlink(missing_ok=True)
    code, out, _ = checked(tmp_path, capsys)
    assert (code, out) == (0, "Nothing is wrong: 19 entries, 7 receipts, 1 heads.\n")
    assert hashlib.sha256((tmp_path / "potluck.db").read_bytes()).hexdigest() == before
    assert not (tmp_path / "potluck.db.lock").exists()
    monkeypatch.setenv("POTLUCK_HOME", str(tmp_path / "elsewhere"))
    code, out, err = checked(tmp_path, capsys)
    assert (code, "Signatures were not checked" in err) == (0, True)
    assert not (tmp_path / "elsewhere" / "coordinator" / "ca").exists()


async def test_a_pool_that_runs_is_checked_meanwhile(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    await house.honest()
    await house.ask()
    await house.settled()
    monkeypatch.setenv("POTLUCK_HOME", str(tmp_path))
    capsys.readouterr()
    assert await asyncio.to_thread(run, ["coordinator", "check", "-o", "json"]) == 0
    assert '"signatures_checked": true' in capsys.readouterr().out
    await house.ask()


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("UPDATE heads SET hash = 'ab'", "it signs another entry 13 than the one here"),
        ("UPDATE heads SET receipts_number = 1", "it signs another receipt 1 than the one here"),
        ("UPDATE heads SET number = 99", "it signs another entry 99 than the one here"),
        ("UPDATE heads SET signature = x'00'", "it is not signed by the pool's key"),
        ("UPDATE receipts SET countersignature = x'00' WHERE number = 2", "receipt 2 is not countersigned"),
        ("UPDATE receipts SET countersignature = x'' WHERE number = 2", "receipt 2 is not countersigned"),
        ("UPDATE accounts SET main = main + 5 WHERE id = 'commons'", "commons: main is"),
    ],
)
def test_what_was_changed_is_named_and_ends_with_1(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    statement: str,
    expected: str,
) -> None:
    monkeypatch.setenv("POTLUCK_HOME", str(tmp_path))
    asyncio.run(life(tmp_path))
    spoiled(tmp_path, statement)
    code, out, err = checked(tmp_path, capsys)
    assert code == 1
    assert expected in out
    assert "findings in 19 entries" in err


def spoiled(folder: Path, *statements: str) -> None:
    """What a hand or a failing disk did to the books of a pool that has stopped."""
    connection = sqlite3.connect(folder / "potluck.db")
    for sql in (*NO_TRIGGERS, *statements):
        connection.execute(sql)
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("UPDATE accounts SET main = main + 5 WHERE id = 'commons'", "commons: main is"),
        ("UPDATE postings SET amount = amount + 1 WHERE entry_number = 19", "entry 19 does not balance"),
        ("UPDATE entries SET details = '{}' WHERE number = 19", "entry 19 is not what its hash was made of"),
        ("DELETE FROM entries WHERE number = 18", "entry 19 follows entry 17"),
        ("UPDATE heads SET hash = 'ab'", "it signs another entry 13 than the one here"),
    ],
)
@pytest.mark.processes
def test_a_coordinator_does_not_go_on_with_wrong_books(tmp_path: Path, statement: str, expected: str) -> None:
    """It says at its start what is wrong and what to do; nothing was written."""
    asyncio.run(life(tmp_path))
    spoiled(tmp_path, "PRAGMA foreign_keys = OFF", statement)
    before = hashlib.sha256((tmp_path / "potluck.db").read_bytes()).hexdigest()
    pool = RealPool(tmp_path)
    arguments = [*pool.start_arguments, "--database", url_in(tmp_path)]
    process = Process.start("coordinator", arguments, tmp_path)
    process.wait_for("`--force` starts nevertheless")
    assert process.popen.wait(60) == 1
    said = "".join(process.lines)
    assert expected in said
    assert "`potluck coordinator check`" in said
    assert hashlib.sha256((tmp_path / "potluck.db").read_bytes()).hexdigest() == before


@pytest.mark.processes
def test_who_insists_opens_wrong_books(tmp_path: Path) -> None:
    """Each finding is in the log then, and the pool serves."""
    pool = RealPool(tmp_path)
    pool.start_coordinator()
    pool.close()
    spoiled(
        tmp_path / "coordinator", "UPDATE accounts SET main = main + 5, held = held + 1 WHERE id = 'commons'"
    )
    pool.coordinator = Process.start("coordinator", [*pool.start_arguments, "--force"], tmp_path)
    pool.coordinator.wait_for("books_wrong.*main is 5")
    pool.coordinator.wait_for("is open at")
    assert pool.ledger_sum() == 6
    pool.close()


async def test_a_long_ledger_is_looked_at_from_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More entries than a start looks at one by one: an old one that was changed is for the whole check."""
    monkeypatch.setattr("coordinator.audit.GLANCE_ENTRIES", 10)
    async with open_books(tmp_path) as books:
        await small_life(books)
        assert await books.store.glance() == []
    wrong = "entry {} is not what its hash was made of"
    for number, seen in ((10, [wrong.format(10)]), (9, [])):
        shutil.copy(tmp_path / "potluck.db", tmp_path / "before")
        spoiled(tmp_path, f"UPDATE entries SET details = '{{\"a\": 1}}' WHERE number = {number}")
        store = await Store.inspect(url_in(tmp_path))
        assert [finding.message for finding in await store.glance()] == seen
        assert [finding.message for finding in await store.verify()] == [wrong.format(number)]
        await store.close()
        shutil.move(tmp_path / "before", tmp_path / "potluck.db")


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        (["UPDATE alembic_version SET version_num = '0001'"], "revision 0001; this one knows "),
        (["UPDATE alembic_version SET version_num = '9999'"], "revision 9999; this one knows "),
        (["DROP TABLE alembic_version"], "this is no database of a Potluck coordinator"),
    ],
)
def test_a_database_of_another_shape_is_refused_with_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], statements: list[str], expected: str
) -> None:
    asyncio.run(life(tmp_path))
    connection = sqlite3.connect(tmp_path / "potluck.db")
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()
    code, _, err = checked(tmp_path, capsys)
    assert (code, expected in err) == (1, True)


def test_no_database_and_no_sqlite_are_sentences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = checked(tmp_path, capsys)
    assert (code, "there is no database at" in err) == (1, True)
    assert not (tmp_path / "potluck.db").exists()
    (tmp_path / "potluck.db").write_bytes(b"GIF89a" * 1_000)
    code, _, err = checked(tmp_path, capsys)
    assert (code, "the database failed: file is not a database" in err) == (1, True)


@pytest.mark.parametrize(
    ("now", "last", "moved", "expected"),
    [
        (0.0, None, False, False),
        (0.0, None, True, True),
        (DAY_S - 1.0, 0.0, True, False),
        (float(DAY_S), DAY_S - 1.0, True, True),
        (float(DAY_S), DAY_S - 1.0, False, False),
        (DAY_S - 1.0, float(DAY_S), True, False),
    ],
)
def test_a_head_is_due_once_a_day_if_anything_was_recorded(
    now: float, last: float | None, moved: bool, expected: bool
) -> None:
    assert due(now, last, moved=moved) == expected


async def test_the_pool_signs_about_once_a_day(tmp_path: Path) -> None:
    """By the clock that it is given: nothing new, or the same day, and nothing is signed."""
    async with open_books(tmp_path) as books:
        now = NOW
        heads = Heads(books.store, books.ca.sign, lambda: now)
        first = await heads.daily()
        assert first is not None
        assert first.reason is HeadReason.DAILY
        assert await heads.daily() is None
        await books.work(2, (0, 3))
        assert await heads.daily() is None
        now += DAY_S
        second = await heads.daily()
        assert second is not None
        assert (second.number, second.receipts_number) == (first.number + 2, 1)
        now += DAY_S
        assert await heads.daily() is None
        assert await heads.newest() == second
        covered = chain.head_bytes(
            number=second.number, hash=second.hash, receipts_number=1, receipts_hash=second.receipts_hash,
            at=second.at,
        )  # fmt: skip
        assert verify(books.ca.public_key, covered, second.signature)


async def test_two_who_ask_at_once_get_one_head(tmp_path: Path) -> None:
    async with open_books(tmp_path) as books:
        heads = books.heads
        found = await asyncio.gather(heads.newest(), heads.daily(), heads.newest())
        assert found[0] == found[2]
        with pytest.raises(StoreConflict):
            await books.store.put_head(heads.made(await books.store.ends()))


async def test_the_daily_watch_goes_on_when_the_disk_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks again at its next turn."""
    async with open_books(tmp_path) as books:
        turns = 0

        async def sleep(_seconds: float) -> None:
            nonlocal turns
            turns += 1
            if turns == 1:
                monkeypatch.undo()
            if turns == 2:
                raise asyncio.CancelledError

        async def refuse(*_: object) -> None:
            raise StoreError("the disk is full")

        monkeypatch.setattr(books.store, "put_head", refuse)
        heads = Heads(books.store, books.ca.sign, lambda: NOW, sleep)
        with pytest.raises(asyncio.CancelledError):
            await heads.run()
        assert await books.store.last_head(HeadReason.DAILY) is not None
