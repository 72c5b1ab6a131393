"""One coordinator per home and database; the lock ends with its process; what nobody holds can go away."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures_store import NOW, url_in

from coordinator.lock import AlreadyRunning, FileLock
from coordinator.store import Store
from potluck import lock

HOLDER = """
import sys
from pathlib import Path
from coordinator.lock import FileLock
lock = FileLock.acquire(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def holder(path: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_is_told_who_the_first_is(tmp_path: Path) -> None:
    with holder(tmp_path / "x.lock") as process:
        with pytest.raises(
            AlreadyRunning, match=f"process {process.pid} already runs a coordinator"
        ) as caught:
            FileLock.acquire(tmp_path / "x.lock")
        assert caught.value.pid == process.pid
        process.kill()


def test_the_lock_ends_with_a_killed_process(tmp_path: Path) -> None:
    """Kill -9 leaves the file behind, and no lock."""
    with holder(tmp_path / "x.lock") as process:
        process.kill()
        assert process.wait(30) != 0
    with FileLock.acquire(tmp_path / "x.lock"):
        assert (tmp_path / "x.lock").read_text() == f"{os.getpid()}\n"


def test_one_process_cannot_hold_it_twice(tmp_path: Path) -> None:
    with FileLock.acquire(tmp_path / "x.lock"), pytest.raises(AlreadyRunning):
        FileLock.acquire(tmp_path / "x.lock")
    FileLock.acquire(tmp_path / "x.lock").release()


def test_a_holder_without_a_readable_id_is_still_a_holder(tmp_path: Path) -> None:
    with FileLock.acquire(tmp_path / "x.lock"):
        (tmp_path / "x.lock").write_text("noise")
        with pytest.raises(AlreadyRunning, match="another process already runs"):
            FileLock.acquire(tmp_path / "x.lock")


def test_who_locks_a_file_that_was_removed_meanwhile_begins_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first goes between the second's opening and locking: the second holds what has the name."""
    first = lock.FileLock.acquire(tmp_path / "x.lock")
    try_lock = lock._try_lock

    def first_goes(descriptor: int) -> bool:
        first.release(remove=True)
        return try_lock(descriptor)

    monkeypatch.setattr(lock, "_try_lock", first_goes)
    with lock.FileLock.acquire(tmp_path / "x.lock"):
        assert (tmp_path / "x.lock").exists()
        with pytest.raises(lock.Locked):
            lock.FileLock.acquire(tmp_path / "x.lock")


def test_a_lock_without_content_keeps_what_it_finds_out_of_the_way(tmp_path: Path) -> None:
    """The file is emptied, released twice without harm, and locked again."""
    (tmp_path / "x.lock").write_text("an old holder's words")
    held = lock.FileLock.acquire(tmp_path / "x.lock")
    assert (tmp_path / "x.lock").read_bytes() == b""
    held.release()
    held.release(remove=True)
    assert (tmp_path / "x.lock").exists(), "released is released: nothing is removed afterwards"
    assert lock.holder(tmp_path / "x.lock") is None
    assert not (tmp_path / "x.lock").exists()


async def test_a_second_store_on_the_database_is_refused(tmp_path: Path) -> None:
    store = await Store.open(url_in(tmp_path), NOW)
    with pytest.raises(AlreadyRunning, match=f"process {os.getpid()} "):
        await Store.open(url_in(tmp_path), NOW)
    assert await store.members() == []
    await store.close()
    await (await Store.open(url_in(tmp_path), NOW)).close()
