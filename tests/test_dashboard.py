"""The dashboard in a real Chromium: signing in, the pages that everybody sees, and what happens without a reload."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from fixtures_api import Stand, open_stand
from fixtures_browser import PHONE, Person, person
from playwright.async_api import Browser, expect

from coordinator.dashboard.rows import SignedIn
from coordinator.keys import digest_of

pytestmark = pytest.mark.processes


@pytest.fixture
async def alice(stand: Stand, browser: Browser) -> AsyncIterator[Person]:
    async with person(browser, stand.url) as made:
        await made.sign_in(stand.keys["alice"])
        yield made


@pytest.fixture
async def stand(tmp_path: Any) -> AsyncIterator[Stand]:
    async with open_stand(tmp_path) as made:
        yield made


async def test_the_balance_moves_without_a_reload(stand: Stand, alice: Person) -> None:
    """A job that ends elsewhere changes the balance above and the statement below, on the open page."""
    await alice.goto("/credits")
    balance = alice.page.locator(".top .balance data")
    before = await balance.get_attribute("value")
    assert before == "0"
    (await stand.chat()).raise_for_status()
    after = str(stand.available()["balance"])
    await expect(balance).to_have_attribute("value", after)
    await expect(alice.page.locator(".figures .large data")).to_have_attribute("value", after)
    await expect(alice.page.locator("#live-statement tbody tr")).to_have_count(1)


async def test_who_is_not_signed_in_is_asked_to_and_comes_back(stand: Stand, browser: Browser) -> None:
    async with person(browser, stand.url) as somebody:
        await somebody.page.goto(stand.url + "/credits")
        await expect(somebody.page).to_have_url(stand.url + "/sign-in?next=/credits")
        await somebody.page.get_by_label("API key").fill(stand.keys["alice"])
        await somebody.page.get_by_role("button", name="Sign in").click()
        await expect(somebody.page).to_have_url(stand.url + "/credits")
        await somebody.page.get_by_role("button", name="Sign out").click()
        await expect(somebody.page).to_have_url(stand.url + "/sign-in")


PAGES = ["/", "/credits"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_pages_can_be_used_by_everybody(stand: Stand, browser: Browser, scheme: str) -> None:
    """On a desk and on a phone of 375 px, light and dark: nothing that axe-core calls serious, nothing cut off."""
    (await stand.chat()).raise_for_status()
    for viewport in (None, PHONE):
        options: dict[str, Any] = {"viewport": viewport} if viewport else {}
        async with person(browser, stand.url, color_scheme=scheme, **options) as somebody:
            await somebody.sign_in(stand.keys["alice"])
            for path in PAGES:
                await somebody.goto(path)
                assert await somebody.faults() == [], path
                assert not await somebody.overflows(), path


async def test_a_sign_in_that_is_over_opens_nothing_and_is_forgotten(stand: Stand) -> None:
    store, now = stand.context.store, stand.clock.now()
    caller = await store.authenticate(digest_of(stand.keys["alice"]), now)
    assert caller is not None
    for digest, until in (("a" * 64, now + 10), ("b" * 64, now + 100)):
        await store.open_session(digest, caller.key.id, now, until)
    assert await store.key_of_session("a" * 64, now) == digest_of(stand.keys["alice"])
    assert await store.key_of_session("a" * 64, now + 10) is None
    assert await SignedIn(store, lambda: now + 50).sweep() == 1
    assert await store.key_of_session("a" * 64, now) is None
    assert await store.key_of_session("b" * 64, now) is not None
