"""An attempt with an adapter begins when both files are here and verified, or fails with the reason."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from potluck.catalogue import Artifact, File
from potluck.fetch import Policy, SourceFailed
from potluck.store import ModelStore, OverQuota
from potluck.v1 import session_pb2, work_pb2
from worker import wire
from worker.attempt_files import AttemptFiles, Needs
from worker.inputs import CONFIG_BYTES_MAX
from worker.messages import Assigned, AttemptId, EngineFailed, Event, Fault
from worker.workroom import Workroom

WEIGHTS, CONFIG = b"weights" * 1000, b'{"r": 4}'
ATTEMPT = AttemptId("job", 1)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def adapter(**changes: object) -> work_pb2.Adapter:
    values = {
        "name": "small:ft-1", "weights_sha256": sha256(WEIGHTS), "weights_bytes": len(WEIGHTS),
        "config_sha256": sha256(CONFIG), "config_bytes": len(CONFIG),
    }  # fmt: skip
    return work_pb2.Adapter(**values | changes)  # type: ignore[arg-type]  # mypy does not see the keys


class Store:
    """The pool's artifacts; it gives nothing until it is told to."""

    def __init__(self, *files: bytes, lies: bool = False) -> None:
        self.files = {sha256(data): data for data in files}
        self.lies, self.asked, self.open = lies, asyncio.Event(), asyncio.Event()
        self.downloads = 0

    async def download(self, sha256: str, offset: int) -> AsyncGenerator[bytes, None]:
        self.asked.set()
        await self.open.wait()
        if (data := self.files.get(sha256)) is None:
            raise SourceFailed("the pool does not have it.")
        self.downloads += 1
        yield (data[::-1] if self.lies else data)[offset:]


def marks(cache: Path) -> list[Path]:
    return list(cache.glob("*.used-*"))


@dataclass
class Bench:
    """What came of one attempt."""

    cache: Path
    store: Store
    quota_bytes: int = 0
    files: AttemptFiles = field(default_factory=AttemptFiles)
    begun: list[Assigned] = field(default_factory=list)
    said: list[Event] = field(default_factory=list)

    def begin(self, wanted: work_pb2.Adapter | None, attempt: AttemptId = ATTEMPT) -> None:
        assign = session_pb2.Assign(attempt=wire.attempt_to(attempt), model="small", adapter=wanted)
        assigned = Assigned(
            attempt, "small", "carol", goes_on=False, payload=assign, adapts=wanted is not None
        )
        store = ModelStore(self.cache, quota_bytes=self.quota_bytes)
        needs = Needs(store, Policy(), self.store, Workroom(self.cache / "training", store))
        self.files.begin(assigned, needs=needs, start=self.begun.append, emit=self.said.append)

    async def ended(self) -> None:
        async with asyncio.timeout(20):
            while tasks := list(self.files._fetching):
                await asyncio.gather(*tasks, return_exceptions=True)


async def test_both_files_lie_under_their_names_before_the_engine_hears_of_it(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Store(WEIGHTS, CONFIG))
    bench.begin(adapter())
    await bench.store.asked.wait()
    assert not bench.begun
    assert bench.files.waiting() == [ATTEMPT]
    bench.store.open.set()
    await bench.ended()
    start = wire.start_command(bench.begun[0]).start
    folder = Path(start.adapter.folder)
    assert start.adapter.name == "small:ft-1"
    assert (folder / "adapter_model.safetensors").read_bytes() == WEIGHTS
    assert (folder / "adapter_config.json").read_bytes() == CONFIG
    assert not bench.files.waiting()
    bench.begin(adapter(name="another name"), AttemptId("job", 2))
    await bench.ended()
    assert bench.store.downloads == 2, "what is here is not fetched again"
    assert wire.start_command(bench.begun[1]).start.adapter.digest == start.adapter.digest


async def test_an_attempt_without_an_adapter_begins_at_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Store())
    bench.begin(None)
    assert not wire.start_command(bench.begun[0]).start.HasField("adapter")


async def test_one_that_is_stopped_meanwhile_never_begins(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Store(WEIGHTS, CONFIG))
    bench.begin(adapter())
    await bench.store.asked.wait()
    assert bench.files.stop(ATTEMPT)
    bench.store.open.set()
    await bench.ended()
    assert not bench.begun
    assert not bench.said
    assert not bench.files.stop(ATTEMPT)
    assert not marks(tmp_path)


