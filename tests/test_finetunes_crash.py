"""Fine-tunes that outlive their coordinator, their workers and their time: a whole coordinator, real streams."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fixtures_learner import TOKENS, Learner, learns
from fixtures_sessions import MODEL, SERVED, House, RawWorker, open_house
from test_finetunes import chat, text

from coordinator.core import retries
from coordinator.finetunes.finetune import FinetuneState
from coordinator.finetunes.run import Run
from potluck.catalogue import Catalogue
from potluck.v1 import session_pb2

OVER = ("succeeded", "failed", "cancelled")
TRAINS = session_pb2.ServedModel()
TRAINS.CopyFrom(SERVED)
TRAINS.kinds.append("finetune")
DAY_S = 86_400.0
LIVES = 6


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "PAUSE_S", 0.0)


async def trainer(house: House, name: str, **more: Any) -> tuple[RawWorker, Learner]:
    """A worker of bob's that trains whatever it is given."""
    worker = await house.join(name)
    return worker, await at_work(worker, **more)


async def at_work(worker: RawWorker, **more: Any) -> Learner:
    await worker.connect(models=[TRAINS])
    house = worker.house
    learner = Learner(lambda: house.running.pool, worker.id, **more)
    worker.tasks.append(asyncio.create_task(learns(worker, learner)))
    return learner


async def begun(house: House, examples: int = 12, **more: Any) -> str:
    client = house.openai()
    data = text([chat(n) for n in range(examples)])
    file = await client.files.create(file=("examples.jsonl", data), purpose="fine-tune")
    body = {
        "model": MODEL,
        "training_file": file.id,
        "hyperparameters": {"n_epochs": 9, "batch_size": 1},
        **more,
    }
    job = await house.api("POST", "/v1/fine_tuning/jobs", "alice", json=body)
    job_id: str = job.raise_for_status().json()["id"]
    return job_id


async def shown(house: House, job_id: str) -> Any:
    return await house.get(f"/v1/fine_tuning/jobs/{job_id}", "alice")


async def ended(house: House, job_id: str) -> Any:
    async with asyncio.timeout(40):
        while (job := await shown(house, job_id))["status"] not in OVER:
            pass
    return job


async def books_are_right(house: House, job: Any, tokens: int) -> None:
    """Every token was paid once, whatever happened, and the check finds nothing."""
    store = house.running.store
    parts = await store.parts(job["potluck"]["job"], limit=10_000)
    paid = [part for part in parts if part.state.value == "succeeded"]
    assert job["trained_tokens"] == tokens == sum(part.output_tokens for part in paid)
    assert job["potluck"]["charge"] == sum(part.charge or 0 for part in parts)
    assert await store.verify() == []
    await house.settled()


@contextlib.asynccontextmanager
async def open_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, str]
) -> AsyncIterator[House]:
    async with open_house(folder, monkeypatch, keys) as house:
        keys.update(house.keys)
        yield house


@pytest.mark.parametrize("workers", [1, 3])
async def test_a_coordinator_that_stops_anywhere_goes_on_and_pays_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """Stopped again and again, wherever its tasks were: between what is paid and what is noted, too."""
    chance, keys = random.Random(workers), dict[str, str]()
    job_id, job = "", None
    for life in range(LIVES):
        async with open_again(tmp_path, monkeypatch, keys) as house:
            for n in range(workers):
                await trainer(house, f"rig-{life}-{n}", steps=5)
            rounds = {"workers": workers, "local_steps": 2}
            steps_of = {"n_epochs": 4, "batch_size": 1}
            job_id = job_id or await begun(house, 24, potluck=rounds, hyperparameters=steps_of)
            if life == LIVES - 1:
                job = await ended(house, job_id)
                assert job["status"] == "succeeded", job["error"]
                await books_are_right(house, job, 4 * 24 * TOKENS)
                content = await house.api("GET", f"/v1/files/{job['result_files'][0]}/content", "alice")
                steps = [int(row.split(",")[0]) for row in content.text.splitlines()[1:]]
                assert steps == sorted(set(steps))
                assert steps[-1] <= job["potluck"]["steps"]
                break
            for _ in range(chance.randrange(40, 900)):
                await asyncio.sleep(0)


