"""A real Chromium that is signed in to a pool, and watched: whatever a page should not do ends the test."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, BrowserContext, Page, async_playwright, expect

EXECUTABLE = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PHONE = {"width": 375, "height": 740}
DESK = {"width": 1280, "height": 900}
WAIT_MS = 20_000
SERIOUS = {"serious", "critical"}


@dataclass
class Person:
    """Somebody before a browser. `troubles`: what the pages did that they should not."""

    url: str
    page: Page
    troubles: list[str] = field(default_factory=list)

    def watch(self) -> None:
        """Errors of scripts, broken policies, and requests that leave the pool."""
        own = urlsplit(self.url).netloc

        def said(message: Any) -> None:
            if message.type in {"error", "warning"} and message.text not in self.expected:
                self.troubles.append(f"console {message.type}: {message.text}")

        def asked(request: Any) -> None:
            parts = urlsplit(request.url)
            if parts.scheme not in {"data", "blob"} and parts.netloc not in {own, self.elsewhere}:
                self.troubles.append(f"a request to {request.url}")

        self.page.on("console", said)
        self.page.on("pageerror", lambda error: self.troubles.append(f"script error: {error}"))
        self.page.on("request", asked)

    elsewhere: str = ""  # HOST:PORT where the pool sends people to sign in
    expected: set[str] = field(default_factory=set)  # what the browser says of answers that a test asks for

    async def goto(self, path: str) -> None:
        answer = await self.page.goto(self.url + path)
        assert answer is not None
        assert answer.status < 400, f"{path}: {answer.status}"

    async def sign_in(self, key: str) -> None:
        await self.page.goto(self.url + "/sign-in")
        await self.page.get_by_label("API key").fill(key)
        await self.page.get_by_role("button", name="Sign in").click()
        await expect(self.page).to_have_url(self.url + "/")

    async def faults(self) -> list[str]:
        """What axe-core finds on this page that keeps people from using it."""
        found = await Axe().run(self.page)
        return [
            f"{violation['id']}: {violation['help']}: {node['html'][:120]}"
            for violation in found.response["violations"]
            if violation["impact"] in SERIOUS
            for node in violation["nodes"]
        ]

    async def overflows(self) -> bool:
        """Whether the page is wider than its window."""
        wide: bool = await self.page.evaluate(
            "document.documentElement.scrollWidth > document.documentElement.clientWidth"
        )
        return wide


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    expect.set_options(timeout=WAIT_MS)
    assert EXECUTABLE, "no Chromium is installed: scripts/test does so"
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=EXECUTABLE, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            await browser.close()


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as made:
        yield made


@asynccontextmanager
async def person(browser: Browser, url: str, **options: Any) -> AsyncIterator[Person]:
    """With a browser profile of their own. Fails the test at the end if a page misbehaved."""
    context: BrowserContext = await browser.new_context(**{"viewport": DESK, "locale": "en-GB", **options})
    context.set_default_timeout(WAIT_MS)
    try:
        somebody = Person(url, await context.new_page())
        somebody.watch()
        yield somebody
        if somebody.troubles:
            pytest.fail("pages did what they should not:\n" + "\n".join(somebody.troubles))
    finally:
        await context.close()
