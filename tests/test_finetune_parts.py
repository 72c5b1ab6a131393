"""Parts of a fine-tune in a running coordinator: sent as training, bounded by their whole, given up at a restart."""

from pathlib import Path

import pytest
from fixtures_sessions import MODEL, SERVED, House, RawWorker, open_house

from coordinator.core.jobs import Job, JobEvent, JobId, JobState, Kind
from coordinator.core.pricing import Training, microcredits
from coordinator.core.wholes import NoRoom
from coordinator.parts import Order, Parts
from coordinator.refusal import Refusal
from potluck.pricing import training_units
from potluck.v1 import session_pb2, work_pb2

BOUND = Training("sft", 1_000, 640, 4_096, 64, 512)
WORK = work_pb2.Work(training=work_pb2.TrainingWork(first_step=0, last_step=3, seconds_max=90))
TRAINS = session_pb2.ServedModel(kinds=["finetune"])


class Keeper:
    def __init__(self) -> None:
        self.ended: list[Job] = []

    def part_ended(self, part: Job) -> None:
        self.ended.append(part)

    def whole_ended(self, whole: Job) -> None:
        self.ended.append(whole)


def cost(house: House) -> int:
    return microcredits(training_units(house.running.pool.shape(MODEL), BOUND))


async def open_whole(house: House, parts: int = 2) -> tuple[Parts, Job]:
    pool = house.running.pool
    (alice,) = (member for member in await pool.store.members() if member.name == "alice")
    made = Parts(pool)
    order = Order(
        id=JobId("job_w"), kind=Kind.FINETUNE, model=MODEL, member=alice, key=None, worst=parts * cost(house),
        prompt_tokens=parts * BOUND.tokens, max_tokens=0, expires_at=None,
    )  # fmt: skip
    return made, made.open(order)


async def trainer(house: House) -> RawWorker:
    worker = await house.join("rig")
    model = session_pb2.ServedModel()
    model.CopyFrom(SERVED)
    model.MergeFrom(TRAINS)
    await worker.connect(models=[model])
    return worker


async def test_a_part_goes_out_as_training_and_is_paid_out_of_the_whole_s_hold(house: House) -> None:
    rig, keeper = await trainer(house), Keeper()
    parts, whole = await open_whole(house)
    parts.watch(whole.id, keeper)
    part = parts.submit_training(whole, 1, WORK, BOUND, 64)
    assert (part.hold, part.prompt_tokens, part.stored, part.kind) == (cost(house), 640, True, Kind.FINETUNE)
    assign = await rig.until("assign")
    assert (assign.work, assign.attempt.job_id) == (WORK, "job_w.1")
    assert not assign.HasField("continuation")
    pool = house.running.pool
    assert pool.engine.steps(rig.id, part.id, 1, 1, pool.now())
    done = Training("", 0, 640, 4_096, 64, 512)
    assert pool.engine.trained(rig.id, part.id, 1, done, pool.now())
    await house.eventually(lambda: bool(keeper.ended), "the end of the part")
    (ended,) = keeper.ended
    assert (ended.state, ended.charge, ended.output_tokens) == (JobState.SUCCEEDED, cost(house), 640)
    parts.end(whole.id, JobEvent.SUCCEEDED)
    await house.running.ticker.committed()
    await house.settled()
    shown = await house.job("job_w.1")
    assert (shown["kind"], shown["state"], shown["charge"]) == ("finetune", "succeeded", cost(house))


async def test_no_part_is_begun_that_was_not_quoted_or_that_nobody_could_do(house: House) -> None:
    rig = await trainer(house)
    parts, whole = await open_whole(house, parts=1)
    parts.submit_training(whole, 1, WORK, BOUND, 64)
    with pytest.raises(NoRoom):
        parts.submit_training(whole, 2, WORK, BOUND, 64)
    parts.pool.cancel("job_w.1", "enough")
    with pytest.raises(Refusal, match="needs a context of 9000 tokens, the workers have 8192"):
        parts.submit_training(whole, 3, WORK, BOUND, 9_000)
    await house.running.ticker.committed()
    assert not parts.pool.works
    await rig.close()


async def test_a_part_that_a_restart_cuts_off_is_given_up_and_its_whole_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is paid for it, and the whole may pay the same steps again under another number."""
    async with open_house(tmp_path, monkeypatch) as house:
        rig = await trainer(house)
        parts, whole = await open_whole(house, parts=1)
        parts.submit_training(whole, 1, WORK, BOUND, 64)
        await rig.until("assign")
        keys = house.keys
    async with open_house(tmp_path, monkeypatch, keys=keys) as house:
        shown = await house.job("job_w.1")
        assert (shown["state"], shown["charge"]) == ("failed", 0)
        assert "the coordinator restarted" in shown["why"]
        again = Parts(house.running.pool)
        found = again.whole(JobId("job_w"))
        assert found is not None
        assert found.left == cost(house)
        again.submit_training(found.job, 2, WORK, BOUND, 64)
        again.end(found.job.id, JobEvent.CANCELLED)
        await house.running.ticker.committed()
        await house.settled()
