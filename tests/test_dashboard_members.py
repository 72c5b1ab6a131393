"""Members, keys and invitations in a real Chromium: what admins do shows at once and to those it is about, and nobody
else gets there.
"""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from fixtures_api import Stand, open_stand
from fixtures_browser import PHONE, Person, person
from playwright.async_api import Browser, expect

from coordinator.api.browser import COOKIE, CSRF_HEADER, csrf_of

pytestmark = pytest.mark.processes


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


async def test_a_grant_reaches_the_member_without_a_reload(
    stand: Stand, admin: Person, alice: Person
) -> None:
    await alice.goto("/credits")
    await admin.goto("/members")
    grant = admin.page.locator("section", has=admin.page.get_by_role("heading", name="Grant credits"))
    await grant.get_by_label("To").fill("alice")
    await grant.get_by_label("Credits").fill("12.5")
    await grant.get_by_label("Reason").fill("for the cake")
    await grant.get_by_role("button", name="Grant").click()
    await expect(admin.page.locator("#notice")).to_contain_text("12.50 credits were granted to alice.")
    await expect(alice.page.locator(".top .balance data")).to_have_attribute("value", "12500000")
    await expect(alice.page.locator("#live-statement tbody")).to_contain_text("for the cake")
    row = admin.page.locator("#live-members tr", has_text="alice")
    await expect(row.locator("data").first).to_have_attribute("value", "12500000")


async def test_members_do_not_reach_what_is_for_admins(stand: Stand, alice: Person) -> None:
    """Neither the pages nor what they send, nor what they show of others as it changes."""
    alice.expected.add("Failed to load resource: the server responded with a status of 403 (Forbidden)")
    bob = stand.members["bob"].id
    for path in ("/members", f"/members/{bob}"):
        answer = await alice.page.goto(stand.url + path)
        assert answer is not None
        assert answer.status == 403
        await expect(alice.page.get_by_role("heading", name="Not for you")).to_be_visible()
    assert await alice.page.get_by_role("link", name="Members").count() == 0
    cookies = {cookie["name"]: cookie["value"] for cookie in await alice.page.context.cookies()}
    session = cookies[COOKIE]
    headers = {"cookie": f"{COOKIE}={session}", CSRF_HEADER: csrf_of(session), "origin": stand.url}
    for path in (
        "/members", "/members/grant", f"/members/{bob}/change", f"/members/{bob}/freeze",
        f"/members/{bob}/unfreeze", f"/members/{bob}/close", f"/members/{bob}/limits", f"/members/{bob}/keys",
        f"/account/{bob}/close",
    ):  # fmt: skip
        form = {"name": "x", "member": "alice", "amount": "1", "reason": "mine", "role": "admin"}
        sent = await stand.http.post(stand.url + path, data=form, headers=headers)
        assert sent.status_code == 403, path
    for seen in ("members", f"member:{bob}", "all-invitations"):
        async with stand.http.stream("GET", f"{stand.url}/live?see={seen}", headers=headers) as stream:
            assert stream.status_code == 403, seen
    foreign = await stand.http.post(
        f"{stand.url}/members/grant", data={}, headers={"cookie": headers["cookie"]}
    )
    assert foreign.status_code == 403
    assert (await stand.context.store.events(limit=9, subject=bob)) == []


@pytest.mark.parametrize(
    ("path", "form"),
    [
        ("/members/alice/limits", {"credits_per_month": "99999999999999999999"}),
        ("/members/alice/change", {"credit_line": "-1"}),
        ("/members/alice/change", {"role": "king"}),
        ("/members/grant", {"member": "alice", "amount": "0", "reason": "x"}),
        ("/account/keys", {"name": "x", "expires_s": "999999999999999999"}),
        ("/account/keys", {"name": "x", "scope_fly": "on"}),
        ("/account/invitations", {"expires_s": "1.5"}),
    ],
)
async def test_what_no_form_should_say_is_refused_in_words(
    stand: Stand, path: str, form: dict[str, str]
) -> None:
    """By the route that is asked; nothing has happened then."""
    sign_in = await stand.http.post(
        f"{stand.url}/sign-in", data={"key": stand.keys["admin"], "next": "/"}, headers={"origin": stand.url}
    )
    session = sign_in.cookies[COOKIE]
    headers = {CSRF_HEADER: csrf_of(session), "origin": stand.url, "hx-request": "true"}
    answer = await stand.http.post(stand.url + path, data=form, headers=headers)
    assert answer.status_code == 400
    assert 'class="callout bad"' in answer.text
    assert [event.action.value for event in await stand.context.store.events(limit=5)] == ["signed_in"]