async def test_what_was_paid_and_not_yet_noted_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator dies when the second segment is paid, before the state machine's step is on the disk."""
    keys, hangs = dict[str, str](), asyncio.Event()
    async with open_again(tmp_path, monkeypatch, keys) as house:
        store = house.running.store
        really = store.put_finetune_snapshot

        async def slowly(finetune_id: str, snapshot: str) -> None:
            if '"step": 80' in snapshot:
                hangs.set()
                await asyncio.Event().wait()
            await really(finetune_id, snapshot)

        monkeypatch.setattr(store, "put_finetune_snapshot", slowly)
        await trainer(house, "rig", steps=40)
        job_id = await begun(house)
        await asyncio.wait_for(hangs.wait(), 30)
    async with open_again(tmp_path, monkeypatch, keys) as house:
        _, learner = await trainer(house, "box", steps=40)
        job = await ended(house, job_id)
        assert job["status"] == "succeeded", job["error"]
        assert [work.first_step for work in learner.trained] == [80]
        names = set(house.running.context.tuned.checkpoints)
        assert len(names) == 3
        await books_are_right(house, job, 9 * 12 * TOKENS)
    async with open_again(tmp_path, monkeypatch, keys) as house:
        assert set(house.running.context.tuned.checkpoints) == names
        house.clock.ahead_s += 31 * DAY_S
        await house.running.context.finetunes.sweep()
        assert not house.running.context.tuned.checkpoints
        assert len(house.running.context.tuned.models) == 1


async def test_paused_over_a_restart_it_stays_paused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys, job_id = dict[str, str](), ""
    async with open_again(tmp_path, monkeypatch, keys) as house:
        _, learner = await trainer(house, "rig", steps=10)
        job_id = await begun(house)
        await house.eventually(lambda: len(learner.seen) > 2, "a third part")
        paused = await house.api("POST", f"/v1/fine_tuning/jobs/{job_id}/pause", "alice")
        assert paused.json()["status"] == "paused", paused.text
    async with open_again(tmp_path, monkeypatch, keys) as house:
        _, learner = await trainer(house, "box", steps=40)
        job = await shown(house, job_id)
        assert (job["status"], job["potluck"]["stage"]) == ("paused", "paused")
        assert not learner.seen
        resumed = await house.api("POST", f"/v1/fine_tuning/jobs/{job_id}/resume", "alice")
        assert resumed.status_code == 200, resumed.text
        job = await ended(house, job_id)
        assert job["status"] == "succeeded", job["error"]
        assert learner.trained[0].first_step >= 20
        await books_are_right(house, job, 9 * 12 * TOKENS)


async def test_when_all_workers_are_gone_for_an_hour_it_waits_for_the_next(house: House) -> None:
    """It says what it waits for, loses the segment that was under way, and goes on from its checkpoint."""
    hangs = asyncio.Event()

    async def hang(assign: session_pb2.Assign) -> None:
        if assign.work.training.first_step:
            hangs.set()
            await asyncio.Event().wait()

    box = await house.join("box")  # now: certificates are made by the clock that is turned ahead
    worker, _ = await trainer(house, "rig", steps=40, before=hang)
    job_id = await begun(house)
    await asyncio.wait_for(hangs.wait(), 30)
    for task in worker.tasks:
        task.cancel()
    await worker.close()
    engine = house.running.pool.engine
    await house.eventually(lambda: not any(w.running for w in engine.fleet.workers.values()), "it was missed")
    for _ in range(60):
        house.clock.ahead_s += 60.0
        assert (await shown(house, job_id))["status"] == "running"
    job = await shown(house, job_id)
    assert job["potluck"]["stage"] == "waiting"
    assert f"no worker that serves {MODEL} is connected" in job["potluck"]["why"]
    learner = await at_work(box)
    job = await ended(house, job_id)
    assert job["status"] == "succeeded", job["error"]
    assert learner.trained[0].first_step == 40
    await books_are_right(house, job, 9 * 12 * TOKENS)


