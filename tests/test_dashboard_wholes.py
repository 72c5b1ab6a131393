"""Fine-tunes and batches in a real Chromium: the curve grows on the open page, and all of it is in the member's hands."""

import asyncio
import csv
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fixtures_api import MODEL, TEXT, Said, Stand, saying
from fixtures_browser import DESK, PHONE, Person, person
from fixtures_learner import learner_of
from playwright.async_api import Browser, Locator, expect
from test_dashboard_jobs import figure
from test_finetunes import chat, facts, made, text, until, uploaded
from test_finetunes_run import in_rounds

from coordinator.core import retries
from coordinator.core.fleet import Patience
from coordinator.dashboard.curves import POINTS_MAX, Told
from coordinator.finetunes.finetune import Event
from potluck.v1 import session_pb2

pytestmark = pytest.mark.processes

CHECKING = text([chat(n) for n in range(10)])
OVER = ("succeeded", "failed", "cancelled")


@pytest.fixture
async def alice(stand: Stand, browser: Browser) -> AsyncIterator[Person]:
    async with person(browser, stand.url) as made:
        await made.sign_in(stand.keys["alice"])
        yield made


@pytest.fixture(autouse=True)
def _patient(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripted workers do not beat; what failed is tried again without a pause."""
    stand.context.pool.engine.fleet.patience = Patience(lease_s=600.0)
    monkeypatch.setattr(retries, "PAUSE_S", 0.0)


def state(somebody: Person) -> Locator:
    return somebody.page.locator("#state .tag")


def paced(stand: Stand, steps: int) -> asyncio.Semaphore:
    """A worker that trains one step for each permit; a segment ends after so many."""
    permits, learner = asyncio.Semaphore(0), learner_of(stand, steps=steps)
    answer = stand.bench.script

    async def script(assign: session_pb2.Assign) -> AsyncIterator[Said]:
        async for said in learner(assign) if assign.work.HasField("training") else answer(assign):
            if isinstance(said, session_pb2.Frame) and said.steps:
                await permits.acquire()
            yield said

    stand.bench.script = script
    return permits


def permit(permits: asyncio.Semaphore, count: int) -> None:
    for _ in range(count):
        permits.release()


async def test_a_curve_grows_on_the_open_page(stand: Stand, alice: Person) -> None:
    """Points come as steps do; then the model is chatted with, and what it left is taken along."""
    permits, page = paced(stand, steps=7), alice.page
    job = await made(
        stand,
        suffix="supper",
        validation_file=await uploaded(stand, CHECKING),
        hyperparameters={"n_epochs": 4, "batch_size": 2},
    )
    await alice.goto(f"/jobs/{job.id}")
    points = page.locator(".chart details tbody tr")
    permit(permits, 3)
    await expect(state(alice)).to_have_text("running")
    await expect(points).to_have_count(4)  # the loss before the first step, too
    await expect(page.locator(".chart thead th")).to_have_text(["Step", "training loss", "validation loss"])
    await expect(page.locator(".chart .u-wrap canvas")).to_be_visible()
    await expect(figure(alice, "Step")).to_have_text("3 of 24")
    permit(permits, 7)
    await expect(points).to_have_count(11)
    await expect(figure(alice, "Step")).to_have_text("10 of 24")
    await expect(figure(alice, "Credits so far").locator("data")).not_to_have_attribute("value", "0")
    await expect(page.get_by_role("region", name="Checkpoints").locator("tbody tr")).to_have_count(1)
    await expect(page.get_by_text("On rig.")).to_be_visible()
    permit(permits, 14)
    await expect(state(alice)).to_have_text("succeeded")
    await expect(points).to_have_count(25)
    ended = await until(stand, job, *OVER)
    charge = figure(alice, "Credits so far").locator("data")
    await expect(charge).to_have_attribute("value", str(facts(ended)["charge"]))
    await expect(page.get_by_role("region", name="Parts").locator("tbody tr").first).to_contain_text("rig")
    await expect(page.locator(".top .balance data")).to_have_attribute("value", f"-{facts(ended)['charge']}")
    async with page.expect_download() as download:
        await page.get_by_role("link", name="The curve as CSV").click()
    rows = list(csv.DictReader((await (await download.value).path()).read_text().splitlines()))
    assert [row["step"] for row in rows if row["train_loss"]] == [str(n) for n in range(1, 25)]
    async with page.expect_download() as weights:
        await page.get_by_role("link", name="Weights at step 24").click()
    model = stand.context.tuned.models[f"{MODEL}:ft-supper"]
    assert (await (await weights.value).path()).stat().st_size == model.weights.bytes
    await page.get_by_role("link", name=f"Chat with {MODEL}:ft-supper").click()
    await expect(page.locator("#model")).to_have_value(f"{MODEL}:ft-supper")
    await page.get_by_label("Message").fill("Hello")
    await page.keyboard.press("Enter")
    await expect(page.locator(".turn.assistant .said")).to_have_text(TEXT)
    assert stand.bench.assigned[-1].adapter.name == f"{MODEL}:ft-supper"


async def test_rounds_and_who_took_part_are_told(stand: Stand, alice: Person) -> None:
    """On the open page: each round as it was put together, and one point for each of its steps."""
    learner_of(stand)
    job = await in_rounds(stand)
    await alice.goto(f"/jobs/{job.id}")
    await expect(state(alice)).to_have_text("succeeded")
    happened = alice.page.get_by_role("region", name="What happened")
    await expect(happened.get_by_text("shares were put together, of rig.")).to_have_count(4)
    steps = alice.page.locator(".chart tbody tr td:first-child")
    await expect(steps).to_have_count(13)  # the loss before the first step, too
    assert await steps.all_text_contents() == [str(step) for step in range(12, -1, -1)]
    pairs = alice.page.locator("dl.pairs")
    await expect(pairs.locator("dt", has_text="Batch size").locator("+ dd")).to_have_text("2")
    await expect(pairs.locator("dt", has_text="Workers wanted").locator("+ dd")).to_have_text("3")


async def test_a_fine_tune_is_paused_resumed_and_cancelled_from_its_page(stand: Stand, alice: Person) -> None:
    """Found by its job's id, too."""
    permits, page = paced(stand, steps=5), alice.page
    job = await made(stand, hyperparameters={"n_epochs": 4, "batch_size": 2})
    await until(stand, job, "queued", "running")
    permit(permits, 6)
    await alice.goto(f"/jobs/{facts(job)['job']}")
    await expect(figure(alice, "Step")).to_have_text("6 of 24")
    await page.get_by_role("button", name="Pause").click()
    await expect(page.locator("#notice")).to_contain_text("It is paused")
    await expect(state(alice)).to_have_text("paused")
    await page.get_by_role("button", name="Resume").click()
    await expect(state(alice)).to_have_text("running")
    await expect(figure(alice, "Step")).to_have_text("5 of 24")
    page.on("dialog", lambda dialog: dialog.accept())
    await page.get_by_role("button", name="Cancel").click()
    await expect(state(alice)).to_have_text("cancelled")
    await expect(page.get_by_text("Cancelled: alice cancelled it.")).to_be_visible()
    await expect(page.get_by_role("button", name="Cancel")).to_have_count(0)
    assert (await until(stand, job, *OVER)).status == "cancelled"


async def test_one_that_cannot_be_paid_never_had_a_job_and_has_its_page(
    stand: Stand, browser: Browser, alice: Person
) -> None:
    """Others' look as if they were not there; an admin sees them."""
    account = stand.context.pool.engine.book.accounts[stand.members["alice"].account]
    line, account.credit_line = account.credit_line, 0
    job = await until(stand, await made(stand), *OVER)
    account.credit_line = line
    await alice.goto("/jobs")
    listed = alice.page.get_by_role("region", name="Fine-tunes and batches").locator("tbody tr")
    await expect(listed).to_contain_text("failed")
    await alice.goto(f"/jobs/{job.id}")
    await expect(state(alice)).to_have_text("failed")
    await expect(alice.page.locator(".callout.bad")).to_contain_text("This can cost up to")
    await alice.goto(f"/jobs/{facts(job)['job']}")
    await expect(state(alice)).to_have_text("failed")
    async with person(browser, stand.url) as bob:
        bob.expected.add("Failed to load resource: the server responded with a status of 404 (Not Found)")
        await bob.sign_in(stand.keys["bob"])
        for path in (f"/jobs/{job.id}", f"/jobs/{facts(job)['job']}", f"/charts/finetunes/{job.id}"):
            answer = await bob.page.goto(stand.url + path)
            assert answer is not None
            assert answer.status == 404
    async with person(browser, stand.url) as admin:
        await admin.sign_in(stand.keys["admin"])
        await admin.goto(f"/jobs/{job.id}")
        await expect(state(admin)).to_have_text("failed")


def requests(count: int, **more: Any) -> bytes:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Go on."}], **more}
    wanted = {"method": "POST", "url": "/v1/chat/completions", "body": body}
    return "".join(json.dumps({"custom_id": f"n{n}", **wanted}) + "\n" for n in range(count)).encode()


async def batch_of(stand: Stand, data: bytes) -> Any:
    client = stand.openai()
    file = await client.files.create(file=("lines.jsonl", data), purpose="batch")
    return await client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )


