"""A part of a fine-tune on a real daemon with a real engine process: fetched, trained, uploaded, cleaned up."""

import asyncio
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from fixtures_worker import EMULATOR, FakeCoordinator, Told, coordinating, places_in, working

from potluck import lora
from potluck.receipts import output_digest
from potluck.store import ModelStore
from potluck.v1 import engine_pb2, session_pb2, work_pb2
from worker import service, wire
from worker.deliveries import Deliveries
from worker.hosts.host import EngineStartError, Host, OnEvent
from worker.hosts.process import EngineHost
from worker.messages import Assigned, AttemptId, EngineFailed, EngineFinished, Event, Failure, Fault
from worker.status_cli import lines
from worker.uploads import FULL_S_MAX, MISMATCHES_MAX, Patience
from worker.wish import Wish
from worker.workroom import Workroom

SHAPES = {
    "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": (8, 600),
    "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": (600, 8),
}
ADAPTER = lora.encode(lora.initial(SHAPES, 1))
TURNS = [{"role": "user", "content": "is it good"}, {"role": "assistant", "content": "yes indeed"}]
EXAMPLES = json.dumps({"messages": TURNS}).encode() + b"\n"
LINES = 10


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def part(coordinator: FakeCoordinator, **more: Any) -> work_pb2.TrainingWork:
    """Steps 0 to 4 of 8, of files that the coordinator has."""
    plan = work_pb2.TrainingPlan(
        method="sft", epochs=1, batch_size=2, sequence_tokens=16, seed=3, examples=LINES, steps=8
    )
    named = {"examples": EXAMPLES * LINES, "validation": EXAMPLES, "adapter": ADAPTER}
    coordinator.store.artifacts |= {sha256(data): data for data in named.values()}
    files = {name: work_pb2.Artifact(sha256=sha256(data), bytes=len(data)) for name, data in named.items()}
    return work_pb2.TrainingWork(**{"plan": plan, "last_step": 4, "validate": True, **files, **more})


def trains(coordinator: FakeCoordinator) -> bool:
    return "finetune" in coordinator.heartbeats[-1].models[0].kinds


def left(folder: Path) -> list[str]:
    """Of training attempts, in the model store's folder."""
    return [path.name for path in places_in(folder).training.glob("*")]


def cached(folder: Path) -> set[str]:
    return {entry.sha256 for entry in ModelStore(places_in(folder).cache).entries()}


