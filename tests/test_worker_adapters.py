"""An attempt with an adapter begins when both files are here and verified, or fails with the reason."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from potluck.fetch import SourceFailed
from potluck.v1 import engine_pb2, session_pb2, work_pb2
from worker import wire
from worker.adapters import CONFIG_BYTES_MAX, Adapters, fetch_adapter
from worker.messages import Assigned, AttemptId, EngineFailed, Event, Fault

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


@dataclass
class Bench:
    """What came of one attempt."""

    cache: Path
    store: Store
    adapters: Adapters = field(default_factory=Adapters)
    begun: list[Assigned] = field(default_factory=list)
    said: list[Event] = field(default_factory=list)

    def begin(self, wanted: work_pb2.Adapter | None, attempt: AttemptId = ATTEMPT) -> None:
        assign = session_pb2.Assign(attempt=wire.attempt_to(attempt), model="small", adapter=wanted)
        assigned = Assigned(attempt, "small", "carol", goes_on=False, payload=assign)
        self.adapters.begin(
            assigned, cache=self.cache, artifacts=self.store, start=self.begun.append, emit=self.said.append
        )

    async def ended(self) -> None:
        async with asyncio.timeout(20):
            while tasks := list(self.adapters._tasks.values()):
                await asyncio.gather(*tasks, return_exceptions=True)


async def test_both_files_lie_under_their_names_before_the_engine_hears_of_it(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Store(WEIGHTS, CONFIG))
    bench.begin(adapter())
    await bench.store.asked.wait()
    assert not bench.begun
    assert bench.adapters.waiting() == [ATTEMPT]
    bench.store.open.set()
    await bench.ended()
    start = wire.start_command(bench.begun[0]).start
    folder = Path(start.adapter.folder)
    assert start.adapter.name == "small:ft-1"
    assert (folder / "adapter_model.safetensors").read_bytes() == WEIGHTS
    assert (folder / "adapter_config.json").read_bytes() == CONFIG
    assert not bench.adapters.waiting()
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
    assert bench.adapters.stop(ATTEMPT)
    bench.store.open.set()
    await bench.ended()
    assert not bench.begun
    assert not bench.said
    assert not bench.adapters.stop(ATTEMPT)


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


async def test_a_file_that_was_damaged_is_placed_anew(tmp_path: Path) -> None:
    store = Store(WEIGHTS, CONFIG)
    store.open.set()
    first = await fetch_adapter(adapter(), tmp_path, store)
    (tmp_path / sha256(CONFIG)).write_bytes(b"{}")
    again = await fetch_adapter(adapter(), tmp_path, store)
    assert again == first == engine_pb2.LoadedAdapter.FromString(first.SerializeToString())
    assert (Path(again.folder) / "adapter_config.json").read_bytes() == CONFIG
