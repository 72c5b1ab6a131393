"""Webhooks on the page of the account, in a real Chromium: added, tried, switched off and on, deleted; what became of what was
sent, without a reload; and a real server that hears it."""

import re
from typing import Any

import openai
import pytest
from fixtures_api import MODEL, Stand
from fixtures_browser import PHONE, Person, person
from fixtures_webhooks import Receiver, telling
from playwright.async_api import Browser, expect

from coordinator.audit_log.event import Action

pytestmark = pytest.mark.processes

JOB = {"kind": "chat", "request": {"model": MODEL, "messages": [{"role": "user", "content": "a"}]}}


async def add(somebody: Person, url: str, *events: str, name: str = "builds") -> None:
    page = somebody.page
    await page.get_by_text("Add a webhook").click()
    form = page.locator("form[hx-post='/account/webhooks']")
    await form.get_by_label("Name").fill(name)
    await form.get_by_label("Address").fill(url)
    for event in events:
        await form.get_by_label(event, exact=True).check()
    await form.get_by_role("button", name="Add").click()


async def answered(stand: Stand) -> None:
    (await stand.ask("POST", "/pool/v1/jobs", json=JOB)).raise_for_status()


async def test_a_webhook_from_its_first_secret_to_its_end(
    tmp_path: Any, receiver: Receiver, browser: Browser
) -> None:
    """What it hears is signed with the secret that was shown once; switched off it hears nothing; on again it does."""
    async with telling(tmp_path) as stand, person(browser, stand.url) as alice:
        page = alice.page
        page.on("dialog", lambda dialog: dialog.accept())
        await alice.sign_in(stand.keys["alice"])
        await alice.goto("/account")
        listed = page.locator("#live-webhooks")
        await expect(listed).to_contain_text("There are no webhooks yet")
        await add(alice, receiver.url, "job.succeeded", "balance.received")
        secret = await page.locator("#webhook-secret").inner_text()
        await expect(listed.get_by_role("heading")).to_contain_text("builds")
        await expect(listed).not_to_contain_text(secret)

        await listed.get_by_label("Example").select_option("balance.received")
        await listed.get_by_role("button", name="Send a test").click()
        await expect(page.locator("#notice")).to_contain_text("It was sent, and answered with 204.")
        await answered(stand)
        await receiver.until(2)
        client = openai.OpenAI(api_key="x", webhook_secret=secret)
        heard: list[Any] = [client.webhooks.unwrap(text, sent) for sent, text in receiver.got]
        assert [event.type for event in heard] == ["balance.received", "job.succeeded"]
        row = listed.locator("tbody tr")
        await expect(row).to_contain_text(re.compile("job.succeeded.*delivered.*1.*204", re.DOTALL))

        await listed.get_by_role("button", name="Switch off").click()
        await expect(listed).to_contain_text("its member switched it off")
        await answered(stand)
        await expect(row).to_have_count(1)
        await listed.get_by_role("button", name="Switch on").click()
        await expect(listed.get_by_text("on", exact=True)).to_be_visible()
        await answered(stand)
        await receiver.until(3)
        await expect(row).to_have_count(2)
        assert len(receiver.got) == 3

        await listed.get_by_role("button", name="New secret").click()
        await expect(page.locator("#webhook-secret")).not_to_have_text(secret)
        await listed.get_by_role("button", name="Delete").click()
        await expect(listed).to_contain_text("There are no webhooks yet")
        events = await stand.context.store.events(limit=9)
        words = [event.action for event in events if event.action.value.startswith("webhook")]
        assert words == [Action.WEBHOOK_DELETED, *[Action.WEBHOOK_CHANGED] * 3, Action.WEBHOOK_MADE]


async def test_what_is_refused_and_what_is_not_taken_is_said(
    tmp_path: Any, receiver: Receiver, browser: Browser
) -> None:
    async with telling(tmp_path) as stand, person(browser, stand.url) as alice:
        page = alice.page
        for status in ("400 (Bad Request)", "424 (Failed Dependency)"):
            alice.expected.add(f"Failed to load resource: the server responded with a status of {status}")
        await alice.sign_in(stand.keys["alice"])
        await alice.goto("/account")
        await add(alice, receiver.url)
        await expect(page.locator("#notice")).to_contain_text("event_types")
        await page.get_by_label("job.succeeded", exact=True).check()
        await page.get_by_label("Address").fill("https://me:secret@x.example/")
        await page.get_by_role("button", name="Add", exact=True).click()
        await expect(page.locator("#notice")).to_contain_text("neither a user nor a password")
        await page.get_by_label("Address").fill(receiver.url)
        await page.get_by_role("button", name="Add", exact=True).click()
        await expect(page.locator("#webhook-secret")).to_be_visible()
        receiver.statuses = [500]
        await page.get_by_role("button", name="Send a test").click()
        await expect(page.locator("#notice .bad")).to_contain_text("answered with 500")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_everybody_can_use_it(tmp_path: Any, receiver: Receiver, browser: Browser, scheme: str) -> None:
    receiver.statuses = [503] * 9
    async with telling(tmp_path) as stand:
        url = receiver.url + "&and=" + "x" * 200
        body = {"name": "builds", "url": url, "event_types": ["job.succeeded", "balance.low"]}
        for name in ("builds", "mail"):
            made = await stand.ask("POST", "/v1/webhook_endpoints", json={**body, "name": name})
            made.raise_for_status()
        off = {"potluck": {"on": False}}
        (await stand.ask("POST", f"/v1/webhook_endpoints/{made.json()['id']}", json=off)).raise_for_status()
        await answered(stand)
        await receiver.until(1)
        for viewport in ({"width": 1280, "height": 900}, PHONE):
            async with person(browser, stand.url, color_scheme=scheme, viewport=viewport) as alice:
                await alice.sign_in(stand.keys["alice"])
                await alice.goto("/account")
                await expect(alice.page.locator("#live-webhooks")).to_contain_text("it answered 503")
                await alice.page.get_by_text("Add a webhook").click()
                assert await alice.faults() == []
                assert not await alice.overflows()


async def test_a_webhook_that_its_member_switched_off_stays_so(tmp_path: Any, receiver: Receiver) -> None:
    """Another name does not switch it on; one that failed too often is tried again when it is changed."""
    async with telling(tmp_path) as stand:
        body = {"name": "builds", "url": receiver.url, "event_types": ["job.succeeded"]}
        made = (await stand.ask("POST", "/v1/webhook_endpoints", json=body)).json()
        path = f"/v1/webhook_endpoints/{made['id']}"

        async def changed(**what: Any) -> Any:
            return (await stand.ask("POST", path, json=what)).raise_for_status().json()["potluck"]["why_off"]

        assert await changed(potluck={"on": False}) == "its member switched it off"
        assert await changed(name="other") == "its member switched it off"
        assert await changed(potluck={"on": True}) is None
        receiver.statuses = [410]
        await answered(stand)
        await receiver.until(1)
        while not stand.context.webhooks.endpoints[made["id"]].why_off:
            await stand.ask("GET", path)
        assert await changed(name="third") is None