async def eventually(condition: Callable[[], object]) -> None:
    """For what happens in a thread of the daemon, and nobody announces."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 -- see above
            await asyncio.sleep(0)


async def ended(coordinator: FakeCoordinator, told: Told) -> session_pb2.Result:
    await coordinator.until(lambda: told.result is not None)
    assert told.result is not None
    return told.result


FAST = {"engine_options": {"steps_per_s": "0"}}
SLOW = {"engine_options": {"hang_after_steps": "1"}}


async def test_a_part_is_fetched_trained_uploaded_and_signed_for(tmp_path: Path) -> None:
    async with coordinating() as coordinator, working(coordinator, tmp_path, **FAST):
        await coordinator.ready()
        assert trains(coordinator)
        told = coordinator.assign_training(part(coordinator))
        result = await ended(coordinator, told)
        assert told.steps == [0, 1, 2, 3]
        trained = result.completed.trained
        assert (trained.steps, trained.tokens) == (4, 4 * 2 * 5)
        for artifact in (trained.adapter, trained.state):
            assert len(coordinator.store.artifacts[artifact.sha256]) == artifact.bytes
        adapter = coordinator.store.artifacts[trained.adapter.sha256]
        assert lora.decode(adapter, SHAPES).keys() == SHAPES.keys()
        await coordinator.until(lambda: ("job_t", 1) in coordinator.receipts)
        body = coordinator.receipts["job_t", 1]
        assert (body.output_tokens, body.prompt_tokens, body.engine) == (40, 0, "emulator")
        made = [bytes.fromhex(artifact.sha256) for artifact in (trained.adapter, trained.state)]
        assert body.output_sha256 == output_digest(made)
        kept = {sha256(EXAMPLES * LINES), sha256(EXAMPLES)}
        await eventually(lambda: cached(tmp_path) == kept)
        assert [name for name in left(tmp_path) if not name.endswith(".lock")] == []
    assert cached(tmp_path) == set(), "a member's examples do not stay on a machine that shares no more"
    assert left(tmp_path) == []


async def test_one_part_goes_on_from_another_and_a_share_answers_a_delta(tmp_path: Path) -> None:
    async with coordinating() as coordinator, working(coordinator, tmp_path, **FAST):
        await coordinator.ready()
        whole = coordinator.assign_training(part(coordinator), "job_a")
        first = (await ended(coordinator, whole)).completed.trained
        more = {"first_step": 4, "last_step": 8, "adapter": first.adapter, "state": first.state}
        second = coordinator.assign_training(part(coordinator, **more), "job_b")
        trained = (await ended(coordinator, second)).completed.trained
        assert second.steps == [4, 5, 6, 7]
        assert trained.valid_loss < first.valid_loss
        share = coordinator.assign_training(part(coordinator, delta=True, leased=[3, 4]), "job_c")
        answer = (await ended(coordinator, share)).completed.trained
        assert not answer.HasField("state")
        assert answer.adapter.bytes < len(ADAPTER) / 3
        look = coordinator.assign_training(part(coordinator, last_step=0), "job_d")
        validated = (await ended(coordinator, look)).completed.trained
        assert validated.HasField("valid_loss")
        assert not validated.HasField("adapter")


async def test_of_many_parts_no_more_stays_than_of_one(tmp_path: Path) -> None:
    """Each holds a file open for as long as its examples stay, and its locks would stay for ever."""
    cache = places_in(tmp_path).cache
    async with coordinating() as coordinator, working(coordinator, tmp_path, **FAST):
        await coordinator.ready()
        for number in range(3):
            adapter = lora.encode(lora.initial(SHAPES, number))
            coordinator.store.artifacts[sha256(adapter)] = adapter
            fetched = work_pb2.Artifact(sha256=sha256(adapter), bytes=len(adapter))
            await ended(
                coordinator, coordinator.assign_training(part(coordinator, adapter=fetched), f"job_{number}")
            )
        await eventually(lambda: len(left(tmp_path)) == 1)
        examples = {sha256(EXAMPLES * LINES), sha256(EXAMPLES)}
        await eventually(lambda: {path.stem for path in cache.glob("*.lock")} <= {*examples, "room"})
        assert cached(tmp_path) == examples


async def test_it_trains_one_at_a_time_and_serves_beside_it(tmp_path: Path) -> None:
    async with coordinating() as coordinator, working(coordinator, tmp_path, **SLOW) as daemon:
        await coordinator.ready()
        told = coordinator.assign_training(part(coordinator))
        await coordinator.until(lambda: told.steps)
        second = coordinator.assign_training(part(coordinator), "job_u")
        await coordinator.until(lambda: second.refused is not None)
        assert second.refused is not None
        assert (second.refused.code, second.refused.fault) == ("busy", work_pb2.FAULT_NONE)
        assert second.refused.message == f"this worker trains {EMULATOR.name} already"
        chat = coordinator.assign("job_c")
        await ended(coordinator, chat)
        assert len(chat.text.split()) == 20
        state = daemon._reporter.snapshot()
        shown = lines(state, 0.0)
        assert f"training {EMULATOR.name} for ada: step 1 of 8 (job_t)" in shown
        assert [model.name for model in state.models] == [EMULATOR.name] * 2
        coordinator.cancel("job_t")
        again = coordinator.assign_training(part(coordinator), "job_v")
        await coordinator.until(lambda: again.steps)
        assert coordinator.heartbeats[-1].models[0].state == session_pb2.MODEL_STATE_READY


async def test_until_the_first_step_there_are_signs_of_life(tmp_path: Path) -> None:
    slow = {"engine_options": {"hang_after_steps": "0"}}
    async with coordinating() as coordinator, working(coordinator, tmp_path, **slow):
        await coordinator.ready()
        coordinator.assign_training(part(coordinator))
        await coordinator.until(lambda: any(said.stage == "training" for said in coordinator.progress))


async def test_an_upload_that_breaks_off_goes_on_where_it_stopped(tmp_path: Path) -> None:
    async with coordinating() as coordinator, working(coordinator, tmp_path, **FAST):
        await coordinator.ready()
        half = len(ADAPTER) // 2
        coordinator.store.verdicts = [
            (half, grpc.StatusCode.UNAVAILABLE, "the line broke"),
            (0, grpc.StatusCode.RESOURCE_EXHAUSTED, "the coordinator's disk is full"),
        ]
        told = coordinator.assign_training(part(coordinator))
        trained = (await ended(coordinator, told)).completed.trained
        adapter, state = trained.adapter.sha256, trained.state.sha256
        begun = [(begin.sha256, offset > 0) for begin, offset in coordinator.store.begun]
        assert begun == [(adapter, False), (adapter, True), (adapter, True), (state, False)]
        assert {begin.attempt.job_id for begin, _ in coordinator.store.begun} == {"job_t"}


@pytest.mark.parametrize(
    ("code", "fault", "word"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, work_pb2.FAULT_WORKER, "upload_failed"),
        (grpc.StatusCode.UNIMPLEMENTED, work_pb2.FAULT_WORKER, "upload_failed"),
        (grpc.StatusCode.FAILED_PRECONDITION, work_pb2.FAULT_NONE, "attempt_over"),
    ],
)
async def test_an_upload_that_will_not_heal_fails_the_attempt(
    tmp_path: Path, code: grpc.StatusCode, fault: work_pb2.Fault.ValueType, word: str
) -> None:
    async with coordinating() as coordinator, working(coordinator, tmp_path, **FAST):
        await coordinator.ready()
        coordinator.store.verdicts = [(0, code, "not this")]
        told = coordinator.assign_training(part(coordinator))
        failed = (await ended(coordinator, told)).failed
        assert (failed.fault, failed.code) == (fault, word)
        assert "not this" in failed.message
        assert ("job_t", 1) not in coordinator.receipts, "without an end nothing is claimed"
        await eventually(lambda: all(name.endswith(".lock") for name in left(tmp_path)))


async def test_who_is_cancelled_while_it_uploads_brings_no_more(tmp_path: Path) -> None:
    """And says while it tries that it does."""
    async with coordinating() as coordinator, working(coordinator, tmp_path, **FAST) as daemon:
        await coordinator.ready()
        coordinator.store.verdicts = [(0, grpc.StatusCode.UNAVAILABLE, "away")] * 1_000
        told = coordinator.assign_training(part(coordinator))
        await coordinator.until(lambda: any(said.stage == "uploading" for said in coordinator.progress))
        coordinator.cancel("job_t")
        await eventually(lambda: not daemon._serving.supervisor._deliveries._deliveries)
        coordinator.store.verdicts.clear()
        again = coordinator.assign_training(part(coordinator), "job_u")
        await ended(coordinator, again)
        assert told.result is None
        assert ("job_t", 1) not in coordinator.receipts


async def test_its_owner_takes_the_machine_back_and_nothing_stays(tmp_path: Path) -> None:
    async with coordinating() as coordinator, working(coordinator, tmp_path, **SLOW) as daemon:
        await coordinator.ready()
        told = coordinator.assign_training(part(coordinator))
        await coordinator.until(lambda: told.steps)
        Wish(word="pause").save(daemon.places.worker)
        daemon._owner.heed()
        failed = (await ended(coordinator, told)).failed
        assert (failed.fault, failed.code) == (work_pb2.FAULT_NONE, "yielded")
        await eventually(lambda: all(name.endswith(".lock") for name in left(tmp_path)))
        assert not [service.host for service in daemon._serving.supervisor.beside if service.host]


async def test_an_owner_who_shares_for_chats_trains_nothing(tmp_path: Path) -> None:
    chats = {"sharing": {"kinds": ["chat"], "on_battery": True}}
    async with coordinating() as coordinator, working(coordinator, tmp_path, **chats):
        await coordinator.ready()
        assert not trains(coordinator)
        told = coordinator.assign_training(part(coordinator))
        await coordinator.until(lambda: told.refused is not None)
        assert told.refused is not None
        assert told.refused.code == "model_not_served"


async def test_files_that_cannot_be_had_fail_the_attempt(tmp_path: Path) -> None:
    async with coordinating() as coordinator, working(coordinator, tmp_path, **FAST):
        await coordinator.ready()
        work = part(coordinator)
        del coordinator.store.artifacts[work.examples.sha256]
        told = coordinator.assign_training(work)
        failed = (await ended(coordinator, told)).failed
        assert (failed.fault, failed.code) == (work_pb2.FAULT_WORKER, "training_not_there")
        nameless = part(coordinator, adapter=work_pb2.Artifact(sha256="../../etc/passwd", bytes=9))
        failed = (await ended(coordinator, coordinator.assign_training(nameless, "job_n"))).failed
        assert (failed.fault, failed.code) == (work_pb2.FAULT_JOB, "bad_training")


# -- what a killed process leaves ----------------------------------------------------------------------


def test_what_nobody_holds_any_more_is_swept(tmp_path: Path) -> None:
    """Kill -9 lets go of locks and removes nothing; what another worker of the machine holds stays."""
    store = ModelStore(tmp_path)
    passing, examples, used = (sha256(name.encode()) for name in ("passing", "examples", "used"))
    for digest in (passing, examples, used):
        (tmp_path / digest).write_bytes(b"x")
    killed = Workroom(tmp_path / "training", store)
    room = killed.open({passing}, {examples, used})
    (room.folder / "adapter.safetensors").write_bytes(b"half")
    room.lock._file.close()  # as the system does at a process's end
    living = Workroom(tmp_path / "training", store)
    other = living.open({used}, set())
    assert Workroom(tmp_path / "training", store).sweep() == 1
    assert not room.folder.exists()
    assert other.folder.exists()
    assert {entry.sha256 for entry in store.entries()} == set()
    living.close(other)
    assert list((tmp_path / "training").iterdir()) == []


def test_examples_stay_for_as_long_as_another_part_needs_them(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    first, second, examples = (sha256(name.encode()) for name in ("first", "second", "examples"))
    for digest in (first, second, examples):
        (tmp_path / digest).write_bytes(b"x")
    workroom = Workroom(tmp_path / "training", store)
    one, two = workroom.open({first}, {examples}), workroom.open({second}, {examples})
    workroom.leave(one)
    workroom.leave(one)
    assert {entry.sha256 for entry in store.entries()} == {second, examples}
    workroom.close(one)
    workroom.close(one)
    assert {entry.sha256 for entry in store.entries()} == {second, examples}
    workroom.close(two)
    assert not store.entries()


# -- its engine ----------------------------------------------------------------------------------------


async def test_a_trainer_that_does_not_load_is_offered_no_more_and_later_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits for it is told; what is served is served on."""
    start, broken = EngineHost.start, asyncio.Event()

    async def refusing(load: engine_pb2.Load, on_event: OnEvent, *, memory_bytes: int = 0) -> Host:
        if "finetune" in load.kinds and not broken.is_set():
            broken.set()
            raise EngineStartError("load_failed", "peft cannot be imported")
        return await start(load, on_event, memory_bytes=memory_bytes)

    monkeypatch.setattr(EngineHost, "start", refusing)
    monkeypatch.setattr(service, "RETRY_S_MIN", 0.5)
    async with coordinating() as coordinator, working(coordinator, tmp_path, **FAST):
        await coordinator.ready()
        told = coordinator.assign_training(part(coordinator))
        failed = (await ended(coordinator, told)).failed
        assert (failed.fault, failed.code) == (work_pb2.FAULT_WORKER, "load_failed")
        await coordinator.until(lambda: not trains(coordinator))
        await ended(coordinator, coordinator.assign("job_c"))
        await coordinator.until(lambda: trains(coordinator))
        again = coordinator.assign_training(part(coordinator), "job_u")
        assert (await ended(coordinator, again)).HasField("completed")


