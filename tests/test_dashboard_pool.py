"""Models, the ledger, the pool's notices and its audit log in a real Chromium: what holds shows at once, also on pages
that are open, and what is an admin's nobody else gets.
"""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from fixtures_api import MODEL, Stand, error_of, open_stand
from fixtures_browser import PHONE, Person, person
from hypothesis import given
from hypothesis import strategies as st
from playwright.async_api import Browser, expect
from test_tuned import NAME, tuned

from coordinator.dashboard.ledger import followed
from coordinator.dashboard.models import earned_in
from potluck.chain import GENESIS


@pytest.fixture
async def stand(tmp_path: Any) -> AsyncIterator[Stand]:
    async with open_stand(tmp_path) as made:
        yield made


@pytest.fixture
async def admin(stand: Stand, browser: Browser) -> AsyncIterator[Person]:
    async with person(browser, stand.url) as made:
        await made.sign_in(stand.keys["admin"])
        yield made


@pytest.fixture
async def alice(stand: Stand, browser: Browser) -> AsyncIterator[Person]:
    async with person(browser, stand.url) as made:
        await made.sign_in(stand.keys["alice"])
        yield made


# -- what needs no browser


@given(st.integers(1, 10**9), st.integers(1, 10**9), st.floats(0.1, 1e4), st.integers(0, 999))
def test_what_is_earned_in_that_time_is_the_cost(cost: int, price: int, decode: float, fee: int) -> None:
    seconds = earned_in(cost, price, decode, fee)
    assert seconds is not None
    earned = price / 1_000 * decode * seconds * (1_000 - fee) / 1_000
    assert earned == pytest.approx(cost)
    twice = earned_in(cost, price, 2 * decode, fee)
    assert twice == pytest.approx(seconds / 2)


def test_who_earns_nothing_never_earns_it() -> None:
    assert earned_in(1, 0, 5.0, 20) is None
    assert earned_in(1, 5, 5.0, 1_000) is None


@given(st.integers(1, 9), st.integers(1, 9))
def test_a_link_that_is_broken_shows(count: int, broken: int) -> None:
    chain = [
        {"number": n, "hash": f"h{n}", "previous": f"h{n - 1}" if n > 1 else GENESIS}
        for n in range(1, count + 1)
    ]
    assert followed(chain) == set(range(1, count + 1))
    if broken <= count:
        chain[broken - 1]["hash"] = "another"
        assert followed(chain) == set(range(1, count + 1)) - {broken + 1}
    assert followed(chain[1:]) <= set(range(3, count + 1))  # what is not there cannot be followed


async def test_entries_are_listed_in_their_chain(stand: Stand) -> None:
    """Newest first, page by page, each with the hash of the one before; others' details stay theirs."""
    (await stand.chat()).raise_for_status()
    grant = {"member": "alice", "amount": 5, "reason": "for the cake"}
    (await stand.ask("POST", "/pool/v1/grants", by="admin", json=grant)).raise_for_status()
    everything = (await stand.ask("GET", "/pool/v1/ledger/entries")).json()
    numbers = [entry["number"] for entry in everything["data"]]
    assert numbers == list(range(max(numbers), 0, -1))
    assert not everything["has_more"]
    hashes = [entry["hash"] for entry in everything["data"]]
    assert [entry["previous"] for entry in everything["data"]] == [*hashes[1:], GENESIS]
    page = (await stand.ask("GET", f"/pool/v1/ledger/entries?limit=2&before={max(numbers)}")).json()
    assert [entry["number"] for entry in page["data"]] == [max(numbers) - 1, max(numbers) - 2]
    assert page["has_more"]
    others = (await stand.ask("GET", "/pool/v1/ledger/entries", by="admin")).json()["data"]
    told = {entry["code"]: "details" in entry for entry in others}
    assert told["grant"]
    assert not told["close"]
    assert json.loads(everything["data"][0]["details"])["reason"] == "for the cake"
    assert error_of(await stand.ask("GET", "/pool/v1/ledger/entries?before=x"))["param"] == "before"


async def test_heads_are_listed_as_they_were_signed(stand: Stand) -> None:
    assert (await stand.ask("GET", "/pool/v1/ledger/heads")).json() == {"data": []}
    first = (await stand.ask("GET", "/pool/v1/ledger/head")).json()
    (await stand.chat()).raise_for_status()
    second = (await stand.ask("GET", "/pool/v1/ledger/head")).json()
    listed = (await stand.ask("GET", "/pool/v1/ledger/heads")).json()["data"]
    assert [head["hash"] for head in listed] == [second["hash"], first["hash"]]
    assert [head["signature"] for head in listed] == [second["signature"], first["signature"]]