async def test_an_invitation_is_accepted_in_another_browser(
    stand: Stand, browser: Browser, admin: Person
) -> None:
    """The link that the page shows lets somebody in; the list says so by itself, and the link is worth nothing more."""
    await admin.goto("/members")
    await admin.page.get_by_label("For whom").fill("Dora")
    await admin.page.get_by_role("button", name="Make an invitation").click()
    link = await admin.page.locator("#new-link").inner_text()
    assert link.startswith(f"{stand.url}/invite#pli_")
    assert "potluck login" in await admin.page.locator("#new-command").inner_text()
    async with person(browser, stand.url) as dora:
        await dora.page.goto(link)
        await expect(dora.page.get_by_label("Invitation")).to_have_value(link.partition("#")[2])
        await dora.page.get_by_label("Your name").fill("dora")
        await dora.page.get_by_role("button", name="Join").click()
        await expect(dora.page.get_by_role("heading", name="Welcome, dora")).to_be_visible()
        await dora.goto("/credits")
        await expect(dora.page.locator(".figures")).to_contain_text("100.00")
    await expect(admin.page.locator("#live-all-invitations tbody")).to_contain_text("accepted by dora")
    await expect(admin.page.locator("#live-members tbody")).to_contain_text("dora")


async def test_an_invitation_that_is_taken_back_lends_nothing(stand: Stand, alice: Person) -> None:
    """A member lends out of the own line, and has it back."""
    await alice.goto("/account")
    before = stand.available()["credit_line"]
    await alice.page.get_by_label("Credit line").fill("40")
    await alice.page.get_by_role("button", name="Make an invitation").click()
    await expect(alice.page.locator("#new-link")).to_be_visible()
    assert stand.available()["credit_line"] == before - 40_000_000
    await alice.page.get_by_role("button", name="Take back").click()
    await expect(alice.page.locator("#live-invitations tbody")).to_contain_text("revoked")
    assert stand.available()["credit_line"] == before


async def test_a_key_is_shown_once_and_revoked(stand: Stand, alice: Person) -> None:
    await alice.goto("/account")
    await alice.page.get_by_label("Name", exact=True).fill("ci")
    await alice.page.get_by_label("ask models").check()
    await alice.page.get_by_label("Credits a day").fill("5")
    await alice.page.get_by_role("button", name="Make", exact=True).click()
    key = await alice.page.locator("#new-key").inner_text()
    row = alice.page.locator("#live-keys tr", has_text="ci")
    await expect(row).to_contain_text("inference")
    await expect(row).to_contain_text("5.00")
    assert (await stand.ask("GET", "/v1/models", by=key)).status_code == 200
    assert (await stand.ask("GET", "/pool/v1/balance", by=key)).status_code == 403
    await alice.goto("/account")
    assert key not in await alice.page.content()
    alice.page.once("dialog", lambda dialog: dialog.accept())
    await row.get_by_role("button", name="Revoke").click()
    await expect(row).to_contain_text("revoked")
    assert (await stand.ask("GET", "/v1/models", by=key)).status_code == 401


