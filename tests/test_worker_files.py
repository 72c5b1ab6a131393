"""A model's files on their way into a worker, from the coordinator's own artifact store."""

import hashlib
import io
from pathlib import Path

import pytest
from fixtures_worker import EMULATOR, FakeCoordinator, coordinating, working

from potluck.catalogue import Artifact, Catalogue, File, Variant
from potluck.logs import configure
from potluck.v1 import session_pb2

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
