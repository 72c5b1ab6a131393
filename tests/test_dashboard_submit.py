"""Fine-tunes and batches begun from the browser: uploaded, quoted, confirmed; and what is wrong is said there."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from fixtures_api import MODEL, Stand
from fixtures_browser import DESK, PHONE, Person, person
from fixtures_learner import learner_of
from playwright.async_api import Browser, expect
from test_dashboard_jobs import figure
from test_dashboard_wholes import CHECKING, requests, state
from test_finetunes import EXAMPLES

from coordinator.core.fleet import Patience

pytestmark = pytest.mark.processes

BAD = "Failed to load resource: the server responded with a status of 400 (Bad Request)"


@pytest.fixture
async def alice(stand: Stand, browser: Browser) -> AsyncIterator[Person]:
    stand.context.pool.engine.fleet.patience = Patience(lease_s=600.0)
    async with person(browser, stand.url) as made:
        await made.sign_in(stand.keys["alice"])
        yield made


def file(name: str, data: bytes) -> Any:
    return {"name": name, "mimeType": "application/jsonl", "buffer": data}


async def test_a_fine_tune_is_quoted_and_then_begun(stand: Stand, alice: Person) -> None:
    """Nothing is made before it is confirmed; changing the form takes the quote back; each file is sent once."""
    learner_of(stand)
    page = alice.page
    await alice.goto("/jobs")
    await page.get_by_role("link", name="New fine-tune").click()
    await page.get_by_label("Base", exact=True).select_option(MODEL)
    await page.get_by_label("Examples", exact=True).set_input_files(file("examples.jsonl", EXAMPLES))
    await page.get_by_label("Examples to check with").set_input_files(file("checking.jsonl", CHECKING))
    await page.get_by_label("Name, after").fill("supper")
    await page.get_by_text("More", exact=True).click()
    await page.get_by_label("Epochs").fill("2")
    upload = page.get_by_role("button", name="Upload and say what it costs")
    await upload.click()
    begin = page.get_by_role("button", name="Begin")
    await expect(begin).to_be_visible()
    await expect(figure(alice, "Examples")).to_have_text("12")
    await expect(figure(alice, "Tokens")).to_have_text(str(2 * 12 * 7))
    assert (await stand.ask("GET", "/v1/fine_tuning/jobs")).json()["data"] == []
    await page.get_by_label("Batch size").fill("4")
    await expect(begin).to_be_hidden()
    await upload.click()
    await expect(figure(alice, "Steps")).to_have_text("6")
    assert len((await stand.ask("GET", "/v1/files")).json()["data"]) == 2
    await begin.click()
    await expect(page.get_by_role("heading", level=1)).to_have_text(f"Fine-tune {MODEL}:ft-supper")
    await expect(state(alice)).to_have_text("succeeded")
    [job] = (await stand.ask("GET", "/v1/fine_tuning/jobs")).json()["data"]
    assert (job["status"], job["potluck"]["steps"], job["hyperparameters"]["batch_size"]) == (
        "succeeded",
        6,
        4,
    )
    assert job["validation_file"]


async def test_what_is_wrong_with_a_file_is_said(alice: Person) -> None:
    """And the form stays as it was, to be mended."""
    page = alice.page
    alice.expected.add(BAD)
    await alice.goto("/jobs/new/finetune")
    examples = page.get_by_label("Examples", exact=True)
    await examples.set_input_files(file("examples.jsonl", EXAMPLES + b'{"messages": 5}\n'))
    upload = page.get_by_role("button", name="Upload and say what it costs")
    await upload.click()
    await expect(page.locator("#notice .callout.bad")).to_contain_text("line 13")
    await expect(page.locator("#quote")).to_be_hidden()
    await examples.set_input_files(file("examples.jsonl", EXAMPLES))
    await upload.click()
    await expect(page.get_by_role("button", name="Begin")).to_be_visible()
    await expect(page.locator("#notice")).to_be_empty()


async def test_a_batch_is_begun(stand: Stand, alice: Person) -> None:
    page = alice.page
    await alice.goto("/jobs/new/batch")
    await page.get_by_label("Requests").set_input_files(file("lines.jsonl", requests(3)))
    await page.get_by_label("Hours that it may take").fill("2")
    await page.get_by_role("button", name="Upload and begin").click()
    await expect(state(alice)).to_have_text("completed")
    await expect(figure(alice, "Done")).to_have_text("3 of 3")
    [batch] = (await stand.ask("GET", "/v1/batches")).json()["data"]
    assert batch["completion_window"] == "2h"


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_forms_can_be_used_by_everybody(stand: Stand, browser: Browser, scheme: Any) -> None:
    for viewport in (DESK, PHONE):
        async with person(browser, stand.url, color_scheme=scheme, viewport=viewport) as somebody:
            await somebody.sign_in(stand.keys["alice"])
            for path in ("/jobs/new/finetune", "/jobs/new/batch"):
                await somebody.goto(path)
                for folded in await somebody.page.locator("summary").all():
                    await folded.click()
                assert await somebody.faults() == [], path
                assert not await somebody.overflows(), path
