"""What stored jobs asked and were answered is forgotten after the days that files are kept, and nothing earlier."""

from dataclasses import replace
from pathlib import Path

import pytest
from fixtures_api import Stand, chat_body, error_of
from fixtures_store import NOW, world
from test_api_pool import end_of

from coordinator.app import _sweepers
from coordinator.chores import tidy
from coordinator.core.jobs import JobEvent, JobId, Kind, move
from coordinator.records import Batch

pytestmark = pytest.mark.usefixtures("on_both")

DAY_S = 86_400.0


async def test_a_kept_answer_goes_with_the_hourly_chores_once_it_is_too_old(stand: Stand) -> None:
    """Its job stays, with what it cost; whoever asks for the answer is told that it is gone."""
    body = {"kind": "chat", "request": chat_body()}
    made = (await stand.ask("POST", "/pool/v1/jobs", json=body)).json()["id"]
    path, days = f"/pool/v1/jobs/{made}", stand.context.settings.file_days

    await end_of(stand, made)
    store = stand.context.store
    stand.clock.ahead_s = days * DAY_S - 60
    await tidy(stand.context.pool, _sweepers(stand.context))
    assert (await stand.ask("GET", f"{path}/result")).status_code == 200
    assert await store.request(JobId(made)) is not None
    stand.clock.ahead_s = days * DAY_S + 60
    await tidy(stand.context.pool, _sweepers(stand.context))
    gone = await stand.ask("GET", f"{path}/result")
    assert (gone.status_code, error_of(gone)["code"]) == (404, "result_not_kept")
    assert f"{days} days" in error_of(gone)["message"]
    assert await store.request(JobId(made)) is None
    job = (await stand.ask("GET", path)).json()
    assert (job["state"], job["charge"] > 0) == ("succeeded", True)


async def test_open_jobs_and_parts_of_wholes_keep_theirs(tmp_path: Path) -> None:
    """A fine-tune goes on from what its parts left, however long ago."""
    async with world(tmp_path) as pool:
        waits, old = pool.job(stored=True), pool.job(stored=True)
        whole = replace(pool.job(), kind=Kind.FINETUNE, hold=0)
        part = replace(pool.job(stored=True), whole=whole.id, part=1, hold=0)
        ended = [
            move(replace(job, hold=0), JobEvent.CANCELLED, now=NOW, why="asked", code="cancelled")
            for job in (old, part)
        ]
        jobs = [replace(waits, hold=0), whole, *ended]
        texts = {job.id: b"text" for job in (waits, old, part)}
        await pool.store.commit(Batch(jobs=jobs, requests=texts, results=texts))
        assert await pool.store.forget_texts_of(NOW - 1) == 0
        assert await pool.store.forget_texts_of(NOW) == 1
        for job, kept in ((waits, b"text"), (part, b"text"), (old, None)):
            assert await pool.store.request(job.id) == kept
            assert await pool.store.result(job.id) == kept
