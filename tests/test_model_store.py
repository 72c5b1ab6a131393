"""Model files on one machine: who uses them, what gives way when room is needed, and what is damaged."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from potluck.catalogue import Artifact, File, LocalPath
from potluck.store import RESERVE_BYTES, ModelStore, OverQuota
from worker.folders import folder_of

MB = 1_000_000
PLENTY = 1 << 40

USER = """
import sys
from pathlib import Path
from potluck.catalogue import File
from potluck.store import ModelStore
file = File.model_validate_json(sys.argv[2])
with ModelStore(Path(sys.argv[1])).using([file]):
    print("using", flush=True)
    sys.stdin.read()
"""


def file_of(letter: str, size_bytes: int = MB) -> File:
    data = letter.encode() * size_bytes
    return File(
        name=f"{letter}.gguf",
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=size_bytes,
        source=Artifact(),
    )


def there(cache: Path, letter: str, used_at: float, size_bytes: int = MB) -> File:
    """As `fetch` leaves it."""
    file = file_of(letter, size_bytes)
    cache.mkdir(exist_ok=True)
    (cache / file.sha256).write_bytes(letter.encode() * size_bytes)
    stamp = cache / f"{file.sha256}.verified"
    stamp.write_bytes(b"[]")
    os.utime(stamp, (used_at, used_at))
    return file


def names(store: ModelStore) -> list[str]:
    return [entry.sha256 for entry in store.entries()]


def test_what_was_not_used_for_longest_gives_way_first(tmp_path: Path) -> None:
    """A quota of 4 MB with 3 MB taken: for 2 MB more, the oldest goes, and no other."""
    old, middle, new = (there(tmp_path, letter, at) for letter, at in (("o", 10), ("m", 20), ("n", 30)))
    store = ModelStore(tmp_path, quota_bytes=4 * MB, free_bytes=lambda _: PLENTY)
    assert names(store) == [old.sha256, middle.sha256, new.sha256]
    store.make_room([file_of("w", 2 * MB)])
    assert names(store) == [middle.sha256, new.sha256]
    assert not list(tmp_path.glob(f"{old.sha256}*verified"))
    store.make_room([file_of("w", 2 * MB)])
    assert len(names(store)) == 2, "there is room now"


def test_use_makes_a_file_young(tmp_path: Path) -> None:
    old, new = there(tmp_path, "o", 10), there(tmp_path, "n", 20)
    store = ModelStore(tmp_path, quota_bytes=2 * MB, free_bytes=lambda _: PLENTY)
    with store.using([old]):
        assert [entry.in_use for entry in store.entries()] == [True, False]
    assert names(store) == [new.sha256, old.sha256]
    assert not list(tmp_path.glob("*.used-*"))


def test_what_another_process_uses_stays_until_that_ends(tmp_path: Path) -> None:
    """However it ends: killed, its mark means nothing."""
    used = there(tmp_path, "u", 10)
    store = ModelStore(tmp_path, quota_bytes=MB, free_bytes=lambda _: PLENTY)
    command = [sys.executable, "-c", USER, str(tmp_path), used.model_dump_json()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "using\n"
        with pytest.raises(OverQuota, match="are in use"):
            store.make_room([file_of("w")])
        assert not store.remove(used.sha256)
        other.kill()
    store.make_room([file_of("w")])
    assert names(store) == []


def test_nothing_is_removed_where_that_would_not_be_enough(tmp_path: Path) -> None:
    """A quota too small for what is wanted costs nobody a file."""
    there(tmp_path, "a", 10)
    store = ModelStore(tmp_path, quota_bytes=2 * MB, free_bytes=lambda _: PLENTY)
    with pytest.raises(OverQuota, match=r"worker\.toml allows"):
        store.make_room([file_of("w", 5 * MB)])
    assert len(names(store)) == 1


def test_a_disk_that_is_short_of_room_gets_it_without_a_quota(tmp_path: Path) -> None:
    """As far as that helps; whether it does is asked before the download. What is wanted is kept."""
    there(tmp_path, "a", 10)
    kept = there(tmp_path, "b", 5)
    store = ModelStore(tmp_path, free_bytes=lambda _: RESERVE_BYTES)
    store.make_room([kept])
    assert len(names(store)) == 2, "all of it is there: nothing is needed"
    store.make_room([kept, file_of("w")])
    assert names(store) == [kept.sha256]


def test_files_elsewhere_do_not_count(tmp_path: Path) -> None:
    local = File(name="l", sha256="c" * 64, size_bytes=PLENTY, source=LocalPath(path="/models/l.gguf"))
    ModelStore(tmp_path, quota_bytes=1, free_bytes=lambda _: 0).make_room([local])


def test_what_was_made_of_a_file_counts_and_goes_with_it(tmp_path: Path) -> None:
    file = there(tmp_path / "models", "a", 10)
    made = tmp_path / "converted" / f"{file.sha256}-float32-1"
    made.mkdir(parents=True)
    (made / "model.safetensors").write_bytes(bytes(3 * MB))
    store = ModelStore(tmp_path / "models", derived=tmp_path / "converted")
    assert [entry.size_bytes for entry in store.entries()] == [4 * MB]
    assert store.remove(file.sha256)
    assert not made.exists()
    assert not store.remove(file.sha256)
    assert not store.remove("../../etc/passwd")


def test_the_names_that_engines_read_it_by_go_with_a_file(tmp_path: Path) -> None:
    """A hard link would keep the bytes on the disk; a folder's other files stay."""
    files = [there(tmp_path, "a", 10), there(tmp_path, "b", 10)]
    folder = folder_of(files, [tmp_path / file.sha256 for file in files], tmp_path)
    store = ModelStore(tmp_path)
    assert len(store.entries()) == 2
    assert store.remove(files[0].sha256)
    assert [path.name for path in folder.iterdir()] == ["b.gguf"]


def test_a_download_that_was_given_up_counts_and_goes_first(tmp_path: Path) -> None:
    there(tmp_path, "a", 10)
    half = file_of("h", 2 * MB)
    (tmp_path / f"{half.sha256}.partial").write_bytes(bytes(MB))
    store = ModelStore(tmp_path, quota_bytes=2 * MB, free_bytes=lambda _: PLENTY)
    assert (store.entries()[0].sha256, store.entries()[0].used_at) == (half.sha256, 0.0)
    store.make_room([file_of("w")])
    assert half.sha256 not in names(store)


def test_a_thorough_look_finds_bytes_that_changed_behind_their_date(tmp_path: Path) -> None:
    """A failing disk: size and time are as they were. The stamp goes, so that the next use reads it anew."""
    good, bad = there(tmp_path, "g", 10), there(tmp_path, "b", 10)
    state = (tmp_path / bad.sha256).stat()
    (tmp_path / bad.sha256).write_bytes(b"x" * MB)
    os.utime(tmp_path / bad.sha256, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert ModelStore(tmp_path).damaged() == [tmp_path / bad.sha256]
    assert not (tmp_path / f"{bad.sha256}.verified").exists()
    assert (tmp_path / f"{good.sha256}.verified").exists()