# -- in the browser


@pytest.mark.processes
async def test_an_announcement_appears_on_an_open_page(stand: Stand, admin: Person, alice: Person) -> None:
    await alice.goto("/credits")
    await admin.goto("/pool")
    announcement = admin.page.locator("section", has=admin.page.get_by_role("heading", name="Announcement"))
    await announcement.get_by_label("Text").fill("Down at noon <b>")
    await announcement.get_by_label("Level").select_option("warn")
    await announcement.get_by_role("button", name="Show it").click()
    await expect(alice.page.locator("#live-announcement .callout.warn")).to_have_text("Down at noon <b>")
    await expect(admin.page.locator("#live-audit tbody tr").first).to_contain_text("announcement changed")
    await announcement.get_by_role("button", name="Take it away").click()
    await expect(alice.page.locator("#live-announcement .callout")).to_have_count(0)


@pytest.mark.processes
async def test_every_member_finds_the_ledger(alice: Person) -> None:
    pages = alice.page.get_by_role("navigation", name="Pages")
    await pages.get_by_role("link", name="Ledger").click()
    await expect(alice.page.get_by_role("heading", level=1)).to_have_text("Ledger")
    await expect(pages.get_by_role("link", name="Ledger")).to_have_attribute("aria-current", "page")
    await expect(pages.get_by_role("link", name="Members")).to_have_count(0)


@pytest.mark.processes
async def test_terms_are_read_and_accepted(stand: Stand, admin: Person, alice: Person) -> None:
    """A member is told until the version that holds is accepted, and again when there is another."""
    await alice.goto("/")
    await admin.goto("/pool")
    for text, words in (("Be kind.", "has terms of use"), ("Be kinder.", "have changed")):
        await admin.page.get_by_label("What is acceptable here").fill(text)
        await admin.page.get_by_role("button", name="Publish").click()
        await expect(alice.page.locator("#live-attention")).to_contain_text(words)
        await alice.page.get_by_role("link", name="Read and accept them").click()
        await expect(alice.page.locator("main")).to_contain_text(text)
        await alice.page.get_by_role("button", name="I accept").click()
        await expect(alice.page.locator("#notice")).to_contain_text("You have accepted")
        await alice.goto("/")
        await expect(alice.page.locator("#live-attention a[href='/terms']")).to_have_count(0)
    await expect(admin.page.locator("#live-audit tbody tr").first).to_contain_text("terms accepted")
    assert (await stand.ask("GET", "/pool/v1/terms")).json()["version"] == 2


@pytest.mark.processes
async def test_the_audit_log_can_be_narrowed(stand: Stand, admin: Person) -> None:
    for name in ("alice", "bob"):
        grant = {"member": name, "amount": 5_000_000, "reason": f"for {name}"}
        (await stand.ask("POST", "/pool/v1/grants", by="admin", json=grant)).raise_for_status()
    await admin.goto("/pool")
    await admin.page.locator("select[name=action]").select_option("credits_granted")
    await admin.page.get_by_role("button", name="Show", exact=True).click()
    rows = admin.page.get_by_role("region", name="Audit log").locator("tbody tr")
    await expect(rows).to_have_count(2)
    await expect(rows.first).to_contain_text("5.00")
    await admin.goto(f"/pool?subject={stand.members['bob'].id}")
    await expect(rows).to_have_count(1)
    await expect(rows).to_contain_text("for bob")


@pytest.mark.processes
async def test_only_admins_run_the_pool(stand: Stand, alice: Person) -> None:
    alice.expected.add("Failed to load resource: the server responded with a status of 403 (Forbidden)")
    answer = await alice.page.goto(stand.url + "/pool")
    assert answer is not None
    assert answer.status == 403
    await alice.goto("/account")
    for path in ("/pool/announcement", "/pool/terms"):
        said = await alice.page.evaluate(
            """async (path) => {
                const csrf = JSON.parse(document.body.getAttribute("hx-headers:inherited"));
                const answer = await fetch(path, {method: "POST", headers: csrf, body: new URLSearchParams({text: "x"})});
                return answer.status;
            }""",
            path,
        )
        assert said == 403, path
    assert await alice.page.evaluate("fetch('/live?see=audit').then((answer) => answer.status)") == 403
    assert stand.context.board.terms is None
    assert stand.context.board.announcement is None