async def test_an_admin_freezes_and_changes_a_member(stand: Stand, admin: Person, alice: Person) -> None:
    """Each form does what its words say, the member is told, and the audit log has it."""
    await alice.goto("/")
    await admin.goto(f"/members/{stand.members['alice'].id}")
    await admin.page.get_by_label("Credit line", exact=True).fill("2,000")
    await admin.page.get_by_role("button", name="Change").click()
    await expect(admin.page.locator("#notice")).to_contain_text("a credit line of 2,000.00")
    await admin.page.get_by_label("Requests per minute").fill("500")
    await admin.page.get_by_role("button", name="Set").click()
    await expect(admin.page.locator("#notice")).to_contain_text("hold from the next request on")
    freeze = admin.page.locator("section", has=admin.page.get_by_role("heading", name="Freeze", exact=True))
    await freeze.get_by_label("Reason").fill("a stolen laptop")
    await freeze.get_by_role("button", name="Freeze", exact=True).click()
    await expect(admin.page.locator("#live-member")).to_contain_text("frozen: a stolen laptop")
    await alice.goto("/")
    await expect(alice.page.locator("#live-attention")).to_contain_text("a stolen laptop")
    await freeze.get_by_role("button", name="Unfreeze").click()
    await expect(admin.page.locator("#live-member .callout")).to_have_count(0)
    found = await stand.context.store.events(limit=9, subject=stand.members["alice"].id)
    assert [event.action.value for event in found if event.member == stand.members["admin"].id] == [
        "member_unfrozen", "member_frozen", "member_limited", "member_changed",
    ]  # fmt: skip


async def test_what_a_form_is_answered_is_in_sight(stand: Stand, browser: Browser) -> None:
    """On a phone the form is far below the top; Escape takes the words away."""
    async with person(browser, stand.url, viewport=PHONE) as admin:
        await admin.sign_in(stand.keys["admin"])
        await admin.goto("/members/alice")
        unfreeze = admin.page.get_by_role("button", name="Unfreeze")
        await unfreeze.scroll_into_view_if_needed()
        await unfreeze.click()
        await expect(admin.page.locator("#notice .callout")).to_be_in_viewport()
        await expect(unfreeze).to_be_in_viewport()
        await admin.page.keyboard.press("Escape")
        await expect(admin.page.locator("#notice .callout")).to_have_count(0)


async def test_a_member_leaves_for_good(stand: Stand, alice: Person) -> None:
    """With the own name as confirmation; after that the browser is signed out, like every key."""
    alice.expected.add("Failed to load resource: the server responded with a status of 400 (Bad Request)")
    alice.expected.add("Failed to load resource: the server responded with a status of 401 (Unauthorized)")
    alice.page.on("dialog", lambda dialog: dialog.accept())
    await alice.goto("/account")
    await alice.page.get_by_text("Close your account").click()
    await alice.page.get_by_label("Your name, to confirm").fill("bob")
    await alice.page.get_by_role("button", name="Close", exact=True).click()
    await expect(alice.page.locator("#notice")).to_contain_text("cannot be undone")
    await alice.page.get_by_label("Your name, to confirm").fill("alice")
    await alice.page.get_by_role("button", name="Close", exact=True).click()
    await expect(alice.page.locator("#notice")).to_contain_text("is closed")
    await alice.page.goto(stand.url + "/")
    await expect(alice.page).to_have_url(stand.url + "/sign-in?next=/")
    assert (await stand.ask("GET", "/pool/v1/balance")).status_code == 401


ADMINS_PAGES = ["/members", "/members/alice"]
MEMBERS_PAGES = ["/account"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_pages_can_be_used_by_everybody(stand: Stand, browser: Browser, scheme: str) -> None:
    """On a desk and on a phone of 375 px, light and dark: nothing that axe-core calls serious, nothing cut off."""
    for path, body in (("invites", {"note": "for Dora"}), ("keys", {"name": "ci", "scopes": ["read"]})):
        (await stand.ask("POST", f"/pool/v1/{path}", json=body)).raise_for_status()
    for viewport in (None, PHONE):
        options: dict[str, Any] = {"viewport": viewport} if viewport else {}
        for name, pages in (("admin", ADMINS_PAGES), ("alice", MEMBERS_PAGES)):
            async with person(browser, stand.url, color_scheme=scheme, **options) as somebody:
                await somebody.sign_in(stand.keys[name])
                for path in pages:
                    await somebody.goto(path)
                    assert await somebody.faults() == [], path
                    assert not await somebody.overflows(), path
