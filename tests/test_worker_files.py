"""Files on their way into a worker, from the coordinator's own artifact store."""

import asyncio
import hashlib
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fixtures_worker import (
    EMULATOR,
    FakeCoordinator,
    FakeStore,
    assignment,
    coordinating,
    join_by_hand,
    places_in,
    working,
)

from potluck.catalogue import Artifact, Catalogue, File, Variant
from potluck.logs import configure
from potluck.v1 import session_pb2, work_pb2
from worker.addresses import Addresses
from worker.artifacts import DOWNLOADS_MAX, ArtifactClient
from worker.membership import utc_now
from worker.renewal import Renewal
from worker.workplace import Workplace

DATA = bytes(range(256)) * 400


@pytest.fixture(autouse=True)
def _log() -> None:
    configure("json", stream=io.StringIO())


def catalogue(sha256: str) -> bytes:
    file = File(name="weights.gguf", sha256=sha256, size_bytes=len(DATA), source=Artifact())
    variant = Variant(format="gguf", engines=("emulator",), files=(file,), memory_bytes=0)
    return Catalogue((EMULATOR.model_copy(update={"variants": (variant,)}),)).to_wire()


def served(coordinator: FakeCoordinator) -> list[session_pb2.ServedModel]:
    return list(coordinator.heartbeats[-1].models) if coordinator.heartbeats else []


async def test_a_download_that_breaks_off_goes_on_from_there(tmp_path: Path) -> None:
    digest = hashlib.sha256(DATA).hexdigest()
    async with coordinating() as coordinator:
        coordinator.catalogue = catalogue(digest)
        coordinator.store.artifacts[digest] = DATA
        coordinator.store.break_after = 60_000
        async with working(coordinator, tmp_path):
            await coordinator.ready()
            assert coordinator.store.offsets == [0, 60_000]
            assert (tmp_path / "cache" / "models" / digest).read_bytes() == DATA
            assert [(model.bytes_done, model.bytes_total) for model in served(coordinator)] == [
                (len(DATA),) * 2
            ]


@pytest.mark.parametrize(("there", "why"), [(True, "sha256"), (False, "does not have it")])
async def test_a_file_that_is_wrong_or_missing_is_shown_as_failed(
    tmp_path: Path, there: bool, why: str
) -> None:
    digest = "00" * 32
    async with coordinating() as coordinator:
        coordinator.catalogue = catalogue(digest)
        if there:
            coordinator.store.artifacts[digest] = DATA
        async with working(coordinator, tmp_path):
            await coordinator.until(
                lambda: [model.state for model in served(coordinator)] == [session_pb2.MODEL_STATE_FAILED]
            )
            assert why in served(coordinator)[0].why
            assert not (tmp_path / "cache" / "models" / digest).exists()


async def test_an_adapter_is_let_go_of_when_its_attempt_ends(tmp_path: Path) -> None:
    """The emulator serves no adapters, and says so when the attempt with one has come to it."""
    weights, config = b"weights" * 1000, b'{"r": 4}'
    digests = [hashlib.sha256(data).hexdigest() for data in (weights, config)]
    assign = assignment("job-1")
    assign.adapter.CopyFrom(
        work_pb2.Adapter(
            name="small:ft-1",
            weights_sha256=digests[0],
            weights_bytes=len(weights),
            config_sha256=digests[1],
            config_bytes=len(config),
        )
    )
    async with coordinating() as coordinator:
        coordinator.store.artifacts |= dict(zip(digests, (weights, config), strict=True))
        async with working(coordinator, tmp_path):
            await coordinator.ready()
            assert coordinator.live is not None
            coordinator.live.send(assign=assign)
            await coordinator.until(lambda: ("job-1", 1) in coordinator.told)
            told = coordinator.told["job-1", 1]
            await coordinator.until(lambda: told.result is not None)
            assert told.result is not None
            assert told.result.failed.code == "no_adapters"
            cache = tmp_path / "cache" / "models"
            assert (cache / digests[0]).read_bytes() == weights
            assert not list(cache.glob("*.used-*"))


class Gate(FakeStore):
    """Gives nothing until it is opened, except the empty file; counts who waits."""

    def __init__(self) -> None:
        super().__init__()
        self.running = self.most = 0
        self.full, self.open = asyncio.Event(), asyncio.Event()

    async def Download(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802 -- aio's form of the RPC
        self.running += 1
        self.most = max(self.most, self.running)
        if self.running == DOWNLOADS_MAX:
            self.full.set()
        if self.artifacts[request.sha256]:
            await self.open.wait()
        async for chunk in super().Download(request, context):
            yield chunk
        self.running -= 1


async def test_more_downloads_than_the_coordinator_gives_at_once_wait_for_each_other(tmp_path: Path) -> None:
    """It refuses the fifth of one worker, and who is refused again and again gives up."""
    files = {hashlib.sha256(data).hexdigest(): data for data in (bytes([n]) * 5_000 for n in range(7))}
    places = places_in(tmp_path)
    async with coordinating() as coordinator:
        await coordinator.stop()
        coordinator.store = gate = Gate()
        gate.artifacts = files | {"": b""}
        await coordinator.start()
        join_by_hand(places, coordinator.ca, port=coordinator.port)
        workplace = Workplace(places)
        identity = workplace.identity
        renewal = Renewal(
            membership=workplace.membership,
            identity=identity,
            certificate=workplace.certificate,
            folder=places.worker,
            now=utc_now,
        )
        client, second = (
            ArtifactClient(Addresses.of(workplace.membership), identity.tls_key_pem(), renewal)
            for _ in range(2)
        )

        async def whole(source: ArtifactClient, sha256: str) -> bytes:
            return b"".join([data async for data in source.download(sha256, 0)])

        try:
            async with asyncio.timeout(60), asyncio.TaskGroup() as group:
                fetching = [group.create_task(whole(client, sha256)) for sha256 in files]
                await gate.full.wait()
                assert await whole(second, "") == b"", "whoever asked before has been heard by now"
                assert gate.most <= DOWNLOADS_MAX + 1, "the second's own"
                gate.open.set()
            assert [task.result() for task in fetching] == list(files.values())
        finally:
            gate.open.set()
            workplace.release()