async def test_a_trainer_leaves_memory_when_nothing_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What serves the model stays; the next part loads the trainer anew."""
    monkeypatch.setattr(service, "BESIDE_IDLE_S", 0.05)
    async with coordinating() as coordinator, working(coordinator, tmp_path, **FAST) as daemon:
        await coordinator.ready()
        supervisor = daemon._serving.supervisor
        assert not supervisor.beside
        for job in ("job_a", "job_b"):
            told = coordinator.assign_training(part(coordinator), job)
            assert (await ended(coordinator, told)).HasField("completed")
            await eventually(lambda: not supervisor.beside)
        assert trains(coordinator)
        [serving] = supervisor.models.values()
        assert serving.host is not None


async def test_an_engine_that_dies_fails_its_part_and_the_next_one_gets_another(tmp_path: Path) -> None:
    dies = {"engine_options": {"die_after_steps": "2"}}
    async with coordinating() as coordinator, working(coordinator, tmp_path, **dies):
        await coordinator.ready()
        told = coordinator.assign_training(part(coordinator))
        failed = (await ended(coordinator, told)).failed
        assert (failed.fault, failed.code) == (work_pb2.FAULT_WORKER, "engine_died")
        short = coordinator.assign_training(part(coordinator, last_step=2), "job_u")
        assert (await ended(coordinator, short)).HasField("completed")


# -- how long an upload is tried ------------------------------------------------------------------------


def test_a_refusal_is_judged_by_whose_fault_it_is_and_how_often_it_came() -> None:
    patience = Patience()
    full = grpc.StatusCode.RESOURCE_EXHAUSTED
    assert patience.judge(full, "disk full", 10.0) is None
    assert patience.judge(grpc.StatusCode.UNAVAILABLE, "", 11.0) is None
    assert patience.judge(full, "disk full", 9.9 + FULL_S_MAX) is None
    late = patience.judge(full, "disk full", 10.0 + FULL_S_MAX)
    assert late == Failure(Fault.NONE, "pool_full", "disk full")
    for _ in range(MISMATCHES_MAX - 1):
        assert patience.judge(grpc.StatusCode.DATA_LOSS, "other bytes", 0.0) is None
    damaged = patience.judge(grpc.StatusCode.DATA_LOSS, "other bytes", 0.0)
    assert damaged == Failure(Fault.WORKER, "upload_failed", "it arrives damaged: other bytes")


async def test_what_was_made_must_be_there(tmp_path: Path) -> None:
    """An engine that says it has finished and left no files is its worker's fault."""
    said: list[Event] = []
    files = engine_pb2.TrainingFiles(folder=str(tmp_path))
    assign = session_pb2.Assign(work=work_pb2.Work(training=work_pb2.TrainingWork()))
    at = AttemptId("job_a", 1)
    assigned = Assigned(at, "m", "ada", goes_on=False, payload=assign, kind="finetune", files=files)
    finished = EngineFinished(at, wire.trained(work_pb2.Trained(steps=1, tokens=5)))
    deliveries = Deliveries()
    deliveries.begin(assigned, finished, uploads=None, emit=said.append)
    await eventually(lambda: said)
    (failed,) = said
    assert isinstance(failed, EngineFailed)
    assert (failed.failure.fault, failed.failure.code) == (Fault.WORKER, "engine_error")
    await deliveries.close()
