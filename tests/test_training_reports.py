"""What a worker says of a part of a fine-tune, over real mutual TLS: taken, or its fault, and never twice."""

import asyncio
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from fixtures_sessions import House, RawWorker, frame, result
from test_finetune_parts import BOUND, Keeper, open_whole, trainer

from coordinator.core.jobs import Job, JobId, JobState
from coordinator.parts import Parts
from coordinator.trainings import Nobody
from potluck.logs import configure
from potluck.pricing import Training
from potluck.v1 import session_pb2, work_pb2

ADAPTER, STATE = b"adapter" * 10_000, b"state" * 10_000
EXAMPLES = b'{"messages": []}\n'
DONE = Training("sft", 1_000, 100, 800, 0, 0)
PLAN = work_pb2.TrainingPlan(method="sft", batch_size=4, sequence_tokens=64, steps=10)
NAN = float("nan")


def artifact(data: bytes) -> work_pb2.Artifact:
    return work_pb2.Artifact(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))


def step(number: int, **more: Any) -> work_pb2.TrainingStep:
    given = {
        "train_loss": 2.0,
        "train_accuracy": 0.5,
        "tokens": 50,
        "target_tokens": 20,
        "gradient_norm": 1.0,
    }
    return work_pb2.TrainingStep(step=number, **{**given, **more})


def trained(**more: Any) -> work_pb2.Trained:
    given = {"first_step": 2, "steps": 2, "tokens": 100, "square_tokens": 800}
    return work_pb2.Trained(**{**given, "adapter": artifact(ADAPTER), "state": artifact(STATE), **more})


@dataclass
class Fine:
    """Trainings that find what they are told to, when they are told to."""

    said: str = ""
    found: Training | str | Exception = DONE
    heard: list[int] = field(default_factory=list)
    looked: list[work_pb2.Trained] = field(default_factory=list)
    go: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.go.set()

    def steps(self, job: Job, steps: Sequence[work_pb2.TrainingStep]) -> str:
        assert job.id == "job_w.1"
        self.heard += [step.step for step in steps]
        return self.said

    async def trained(self, job: Job, trained: work_pb2.Trained) -> Training | str:
        assert job.id == "job_w.1"
        self.looked.append(trained)
        await self.go.wait()
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


@dataclass
class Bench:
    """A part under way on `rig`: steps 2 and 3 of 10."""

    house: House
    rig: RawWorker
    fine: Fine
    keeper: Keeper
    parts: Parts
    whole: Job
    assign: session_pb2.Assign

    async def steps(self, sequence: int, *steps: work_pb2.TrainingStep) -> None:
        await self.rig.send(frame(self.assign, sequence, steps=steps))

    async def end(self, sequence: int = 2, **more: Any) -> None:
        done = session_pb2.Completed(trained=trained(**more))
        await self.rig.send(result(self.assign, sequence, completed=done))

    async def upload(self) -> None:
        for data in (ADAPTER, STATE):
            assert (await self.rig.upload(self.assign.attempt, data)).whole

    async def ended(self) -> Job:
        await self.house.eventually(lambda: bool(self.keeper.ended), "the end of the part")
        return self.keeper.ended[0]

    async def blamed(self) -> str:
        """The attempt has failed by the worker's fault; why, as the pool says."""
        (attempt,) = (await self.ended()).attempts  # nobody else is there to try
        assert attempt.state == "failed"
        assert self.rig.seen.faults == 1
        return attempt.why


def work(**more: Any) -> work_pb2.Work:
    given = {"plan": PLAN, "first_step": 2, "last_step": 4, "examples": artifact(EXAMPLES)}
    return work_pb2.Work(training=work_pb2.TrainingWork(**{**given, **more}))


async def begun(house: House, **more: Any) -> Bench:
    rig, keeper, fine = await trainer(house), Keeper(), Fine()
    house.running.pool.training = fine
    parts, whole = await open_whole(house)
    parts.watch(whole.id, keeper)
    part = parts.submit_training(whole, 1, work(**more), BOUND, 64)
    house.running.pool.training_store.expect(part.id, 10**6)
    return Bench(house, rig, fine, keeper, parts, whole, await rig.until("assign"))


@pytest.fixture(autouse=True)
def log() -> io.StringIO:
    """Where a bug's trace goes."""
    stream = io.StringIO()
    configure("json", stream=stream)
    return stream


@pytest.fixture
async def bench(house: House) -> Bench:
    return await begun(house)


async def test_steps_are_told_what_was_made_is_looked_at_and_the_receipt_matches(bench: Bench) -> None:
    await bench.steps(1, step(2), step(3))
    await bench.steps(1, step(2), step(3))  # again, over a line that broke: told once
    await bench.upload()
    await bench.end()
    await bench.rig.send(bench.rig.receipt(bench.assign.attempt, 100))
    ended = await bench.ended()
    assert (ended.state, ended.output_tokens) == (JobState.SUCCEEDED, 100)
    assert bench.fine.heard == [2, 3]
    assert bench.fine.looked == [trained()]
    acknowledged = await bench.rig.until("ack")
    while acknowledged.sequence != 2:
        acknowledged = await bench.rig.until("ack")
    assert (await bench.rig.until("receipt_ack")).state == "matched"
    store = bench.house.running.pool.training_store
    assert store.path(artifact(STATE).sha256).read_bytes() == STATE


async def test_a_part_without_steps_is_a_validation(house: House) -> None:
    bench = await begun(house, last_step=2, validate=True)
    found = work_pb2.Trained(valid_loss=1.5, valid_accuracy=0.5, valid_tokens=60, valid_square_tokens=900)
    found.valid_target_tokens = 30
    done = session_pb2.Completed(trained=found)
    await bench.rig.send(result(bench.assign, 1, completed=done))
    assert (await bench.ended()).state is JobState.SUCCEEDED
    assert bench.fine.looked == [found]


