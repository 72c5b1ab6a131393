"""The playground in a real Chromium: chat, stop, refusals, and what is on the screen as code that runs."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fixtures_api import MODEL, Said, Script, Stand, deltas, open_stand, saying
from fixtures_browser import DESK, PHONE, Person, person
from playwright.async_api import Browser, Locator, expect
from test_api_tools import THINK, writing

from coordinator.core.fleet import Patience
from coordinator.core.jobs import JobId
from potluck.v1 import session_pb2

pytestmark = pytest.mark.processes

SOURCE = str(Path(__file__).resolve().parent.parent)
UNMARKED = "<img src=x onerror=alert(1)> & **so**"


@pytest.fixture
async def alice(stand: Stand, browser: Browser) -> AsyncIterator[Person]:
    async with person(browser, stand.url) as made:
        await made.sign_in(stand.keys["alice"])
        yield made


@pytest.fixture(autouse=True)
def _patient(stand: Stand) -> None:
    """Scripted workers do not beat: they are silent for as long as they have nothing to say."""
    stand.context.pool.engine.fleet.patience = Patience(lease_s=600.0)


def answers(somebody: Person) -> Locator:
    return somebody.page.locator(".turn.assistant")


async def ask(somebody: Person, text: str) -> None:
    await somebody.page.get_by_label("Message").fill(text)
    await somebody.page.keyboard.press("Enter")


def endless(first: str) -> Script:
    """Says this and then no more, until it is cancelled."""

    async def script(_assign: session_pb2.Assign) -> AsyncIterator[Said]:
        yield deltas(first, reason="")
        await asyncio.Event().wait()

    return script


async def test_a_chat_is_answered_and_the_balance_above_moves(stand: Stand, alice: Person) -> None:
    """Two turns: the second carries the first, cost and speed stand below, the statement knows both."""
    await alice.goto(f"/playground?model={MODEL}")
    await ask(alice, "a b c")
    await expect(answers(alice).first.locator(".facts data")).to_be_visible()
    await expect(answers(alice).first.locator(".said")).to_have_text("Hello wörld 🎉!")
    await expect(answers(alice).first.locator(".facts")).to_contain_text("tokens/s")
    await expect(answers(alice).first.locator(".facts")).to_contain_text("first after")
    charge = await answers(alice).first.locator(".facts data").get_attribute("value")
    balance = alice.page.locator(".top .balance data")
    await expect(balance).to_have_attribute("value", f"-{charge}")
    await ask(alice, "and then?")
    await expect(answers(alice)).to_have_count(2)
    await expect(answers(alice).last.locator(".facts data")).to_be_visible()
    sent = [(m.role, m.content) for m in stand.bench.assigned[-1].work.chat.messages]
    assert sent == [("user", "a b c"), ("assistant", "Hello wörld 🎉!"), ("user", "and then?")]
    await expect(balance).to_have_attribute("value", str(stand.available()["balance"]))
    await alice.goto("/credits")
    await expect(alice.page.locator("#live-statement tbody tr")).to_have_count(2)


async def test_settings_go_along_and_nothing_stays_unless_it_is_asked_for(
    stand: Stand, alice: Person
) -> None:
    page = alice.page
    await alice.goto("/playground")
    await page.get_by_text("Settings").click()
    await page.get_by_label("System prompt").fill("Be brief.")
    await page.get_by_label("Temperature").fill("0.3")
    await page.get_by_label("Most tokens of an answer").fill("12")
    await ask(alice, "hi")
    await expect(answers(alice).locator(".facts data")).to_be_visible()
    chat = stand.bench.assigned[-1].work.chat
    assert [(m.role, m.content) for m in chat.messages] == [("system", "Be brief."), ("user", "hi")]
    assert (round(chat.sampling.temperature, 3), chat.sampling.max_tokens) == (0.3, 12)
    kept = "Object.keys(localStorage).filter((key) => key.includes('chat'))"
    assert await page.evaluate(kept) == []
    await page.reload()
    await expect(page.locator(".turn")).to_have_count(0)
    await ask(alice, "once more")
    await page.get_by_text("Settings").click()
    await page.get_by_label("Keep this chat").check()
    await expect(answers(alice).locator(".facts data")).to_be_visible()
    await page.reload()
    await expect(page.locator(".turn")).to_have_count(2)
    await expect(answers(alice).locator(".facts data")).to_be_visible()
    await page.get_by_text("Settings").click()
    await page.get_by_label("Keep this chat").uncheck()
    assert await page.evaluate(kept) == []


async def test_what_is_stopped_costs_what_came(stand: Stand, alice: Person) -> None:
    stand.bench.script = endless("As far as")
    await alice.goto("/playground")
    await ask(alice, "Tell me.")
    await expect(answers(alice).locator(".said")).to_have_text("As far as")
    await alice.page.get_by_role("button", name="Stop").click()
    await expect(answers(alice).locator(".facts")).to_contain_text("Stopped by you")
    cancelled = await asyncio.wait_for(stand.bench.cancelled.get(), 10)
    job = (await stand.ask("GET", f"/pool/v1/jobs/{cancelled.attempt.job_id}")).json()
    assert (job["state"], job["output_tokens"], job["why"]) == ("cancelled", 3, "alice cancelled it")
    await expect(answers(alice).locator(".facts data")).to_have_attribute("value", str(job["charge"]))
    assert job["charge"] > 0
    await expect(alice.page.locator(".top .balance data")).to_have_attribute("value", f"-{job['charge']}")
    stand.bench.script = saying("Well.")
    await ask(alice, "Go on.")
    await expect(answers(alice).last.locator(".facts data")).to_be_visible()
    assert stand.bench.assigned[-1].work.chat.messages[1].content == "As far as"


async def test_stopped_before_the_first_token_it_costs_nothing(stand: Stand, alice: Person) -> None:
    begun = asyncio.Event()

    async def silent(_assign: session_pb2.Assign) -> AsyncIterator[Said]:
        begun.set()
        await asyncio.Event().wait()
        yield ()

    stand.bench.script = silent
    await alice.goto("/playground")
    await ask(alice, "Tell me.")
    await asyncio.wait_for(begun.wait(), 10)
    await alice.page.get_by_role("button", name="Stop").click()
    await expect(answers(alice).locator(".facts")).to_contain_text("Stopped before the answer")
    await asyncio.wait_for(stand.bench.cancelled.get(), 10)
    assert stand.available()["balance"] == 0


async def test_reasoning_is_folded_and_text_is_never_markup(stand: Stand, alice: Person) -> None:
    """Also where it is code, and in what was thought."""
    text = f"<think>\n{UNMARKED}\n</think>\n\n{UNMARKED}\n```html\n<b>{UNMARKED}</b>\n```\nSo."
    stand.bench.script = writing(text, THINK)
    await alice.goto("/playground")
    await ask(alice, UNMARKED)
    answer = answers(alice)
    await expect(answer.locator(".facts data")).to_be_visible()
    folded = answer.locator("details")
    await expect(folded.locator(".said")).to_be_hidden()
    await folded.locator("summary").click()
    await expect(folded.locator(".said")).to_have_text(UNMARKED)
    await expect(answer.locator("> .said")).to_have_text([UNMARKED, "So."])
    await expect(answer.locator("pre")).to_have_text(f"<b>{UNMARKED}</b>")
    await expect(alice.page.locator(".turn.user .said")).to_have_text(UNMARKED)
    await expect(alice.page.locator("#turns img, #turns b")).to_have_count(0)


async def test_a_refusal_is_said_as_the_pool_says_it_and_tried_again(stand: Stand, alice: Person) -> None:
    """Where there are not enough credits: with the way to some. What failed is not sent along later."""
    alice.expected.add(
        "Failed to load resource: the server responded with a status of 402 (Payment Required)"
    )
    account = stand.context.pool.engine.book.accounts[stand.members["alice"].account]
    line, account.credit_line = account.credit_line, 0
    await alice.goto("/playground")
    await ask(alice, "Too dear.")
    refused = answers(alice).get_by_role("alert")
    await expect(refused).to_contain_text("credits, and 0.00 are available")
    await expect(refused.get_by_role("link", name="How do I earn?")).to_be_visible()
    account.credit_line = line
    await refused.get_by_role("button", name="Try again").click()
    await expect(answers(alice).locator(".facts data")).to_be_visible()
    await expect(answers(alice)).to_have_count(1)
    assert [m.content for m in stand.bench.assigned[-1].work.chat.messages] == ["Too dear."]


async def test_a_model_that_loads_is_asked_again_by_itself(tmp_path: Path, browser: Browser) -> None:
    """503 with its progress on the page, and then the answer."""
    async with open_stand(tmp_path / "cold", wait_for_worker_s=1) as stand:
        engine, answer = stand.context.pool.engine, stand.bench.script

        async def cold(assign: session_pb2.Assign) -> AsyncIterator[Said]:
            fence, worker = assign.attempt, engine.fleet.workers[stand.worker]
            served = replace(worker.models[MODEL], state="loading", bytes_done=40, bytes_total=100)
            engine.fleet.serve(worker, {MODEL: served})
            engine.progress(stand.worker, JobId(fence.job_id), fence.number, "loading", stand.clock.now())
            stand.bench.script = answer
            await asyncio.Event().wait()
            yield ()

        stand.bench.script = cold
        async with person(browser, stand.url) as alice:
            alice.expected.add(
                "Failed to load resource: the server responded with a status of 503 (Service Unavailable)"
            )
            await alice.sign_in(stand.keys["alice"])
            await alice.goto("/playground")
            await ask(alice, "Are you there?")
            bar = answers(alice).get_by_role("progressbar")
            await expect(bar).to_have_js_property("value", 40)
            await expect(answers(alice)).to_contain_text("is still loading on a worker")
            await expect(answers(alice).locator(".facts data")).to_be_visible()
            await expect(bar).to_have_count(0)


async def test_the_code_on_the_screen_asks_the_same(stand: Stand, alice: Person, tmp_path: Path) -> None:
    """Each of the three runs as it stands, with the key of whoever copied it."""
    page, system = alice.page, 'It\'s "quoted".\nTwice ü.'
    await alice.goto(f"/playground?model={MODEL}")
    await page.get_by_text("Settings").click()
    await page.get_by_label("System prompt").fill(system)
    await page.get_by_label("Temperature").fill("0.5")
    await page.get_by_label("Most tokens of an answer").fill("9")
    await page.get_by_label("Message").fill("Why?")
    environment = {
        **os.environ,
        "POTLUCK_KEY": stand.keys["alice"],
        "POTLUCK_HOME": str(tmp_path / "home"),
        "PYTHONPATH": SOURCE,
    }
    for language, command in (
        ("curl", ["sh", "-c"]),
        ("openai", [sys.executable, "-c"]),
        ("potluck", [sys.executable, "-c"]),
    ):
        await page.get_by_role("button", name=language, exact=True).click()
        code = await page.locator("#code").text_content()
        assert code is not None
        said = await asyncio.to_thread(
            subprocess.run,
            [*command, code],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert said.returncode == 0, said.stderr
        assert "Hello wörld 🎉!" in said.stdout
        chat = stand.bench.assigned[-1].work.chat
        assert [(m.role, m.content) for m in chat.messages] == [("system", system), ("user", "Why?")]
        assert (chat.sampling.temperature, chat.sampling.max_tokens) == (0.5, 9)


async def test_who_was_signed_out_meanwhile_is_asked_to_sign_in(stand: Stand, alice: Person) -> None:
    alice.expected.add("Failed to load resource: the server responded with a status of 401 (Unauthorized)")
    await alice.goto("/playground")
    await alice.page.context.clear_cookies()
    await ask(alice, "Are you there?")
    await expect(alice.page).to_have_url(stand.url + "/sign-in?next=/playground")


async def test_of_a_key_for_one_model_only_that_one_is_offered(stand: Stand, browser: Browser) -> None:
    """And what is not there for it is said."""
    body = {"name": "narrow", "models": [MODEL]}
    key = (await stand.ask("POST", "/pool/v1/keys", json=body)).raise_for_status().json()["key"]
    async with person(browser, stand.url) as somebody:
        await somebody.sign_in(key)
        await somebody.goto("/playground?model=emulator-large")
        await expect(somebody.page.locator("#model option")).to_have_count(1)
        await expect(somebody.page.locator("#model")).to_have_value(MODEL)
        await expect(somebody.page.locator("main .callout.warn")).to_contain_text("no model emulator-large")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_it_can_be_used_by_everybody(stand: Stand, browser: Browser, scheme: Any) -> None:
    """As the other pages: axe-core, and a phone of 375 px. With reasoning, code and a refusal on the screen."""
    stand.bench.script = writing("<think>Hm.</think>\n\nSo:\n```\n" + "long " * 60 + "\n```\nDone.", THINK)
    for viewport in (DESK, PHONE):
        async with person(browser, stand.url, color_scheme=scheme, viewport=viewport) as somebody:
            await somebody.sign_in(stand.keys["alice"])
            await somebody.goto("/playground")
            await ask(somebody, "word " * 40)
            await expect(answers(somebody).locator(".facts data")).to_be_visible()
            await somebody.page.get_by_text("Settings").click()
            assert await somebody.faults() == []
            assert not await somebody.overflows()
