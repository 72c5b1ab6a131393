"""Jobs in a real Chromium: the live list, one job while it waits, runs and has ended, and cancelling from the page."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fixtures_api import MODEL, Said, Script, Stand, chat_body, deltas
from fixtures_browser import DESK, PHONE, Person, person
from playwright.async_api import Browser, Locator, expect

from coordinator.core.fleet import Patience
from potluck.v1 import session_pb2

pytestmark = pytest.mark.processes


@pytest.fixture
async def alice(stand: Stand, browser: Browser) -> AsyncIterator[Person]:
    async with person(browser, stand.url) as made:
        await made.sign_in(stand.keys["alice"])
        yield made


@pytest.fixture(autouse=True)
def _patient(stand: Stand) -> None:
    """Scripted workers do not beat: they are silent for as long as they have nothing to say."""
    stand.context.pool.engine.fleet.patience = Patience(lease_s=600.0)


def rows(somebody: Person) -> Locator:
    return somebody.page.locator("#live-jobs tbody tr")


def figure(somebody: Person, term: str) -> Locator:
    """What stands below that term."""
    of_term = somebody.page.locator("dl.figures > div").filter(
        has=somebody.page.get_by_text(term, exact=True)
    )
    return of_term.locator("dd")


def in_steps(steps: "asyncio.Queue[str]") -> Script:
    """Says each text when it is put into the queue; an empty one is the end."""

    async def script(_assign: session_pb2.Assign) -> AsyncIterator[Said]:
        offset = 0
        while text := await steps.get():
            [delta] = deltas(text, reason="")
            delta.text_offset = offset
            offset += len(text)
            yield [delta]
        [end] = deltas("", reason="stop")
        end.text_offset = offset
        yield [end]

    return script


async def stored(stand: Stand, by: str = "alice", **more: Any) -> str:
    """A job without a waiting client; its id."""
    body = {"kind": "chat", "request": chat_body(**more)}
    made: dict[str, Any] = (
        (await stand.ask("POST", "/pool/v1/jobs", by=by, json=body)).raise_for_status().json()
    )
    return str(made["id"])


async def test_a_job_is_seen_while_it_waits_runs_and_ends(stand: Stand, alice: Person) -> None:
    """On the open page: why it waits, its tokens as they come, then its charge, times, receipt and entries."""
    steps: asyncio.Queue[str] = asyncio.Queue()
    stand.bench.script = in_steps(steps)
    worker = stand.context.pool.engine.fleet.workers[stand.worker]
    stand.context.pool.engine.fleet.says(worker, draining=False, state="paused", why="")
    job_id = await stored(stand)
    await alice.goto(f"/jobs/{job_id}")
    state, page = alice.page.locator("#state .tag"), alice.page
    await expect(state).to_have_text("queued")
    await expect(page.locator(".callout.info")).to_contain_text("Next in line: no worker is free")
    stand.context.pool.engine.fleet.says(worker, draining=False, state="sharing", why="")
    await expect(state).to_have_text("running")
    await expect(page.locator(".callout.info")).to_have_count(0)
    await expect(page.get_by_role("region", name="Attempts").get_by_role("link", name="rig")).to_be_visible()
    await steps.put("one two ")
    await expect(figure(alice, "Tokens written")).to_have_text("1")  # a piece, until it is counted
    await expect(figure(alice, "Until the first token")).not_to_have_text("–")
    await steps.put("three")
    await steps.put("")
    await expect(state).to_have_text("succeeded")
    await expect(figure(alice, "Tokens written")).to_have_text("3")
    shown = (await stand.ask("GET", f"/pool/v1/jobs/{job_id}")).json()
    await expect(figure(alice, "Charge").locator("data")).to_have_attribute("value", str(shown["charge"]))
    await expect(figure(alice, "Hold").locator("data")).to_have_attribute("value", str(shown["hold"]))
    await expect(page.get_by_role("button", name="Cancel")).to_have_count(0)
    moved = page.get_by_role("region", name="Ledger").locator("tbody tr")
    await expect(moved).to_have_count(2)
    await expect(moved.first.locator("data").first).to_have_attribute("value", f"-{shown['charge']}")
    async with page.expect_download() as download:
        await page.get_by_role("link", name="Its answer").click()
    assert "one two three" in (await (await download.value).path()).read_text()


async def test_the_list_is_live_and_a_job_is_cancelled_from_it(stand: Stand, alice: Person) -> None:
    stand.bench.script = in_steps(asyncio.Queue())
    await alice.goto("/jobs")
    await expect(rows(alice)).to_contain_text("No job yet")
    first = await stored(stand)
    await expect(alice.page.locator(f"#row-{first} .tag")).to_have_text("running")
    second = await stored(stand)
    await expect(rows(alice)).to_have_count(2)
    await expect(rows(alice).first).to_have_id(f"row-{second}")
    await alice.page.get_by_role("button", name=f"Cancel {first}").click()
    await expect(alice.page.locator("#notice")).to_contain_text(f"{first} was cancelled")
    await expect(alice.page.locator(f"#row-{first} .tag")).to_have_text("cancelled")
    await expect(alice.page.locator(f"#row-{first}")).to_contain_text("alice cancelled it")
    await expect(alice.page.locator(f"#row-{first} button")).to_have_count(0)
    assert (await stand.ask("GET", f"/pool/v1/jobs/{first}")).json()["state"] == "cancelled"
    assert (await stand.ask("GET", f"/pool/v1/jobs/{second}")).json()["state"] == "running"


async def test_filters_and_older_pages(stand: Stand, alice: Person) -> None:
    ids = [(await stand.chat()).headers["x-potluck-job-id"] for _ in range(27)]
    vectors = await stand.ask("POST", "/v1/embeddings", json={"model": MODEL, "input": "a"})
    page = alice.page
    await alice.goto("/jobs")
    await expect(rows(alice)).to_have_count(25)
    await page.get_by_role("link", name="Older").click()
    await expect(page.locator("tbody tr")).to_have_count(3)
    await expect(page.locator("tbody tr").last).to_have_id(f"row-{ids[0]}")
    await page.get_by_label("Kind").select_option("embedding")
    await page.get_by_role("button", name="Show").click()
    await expect(rows(alice)).to_have_count(1)
    await expect(rows(alice)).to_have_id(f"row-{vectors.headers['x-potluck-job-id']}")
    assert page.url.endswith("/jobs?kind=embedding")
    await page.get_by_label("State").select_option("failed")
    await page.get_by_role("button", name="Show").click()
    await expect(rows(alice)).to_contain_text("No job that fits")


async def test_others_jobs_are_for_admins(stand: Stand, browser: Browser) -> None:
    """A member sees their own; an admin everybody's, by a switch, live; no stream tells a member of others'."""
    job_id = (await stand.chat()).headers["x-potluck-job-id"]
    async with person(browser, stand.url) as bob:
        await bob.sign_in(stand.keys["bob"])
        await bob.goto("/jobs")
        await expect(rows(bob)).to_contain_text("No job yet")
        bob.expected |= {
            "Failed to load resource: the server responded with a status of 404 (Not Found)",
            "Failed to load resource: the server responded with a status of 403 (Forbidden)",
        }
        for path, status in ((f"/jobs/{job_id}", 404), ("/jobs?all=true", 403)):
            answer = await bob.page.goto(stand.url + path)
            assert answer is not None
            assert answer.status == status
        told = await bob.page.evaluate(
            """async (see) => {
                const response = await fetch(`/live?see=${see}`);
                const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
                let text = "";
                while (!text.includes("live-job\\"") || !text.includes("live-jobs\\"")) text += (await reader.read()).value;
                await reader.cancel();
                return text;
            }""",
            f"job:{job_id}+jobs:..all",
        )
        assert job_id not in told
    async with person(browser, stand.url) as admin:
        await admin.sign_in(stand.keys["admin"])
        await admin.goto("/jobs")
        await expect(rows(admin)).to_contain_text("No job yet")
        await admin.page.get_by_label("Whose").select_option("true")
        await admin.page.get_by_role("button", name="Show").click()
        await expect(rows(admin)).to_have_count(1)
        await expect(rows(admin)).to_contain_text("alice")
        (await stand.chat()).raise_for_status()
        await expect(rows(admin)).to_have_count(2)
        await admin.goto(f"/jobs/{job_id}")
        await expect(admin.page.locator("#state .tag")).to_have_text("succeeded")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_they_can_be_used_by_everybody(stand: Stand, browser: Browser, scheme: Any) -> None:
    """As the other pages: axe-core, and a phone of 375 px; with jobs in several states."""
    job_id = (await stand.chat()).headers["x-potluck-job-id"]
    stand.bench.script = in_steps(asyncio.Queue())
    running = await stored(stand)
    for viewport in (DESK, PHONE):
        async with person(browser, stand.url, color_scheme=scheme, viewport=viewport) as somebody:
            await somebody.sign_in(stand.keys["alice"])
            for path in ("/jobs", f"/jobs/{job_id}", f"/jobs/{running}"):
                await somebody.goto(path)
                assert await somebody.faults() == [], path
                assert not await somebody.overflows(), path
