"""Model files on one machine: who uses them, what gives way when room is needed, and what is damaged."""

import asyncio
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from potluck.catalogue import Artifact, File, LocalPath
from potluck.download import Policy
from potluck.fetch import FetchBusy, FetchError
from potluck.folders import LINKS, Link, folder_of
from potluck.lock import FileLock
from potluck.store import RESERVE_BYTES, ModelStore, OverQuota

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

FETCHER = """
import asyncio, sys
from pathlib import Path
from potluck.catalogue import File
from potluck.store import ModelStore, OverQuota
file = File.model_validate_json(sys.argv[2])
def tell(word):
    print(word, flush=True)
    return sys.stdin.readline()
class Source:
    async def download(self, sha256, offset):
        await asyncio.to_thread(tell, "coming")
        yield file.name[:1].encode() * (file.size_bytes - offset)
async def main():
    store = ModelStore(Path(sys.argv[1]), quota_bytes=int(sys.argv[3]), free_bytes=lambda _: 1 << 40)
    try:
        await store.fetch([file], artifacts=Source())
        print("here", flush=True)
    except OverQuota:
        print("over quota", flush=True)
tell("begun")
asyncio.run(main())
"""


class Fetcher:
    """A worker's process that fetches one file; its source gives nothing until it is told to."""

    def __init__(self, cache: Path, file: File, quota_bytes: int) -> None:
        command = [sys.executable, "-c", FETCHER, str(cache), file.model_dump_json(), str(quota_bytes)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.said() == "begun"

    def said(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=60)


class Source:
    """The pool's artifacts, without any."""

    async def download(self, sha256: str, offset: int) -> AsyncGenerator[bytes, None]:
        if sha256:
            raise AssertionError(f"{sha256} was asked for from {offset}")
        yield b""


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


def marks(cache: Path) -> list[Path]:
    return list(cache.glob("*.used-*"))


def names(store: ModelStore) -> list[str]:
    return [entry.sha256 for entry in store.entries()]


def test_what_was_not_used_for_longest_gives_way_first(tmp_path: Path) -> None:
    """A quota of 4 MB with 3 MB taken: for 2 MB more, the oldest goes, and no other."""
    old, middle, new = (there(tmp_path, letter, at) for letter, at in (("o", 10), ("m", 20), ("n", 30)))
    store = ModelStore(tmp_path, quota_bytes=4 * MB, free_bytes=lambda _: PLENTY)
    assert names(store) == [old.sha256, middle.sha256, new.sha256]
    store.set_aside([file_of("w", 2 * MB)]).close()
    assert names(store) == [middle.sha256, new.sha256]
    assert not list(tmp_path.glob(f"{old.sha256}*verified"))
    store.set_aside([file_of("w", 2 * MB)]).close()
    assert len(names(store)) == 2, "there is room now"


def test_use_makes_a_file_young(tmp_path: Path) -> None:
    old, new = there(tmp_path, "o", 10), there(tmp_path, "n", 20)
    store = ModelStore(tmp_path, quota_bytes=2 * MB, free_bytes=lambda _: PLENTY)
    with store.using([old]):
        assert [entry.in_use for entry in store.entries()] == [True, False]
    assert names(store) == [new.sha256, old.sha256]
    assert not marks(tmp_path)


def test_what_another_process_uses_stays_until_that_ends(tmp_path: Path) -> None:
    """However it ends: killed, its mark means nothing."""
    used = there(tmp_path, "u", 10)
    store = ModelStore(tmp_path, quota_bytes=MB, free_bytes=lambda _: PLENTY)
    command = [sys.executable, "-c", USER, str(tmp_path), used.model_dump_json()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "using\n"
        with pytest.raises(OverQuota, match="are in use"):
            store.set_aside([file_of("w")]).close()
        assert not store.remove(used.sha256)
        other.kill()
    store.set_aside([file_of("w")]).close()
    assert names(store) == []


def test_nothing_is_removed_where_that_would_not_be_enough(tmp_path: Path) -> None:
    """A quota too small for what is wanted costs nobody a file."""
    there(tmp_path, "a", 10)
    store = ModelStore(tmp_path, quota_bytes=2 * MB, free_bytes=lambda _: PLENTY)
    with pytest.raises(OverQuota, match=r"worker\.toml allows"):
        store.set_aside([file_of("w", 5 * MB)]).close()
    assert len(names(store)) == 1


def test_a_disk_that_is_short_of_room_gets_it_without_a_quota(tmp_path: Path) -> None:
    """As far as that helps; whether it does is asked before the download. What is wanted is kept."""
    there(tmp_path, "a", 10)
    kept = there(tmp_path, "b", 5)
    store = ModelStore(tmp_path, free_bytes=lambda _: RESERVE_BYTES)
    store.set_aside([kept]).close()
    assert len(names(store)) == 2, "all of it is there: nothing is needed"
    store.set_aside([kept, file_of("w")]).close()
    assert names(store) == [kept.sha256]


def test_files_elsewhere_do_not_count(tmp_path: Path) -> None:
    local = File(name="l", sha256="c" * 64, size_bytes=PLENTY, source=LocalPath(path="/models/l.gguf"))
    ModelStore(tmp_path, quota_bytes=1, free_bytes=lambda _: 0).set_aside([local]).close()


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


@pytest.mark.parametrize("link", LINKS)
def test_the_names_that_engines_read_it_by_go_with_a_file(link: Link, tmp_path: Path) -> None:
    """Whatever kind of name it is, and a copy counts: what an eviction thinks freed is free."""
    files = [there(tmp_path, "a", 10), there(tmp_path, "b", 10)]
    folder = folder_of(files, [tmp_path / file.sha256 for file in files], tmp_path, links=[link])
    assert (folder / "a.gguf").read_bytes() == b"a" * MB
    store = ModelStore(tmp_path)
    counted = {entry.sha256: entry.size_bytes for entry in store.entries()}
    each = 2 * MB if link is shutil.copyfile else MB
    assert counted == {file.sha256: each for file in files}
    assert store.remove(files[0].sha256)
    assert not folder.exists(), "a folder without one of its files is of no use"
    assert bytes_on_disk(tmp_path) == MB, "the other file stays, once"
    assert [path.name for path in (tmp_path / "folders").iterdir()] == []
    again = folder_of(files[1:], [tmp_path / files[1].sha256], tmp_path)
    assert (again / "b.gguf").read_bytes() == b"b" * MB


@pytest.mark.parametrize("anew", [True, False])
def test_bytes_that_only_a_folder_still_holds_count_and_go(anew: bool, tmp_path: Path) -> None:
    """The file was damaged, and fetched anew or not: a hard link keeps the old bytes on the disk."""
    file = there(tmp_path, "a", 10)
    folder = folder_of([file], [tmp_path / file.sha256], tmp_path, links=LINKS[1:])
    (tmp_path / file.sha256).unlink()
    if anew:
        there(tmp_path, "a", 10)
    store = ModelStore(tmp_path, quota_bytes=2 * MB, free_bytes=lambda _: PLENTY)
    assert [entry.size_bytes for entry in store.entries()] == [2 * MB if anew else MB]
    store.set_aside([file_of("w", 2 * MB)]).close()
    assert not folder.exists()
    assert bytes_on_disk(tmp_path) == 0


def test_a_cache_that_moves_takes_its_folders_along(tmp_path: Path) -> None:
    """As the nodes of a site see it, which mount it elsewhere."""
    cache = tmp_path / "here"
    file = there(cache, "a", 10)
    folder = folder_of([file], [cache / file.sha256], cache)
    cache.rename(tmp_path / "there")
    moved = tmp_path / "there" / folder.relative_to(cache)
    assert (moved / "a.gguf").read_bytes() == b"a" * MB


def test_a_file_that_lies_elsewhere_is_named_where_it_is(tmp_path: Path) -> None:
    own = tmp_path / "own.gguf"
    own.write_bytes(b"l" * MB)
    local = File(name="l.gguf", sha256=file_of("l").sha256, size_bytes=MB, source=LocalPath(path=str(own)))
    folder = folder_of([local], [own], tmp_path / "cache")
    assert (folder / "l.gguf").read_bytes() == b"l" * MB
    assert ModelStore(tmp_path / "cache").entries() == []


def bytes_on_disk(cache: Path) -> int:
    """All names of one file together once; what is written about the files is left out."""
    states = [path.lstat() for path in cache.rglob("*") if path.suffix not in {".verified", ".names"}]
    return sum({state.st_ino: state.st_size for state in states if stat.S_ISREG(state.st_mode)}.values())


def test_processes_that_fetch_at_once_stay_within_the_quota_together(tmp_path: Path) -> None:
    """Three want 1 MB each of a quota of 2, at one moment and before any byte is there: one is refused."""
    files = [file_of(letter) for letter in "abc"]
    fetchers = [Fetcher(tmp_path, file, 2 * MB) for file in files]
    try:
        for fetcher in fetchers:
            fetcher.go_on()
        said = [fetcher.said() for fetcher in fetchers]
        assert sorted(said) == ["coming", "coming", "over quota"]
        for fetcher, word in zip(fetchers, said, strict=True):
            if word == "coming":
                fetcher.go_on()
                assert fetcher.said() == "here"
    finally:
        for fetcher in fetchers:
            fetcher.end()
    assert bytes_on_disk(tmp_path) == 2 * MB
    assert not marks(tmp_path)


def test_room_is_set_aside_until_its_process_ends(tmp_path: Path) -> None:
    """Who wants the same file finds it set aside already; killed, a process has nothing set aside."""
    coming, other = file_of("a", 2 * MB), file_of("b", 2 * MB)
    store = ModelStore(tmp_path, quota_bytes=3 * MB, free_bytes=lambda _: PLENTY)
    fetcher = Fetcher(tmp_path, coming, 3 * MB)
    try:
        fetcher.go_on()
        assert fetcher.said() == "coming"
        [entry] = store.entries()
        assert (entry.sha256, entry.size_bytes, entry.coming_bytes) == (coming.sha256, 0, 2 * MB)
        assert entry.in_use
        with pytest.raises(OverQuota, match="are in use"):
            store.set_aside([other])
        store.set_aside([coming]).close()
        ModelStore(tmp_path, quota_bytes=MB).set_aside([coming]).close()  # nothing more comes for this one
    finally:
        fetcher.end()
    store.set_aside([other]).close()


async def test_nothing_stays_set_aside_for_who_is_cancelled(tmp_path: Path) -> None:
    """While it waits for its turn, and while a thread decides about its room."""
    turn, asked, go_on = asyncio.Event(), threading.Event(), threading.Event()

    async def sleep(_: float) -> None:
        turn.set()
        await asyncio.Event().wait()

    def free_bytes(_: Path) -> int:
        asked.set()
        assert go_on.wait(60)
        return PLENTY

    store = ModelStore(tmp_path, free_bytes=free_bytes)
    with FileLock.acquire(tmp_path / "room.lock"):
        waits = asyncio.create_task(
            store.fetch([file_of("w")], artifacts=Source(), policy=Policy(sleep=sleep))
        )
        await turn.wait()
        waits.cancel()
        await asyncio.wait({waits})
    decides = asyncio.create_task(store.fetch([file_of("w")], artifacts=Source()))
    assert await asyncio.to_thread(asked.wait, 60)
    decides.cancel()
    await asyncio.wait({decides})
    assert decides.cancelled()
    deciding = asyncio.all_tasks() - {asyncio.current_task()}
    assert deciding
    go_on.set()
    await asyncio.wait(deciding)
    assert not marks(tmp_path)


async def test_who_never_ends_making_room_is_not_waited_for_without_end(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    with FileLock.acquire(tmp_path / "room.lock"), pytest.raises(FetchBusy, match=r"holds .*room\.lock"):
        await store.fetch([file_of("w")], artifacts=Source(), policy=Policy(stalled_s=0.0))


async def test_a_cache_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FetchError, match="cannot be kept in"):
        await ModelStore(tmp_path / "file" / "models").fetch([file_of("w")], artifacts=Source())


def test_a_download_that_was_given_up_counts_and_goes_first(tmp_path: Path) -> None:
    there(tmp_path, "a", 10)
    half = file_of("h", 2 * MB)
    (tmp_path / f"{half.sha256}.partial").write_bytes(bytes(MB))
    store = ModelStore(tmp_path, quota_bytes=2 * MB, free_bytes=lambda _: PLENTY)
    assert (store.entries()[0].sha256, store.entries()[0].used_at) == (half.sha256, 0.0)
    store.set_aside([file_of("w")]).close()
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
