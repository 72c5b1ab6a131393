"""A worker whose engine serves no adapters answers with them all the same, by torch beside it. All is real."""

import asyncio
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from fixtures_worker import FakeCoordinator, Told, assignment, coordinating, places_in, working

from potluck import lora
from potluck.catalogue import DEFAULT_MODEL, Catalogue
from potluck.v1 import engine_pb2, session_pb2, work_pb2
from worker import service
from worker.hosts.host import EngineStartError, Host, OnEvent
from worker.hosts.process import EngineHost

pytestmark = [pytest.mark.engine, pytest.mark.xdist_group("worker_adapting")]

LOAD_S, TARGET = 120.0, "v_proj"


def adapter(coordinator: FakeCoordinator) -> work_pb2.Adapter:
    """One that changes every answer of the model; the coordinator has its files."""
    entry = Catalogue.builtin().get(DEFAULT_MODEL)
    assert entry is not None
    made = lora.initial(lora.shapes(entry.linears, entry.shape.layers, 4, [TARGET]), 5)
    rng = np.random.default_rng(5)
    for name in made:
        if ".lora_B." in name:
            made[name] = rng.normal(size=made[name].shape).astype(np.float32)
    weights = lora.encode(made)
    config = lora.config_json(rank=4, alpha=16, targets=[TARGET], base=DEFAULT_MODEL)
    digests = [sha256(data).hexdigest() for data in (weights, config)]
    coordinator.store.artifacts |= dict(zip(digests, (weights, config), strict=True))
    return work_pb2.Adapter(
        name=f"{DEFAULT_MODEL}:ft-test",
        weights_sha256=digests[0],
        weights_bytes=len(weights),
        config_sha256=digests[1],
        config_bytes=len(config),
    )


async def ended(
    coordinator: FakeCoordinator, job_id: str, adapter: work_pb2.Adapter | None = None
) -> tuple[Told, session_pb2.Result]:
    assert coordinator.live is not None
    assign = assignment(job_id, tokens=8, model=DEFAULT_MODEL)
    if adapter is not None:
        assign.adapter.CopyFrom(adapter)
    coordinator.live.send(assign=assign)
    told = coordinator._told(assign.attempt)
    await coordinator.until(lambda: told.result is not None, LOAD_S)
    assert told.result is not None
    return told, told.result


def adapts(coordinator: FakeCoordinator) -> bool:
    [model] = coordinator.heartbeats[-1].models
    return "lora" in model.features


@contextmanager
def torch_breaks_once() -> Iterator[None]:
    """It does not load the first time."""
    start, broken = EngineHost.start, asyncio.Event()

    async def refusing(load: engine_pb2.Load, on_event: OnEvent, *, memory_bytes: int = 0) -> Host:
        if load.engine == "torch" and not broken.is_set():
            broken.set()
            raise EngineStartError("load_failed", "torch cannot be imported")
        return await start(load, on_event, memory_bytes=memory_bytes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EngineHost, "start", refusing)
        patch.setattr(service, "RETRY_S_MIN", 0.5)
        patch.setattr(service, "BESIDE_IDLE_S", 0.5)
        yield


async def test_llamacpp_serves_the_model_and_torch_what_was_tuned_from_it(
    smollm2_path: Path, tmp_path: Path
) -> None:
    """Where torch fails, `lora` is said no more until it may be tried again; idle, it leaves memory."""
    cache = places_in(tmp_path).cache
    cache.mkdir(parents=True)
    shutil.copy(smollm2_path, cache / smollm2_path.name)
    wished = {"engine": "llamacpp", "models": (DEFAULT_MODEL,), "context_tokens": 512, "slots": 2}
    async with coordinating() as coordinator:
        coordinator.catalogue = Catalogue.builtin().to_wire()
        tuned = adapter(coordinator)
        with torch_breaks_once():
            async with working(coordinator, tmp_path, **wished) as daemon:
                await coordinator.ready(LOAD_S)
                assert adapts(coordinator)
                supervisor = daemon._serving.supervisor
                assert not supervisor.beside
                _, broken = await ended(coordinator, "job_a", tuned)
                assert (broken.failed.fault, broken.failed.code) == (work_pb2.FAULT_WORKER, "load_failed")
                await coordinator.until(lambda: not adapts(coordinator))
                base, _ = await ended(coordinator, "job_b")
                await coordinator.until(lambda: adapts(coordinator))
                assert not supervisor.beside
                answered, result = await ended(coordinator, "job_c", tuned)
                assert result.HasField("completed"), result
                assert answered.text not in {"", base.text}
                jobs = ("job_b", "job_c")
                await coordinator.until(lambda: all((job, 1) in coordinator.receipts for job in jobs))
                engines = [coordinator.receipts[job, 1].engine for job in jobs]
                assert engines == ["llamacpp", "torch"]
                await coordinator.until(lambda: not supervisor.beside, LOAD_S)
                [serving] = supervisor.models.values()
                assert serving.host is not None
                assert serving.choice.engine == "llamacpp"