async def test_while_it_is_looked_at_the_stream_goes_on_and_the_receipt_waits(bench: Bench) -> None:
    """Another answer of the same worker is not held up, a repeated end is not looked at again, and nothing of
    it counts as silence.
    """
    bench.fine.go.clear()
    await bench.steps(1, step(2), step(3))
    await bench.upload()
    await bench.end()
    await bench.rig.send(bench.rig.receipt(bench.assign.attempt, 100))
    await bench.end()
    asked = bench.house.ask(stream=False)
    chat = await bench.rig.until("assign")
    await bench.rig.answer(chat)
    assert (await asked).usage.completion_tokens == 6
    assert len(bench.fine.looked) == 1
    assert not bench.keeper.ended
    live = bench.house.running.pool.engine.lives[JobId("job_w.1")]
    heard = live.heard_at
    await bench.house.eventually(lambda: live.heard_at > heard, "a sign of life")
    bench.fine.go.set()
    assert (await bench.ended()).state is JobState.SUCCEEDED
    states = {(ack := await bench.rig.until("receipt_ack")).attempt.job_id: ack.state for _ in range(2)}
    assert states["job_w.1"] == "matched"


@pytest.mark.parametrize("found", ["its adapter is of another rank", ValueError("a bug")])
async def test_what_does_not_hold_is_the_workers_fault_and_a_bug_is_not(
    bench: Bench, log: io.StringIO, found: str | Exception
) -> None:
    bench.fine.found = found
    await bench.steps(1, step(2), step(3))
    await bench.upload()
    await bench.end()
    engine = bench.house.running.pool.engine
    live = engine.lives[JobId("job_w.1")]
    await bench.house.eventually(lambda: live.job.attempts[0].state == "failed", "the end of the attempt")
    assert bench.rig.seen.faults == isinstance(found, str)
    expected = found if isinstance(found, str) else "could not look at what was trained"
    assert expected in live.job.attempts[0].why
    assert ("training_unchecked" in log.getvalue()) == isinstance(found, Exception)


async def test_who_lost_the_attempt_meanwhile_is_paid_nothing(bench: Bench) -> None:
    bench.fine.go.clear()
    await bench.steps(1, step(2), step(3))
    await bench.upload()
    await bench.end()
    await bench.house.eventually(lambda: bool(bench.fine.looked), "a look")
    bench.parts.pool.cancel("job_w.1", "enough")
    bench.fine.go.set()
    ended = await bench.ended()
    assert (ended.state, ended.charge) == (JobState.CANCELLED, 0)
    await bench.house.eventually(lambda: not bench.parts.pool.engine.lives, "the end")


async def test_steps_do_not_go_back_from_frame_to_frame(bench: Bench) -> None:
    await bench.steps(1, step(3))
    await bench.steps(2, step(2))
    assert await bench.blamed() == "step 2 after step 3"


async def test_text_is_no_training_and_steps_are_no_answer(bench: Bench) -> None:
    asked = bench.house.ask()
    chat = await bench.rig.until("assign")
    await bench.rig.send(frame(chat, 1, steps=[step(0)]))
    assert (await bench.rig.until("cancel")).why == "training steps for a job of kind chat"
    asked.cancel()
    await bench.rig.send(frame(bench.assign, 1, work_pb2.Delta(text="a"), steps=[step(2)]))
    cancelled = await bench.rig.until("cancel")
    while cancelled.attempt.job_id != "job_w.1":
        cancelled = await bench.rig.until("cancel")
    assert cancelled.why == "text beside the steps of a training"


async def test_what_the_fine_tune_itself_finds_wrong_with_steps_ends_the_attempt(bench: Bench) -> None:
    bench.fine.said = "another learning rate than was asked for"
    await bench.steps(1, step(2))
    assert await bench.blamed() == bench.fine.said


async def test_an_end_that_cannot_be_is_not_even_looked_at(bench: Bench) -> None:
    await bench.steps(1, step(2), step(3))
    await bench.upload()
    await bench.end(steps=1)
    assert await bench.blamed() == "it says 1 steps, and told 2"
    assert not bench.fine.looked


async def test_what_was_made_must_have_come_here(bench: Bench) -> None:
    await bench.steps(1, step(2), step(3))
    await bench.rig.upload(bench.assign.attempt, ADAPTER)
    await bench.end()
    assert await bench.blamed() == "it did not upload what it says that it made"
    assert not bench.fine.looked


async def test_files_of_a_part_are_its_workers_alone(bench: Bench) -> None:
    """Another worker of the pool neither reads them nor brings any."""
    store = bench.house.running.pool.training_store
    examples = (await store.put(EXAMPLES)).sha256
    other = await bench.house.honest("other")
    assert await bench.rig.download(examples) == EXAMPLES
    with pytest.raises(grpc.aio.AioRpcError) as unread:
        await other.download(examples)
    assert unread.value.code() is grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.aio.AioRpcError) as unwritten:
        await other.upload(bench.assign.attempt, ADAPTER)
    assert unwritten.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert unwritten.value.details() == "this worker does not hold the attempt"
    bench.parts.pool.cancel("job_w.1", "enough")
    await bench.ended()
    with pytest.raises(grpc.aio.AioRpcError):
        await bench.rig.download(examples)


async def test_a_pool_without_fine_tunes_takes_no_steps(bench: Bench) -> None:
    bench.house.running.pool.training = Nobody()
    await bench.steps(1, step(2))
    assert await bench.blamed() == "no fine-tunes here"
