"""The dashboard of a real pool, its coordinator and its worker processes of their own: one tab asks, the other shows."""

import pytest
from fixtures_browser import Person, person
from fixtures_pool import RealPool
from playwright.async_api import Browser, expect

pytestmark = pytest.mark.processes


async def test_a_chat_in_one_tab_moves_the_credits_in_the_other(
    real_pool: RealPool, browser: Browser
) -> None:
    """Without a reload; and the job's page shows whom it went to and that the worker's receipt matched."""
    real_pool.add_emulator("rig", "bob")
    carol = real_pool.member("carol")
    async with person(browser, real_pool.url) as asking:
        await asking.sign_in(carol.key)
        ledger = Person(real_pool.url, await asking.page.context.new_page())
        ledger.watch()
        await ledger.goto("/credits")
        lines = ledger.page.locator("#live-statement tbody tr")
        await expect(lines).to_contain_text("Nothing moved yet")
        await asking.goto("/playground?model=emulator-small")
        await asking.page.get_by_label("Message").fill("Tell me something.")
        await asking.page.keyboard.press("Enter")
        facts = asking.page.locator(".turn.assistant .facts")
        await expect(facts).to_contain_text("tokens/s")
        charge = await facts.locator("data").get_attribute("value")
        for page in (asking.page, ledger.page):
            await expect(page.locator(".top .balance data")).to_have_attribute("value", f"-{charge}")
        await expect(ledger.page.locator(".figures .large data")).to_have_attribute("value", f"-{charge}")
        await expect(lines).to_have_count(1)
        await expect(lines).to_contain_text("asked emulator-small")
        await facts.get_by_role("link", name="its job").click()
        await expect(asking.page.locator("#state .tag")).to_have_text("succeeded")
        attempt = asking.page.get_by_role("region", name="Attempts").locator("tbody tr")
        await expect(attempt).to_contain_text("rig")
        await expect(asking.page.get_by_role("region", name="Receipts").locator(".tag")).to_have_text(
            "matched"
        )
        assert ledger.troubles == []
    assert carol.balance()["balance"] == -int(charge or 0)
    assert real_pool.ledger_sum() == 0
