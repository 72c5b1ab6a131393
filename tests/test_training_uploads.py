"""What training made comes up through a real grpc.aio server, resumable, from its attempt's holder alone."""

import asyncio
import errno
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from fixtures_core import Pool

from coordinator import training_store, translate
from coordinator.artifact_service import ArtifactServicer
from coordinator.artifacts import (
    PUT_CHUNK_BYTES_MAX,
    RESERVE_BYTES,
    ArtifactStore,
    ArtifactTooLarge,
    StoreFull,
)
from coordinator.core.jobs import JobId, WorkerId
from coordinator.training_store import ARTIFACTS_MAX, CLAIM_S, Holder, TrainingStore
from coordinator.training_uploads import UPLOADS_MAX, TrainingUploads
from potluck.v1 import artifacts_pb2, artifacts_pb2_grpc, work_pb2

DATA = bytes(range(256)) * 3_000
DIGEST = hashlib.sha256(DATA).hexdigest()
STATE = b"moments" * 1_000
PIECE = 100_000
WORKER, PART = WorkerId("wrk_1"), JobId("job_1.1")
MINE = Holder(WORKER, PART, 1)
WAIT_S = 20.0


@dataclass
class Clock:
    at: float = 0.0

    def __call__(self) -> float:
        return self.at


@dataclass
class Desk:
    """The service on a store of this folder; `held` is who holds what, by the pool's word."""

    folder: Path
    free_bytes: int = 1 << 40
    held: set[Holder] = field(default_factory=lambda: {MINE})
    caller: WorkerId = WORKER
    clock: Clock = field(default_factory=Clock)
    stub: Any = None

    def __post_init__(self) -> None:
        artifacts = ArtifactStore(self.folder, free_bytes=lambda _: self.free_bytes)
        self.store = TrainingStore(artifacts, now=self.clock)
        self.store.expect(PART, 10**6)

    def alive(self, worker: WorkerId, job: JobId, number: int) -> bool:
        return Holder(worker, job, number) in self.held

    def lose(self) -> None:
        """The pool has taken the attempt away, and sent the word of it."""
        self.held.clear()
        self.store.prune(self.alive)

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir()) if self.folder.exists() else []

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Desk"]:
        async def who(_: Any) -> WorkerId:
            return self.caller

        catalogue = ArtifactStore(self.folder / "catalogue")
        service = ArtifactServicer(catalogue, who, uploads=TrainingUploads(self.store, self.alive))
        server = grpc.aio.server()
        artifacts_pb2_grpc.add_ArtifactServiceServicer_to_server(service, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            self.stub = artifacts_pb2_grpc.ArtifactServiceStub(channel)
            yield self
        await server.stop(None)


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with Desk(tmp_path).open() as opened:
        yield opened


class Call:
    """One call, written and read by hand."""

    def __init__(self, desk: Desk) -> None:
        self.call = desk.stub.Upload()

    async def begin(
        self, sha256: str = DIGEST, size: int = len(DATA), *, job: str = PART, number: int = 1
    ) -> int:
        attempt = work_pb2.Attempt(job_id=job, number=number)
        begin = artifacts_pb2.UploadBegin(attempt=attempt, sha256=sha256, bytes=size)
        await self.call.write(artifacts_pb2.UploadRequest(begin=begin))
        answer = await self.read()
        assert not answer.whole
        return int(answer.offset)

    async def send(self, data: bytes, piece: int = PIECE) -> None:
        for start in range(0, len(data), piece):
            await self.call.write(artifacts_pb2.UploadRequest(data=data[start : start + piece]))

    async def finish(self) -> artifacts_pb2.UploadAnswer:
        await self.call.done_writing()
        return await self.read()

    async def read(self) -> artifacts_pb2.UploadAnswer:
        answer = await asyncio.wait_for(self.call.read(), WAIT_S)
        assert isinstance(answer, artifacts_pb2.UploadAnswer), await self.end()
        return answer

    async def end(self) -> tuple[grpc.StatusCode, str]:
        return await asyncio.wait_for(self.call.code(), WAIT_S), await self.call.details() or ""


async def upload(desk: Desk, data: bytes = DATA, **more: Any) -> artifacts_pb2.UploadAnswer:
    call = Call(desk)
    offset = await call.begin(hashlib.sha256(data).hexdigest(), len(data), **more)
    await call.send(data[offset:])
    return await call.finish()


async def refused(desk: Desk, *begin: Any, data: bytes = b"", **more: Any) -> tuple[grpc.StatusCode, str]:
    """How a call ends that must not be served."""
    call = Call(desk)
    with pytest.raises((grpc.aio.AioRpcError, AssertionError, asyncio.InvalidStateError)):
        await call.begin(*begin, **more)
        await call.send(data, max(1, len(data)))
        await call.finish()
    return await call.end()


async def arrived(desk: Desk, size: int) -> None:
    """Until so many bytes of the file are on the disk."""
    async with asyncio.timeout(WAIT_S):
        while desk.store._uploads[MINE][DIGEST].size_bytes < size:  # noqa: ASYNC110 -- no answer tells
            await asyncio.sleep(0)


async def test_what_was_made_lies_under_its_digest(desk: Desk) -> None:
    answer = await upload(desk)
    assert answer == artifacts_pb2.UploadAnswer(offset=len(DATA), whole=True)
    assert desk.store.path(DIGEST).read_bytes() == DATA
    assert desk.names() == [DIGEST]
    assert desk.store.has(MINE, DIGEST, len(DATA))
    assert not desk.store.has(MINE, DIGEST, len(DATA) - 1)
    assert not desk.store.has(MINE._replace(number=2), DIGEST, len(DATA))


async def test_a_stream_that_broke_goes_on_where_it_stopped(desk: Desk) -> None:
    first = Call(desk)
    assert await first.begin() == 0
    await first.send(DATA[:300_000])
    await arrived(desk, 300_000)
    first.call.cancel()
    second = Call(desk)
    assert await second.begin() == 300_000
    assert not desk.store.has(MINE, DIGEST, len(DATA))
    await second.send(DATA[300_000:])
    assert (await second.finish()).whole
    assert desk.store.path(DIGEST).read_bytes() == DATA


async def test_the_newest_stream_of_a_file_brings_it(desk: Desk) -> None:
    """The older one may hang on a line that is dead: what it still says changes nothing."""
    old = Call(desk)
    await old.begin()
    await old.send(DATA[:200_000])
    await arrived(desk, 200_000)
    new = Call(desk)
    assert await new.begin() == 200_000
    await old.send(b"late")
    code, why = await old.end()
    assert (code, why) == (grpc.StatusCode.FAILED_PRECONDITION, "another stream brings this file now")
    await new.send(DATA[200_000:])
    assert (await new.finish()).whole


async def test_whoever_ends_too_early_is_told_and_may_go_on(desk: Desk) -> None:
    call = Call(desk)
    await call.begin()
    await call.send(DATA[:200_000])
    await call.call.done_writing()
    code, why = await call.end()
    assert code is grpc.StatusCode.ABORTED
    assert "200,000 of 768,000 bytes are here" in why
    assert (await upload(desk)).whole


async def test_what_is_there_already_is_not_sent_twice(desk: Desk) -> None:
    """Another attempt at the same work makes the same bytes; a call that broke after its end asks again."""
    await upload(desk)
    again = Call(desk)
    assert await again.begin() == len(DATA)
    assert (await again.finish()).whole
    second = MINE._replace(number=2)
    desk.held.add(second)
    assert not desk.store.has(second, DIGEST, len(DATA))
    other = Call(desk)
    assert await other.begin(number=2) == len(DATA)
    assert (await other.finish()).whole
    assert desk.store.has(second, DIGEST, len(DATA))


@pytest.mark.parametrize("more", [{"job": "job_9.1"}, {"number": 2}], ids=["job", "attempt"])
async def test_only_who_holds_the_attempt_brings_anything(desk: Desk, more: dict[str, Any]) -> None:
    code, why = await refused(desk, **more)
    assert (code, why) == (grpc.StatusCode.FAILED_PRECONDITION, "this worker does not hold the attempt")
    desk.caller = WorkerId("wrk_2")
    assert (await refused(desk))[0] is grpc.StatusCode.FAILED_PRECONDITION
    assert desk.names() == []


async def test_half_a_file_goes_when_its_attempt_does(desk: Desk) -> None:
    call = Call(desk)
    await call.begin()
    await call.send(DATA[:200_000])
    await arrived(desk, 200_000)
    assert len(desk.names()) == 1
    desk.lose()
    assert desk.names() == []
    await call.send(b"more")
    code, why = await call.end()
    assert (code, why) == (grpc.StatusCode.FAILED_PRECONDITION, "this worker does not hold the attempt")
    assert not desk.store._uploads


async def test_when_a_part_ends_nothing_of_it_is_taken_any_more(desk: Desk) -> None:
    call = Call(desk)
    await call.begin()
    await call.send(DATA[:200_000])
    await arrived(desk, 200_000)
    desk.store.ended(PART)
    assert desk.names() == []
    call.call.cancel()
    code, why = await refused(desk)
    assert (code, why) == (grpc.StatusCode.INVALID_ARGUMENT, f"nothing is to be uploaded for {PART}")


@pytest.mark.parametrize(
    ("begin", "data", "code", "why"),
    [
        (("../../etc/passwd", 5), b"", grpc.StatusCode.INVALID_ARGUMENT, "64 lower-case hex digits"),
        ((DIGEST, 0), b"", grpc.StatusCode.INVALID_ARGUMENT, "1,000,000 are allowed"),
        ((DIGEST, 10**6 + 1), b"", grpc.StatusCode.INVALID_ARGUMENT, "1,000,000 are allowed"),
        ((DIGEST, 2**64 - 1), b"", grpc.StatusCode.INVALID_ARGUMENT, "1,000,000 are allowed"),
        ((DIGEST, 10), DATA[:11], grpc.StatusCode.INVALID_ARGUMENT, "more came than the 10 bytes"),
        ((DIGEST, 10), DATA[:10], grpc.StatusCode.DATA_LOSS, f"{DIGEST} was announced"),
    ],
    ids=["no digest", "empty", "too large", "huge", "more than announced", "other bytes"],
)
async def test_nothing_stays_of_what_is_refused(
    desk: Desk, begin: tuple[str, int], data: bytes, code: grpc.StatusCode, why: str
) -> None:
    found = await refused(desk, *begin, data=data)
    assert found[0] is code
    assert why in found[1]
    assert desk.names() == []


async def test_a_piece_has_a_size(desk: Desk) -> None:
    desk.store.expect(PART, 64 << 20)
    large = bytes(PUT_CHUNK_BYTES_MAX - 100)  # grpc's own limit of a message is the same
    with pytest.raises(StoreFull):
        desk.free_bytes = RESERVE_BYTES
        await desk.store.begin(MINE, DIGEST, 10)
    desk.free_bytes = 1 << 40
    assert (await upload(desk, large)).whole
    upload_, turn = await desk.store.begin(MINE, DIGEST, 10**7)
    with pytest.raises(ArtifactTooLarge, match="a piece of"):
        await desk.store.append(upload_, turn, bytes(PUT_CHUNK_BYTES_MAX + 1))
    call = Call(desk)
    await call.begin(DIGEST, 10**7)
    await call.call.write(artifacts_pb2.UploadRequest(data=b""))
    assert await call.end() == (grpc.StatusCode.INVALID_ARGUMENT, "a message without bytes")


async def test_an_attempt_brings_so_many_files_within_its_bytes(desk: Desk) -> None:
    await upload(desk)
    code, why = await refused(desk, "ab" * 32, 10**6 - len(DATA) + 1)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "1,000,000 are allowed" in why
    await upload(desk, STATE)
    code, why = await refused(desk, "ab" * 32, 1)
    assert (code, why) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        f"an attempt brings {ARTIFACTS_MAX} files at most",
    )
    assert (await refused(desk, DIGEST, 5))[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_full_disk_is_said_and_keeps_nothing(desk: Desk) -> None:
    """Before the first byte, in between by what is free, and by the system's own word."""
    desk.free_bytes = RESERVE_BYTES + len(DATA) - 1
    code, why = await refused(desk)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert why == "The coordinator's disk is full: nothing was kept. Ask whoever runs it to make room."
    desk.free_bytes = 1 << 40
    call = Call(desk)
    await call.begin()
    await call.send(DATA[:100_000])
    await arrived(desk, 100_000)
    desk.free_bytes = RESERVE_BYTES
    await call.send(DATA[100_000:200_000])
    assert (await call.end())[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert desk.names() == []
    desk.free_bytes = 1 << 40
    assert (await upload(desk)).whole, "there is room again: from the start"


async def test_a_write_that_the_system_refuses_keeps_nothing(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = training_store._append

    def no_room(upload: training_store.Upload, data: bytes) -> None:
        if upload.size_bytes:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(upload, data)

    monkeypatch.setattr(training_store, "_append", no_room)
    call = Call(desk)
    await call.begin()
    await call.send(DATA[:200_000])
    code, why = await call.end()
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "make room" in why
    assert desk.names() == []


async def test_a_call_begins_with_what_it_brings(desk: Desk) -> None:
    call = Call(desk)
    await call.send(b"bytes")
    assert await call.end() == (grpc.StatusCode.INVALID_ARGUMENT, "an upload starts with UploadBegin")


async def test_one_worker_has_a_bounded_number_of_uploads(desk: Desk) -> None:
    calls = [Call(desk) for _ in range(UPLOADS_MAX)]
    for call in calls:
        await call.begin()
    code, why = await refused(desk)
    assert (code, why) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "a worker may have 4 uploads at once")
    for call in calls:
        call.call.cancel()


async def test_who_is_cut_off_while_a_piece_is_written_leaves_no_gap(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The piece is on the disk before the next stream hears how much is there."""
    append, writing, go = training_store._append, asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow(upload: training_store.Upload, data: bytes) -> None:
        loop.call_soon_threadsafe(writing.set)
        asyncio.run_coroutine_threadsafe(go.wait(), loop).result(WAIT_S)
        append(upload, data)

    monkeypatch.setattr(training_store, "_append", slow)
    first, second = Call(desk), Call(desk)
    await first.begin()
    await first.send(DATA[:PIECE])
    await asyncio.wait_for(writing.wait(), WAIT_S)
    first.call.cancel()
    begun = asyncio.create_task(second.begin())
    await asyncio.sleep(0)
    go.set()
    assert await begun == PIECE
    await second.send(DATA[PIECE:])
    assert (await second.finish()).whole


# -- what is kept ------------------------------------------------------------------------------------


async def test_a_sweep_leaves_what_is_kept_what_came_lately_and_what_is_under_way(desk: Desk) -> None:
    await upload(desk)
    made = (await desk.store.put(STATE)).sha256
    desk.lose()
    assert await desk.store.sweep(set()) == 0
    desk.clock.at = CLAIM_S + 1
    assert await desk.store.sweep({made}) == 1
    assert desk.names() == [made]
    desk.held.add(MINE)
    again = Call(desk)
    await again.begin()
    assert await desk.store.sweep(set()) == 1, "the half one is not touched"
    await again.send(DATA)
    assert (await again.finish()).whole
    assert await desk.store.sweep(set()) == 0


async def test_after_a_restart_half_files_go(tmp_path: Path) -> None:
    async with Desk(tmp_path).open() as desk:
        call = Call(desk)
        await call.begin()
        await call.send(DATA[:PIECE])
        await arrived(desk, PIECE)
        call.call.cancel()
    assert ArtifactStore(tmp_path).sweep() == 1
    assert Desk(tmp_path).names() == []


# -- who may have it ---------------------------------------------------------------------------------


async def put(store: ArtifactStore, data: bytes) -> str:
    async def once() -> AsyncIterator[bytes]:
        yield data

    return (await store.put(once())).sha256


async def test_what_is_not_the_catalogues_is_for_whose_work_names_it(tmp_path: Path) -> None:
    """Members' files and what training made: for all others it is not there."""
    catalogue, files, made = (ArtifactStore(tmp_path / name) for name in "abc")
    public, examples, adapter = await put(catalogue, b"m"), await put(files, b"e"), await put(made, b"a")
    named: set[str] = set()
    callers: list[WorkerId] = []

    async def who(_: Any) -> WorkerId:
        return WORKER

    def named_by(worker: WorkerId) -> set[str]:
        callers.append(worker)
        return named

    server = grpc.aio.server()
    service = ArtifactServicer(catalogue, who, private=(made, files), named_by=named_by)
    artifacts_pb2_grpc.add_ArtifactServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()

    async def fetched(sha256: str) -> bytes:
        call = stub.Download(artifacts_pb2.DownloadRequest(sha256=sha256))
        return b"".join([chunk.data async for chunk in call])

    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: Any = artifacts_pb2_grpc.ArtifactServiceStub(channel)
        assert await fetched(public) == b"m"
        for digest in (examples, adapter):
            with pytest.raises(grpc.aio.AioRpcError) as none:
                await fetched(digest)
            assert (none.value.code(), none.value.details()) == (
                grpc.StatusCode.NOT_FOUND,
                f"no artifact {digest}",
            )
        named |= {examples, adapter}
        assert (await fetched(examples), await fetched(adapter)) == (b"e", b"a")
    await server.stop(None)
    assert set(callers) == {WORKER}


def test_an_assignment_names_its_adapter_beside_the_work() -> None:
    pool = Pool()
    pool.join("w1")
    pool.ask()
    pool.tick()
    adapter = work_pb2.Adapter(name="tiny:ft-1", weights_sha256="aa", config_sha256="bb")
    work = work_pb2.Work(chat=work_pb2.ChatWork(), adapter=adapter)
    said = translate.assign(pool.live(), 1, "", work, "alice")
    assert said.adapter == adapter
    assert not said.work.HasField("adapter")
    assert said.work.HasField("chat")
    assert work.HasField("adapter"), "what the pool keeps is as it was"
    assert translate.digests(work) == {"aa", "bb"}


def test_the_files_of_a_training_are_those_that_it_names() -> None:
    training = work_pb2.TrainingWork(
        examples=work_pb2.Artifact(sha256="aa"),
        validation=work_pb2.Artifact(sha256="bb"),
        adapter=work_pb2.Artifact(sha256="cc"),
    )
    assert translate.digests(work_pb2.Work(training=training)) == {"aa", "bb", "cc"}
    training.state.sha256 = "dd"
    assert translate.digests(work_pb2.Work(training=training)) == {"aa", "bb", "cc", "dd"}
    assert not translate.digests(work_pb2.Work(chat=work_pb2.ChatWork()))
