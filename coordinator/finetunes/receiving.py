"""What workers say of a fine-tune's parts, and what of it is believed: nothing beyond the coordinator's own
count, and no artifact that its steps could not have made.
"""

import asyncio
from collections.abc import Sequence

from coordinator.artifacts import NoSuchArtifact
from coordinator.core.jobs import Job
from coordinator.core.pricing import Training
from coordinator.finetunes.driver import Driver
from coordinator.finetunes.looking import wrong_adapter, wrong_delta, wrong_state
from coordinator.finetunes.made import made_of
from potluck.v1 import work_pb2


def steps(driver: Driver, job: Job, said: Sequence[work_pb2.TrainingStep]) -> str:
    """Steps of a part under way, sound in themselves. Nothing is paid for them before the end."""
    if job.part not in driver.telling.curve.live:
        driver.wake()  # that it runs is said at its first step
    driver.telling.heard(job, _worker(driver, job), said)
    return ""


async def trained(driver: Driver, job: Job, said: work_pb2.Trained) -> Training | str:
    """What a part came to, by whose count it is paid; or what is wrong with it."""
    pool = driver.parts.pool
    work = pool.works[job.id].training
    if said.steps and (why := await _wrong(driver, work, said)):
        return why
    bound = driver.works.bound(work, said.steps)
    done = Training(
        method=bound.method,
        adapter_parameters=bound.adapter_parameters,
        tokens=min(said.tokens, bound.tokens),
        square_tokens=min(said.square_tokens, bound.square_tokens),
        valid_tokens=min(said.valid_tokens, bound.valid_tokens),
        valid_square_tokens=min(said.valid_square_tokens, bound.valid_square_tokens),
    )
    live = driver.telling.curve.live.get(job.part)
    made = made_of(
        said,
        part=job.part,
        worker=_worker(driver, job),
        at=pool.now(),
        points=() if live is None else tuple(live.points),
        tokens=done.tokens,
    )
    driver.made[job.id] = made
    pool.answers.keep(job.id, made.to_bytes())
    return done


async def _wrong(driver: Driver, work: work_pb2.TrainingWork, said: work_pb2.Trained) -> str:
    """Empty, or what is wrong with its artifacts; they are here, and their digests are right."""
    store, plan, of = driver.parts.pool.training_store, driver.plan, driver.shapes
    idle = not said.tokens and driver.works.may_teach_nothing(work, said.steps)  # nothing is paid for it
    if not idle and said.adapter.sha256 in driver.seen | {work.adapter.sha256}:
        return "what it sent is a copy of what was there before"
    try:
        made, before = store.path(said.adapter.sha256), store.path(work.adapter.sha256)
        if work.delta:
            return await asyncio.to_thread(wrong_delta, made, before, idle=idle)
        state = store.path(said.state.sha256)
    except NoSuchArtifact as error:
        return str(error)
    why = await asyncio.to_thread(wrong_adapter, made, of, before, plan, said.steps, idle=idle)
    return why or await asyncio.to_thread(wrong_state, state, plan)


def _worker(driver: Driver, job: Job) -> str:
    """Its name, for people."""
    assert job.attempt is not None, "somebody has it"
    worker = driver.parts.pool.engine.fleet.workers.get(job.attempt.worker)
    return job.attempt.worker if worker is None else worker.name
