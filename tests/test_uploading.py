"""Large files that are cut in the middle of being sent, over a real pool: they go on where they were."""

import asyncio
import contextlib
import hashlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fixtures_api import Stand

from potluck import Pool
from potluck.cli.main import run
from potluck.errors import InvalidRequest, PermissionDenied, Unreachable
from potluck.files import PoolFile
from potluck.uploading import PART_BYTES, PART_BYTES_MAX, PARTS, part_bytes_of

PIECE = 50_000
SIZE = 10 * PIECE + 123
LIMIT_S = 60.0


@dataclass
class Relay:
    """A TCP relay in front of the pool that lets so many bytes through to it, then cuts or stands still."""

    upstream: int
    bytes_left: float = float("inf")
    cuts: bool = True
    port: int = 0
    passed: int = 0
    spent: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def let(self, count: float) -> None:
        self.bytes_left, self.passed = count, 0
        self.spent.clear()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        above_reader, above = await asyncio.open_connection("127.0.0.1", self.upstream)
        back = asyncio.create_task(self._copy(above_reader, writer))
        try:
            while data := await reader.read(1_024 if self.bytes_left < 1 << 20 else 1 << 16):
                self.passed += len(data)
                self.bytes_left -= len(data)
                if self.bytes_left <= 0:
                    self.spent.set()
                    if not self.cuts:
                        await reader.read()  # until who sends has gone
                    return
                above.write(data)
                await above.drain()
        except ConnectionError:
            return
        finally:
            back.cancel()
            for one in (above, writer):
                one.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()