async def test_a_batch_fills_its_bar_and_leaves_its_answers(stand: Stand, alice: Person) -> None:
    permits, answer, page = asyncio.Semaphore(0), saying("Well", "."), alice.page

    async def script(assign: session_pb2.Assign) -> AsyncIterator[Said]:
        await permits.acquire()
        async for said in answer(assign):
            yield said

    stand.bench.script = script
    batch = await batch_of(stand, requests(8))
    await alice.goto("/jobs")
    listed = page.get_by_role("region", name="Fine-tunes and batches").locator("tbody tr")
    await expect(listed).to_contain_text("in progress")
    permit(permits, 1)
    await expect(listed).to_contain_text("1 of 8")
    await listed.get_by_role("link").click()
    await expect(state(alice)).to_have_text("in progress")
    permit(permits, 2)
    await expect(figure(alice, "Done")).to_have_text("3 of 8")
    await expect(page.get_by_role("progressbar")).to_have_js_property("value", 3)
    permit(permits, 5)
    await expect(state(alice)).to_have_text("completed")
    await expect(page.get_by_role("progressbar")).to_have_js_property("value", 8)
    await expect(page.get_by_role("region", name="Parts").locator("tbody tr")).to_have_count(8)
    async with page.expect_download() as download:
        await page.get_by_role("link", name="Answers").click()
    assert len((await (await download.value).path()).read_text().splitlines()) == 8
    job_id = (batch.model_extra or {})["potluck"]["job_id"]
    charge = (await stand.ask("GET", f"/pool/v1/jobs/{job_id}")).json()["charge"]
    await expect(figure(alice, "Credits so far").locator("data")).to_have_attribute("value", str(charge))
    await alice.goto(f"/jobs/{job_id}")
    await expect(page.get_by_role("heading", level=1)).to_have_text(f"Batch {batch.id}")


