"""The artifact store on a real disk, and downloads through a real grpc.aio server."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, BinaryIO

import grpc
import pytest

from coordinator import artifacts
from coordinator.artifact_service import CHUNK_BYTES, DOWNLOADS_MAX, ArtifactServicer
from coordinator.artifacts import (
    PUT_CHUNK_BYTES_MAX,
    RESERVE_BYTES,
    ArtifactMismatch,
    ArtifactStore,
    ArtifactTooLarge,
    NoSuchArtifact,
    StoreFull,
)
from coordinator.core.jobs import WorkerId
from coordinator.unwelcome import Unwelcome
from potluck.catalogue import Artifact, File
from potluck.fetch import Interrupted, fetch
from potluck.v1 import artifacts_pb2, artifacts_pb2_grpc

DATA = bytes(range(256)) * 5_000
DIGEST = hashlib.sha256(DATA).hexdigest()


async def pieces(data: bytes = DATA, size: int = 100_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_bytes_are_kept_under_their_digest(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "a")
    stored = await store.put(pieces(), sha256=DIGEST)
    assert (stored.sha256, stored.size_bytes) == (DIGEST, len(DATA))
    assert store.size(DIGEST) == len(DATA)
    with store.open(DIGEST) as file:
        assert file.read() == DATA
    assert await store.put(pieces()) == stored  # a second time: the same, once
    assert names(tmp_path / "a") == [DIGEST]
    assert store.delete(DIGEST)
    assert not store.delete(DIGEST)
    with pytest.raises(NoSuchArtifact):
        store.path(DIGEST)


async def test_an_empty_artifact_is_one(tmp_path: Path) -> None:
    stored = await ArtifactStore(tmp_path).put(pieces(b""))
    assert stored.sha256 == hashlib.sha256(b"").hexdigest()


async def test_nothing_stays_of_what_is_refused(tmp_path: Path) -> None:
    """Over the cap, another digest, a huge piece, a full disk, a source that fails, a cancelled put."""

    async def failing() -> AsyncIterator[bytes]:
        yield b"half"
        raise ConnectionError("gone")

    store = ArtifactStore(tmp_path)
    with pytest.raises(ArtifactTooLarge, match="more than 200,000 bytes"):
        await store.put(pieces(), bytes_max=200_000)
    with pytest.raises(ArtifactTooLarge, match="more than 1,000 bytes"):
        await ArtifactStore(tmp_path, bytes_max=1_000).put(pieces(), bytes_max=10**9)
    with pytest.raises(ArtifactMismatch, match=DIGEST):
        await store.put(pieces(), sha256="0" * 64)
    with pytest.raises(ArtifactTooLarge, match="a piece of"):
        await store.put(pieces(bytes(PUT_CHUNK_BYTES_MAX + 1), PUT_CHUNK_BYTES_MAX + 1))
    with pytest.raises(StoreFull, match="make room"):
        await ArtifactStore(tmp_path, free_bytes=lambda _: RESERVE_BYTES).put(pieces())
    with pytest.raises(ConnectionError):
        await store.put(failing())
    assert names(tmp_path) == []


async def test_a_put_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield b"half"
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(ArtifactStore(tmp_path).put(endless()))
    async with asyncio.timeout(30):
        await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert names(tmp_path) == []


def test_what_a_crash_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / ".incoming-0123").write_bytes(b"half")
    (tmp_path / DIGEST).write_bytes(DATA)
    assert ArtifactStore(tmp_path).sweep() == 1
    assert names(tmp_path) == [DIGEST]
    assert ArtifactStore(tmp_path / "not-there").sweep() == 0


async def test_until_its_digest_is_known_an_artifact_has_no_name(tmp_path: Path) -> None:
    """Whoever lists or opens sees all of it or nothing: the bytes are on the disk before the rename."""
    order: list[str] = []
    store = ArtifactStore(tmp_path)
    flush, rename = artifacts._flush, artifacts._rename

    def flushed(file: BinaryIO) -> None:
        order.append("flush")
        flush(file)

    def renamed(incoming: Path, path: Path) -> None:
        order.append("rename")
        rename(incoming, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(artifacts, "_flush", flushed)
        patch.setattr(artifacts, "_rename", renamed)
        await store.put(_watched(tmp_path, order))
    assert order == ["nothing", "nothing", "flush", "rename"]


async def _watched(folder: Path, order: list[str]) -> AsyncIterator[bytes]:
    for chunk in (b"one", b"two"):
        order.append("nothing" if all(name.startswith(".") for name in names(folder)) else "something")
        yield chunk


@pytest.mark.parametrize(
    "name",
    [
        "",
        "../" + DIGEST[:61],
        "/etc/passwd",
        DIGEST.upper(),
        DIGEST + "\n",
        DIGEST[:-1],
        "..",
        "a" * 65,
        "é" * 64,
    ],
)
async def test_what_is_no_digest_never_touches_a_path(tmp_path: Path, name: str) -> None:
    store = ArtifactStore(tmp_path)
    with pytest.raises(NoSuchArtifact):
        store.open(name)
    with pytest.raises(NoSuchArtifact):
        store.size(name)
    with pytest.raises(NoSuchArtifact):
        await store.put(pieces(), sha256=name)
    assert not store.delete(name)


# -- over the wire -----------------------------------------------------------------------------------


async def anybody(_: Any) -> WorkerId:
    return WorkerId("wrk_1")


async def nobody(_: Any) -> WorkerId:
    raise Unwelcome(grpc.StatusCode.UNAUTHENTICATED, "this worker is not enrolled here")


@asynccontextmanager
async def serving(store: ArtifactStore, identify: Any = anybody) -> AsyncIterator[Any]:
    server = grpc.aio.server()
    artifacts_pb2_grpc.add_ArtifactServiceServicer_to_server(ArtifactServicer(store, identify), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield artifacts_pb2_grpc.ArtifactServiceStub(channel)
    await server.stop(None)


async def download(stub: Any, sha256: str = DIGEST, offset: int = 0) -> list[artifacts_pb2.DownloadChunk]:
    call = stub.Download(artifacts_pb2.DownloadRequest(sha256=sha256, offset=offset))
    return [chunk async for chunk in call]


def joined(chunks: Iterable[artifacts_pb2.DownloadChunk]) -> bytes:
    return b"".join(chunk.data for chunk in chunks)


@pytest.mark.parametrize("offset", [0, 1, CHUNK_BYTES, 777_777, len(DATA) - 1, len(DATA)])
async def test_a_download_begins_at_any_offset(tmp_path: Path, offset: int) -> None:
    """Chunks follow each other without a gap, none is larger than the limit, each says the total."""
    store = ArtifactStore(tmp_path)
    await store.put(pieces())
    async with serving(store) as stub:
        chunks = await download(stub, offset=offset)
    assert joined(chunks) == DATA[offset:]
    assert {chunk.total for chunk in chunks} == {len(DATA)}
    assert max(len(chunk.data) for chunk in chunks) <= CHUNK_BYTES
    at = offset
    for chunk in chunks:
        assert chunk.offset == at
        at += len(chunk.data)


@pytest.mark.parametrize(
    ("sha256", "offset", "code"),
    [
        ("0" * 64, 0, grpc.StatusCode.NOT_FOUND),
        ("../../etc/passwd", 0, grpc.StatusCode.NOT_FOUND),
        (DIGEST, len(DATA) + 1, grpc.StatusCode.OUT_OF_RANGE),
        (DIGEST, 2**64 - 1, grpc.StatusCode.OUT_OF_RANGE),
    ],
)
async def test_senseless_requests_get_a_code_and_a_sentence(
    tmp_path: Path, sha256: str, offset: int, code: grpc.StatusCode
) -> None:
    store = ArtifactStore(tmp_path)
    await store.put(pieces())
    async with serving(store) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await download(stub, sha256, offset)
    assert caught.value.code() is code
    assert caught.value.details()


async def test_only_enrolled_workers_download(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    await store.put(pieces())
    async with serving(store, nobody) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await download(stub)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert caught.value.details() == "this worker is not enrolled here"


async def test_one_worker_has_a_bounded_number_of_downloads(tmp_path: Path) -> None:
    """The fifth at once is refused; when one has ended, the next is let in."""
    store = ArtifactStore(tmp_path)
    large = bytes(64 << 20)  # more than the flow control of a stream lets through unread
    digest = (await store.put(pieces(large, 1 << 20))).sha256
    async with serving(store) as stub:
        request = artifacts_pb2.DownloadRequest(sha256=digest)
        calls = [stub.Download(request) for _ in range(DOWNLOADS_MAX)]
        for call in calls:
            await call.read()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await download(stub, digest)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        for call in calls:
            call.cancel()
        async with asyncio.timeout(30):
            while True:
                try:
                    assert len(joined(await download(stub, digest))) == len(large)
                    break
                except grpc.aio.AioRpcError as error:  # the server learns of the ends in its own time
                    if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                        raise


class Flaky:
    """A source for `fetch` whose first call breaks off after two chunks."""

    def __init__(self, stub: Any) -> None:
        self.stub = stub
        self.offsets: list[int] = []

    async def download(self, sha256: str, offset: int) -> AsyncGenerator[bytes, None]:
        self.offsets.append(offset)
        call = self.stub.Download(artifacts_pb2.DownloadRequest(sha256=sha256, offset=offset))
        count = 0
        async for chunk in call:
            yield chunk.data
            count += 1
            if count == 2 and len(self.offsets) == 1:
                call.cancel()
                raise Interrupted("broken off")


async def test_a_worker_fetches_an_artifact_over_a_broken_connection(tmp_path: Path) -> None:
    """From the store through gRPC into the cache, verified, the second call from the byte where the first ended."""
    store = ArtifactStore(tmp_path / "store")
    await store.put(pieces())
    file = File(name="m.gguf", sha256=DIGEST, size_bytes=len(DATA), source=Artifact())
    async with serving(store) as stub:
        source = Flaky(stub)
        path = await fetch(file, tmp_path / "cache", artifacts=source)
    assert path.read_bytes() == DATA
    assert source.offsets == [0, 2 * CHUNK_BYTES]