@pytest.fixture
async def relay(stand: Stand, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Relay]:
    monkeypatch.setenv("POTLUCK_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("potluck.uploading.PART_BYTES", PIECE)
    monkeypatch.setattr("potluck.uploading.RETRY_S", ())
    made = Relay(int(stand.url.rpartition(":")[2]))
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    yield made
    server.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "day.jsonl"
    made.write_bytes(os.urandom(SIZE))
    return made


@dataclass
class Sender:
    """Sends the file through the relay, each time with a connection of its own."""

    relay: Relay
    key: str
    path: Path
    progress: list[tuple[int, int]] = field(default_factory=list)
    went_on: list[tuple[int, int]] = field(default_factory=list)
    slept: list[float] = field(default_factory=list)
    on_sleep: Callable[[], None] = lambda: None

    async def __call__(self, path: Path | None = None, **more: Any) -> PoolFile:
        self.progress.clear()
        self.went_on.clear()
        return await asyncio.to_thread(self._send, path or self.path, more)

    def _send(self, path: Path, more: dict[str, Any]) -> PoolFile:
        with Pool(self.relay.url, self.key, retries_max=0, sleep=self._sleep) as pool:
            return pool.files.upload(
                path,
                "batch",
                in_parts=True,
                progress=lambda *at: self.progress.append(at),
                went_on=lambda *at: self.went_on.append(at),
                **more,
            )

    def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.on_sleep()


@pytest.fixture
def send(relay: Relay, stand: Stand, path: Path) -> Sender:
    return Sender(relay, stand.keys["alice"], path)


def whole(stand: Stand, made: PoolFile, path: Path) -> None:
    """The pool has the file as it is here, nothing else, and no note of it is left on this machine."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert (made.sha256, made.bytes, made.filename) == (digest, path.stat().st_size, path.name)
    artifacts = stand.context.files.artifacts
    assert artifacts.names() == [digest]
    assert artifacts.path(digest).read_bytes() == path.read_bytes()
    assert notes(path) == []


def notes(path: Path) -> list[str]:
    return [note.name for note in (path.parent / "home" / "uploads").iterdir()]


async def test_a_cut_upload_goes_on_where_it_was(
    stand: Stand, relay: Relay, send: Sender, path: Path
) -> None:
    """What arrived is not sent again, the bar begins there, and whoever asks is told."""
    relay.let(5.5 * PIECE)
    with pytest.raises(Unreachable, match="the same command goes on where it was"):
        await send()
    relay.let(float("inf"))
    made = await send()
    assert send.went_on == [(5 * PIECE, SIZE)]
    assert send.progress[0] == (PIECE, SIZE)
    assert send.progress[-1] == (SIZE, SIZE)
    assert SIZE - 5 * PIECE < relay.passed < SIZE - 4 * PIECE
    whole(stand, made, path)


async def test_a_connection_that_comes_back_is_waited_for(
    stand: Stand, relay: Relay, send: Sender, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same run goes on by itself."""
    monkeypatch.setattr("potluck.uploading.RETRY_S", (1.0, 2.0))
    relay.let(2.5 * PIECE)
    send.on_sleep = lambda: relay.let(3 * PIECE)
    made = await send()
    assert set(send.slept) == {1.0}
    assert len(send.slept) > 2
    assert send.went_on == []
    whole(stand, made, path)


async def test_an_answer_that_was_lost_does_not_make_two_files(
    stand: Stand, relay: Relay, send: Sender, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The upload was completed and nobody heard of it: the next run finds the file and sends nothing."""

    def lost(*_: object) -> None:
        raise Unreachable("gone")

    with monkeypatch.context() as patch:
        patch.setattr("potluck.uploading._Note.forget", lost)
        with pytest.raises(Unreachable):
            await send()
    relay.let(float("inf"))
    made = await send()
    assert relay.passed < PIECE
    assert [file.id async for file in stand.openai().files.list()] == [made.id]
    whole(stand, made, path)


async def test_what_has_expired_or_was_cancelled_begins_anew(
    stand: Stand, relay: Relay, send: Sender, path: Path
) -> None:
    for end in ("expired", "cancelled"):
        relay.let(5.5 * PIECE)
        with pytest.raises(Unreachable):
            await send()
        relay.let(float("inf"))
        if end == "expired":
            stand.clock.ahead_s = 3_601
        else:
            (upload,) = (row.id for row in await stand.context.store.expired_uploads(10**11))
            await stand.openai().uploads.cancel(upload)
        made = await send()
        assert send.went_on == []
        await stand.context.uploads.sweep()
        whole(stand, made, path)
        await stand.openai().files.delete(made.id)


async def test_another_file_another_purpose_and_another_time_are_other_uploads(
    stand: Stand, relay: Relay, send: Sender, path: Path
) -> None:
    relay.let(5.5 * PIECE)
    with pytest.raises(Unreachable):
        await send()
    relay.let(float("inf"))
    later = await send(expires_s=7_200)
    assert send.went_on == []
    assert later.expires_at == later.created_at + 7_200
    other = path.with_name("other") / path.name
    other.parent.mkdir()
    change(path, other)
    await send(path=other)
    assert send.went_on == []
    await send()
    assert send.went_on == [(5 * PIECE, SIZE)]


async def test_a_file_that_changes_meanwhile_is_refused(
    stand: Stand, relay: Relay, send: Sender, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was read to be known, and then again to be sent: nothing is left of it, here or there."""
    monkeypatch.setattr("potluck.uploading.RETRY_S", (1.0,))
    relay.let(5.5 * PIECE)

    def meanwhile() -> None:
        change(path, path)
        relay.let(float("inf"))

    send.on_sleep = meanwhile
    with pytest.raises(InvalidRequest, match="changed while it was being sent"):
        await send()
    assert stand.context.files.artifacts.names() == []
    assert notes(path) == []


async def test_a_home_that_cannot_be_written_to_keeps_nobody_from_sending(
    stand: Stand, relay: Relay, send: Sender, path: Path, tmp_path: Path
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "uploads").write_bytes(b"a file where the folder should be")
    made = await send()
    assert made.bytes == SIZE


async def test_what_is_refused_at_once_leaves_no_note(
    stand: Stand, relay: Relay, send: Sender, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    object.__setattr__(stand.context.settings, "files_bytes_max", SIZE - 1)
    with pytest.raises(PermissionDenied, match="bytes together"):
        await send()
    assert notes(path) == []


async def test_ctrl_c_stops_the_command_and_the_same_command_goes_on(
    stand: Stand, relay: Relay, path: Path
) -> None:
    """In processes of their own, above the size from which files go in parts by themselves; both runs say so."""
    size = large(path)
    environment = {
        **os.environ,
        "POTLUCK_HOME": str(path.parent / "home"),
        "POTLUCK_URL": relay.url,
        "POTLUCK_KEY": stand.keys["alice"],
    }
    started = (sys.executable, "-m", "potluck", "files", "upload", str(path), "--purpose", "batch", "-o")

    async def command(output: str, stop: bool) -> tuple[int | None, bytes, bytes]:
        process = await asyncio.create_subprocess_exec(
            *started,
            output,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(LIMIT_S):
                if stop:
                    await relay.spent.wait()
                    process.send_signal(signal.SIGINT)
                out, err = await process.communicate()
                return process.returncode, out, err
        finally:
            if process.returncode is None:
                process.kill()

    relay.cuts = False
    relay.let(PART_BYTES * 1.5)
    code, out, err = await command("text", stop=True)
    assert (code, out) == (130, b"")
    assert b"the same command goes on where it was" in err
    relay.let(float("inf"))
    code, out, err = await command("text", stop=False)
    assert code == 0, err
    assert b"8,388,608 of 67,108,865 bytes are there from before" in err
    assert len((await stand.openai().files.content(out.decode().strip())).content) == size


async def test_a_small_file_goes_in_parts_where_it_is_asked_for(
    stand: Stand,
    relay: Relay,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`--resume`; an empty file has no parts."""
    monkeypatch.setenv("POTLUCK_URL", relay.url)
    monkeypatch.setenv("POTLUCK_KEY", stand.keys["alice"])
    command = ["files", "upload", str(path), "--purpose", "batch", "--resume"]
    relay.let(2.5 * PIECE)
    assert await asyncio.to_thread(run, command) == 8
    relay.let(float("inf"))
    assert await asyncio.to_thread(run, command) == 0
    assert "100,000 of 500,123 bytes are there from before" in capsys.readouterr().err
    empty = path.with_name("empty.jsonl")
    empty.touch()
    assert (
        await asyncio.to_thread(run, ["files", "upload", str(empty), "--purpose", "batch", "--resume"]) == 0
    )


def large(path: Path) -> int:
    """Just large enough to go in parts by itself."""
    path.write_bytes(os.urandom((64 << 20) + 1))
    return path.stat().st_size


def change(path: Path, into: Path) -> None:
    into.write_bytes(path.read_bytes()[:-1] + b"!")


def test_parts_are_small_until_they_would_be_too_many() -> None:
    assert part_bytes_of(1) == PART_BYTES
    assert part_bytes_of(PART_BYTES * PARTS) == PART_BYTES
    assert part_bytes_of(PART_BYTES * PARTS + 1) == 2 * PART_BYTES
    assert part_bytes_of(64 << 40) == PART_BYTES_MAX