@pytest.mark.processes
async def test_a_head_is_signed_and_entries_follow_each_other(stand: Stand, alice: Person) -> None:
    await alice.goto("/ledger")
    await expect(alice.page.locator("#live-ledger")).to_contain_text("The sum is zero")
    (await stand.chat()).raise_for_status()
    entries = alice.page.locator("#live-entries tbody tr")
    await expect(entries.first).to_contain_text("close")
    await expect(entries.first).to_contain_text("you")
    assert await alice.page.locator("#live-entries .tag.bad").count() == 0
    await alice.page.get_by_role("button", name="Sign a head now").click()
    await expect(alice.page.locator("#notice")).to_contain_text("is signed")
    await expect(alice.page.locator("#live-ledger tbody")).to_contain_text("asked for")
    assert len(await stand.context.store.newest_heads(9)) == 1


@pytest.mark.processes
async def test_models_say_who_serves_them_and_what_they_cost(stand: Stand, alice: Person) -> None:
    """The state changes on the open page, as does the price's measure once a speed is known."""
    await alice.goto("/models")
    card = alice.page.locator("article", has=alice.page.get_by_role("heading", name=MODEL))
    await expect(card).to_contain_text("1,000 tokens in and 1,000 out cost")
    await expect(card).not_to_contain_text("earns in")
    worker = stand.context.pool.engine.fleet.workers[stand.worker]
    served = worker.models[MODEL]
    worker.models[MODEL] = replace(served, decode=40.0)
    await expect(card).to_contain_text("that is what the worker rig earns in")
    worker.models[MODEL] = replace(served, state="downloading", bytes_done=30, bytes_total=120)
    await expect(card.locator("progress")).to_have_attribute("value", "25")
    await card.get_by_role("link", name="Chat").click()
    await expect(alice.page).to_have_url(f"{stand.url}/playground?model={MODEL}")


@pytest.mark.processes
async def test_an_adapter_is_shared_taken_along_and_deleted(stand: Stand, alice: Person) -> None:
    await tuned(stand.context, stand.members["alice"].id)
    await alice.goto("/models")
    row = alice.page.locator("#live-adapters tbody tr", has_text=NAME)
    await row.get_by_role("button", name="Share").click()
    await expect(row.locator(".tag")).to_have_text("shared")
    assert stand.context.tuned.get(NAME, stand.members["bob"].id) is not None
    async with alice.page.expect_download() as started:
        await row.get_by_role("link", name="README.md").click()
    download = await started.value
    assert (await download.path()).read_text() == f"card of {NAME}"
    await row.get_by_role("button", name="Unshare").click()
    await expect(row.locator(".tag")).to_have_count(0)
    alice.page.once("dialog", lambda dialog: dialog.accept())
    await row.get_by_role("button", name="Delete").click()
    await expect(alice.page.locator("#live-adapters tbody")).to_contain_text("None yet")
    actions = [event.action.value for event in await stand.context.store.events(limit=3)]
    assert actions == ["model_deleted", "model_shared", "model_shared"]


@pytest.mark.processes
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_pages_can_be_used_by_everybody(stand: Stand, browser: Browser, scheme: str) -> None:
    """On a desk and on a phone of 375 px, light and dark: nothing that axe-core calls serious, nothing cut off."""
    (await stand.chat()).raise_for_status()
    await tuned(stand.context, stand.members["alice"].id)
    for path, body in (
        ("terms", {"text": "Be kind.\n\nAsk."}),
        ("announcement", {"text": "Down", "level": "bad"}),
    ):
        (await stand.ask("PUT", f"/pool/v1/{path}", by="admin", json=body)).raise_for_status()
    for viewport in (None, PHONE):
        options: dict[str, Any] = {"viewport": viewport} if viewport else {}
        for name, pages in (("admin", ["/pool"]), ("alice", ["/models", "/ledger", "/terms"])):
            async with person(browser, stand.url, color_scheme=scheme, **options) as somebody:
                await somebody.sign_in(stand.keys[name])
                for path in pages:
                    await somebody.goto(path)
                    assert await somebody.faults() == [], path
                    assert not await somebody.overflows(), path
