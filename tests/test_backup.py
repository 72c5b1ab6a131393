"""A pool that is backed up while it works, and comes back elsewhere: books, keys, files, workers."""

import json
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from fixtures_pool import COMMAND, RealPool

from coordinator.backup import MANIFEST, OBJECTS, BackupError, Manifest, back_up, restore
from coordinator.files import FOLDER as FILES
from coordinator.settings import Settings
from coordinator.store import Store

NOW = 1_790_000_000.0
CONTENT = b'{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {}}\n'


def run(home: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, JSON, and what was said beside it."""
    done = subprocess.run(
        [*COMMAND, "coordinator", *arguments, "-o", "json"],
        env={"POTLUCK_HOME": str(home), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return done.returncode, json.loads(done.stdout or "{}"), done.stderr


@pytest.mark.processes
def test_a_pool_under_load_is_backed_up_and_comes_back_elsewhere(real_pool: RealPool, tmp_path: Path) -> None:
    """Four members ask without a pause while two backups are taken into one folder. Then the machine is lost: from
    the folder alone the pool opens again, its books are right, its worker comes back by itself, files are there."""
    pool = real_pool
    pool.add_emulator("rig", "owner")
    asker = pool.member("asker", credit_line=10**12)
    sent = asker.api("POST", "/v1/files", files={"file": ("lines.jsonl", CONTENT)}, data={"purpose": "batch"})
    file = sent.raise_for_status().json()["id"]
    over = threading.Event()
    answered: list[int] = []

    def ask() -> None:
        while not over.is_set():
            body = {
                "model": "emulator-small",
                "messages": [{"role": "user", "content": "a b"}],
                "max_tokens": 8,
            }
            asker.api("POST", "/v1/chat/completions", json=body).raise_for_status()
            answered.append(1)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    folder = tmp_path / "backup"
    try:
        pool.until(lambda: len(answered) > 20, "answers")
        first = run(pool.folder, "backup", str(folder))
        second = run(pool.folder, "backup", str(folder))
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert (first[0], second[0]) == (0, 0), (first, second)
    assert first[1]["entries"] < second[1]["entries"], "the pool went on meanwhile"
    assert pool.coordinator is not None
    pool.coordinator.kill()
    lost = pool.folder / "coordinator"
    shutil.rmtree(lost)

    code, restored, said = run(pool.folder, "restore", str(folder))
    assert (code, restored["findings"], restored["entries"]) == (0, [], second[1]["entries"]), said
    assert oct((lost / "admin.key").stat().st_mode)[-3:] == "600"
    pool.start_coordinator()
    pool.until(lambda: pool.ready("rig"), "the worker to come back")
    assert pool.ledger_sum() == 0
    assert asker.balance()["reserved"] == 0
    assert asker.api("GET", f"/v1/files/{file}/content").content == CONTENT
    answer = asker.openai().chat.completions.create(
        model="emulator-small", messages=[{"role": "user", "content": "still there?"}], max_tokens=4
    )
    assert answer.choices[0].message.content
    code, checked, said = run(pool.folder, "check")
    assert (code, checked["findings"], checked["signatures_checked"]) == (0, [], True), said


async def small_pool(home: Path) -> Settings:
    """The files of a coordinator that was started once, with one artifact."""
    settings = Settings(home=home)
    store = await Store.open(settings.database_url, NOW)
    await store.close()
    artifact = settings.folder / FILES / "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    artifact.parent.mkdir(parents=True)
    artifact.write_bytes(b"test")
    return settings


async def test_only_what_is_new_is_copied_and_what_is_gone_leaves(tmp_path: Path) -> None:
    settings = await small_pool(tmp_path / "home")
    folder = tmp_path / "backup"
    back_up(settings, folder, NOW)
    [artifact] = (settings.folder / FILES).iterdir()
    kept = (folder / OBJECTS / artifact.name).stat().st_ino
    back_up(settings, folder, NOW)
    assert (folder / OBJECTS / artifact.name).stat().st_ino == kept
    artifact.unlink()
    manifest = back_up(settings, folder, NOW).manifest
    assert {path.name for path in (folder / OBJECTS).iterdir()} == {item.sha256 for item in manifest.items}
    assert not (folder / OBJECTS / artifact.name).exists()


async def test_a_damaged_artifact_is_named_and_does_not_spoil_the_rest(tmp_path: Path) -> None:
    settings = await small_pool(tmp_path / "home")
    [artifact] = (settings.folder / FILES).iterdir()
    artifact.write_bytes(b"tost")
    taken = back_up(settings, tmp_path / "backup", NOW)
    assert taken.damaged == (f"{FILES}/{artifact.name}",)
    assert restore(Settings(home=tmp_path / "other"), tmp_path / "backup") == taken.manifest


async def test_a_backup_that_was_changed_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    settings = await small_pool(tmp_path / "home")
    folder, other = tmp_path / "backup", Settings(home=tmp_path / "other")
    manifest = back_up(settings, folder, NOW).manifest
    books = next(item for item in manifest.items if item.path == "potluck.db")
    path = folder / OBJECTS / books.sha256
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(BackupError, match=r"is damaged: potluck\.db cannot be restored"):
        restore(other, folder)
    path.unlink()
    with pytest.raises(BackupError, match=r"incomplete: potluck\.db is missing"):
        restore(other, folder)
    assert list((tmp_path / "other").iterdir()) == []


@pytest.mark.parametrize(
    "path",
    [
        "../admin.key",
        "/etc/passwd",
        "ca/../../x",
        "files/../potluck.db",
        "files/x",
        "potluck.db-wal",
        "",
        "ca/other.pem",
    ],
)
async def test_a_manifest_names_only_what_a_backup_writes(tmp_path: Path, path: str) -> None:
    """Its paths come from outside: none may lead elsewhere."""
    folder = tmp_path / "backup"
    back_up(await small_pool(tmp_path / "home"), folder, NOW)
    found = json.loads((folder / MANIFEST).read_text())
    found["items"][0]["path"] = path
    (folder / MANIFEST).write_text(json.dumps(found))
    with pytest.raises(BackupError, match="no file of a backup"):
        Manifest.read(folder)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"format": 1}', '{"format": 2}', '{"format": 1, "items": [{}]}']
)
def test_a_manifest_that_is_none_is_refused_with_a_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(BackupError):
        Manifest.read(tmp_path)


async def test_a_home_that_has_a_pool_is_left_alone(tmp_path: Path) -> None:
    settings = await small_pool(tmp_path / "home")
    back_up(settings, tmp_path / "backup", NOW)
    before = sorted(path.name for path in settings.folder.iterdir())
    with pytest.raises(BackupError, match="is not empty"):
        restore(settings, tmp_path / "backup")
    assert sorted(path.name for path in settings.folder.iterdir()) == before


def test_books_elsewhere_are_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(BackupError, match="pg_dump"):
        back_up(Settings(home=tmp_path, database="postgresql://u@h/d"), tmp_path / "b", NOW)
    with pytest.raises(BackupError, match="there is no pool"):
        back_up(Settings(home=tmp_path), tmp_path / "b", NOW)
    assert not (tmp_path / "b").exists()