@pytest.mark.parametrize(
    ("store", "changes", "fault", "code"),
    [
        (lambda: Store(WEIGHTS), {}, Fault.WORKER, "adapter_not_there"),
        (lambda: Store(WEIGHTS, CONFIG, lies=True), {}, Fault.WORKER, "adapter_not_there"),
        (Store, {"weights_sha256": "../../etc/passwd"}, Fault.JOB, "bad_adapter"),
        (Store, {"config_bytes": CONFIG_BYTES_MAX + 1}, Fault.JOB, "bad_adapter"),
        (Store, {"weights_bytes": 0}, Fault.JOB, "bad_adapter"),
    ],
    ids=["not there", "other bytes", "no digest", "too large", "empty"],
)
async def test_what_cannot_be_had_fails_the_attempt_and_says_whose_fault(
    store: type[Store], changes: dict[str, object], fault: Fault, code: str, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, store())
    bench.store.open.set()
    bench.begin(adapter(**changes))
    await bench.ended()
    assert not bench.begun
    (failed,) = bench.said
    assert isinstance(failed, EngineFailed)
    assert (failed.attempt, failed.failure.fault, failed.failure.code) == (ATTEMPT, fault, code)
    assert failed.failure.message
    assert not marks(tmp_path)


async def test_a_file_that_was_damaged_is_placed_anew(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Store(WEIGHTS, CONFIG))
    bench.store.open.set()
    bench.begin(adapter())
    await bench.ended()
    (tmp_path / sha256(CONFIG)).write_bytes(b"{}")
    bench.begin(adapter(), AttemptId("job", 2))
    await bench.ended()
    first, again = (wire.start_command(assigned).start.adapter for assigned in bench.begun)
    assert again == first
    assert (Path(again.folder) / "adapter_config.json").read_bytes() == CONFIG


async def test_an_adapter_stays_until_the_last_attempt_with_it_has_ended(tmp_path: Path) -> None:
    """Another worker of the machine wants its room: it gives way only when nobody needs it any more."""
    bench = Bench(tmp_path, Store(WEIGHTS, CONFIG))
    bench.store.open.set()
    second = AttemptId("job", 2)
    for attempt in (ATTEMPT, second):
        bench.begin(adapter(), attempt)
        await bench.ended()
    folder = Path(wire.start_command(bench.begun[0]).start.adapter.folder)
    other = ModelStore(tmp_path, quota_bytes=len(WEIGHTS) + len(CONFIG))
    wanted = [File(name="w", sha256="ab" * 32, size_bytes=len(WEIGHTS), source=Artifact())]
    for ended in (ATTEMPT, ATTEMPT, second):
        with pytest.raises(OverQuota, match="are in use"):
            other.set_aside(wanted)
        assert (folder / "adapter_model.safetensors").read_bytes() == WEIGHTS
        bench.files.ended(ended)
    other.set_aside(wanted).close()
    assert sha256(WEIGHTS) not in [entry.sha256 for entry in other.entries()]
    assert not list((tmp_path / "folders").iterdir())


async def test_an_adapter_takes_its_room_within_the_quota(tmp_path: Path) -> None:
    """What nobody uses gives way for it; where that is not enough, the attempt says so."""
    unused = tmp_path / ("cd" * 32)
    unused.write_bytes(bytes(5_000))
    bench = Bench(tmp_path, Store(WEIGHTS, CONFIG), quota_bytes=len(WEIGHTS) + len(CONFIG))
    bench.store.open.set()
    bench.begin(adapter())
    await bench.ended()
    assert bench.begun
    assert not unused.exists()
    bench.begin(adapter(weights_sha256="ef" * 32), AttemptId("job", 2))
    await bench.ended()
    (failed,) = bench.said
    assert isinstance(failed, EngineFailed)
    assert "worker.toml allows" in failed.failure.message


async def test_closing_lets_go_of_all(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Store(WEIGHTS, CONFIG))
    bench.store.open.set()
    bench.begin(adapter())
    await bench.ended()
    assert marks(tmp_path)
    await bench.files.close()
    assert not marks(tmp_path)