async def test_a_batch_is_cancelled_and_one_that_was_refused_says_why(stand: Stand, alice: Person) -> None:
    async def silent(_assign: session_pb2.Assign) -> AsyncIterator[Said]:
        await asyncio.Event().wait()
        yield ()

    stand.bench.script, page = silent, alice.page
    batch = await batch_of(stand, requests(3))
    await alice.goto(f"/jobs/{batch.id}")
    await expect(state(alice)).to_have_text("in progress")
    page.on("dialog", lambda dialog: dialog.accept())
    await page.get_by_role("button", name="Cancel").click()
    await expect(state(alice)).to_have_text("cancelled")
    refused = await batch_of(stand, requests(1) + requests(1, temperature=9).replace(b"n0", b"n1"))
    await alice.goto(f"/jobs/{refused.id}")
    await expect(state(alice)).to_have_text("failed")
    await expect(page.locator(".callout.bad li")).to_contain_text("Line 2: body.temperature")


def test_a_chart_has_no_more_points_than_can_be_seen() -> None:
    """Neighbours are joined to their mean; validations all stay; an event that is read twice counts once."""
    told = Told()
    for number in (*range(1, 2_001), *range(1_990, 2_001)):
        told.take(
            Event(
                number=number,
                at=0.0,
                level="info",
                message="",
                data={"step": number, "train_loss": float(number)},
            )
        )
    told.take(Event(number=2_001, at=0.0, level="info", message="", data={"step": 777, "valid_loss": 0.5}))
    columns = told.columns()
    steps, (train, valid) = columns["x"]["values"], columns["series"]
    assert len(steps) == POINTS_MAX + 1
    assert [train["values"][0], steps[0], steps[-1]] == [2.5, 4, 2_000]
    assert valid["values"][steps.index(777)] == 0.5


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_they_can_be_used_by_everybody(stand: Stand, browser: Browser, scheme: Any) -> None:
    """As the other pages: axe-core, and a phone of 375 px; a fine-tune and a batch that have ended."""
    learner_of(stand, steps=7)
    job = await made(stand, validation_file=await uploaded(stand, CHECKING), hyperparameters={"n_epochs": 2})
    job = await until(stand, job, *OVER)
    batch = await batch_of(stand, requests(2))
    for viewport in (DESK, PHONE):
        async with person(browser, stand.url, color_scheme=scheme, viewport=viewport) as somebody:
            await somebody.sign_in(stand.keys["alice"])
            for path in ("/jobs", f"/jobs/{job.id}", f"/jobs/{batch.id}"):
                await somebody.goto(path)
                for folded in await somebody.page.locator("summary").all():
                    await folded.click()
                assert await somebody.faults() == [], path
                assert not await somebody.overflows(), path
