"""The real trainer beside the real torch engine: what a daemon has trained, it serves."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from fixtures_tiny import write_tiny
from fixtures_training import adapter_of, examples, plan, shapes_of
from fixtures_worker import EMULATOR, FakeCoordinator, Told, coordinating, working

from potluck import lora
from potluck.catalogue import Artifact, Catalogue, File, Variant
from potluck.v1 import session_pb2, work_pb2

pytestmark = pytest.mark.xdist_group("worker_trainer")

MODEL, START_S = "tiny", 120.0


def put(coordinator: FakeCoordinator, data: bytes) -> work_pb2.Artifact:
    """The coordinator has it from now on."""
    digest = hashlib.sha256(data).hexdigest()
    coordinator.store.artifacts[digest] = data
    return work_pb2.Artifact(sha256=digest, bytes=len(data))


def catalogue(coordinator: FakeCoordinator, paths: list[Path]) -> bytes:
    files = []
    for path in paths:
        known = put(coordinator, path.read_bytes())
        files.append(File(name=path.name, sha256=known.sha256, size_bytes=known.bytes, source=Artifact()))
    variant = Variant(format="safetensors", engines=("torch",), files=tuple(files), memory_bytes=1 << 28)
    entry = EMULATOR.model_copy(update={"name": MODEL, "context_tokens": 512, "variants": (variant,)})
    return Catalogue((entry,)).to_wire()


async def ended(coordinator: FakeCoordinator, told: Told) -> session_pb2.Result:
    await coordinator.until(lambda: told.result is not None, START_S)
    assert told.result is not None
    return told.result


async def test_the_real_trainer_goes_on_from_its_own_checkpoints(tmp_path: Path) -> None:
    """Loaded when the first part comes, although nothing of the model was loaded to serve it; the second part
    begins with the adapter and the state that the first one uploaded.
    """
    base = tmp_path / "base"
    base.mkdir()
    paths, of = write_tiny(base), shapes_of(base)
    lines = "".join(json.dumps(line) + "\n" for line in examples(24)).encode()
    async with coordinating() as coordinator:
        coordinator.catalogue = catalogue(coordinator, paths)
        given: dict[str, Any] = {
            "plan": plan(steps=12, epochs=2, learning_rate=3e-2),
            "examples": put(coordinator, lines),
            "validation": put(coordinator, lines[: lines.index(b"\n") + 1]),
            "adapter": put(coordinator, lora.encode(adapter_of(of, grown=False))),
            "validate": True,
        }
        async with working(coordinator, tmp_path, engine="torch", models=()) as daemon:
            await coordinator.until(lambda: offered(coordinator))
            told = coordinator.assign_training(
                work_pb2.TrainingWork(last_step=6, **given), "job_1", model=MODEL
            )
            first = (await ended(coordinator, told)).completed.trained
            assert told.steps == list(range(6))
            given |= {"adapter": first.adapter, "state": first.state, "first_step": 6}
            told = coordinator.assign_training(
                work_pb2.TrainingWork(last_step=12, **given), "job_2", model=MODEL
            )
            last = (await ended(coordinator, told)).completed.trained
            assert told.steps == list(range(6, 12))
            assert last.valid_loss < first.valid_loss
            assert lora.decode(coordinator.store.artifacts[last.adapter.sha256], of)
            await coordinator.until(lambda: ("job_2", 1) in coordinator.receipts)
            body = coordinator.receipts["job_2", 1]
            assert (body.engine, body.output_tokens) == ("trainer", last.tokens)
            [serving] = daemon._serving.supervisor.models.values()
            assert serving.host is None


def offered(coordinator: FakeCoordinator) -> bool:
    return any("finetune" in model.kinds for beat in coordinator.heartbeats for model in beat.models)