async def test_after_thirty_days_it_is_over(house: House) -> None:
    """What was trained until then is paid, and the rest comes back."""
    hangs = asyncio.Event()

    async def hang(assign: session_pb2.Assign) -> None:
        if assign.work.training.first_step:
            hangs.set()
            await asyncio.Event().wait()

    await trainer(house, "rig", steps=40, before=hang)
    job_id = await begun(house)
    await asyncio.wait_for(hangs.wait(), 30)
    house.clock.ahead_s += 30 * DAY_S + 1
    job = await ended(house, job_id)
    assert (job["status"], job["error"]["code"]) == ("failed", "finetune_expired")
    await books_are_right(house, job, 40 * TOKENS)


async def test_a_base_that_is_gone_after_a_restart_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, job_id = dict[str, str](), ""
    async with open_again(tmp_path, monkeypatch, keys) as house:
        _, learner = await trainer(house, "rig", steps=5)
        job_id = await begun(house)
        await house.eventually(lambda: len(learner.seen) > 1, "a second part")
    nothing = Catalogue.parse(b'{"models": []}')
    monkeypatch.setattr(Catalogue, "builtin", lambda **_: nothing)
    async with open_again(tmp_path, monkeypatch, keys) as house:
        job = await ended(house, job_id)
        assert (job["status"], job["error"]["code"]) == ("failed", "model_gone")
        assert await house.running.store.verify() == []
        await house.settled()


async def lost(house: House, job_id: str) -> None:
    """Its file's bytes, as when a disk fails."""
    job = await shown(house, job_id)
    file = (await house.api("GET", f"/v1/files/{job['training_file']}", "alice")).json()
    house.running.context.finetunes.files.artifacts.where(file["potluck"]["sha256"]).unlink()


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_file_that_is_lost_ends_the_fine_tune_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restarted: bool
) -> None:
    """The pool starts all the same, and no worker is blamed for what it could not fetch."""
    keys, job_id, is_lost = dict[str, str](), "", asyncio.Event()
    async with open_again(tmp_path, monkeypatch, keys) as house:
        worker, learner = await trainer(house, "rig", steps=5)

        async def lose(_: session_pb2.Assign) -> None:
            if job_id and len(learner.seen) > 1 and not is_lost.is_set():
                await lost(house, job_id)
                is_lost.set()

        learner.before = lose
        job_id = await begun(house)
        await asyncio.wait_for(is_lost.wait(), 30)
        if not restarted:
            job = await ended(house, job_id)
            assert house.running.pool.engine.fleet.workers[worker.id].faults == 0
    if restarted:
        async with open_again(tmp_path, monkeypatch, keys) as house:
            job = await ended(house, job_id)
            await books_are_right(house, job, job["trained_tokens"])
    assert (job["status"], job["error"]["code"]) == ("failed", "artifact_gone")
    assert "is gone from the pool's disk" in job["error"]["message"]


async def test_a_file_that_is_lost_before_it_is_read_again_leaves_no_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator dies between opening the whole and noting that it is open."""
    keys, job_id = dict[str, str](), ""
    opened, move = asyncio.Event(), Run._move

    async def dies(run: Run, state: FinetuneState, **changes: Any) -> None:
        if state is FinetuneState.QUEUED:
            opened.set()
            await asyncio.Event().wait()
        await move(run, state, **changes)

    with monkeypatch.context() as patched:
        patched.setattr(Run, "_move", dies)
        async with open_again(tmp_path, monkeypatch, keys) as house:
            await trainer(house, "rig")
            job_id = await begun(house)
            await asyncio.wait_for(opened.wait(), 30)
            assert (await house.get("/pool/v1/balance", "alice"))["reserved"] > 0
            await lost(house, job_id)
    async with open_again(tmp_path, monkeypatch, keys) as house:
        job = await ended(house, job_id)
        assert (job["status"], job["error"]["code"]) == ("failed", "file_gone")
        assert (await house.get("/pool/v1/balance", "alice"))["reserved"] == 0
        assert await house.running.store.verify() == []
        await house.settled()
