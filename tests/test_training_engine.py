"""A real engine process that trains: steps while they happen, files at the end, one end for each attempt."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from fixtures_engine import Heard, completion, hosted, start, stop
from fixtures_tiny import write_tiny
from fixtures_training import Case, adapter_of, examples, plan, shapes_of

from potluck import lora
from potluck.v1 import engine_pb2, work_pb2
from worker.engines.engine import EngineError
from worker.engines.trainer import Trainer
from worker.hosts.process import EngineHost

pytestmark = pytest.mark.asyncio(loop_scope="module")  # one engine for all that can share it

ALL = examples(24)


def load_of(folder: Path, paths: list[Path], **changes: Any) -> engine_pb2.Load:
    given: dict[str, Any] = {
        "engine": "trainer", "model": "tiny", "paths": [str(path) for path in paths], "threads": 1, "slots": 1,
        "cache_dir": str(folder),
    }  # fmt: skip
    return engine_pb2.Load(**(given | changes))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[EngineHost, Heard, Path]]:
    folder = tmp_path_factory.mktemp("trainer")
    async with hosted(load_of(folder, write_tiny(folder))) as (host, heard):
        yield host, heard, folder


def command(
    case: Case, work: work_pb2.TrainingWork, job: str = "job", adapter: bytes = b"", **files: Any
) -> engine_pb2.EngineCommand:
    made = start(work_pb2.Work(training=work), job)
    case.count += 1
    folder = case.folder / f"attempt-{case.count}"
    folder.mkdir()
    adapter = adapter or lora.encode(adapter_of(shapes_of(case.base)))
    made.start.files.CopyFrom(case.files(folder, ALL, adapter, validation=ALL[:6]))
    made.start.files.MergeFrom(engine_pb2.TrainingFiles(**files))
    return made


def training(**changes: Any) -> work_pb2.TrainingWork:
    return work_pb2.TrainingWork(
        plan=plan(**changes), first_step=0, last_step=changes.get("steps", 6), validate=True
    )


def steps(heard: Heard, job: str = "job") -> list[work_pb2.TrainingStep]:
    outputs = [event.output for event in heard.events if event.HasField("output")]
    return [step for output in outputs if output.attempt.job_id == job for step in output.steps]


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


async def test_it_says_what_it_is(engine: tuple[EngineHost, Heard, Path]) -> None:
    loaded = engine[0].loaded
    assert (list(loaded.kinds), loaded.slots, loaded.context_tokens) == (["finetune"], 1, 512)
    assert loaded.numerics.startswith("torch/float32/")
    assert loaded.memory_bytes > 0


async def test_it_trains_and_says_each_step_and_what_it_came_to(
    engine: tuple[EngineHost, Heard, Path], tmp_path: Path
) -> None:
    host, heard, base = engine
    heard.clear()
    given = command(Case(base, tmp_path, None), training())
    host.send(given)
    event = await heard.ended()
    assert event.HasField("done"), event
    trained = event.done.trained
    assert [step.step for step in steps(heard)] == list(range(6))
    assert (trained.steps, trained.tokens) == (6, sum(step.tokens for step in steps(heard)))
    assert trained.valid_target_tokens > 0
    assert not trained.HasField("adapter"), "the daemon says what it has uploaded"
    made = files_in(Path(given.start.files.folder))
    assert made.keys() == {"adapter.safetensors", "state.safetensors"}
    lora.decode(made["adapter.safetensors"], shapes_of(base))


async def test_a_stop_is_heeded_and_the_engine_is_free_again(
    engine: tuple[EngineHost, Heard, Path], tmp_path: Path
) -> None:
    """While one trains, another is refused without blame; after a stop the next one runs."""
    host, heard, base = engine
    heard.clear()
    case = Case(base, tmp_path, None)
    host.send(command(case, training(steps=100_000, epochs=20_000), "long"))
    await heard.until(lambda: steps(heard, "long"))
    host.send(command(case, training(), "second"))
    busy = (await heard.ended("second")).failed.failure
    assert (busy.code, busy.fault) == ("busy", work_pb2.FAULT_NONE)
    host.send(stop("nobody"))
    host.send(stop("long"))
    stopped = (await heard.ended("long")).failed.failure
    assert (stopped.code, stopped.fault) == ("stopped", work_pb2.FAULT_NONE)
    host.send(command(case, training(), "third"))
    assert (await heard.ended("third")).HasField("done")


async def test_what_fails_says_whose_fault_it_is(
    engine: tuple[EngineHost, Heard, Path], tmp_path: Path
) -> None:
    host, heard, base = engine
    heard.clear()
    case = Case(base, tmp_path, None)
    host.send(start(completion("a"), "text"))
    host.send(command(case, training(method="ppo"), "plan"))
    await heard.ended("plan")
    host.send(command(case, training(), "adapter", adapter=b"noise"))
    await heard.ended("adapter")
    host.send(command(case, training(), "gone", examples=str(tmp_path / "nowhere")))
    await heard.ended("gone")
    host.send(command(case, training(), "full", folder=str(tmp_path / "nowhere")))
    await heard.ended("full")
    host.send(command(case, training(learning_rate=1e30, gradient_norm_max=0), "diverges"))
    expected = {
        "text": ("wrong_kind", work_pb2.FAULT_JOB),
        "plan": ("bad_plan", work_pb2.FAULT_JOB),
        "adapter": ("bad_adapter", work_pb2.FAULT_JOB),
        "gone": ("files_failed", work_pb2.FAULT_WORKER),
        "full": ("files_failed", work_pb2.FAULT_WORKER),
        "diverges": ("loss_not_finite", work_pb2.FAULT_JOB),
    }
    for job, (code, fault) in expected.items():
        failure = (await heard.ended(job)).failed.failure
        assert (failure.code, failure.fault) == (code, fault), failure
    host.send(command(case, training(), "after"))
    assert (await heard.ended("after")).HasField("done"), "the engine lives on"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"options": {"slots": "2"}}, "trainer knows no option slots"),
        ({"memory_bytes_max": 1000}, "of weights"),
    ],
)
async def test_what_it_cannot_load_it_says(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    with pytest.raises(EngineError, match=why):
        await Trainer(lambda _: None).load(load_of(tmp_path, write_tiny(tmp_path), **changes))
