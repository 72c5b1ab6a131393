"""Signing in at an OpenID provider that is a process of its own, with real signatures: the way there and back in a real
Chromium, and by HTTP what must never sign anybody in."""

import asyncio
import subprocess
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from fixtures_api import WAIT_S, Stand, open_stand
from fixtures_browser import PHONE, person
from fixtures_pool import free_port
from oidc_provider import CLIENT_ID, CLIENT_SECRET
from playwright.async_api import Browser, expect

from coordinator.api.browser import COOKIE, csrf_of
from coordinator.audit_log.event import Action
from coordinator.keys import digest_of
from coordinator.oidc.identity import Identity, identity_of, may_join, names_for
from coordinator.oidc.pending import Pending, SignIns
from coordinator.records import Scope
from coordinator.settings import Settings, SettingsError

pytestmark = pytest.mark.processes

BACK = "/sign-in/oidc/callback"
USERS = {
    "alice": {
        "sub": "a-1",
        "preferred_username": "alice",
        "email": "alice@x.example",
        "email_verified": True,
    },
    "carol": {
        "sub": "c-3",
        "preferred_username": "carol",
        "email": "carol@club.example",
        "email_verified": True,
    },
    "dave": {
        "sub": "d-4",
        "preferred_username": "dave",
        "email": "dave@club.example",
        "email_verified": False,
    },
    "erin": {"sub": "e-5", "preferred_username": "alice", "groups": ["cooks"]},
}


@dataclass
class Provider:
    """The test's side of the process."""

    issuer: str
    http: httpx2.AsyncClient

    async def told(self, **what: Any) -> list[str]:
        answer = await self.http.post(self.issuer + "/control", json=what)
        asked: list[str] = answer.raise_for_status().json()["asked"]
        return asked


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    address = f"127.0.0.1:{free_port()}"
    script = str(Path(__file__).with_name("oidc_provider.py"))
    process = await asyncio.create_subprocess_exec(sys.executable, script, address, stdout=PIPE)
    assert process.stdout is not None
    try:
        async with httpx2.AsyncClient(timeout=WAIT_S, verify=False) as http:
            assert await process.stdout.readline() == b"open\n"
            made = Provider(f"http://{address}", http)
            await made.told(users=USERS)
            yield made
    finally:
        process.terminate()
        await process.wait()


@asynccontextmanager
async def pool(folder: Path, provider: Provider, **settings: Any) -> AsyncIterator[Stand]:
    secret = folder / "client_secret"
    secret.write_text(CLIENT_SECRET + "\n")
    options: dict[str, Any] = {
        "oidc_issuer": provider.issuer,
        "oidc_client_id": CLIENT_ID,
        "oidc_client_secret_file": secret,
        "oidc_label": "Example",
    }
    async with open_stand(folder, **(options | settings)) as stand:
        await provider.told(redirect_uris=[stand.url + BACK])
        yield stand


@pytest.fixture
async def stand(tmp_path: Path, provider: Provider) -> AsyncIterator[Stand]:
    async with pool(tmp_path, provider) as made:
        yield made


@dataclass
class Visitor:
    """A browser without pages: it keeps cookies and follows where it is sent, one step at a time."""

    stand: Stand
    http: httpx2.AsyncClient = field(
        default_factory=lambda: httpx2.AsyncClient(timeout=WAIT_S, verify=False, follow_redirects=False)
    )

    async def sign_in(self, key: str) -> None:
        answer = await self.http.post(self.stand.url + "/sign-in", data={"key": key})
        assert answer.status_code == 303

    async def start(self, where: str = "/") -> str:
        """The provider's address."""
        answer = await self.http.get(self.stand.url + "/sign-in/oidc", params={"next": where})
        assert answer.status_code == 303, answer.text
        return answer.headers["location"]

    async def post(self, path: str, **fields: str) -> httpx2.Response:
        session = self.http.cookies.get(COOKIE)
        headers = {"hx-request": "true", **({"x-potluck-csrf": csrf_of(session)} if session else {})}
        return await self.http.post(self.stand.url + path, data=fields, headers=headers)

    async def consent(self, address: str, user: str) -> str:
        """What the provider sends the browser back to."""
        page = await self.http.get(address)
        assert page.status_code == 200, page.text
        asked = {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}
        answer = await self.http.post(address.partition("?")[0], data={**asked, "user": user})
        return answer.headers["location"]

    async def come(self, user: str, where: str = "/") -> httpx2.Response:
        """The whole way; the pool's answer."""
        return await self.http.get(await self.consent(await self.start(where), user))

    async def link(self, user: str) -> httpx2.Response:
        answer = await self.post("/account/oidc")
        return await self.http.get(await self.consent(answer.headers["hx-redirect"], user))

    @property
    async def who(self) -> str | None:
        """As whom this browser is signed in."""
        answer = await self.http.get(self.stand.url + "/pool/v1/me")
        return answer.json()["member"]["name"] if answer.status_code == 200 else None


@pytest.fixture
async def visitor(stand: Stand) -> AsyncIterator[Visitor]:
    made = Visitor(stand)
    yield made
    await made.http.aclose()


@asynccontextmanager
async def somebody(stand: Stand) -> AsyncIterator[Visitor]:
    made = Visitor(stand)
    try:
        yield made
    finally:
        await made.http.aclose()


async def linked(stand: Stand, name: str = "alice") -> None:
    """The member has linked the account of the same name."""
    async with somebody(stand) as member:
        await member.sign_in(stand.keys[name])
        answer = await member.link(name)
        assert (answer.status_code, answer.headers["location"]) == (303, "/account")


async def events(stand: Stand, action: Action) -> list[Any]:
    return list(await stand.context.store.events(limit=100, action=action))


# -- in a browser


async def test_link_and_sign_in_with_a_browser(stand: Stand, provider: Provider, browser: Browser) -> None:
    """With a key, link; out; in again by the provider, on to the page that was asked for; unlink signs out."""
    async with person(browser, stand.url) as alice:
        alice.elsewhere = urlsplit(provider.issuer).netloc
        page = alice.page
        await alice.sign_in(stand.keys["alice"])
        await alice.goto("/account")
        await expect(page.locator("#live-identities")).to_contain_text("No account is linked yet")
        await page.get_by_role("button", name="Link an account").click()
        await page.get_by_label("User").fill("alice")
        await page.get_by_role("button", name="Continue").click()
        await expect(page).to_have_url(stand.url + "/account")
        await expect(page.locator("#live-identities")).to_contain_text("alice@x.example")
        assert await alice.faults() == []
        await page.get_by_role("button", name="Sign out").click()
        await expect(page).to_have_url(stand.url + "/sign-in")

        await page.goto(stand.url + "/credits")
        assert await alice.faults() == []
        await page.get_by_role("link", name="Sign in with Example").click()
        await page.get_by_label("User").fill("alice")
        await page.get_by_role("button", name="Continue").click()
        await expect(page).to_have_url(stand.url + "/credits")
        await expect(page.get_by_role("link", name="alice")).to_be_visible()

        await alice.goto("/account")
        page.on("dialog", lambda dialog: dialog.accept())
        alice.expected.add(
            "Failed to load resource: the server responded with a status of 401 (Unauthorized)"
        )
        await page.get_by_role("button", name="Unlink").click()
        await expect(page.get_by_text("The key Example opens nothing any more")).to_be_visible()
        await page.goto(stand.url + "/credits")
        await expect(page).to_have_url(stand.url + "/sign-in?next=/credits")


async def test_join_by_an_invitation_with_a_browser(
    stand: Stand, provider: Provider, browser: Browser
) -> None:
    made = await stand.ask("POST", "/pool/v1/invites", by="alice", json={"credit_line": 1_000})
    async with person(browser, stand.url, viewport=PHONE, color_scheme="dark") as carol:
        carol.elsewhere = urlsplit(provider.issuer).netloc
        page = carol.page
        await page.goto(f"{stand.url}/invite#{made.json()['token']}")
        await page.get_by_label("Your name").fill("Carol")
        assert await carol.faults() == []
        assert not await carol.overflows()
        await page.get_by_role("button", name="Join with Example").click()
        await page.get_by_label("User").fill("carol")
        await page.get_by_role("button", name="Continue").click()
        await expect(page.get_by_role("heading", name="Welcome, Carol")).to_be_visible()
        await page.get_by_role("link", name="To the first page").click()
        await expect(page).to_have_url(stand.url + "/")
    async with somebody(stand) as again:
        assert (await again.come("carol")).headers["location"] == "/"
        assert await again.who == "Carol"


async def test_whoever_says_no_at_the_provider_is_told_so(
    stand: Stand, provider: Provider, browser: Browser
) -> None:
    async with person(browser, stand.url) as alice:
        alice.elsewhere = urlsplit(provider.issuer).netloc
        alice.expected.add("Failed to load resource: the server responded with a status of 403 (Forbidden)")
        page = alice.page
        await page.goto(stand.url + "/sign-in")
        await page.get_by_role("link", name="Sign in with Example").click()
        await page.get_by_role("button", name="Deny").click()
        await expect(page.get_by_role("alert")).to_contain_text("you or it said no")
        assert await alice.faults() == []
        await page.get_by_role("link", name="Sign in with a key").click()
        await expect(page).to_have_url(stand.url + "/sign-in")


# -- what an account there is worth


async def test_the_log_tells_who_linked_and_who_signed_in(stand: Stand, provider: Provider) -> None:
    await linked(stand)
    async with somebody(stand) as alice:
        assert (await alice.come("alice")).status_code == 303
        assert await alice.who == "alice"
    link = (await events(stand, Action.IDENTITY_LINKED))[0]
    assert link.member == link.subject == stand.members["alice"].id
    assert link.details["issuer"] == provider.issuer
    newest = (await events(stand, Action.SIGNED_IN))[0]
    assert (newest.member, newest.key) == (stand.members["alice"].id, link.details["key"])
    assert newest.details == {"issuer": provider.issuer}


async def test_nobody_is_found_by_a_name_or_an_address(stand: Stand, visitor: Visitor) -> None:
    """There is a member alice; an account of that name that she did not link opens nothing."""
    answer = await visitor.come("alice")
    assert answer.status_code == 403
    assert "no member of this pool is linked" in answer.text
    assert await visitor.who is None


async def test_an_account_signs_one_member_in(stand: Stand, visitor: Visitor) -> None:
    await linked(stand)
    await visitor.sign_in(stand.keys["bob"])
    answer = await visitor.link("alice")
    assert answer.status_code == 409
    assert "signs another member in" in answer.text
    assert await visitor.who == "bob"


async def test_a_link_may_no_more_than_the_key_it_was_made_with(stand: Stand, visitor: Visitor) -> None:
    """A key that may look and change the account, until in a minute: so may the account there, until then."""
    wanted = {"name": "some", "scopes": ["read", "account"], "expires_s": 60}
    key = (await stand.ask("POST", "/pool/v1/keys", json=wanted)).json()["key"]
    await visitor.sign_in(key)
    assert (await visitor.link("alice")).status_code == 303
    assert (await visitor.come("alice")).status_code == 303
    [_, _, made] = await stand.context.store.list_keys(stand.members["alice"].id)
    assert made.name == "Example"
    assert made.scopes == {Scope.READ, Scope.ACCOUNT}
    assert made.expires_at is not None
    stand.clock.ahead_s = 61
    assert (await visitor.come("alice")).status_code == 403


@pytest.mark.parametrize("how", ["freeze", "close", "revoke"])
async def test_who_is_frozen_closed_or_unlinked_is_refused(stand: Stand, visitor: Visitor, how: str) -> None:
    await linked(stand)
    if how == "revoke":
        link = (await events(stand, Action.IDENTITY_LINKED))[0]
        await stand.ask("DELETE", f"/pool/v1/keys/{link.details['key']}")
    else:
        told = {"reason": "a test"} if how == "freeze" else {"confirm": "alice", "reason": "a test"}
        answer = await stand.ask("POST", f"/pool/v1/members/alice/{how}", by="admin", json=told)
        answer.raise_for_status()
    answer = await visitor.come("alice")
    assert answer.status_code == 403, answer.text
    assert await visitor.who is None


async def test_an_account_that_was_unlinked_can_be_linked_again(stand: Stand, visitor: Visitor) -> None:
    """By whoever signs in with it then: also by another member."""
    await linked(stand)
    link = (await events(stand, Action.IDENTITY_LINKED))[0]
    (await stand.ask("DELETE", f"/pool/v1/keys/{link.details['key']}")).raise_for_status()
    await visitor.sign_in(stand.keys["bob"])
    assert (await visitor.link("alice")).status_code == 303
    async with somebody(stand) as other:
        assert (await other.come("alice")).status_code == 303
        assert await other.who == "bob"
    assert await stand.context.store.identities(stand.members["alice"].id) == []


async def test_a_verified_address_of_a_domain_lets_in(tmp_path: Path, provider: Provider) -> None:
    """Once: the same account is the same member. An address that nobody verified does not."""
    async with pool(tmp_path, provider, oidc_join_domains="club.example") as stand:
        for _ in range(2):
            async with somebody(stand) as carol:
                assert (await carol.come("carol")).status_code in {200, 303}
                assert await carol.who == "carol"
        async with somebody(stand) as dave:
            assert (await dave.come("dave")).status_code == 403
            assert await dave.who is None
        names = [member.name for member in await stand.context.store.members()]
        assert names == ["admin", "alice", "bob", "carol"]
        joined = (await events(stand, Action.MEMBER_JOINED))[0]
        assert joined.details == {"name": "carol", "issuer": provider.issuer, "email": "carol@club.example"}
        balance = stand.context.pool.accounts.balance((await carol_of(stand)).account)
        assert balance["credit_line"] == stand.context.settings.default_credit_line


async def carol_of(stand: Stand) -> Any:
    found = await stand.context.store.member_by_name("carol")
    assert found is not None
    return found


async def test_who_was_shown_out_does_not_come_in_by_the_domain(tmp_path: Path, provider: Provider) -> None:
    async with pool(tmp_path, provider, oidc_join_domains="club.example") as stand:
        async with somebody(stand) as carol:
            await carol.come("carol")
        told = {"confirm": "carol", "reason": "a test"}
        closed = await stand.ask("POST", "/pool/v1/members/carol/close", by="admin", json=told)
        closed.raise_for_status()
        async with somebody(stand) as carol:
            assert (await carol.come("carol")).status_code == 403


async def test_a_group_lets_in_and_a_taken_name_gets_a_number(tmp_path: Path, provider: Provider) -> None:
    async with pool(tmp_path, provider, oidc_join_groups="cooks, bakers") as stand, somebody(stand) as erin:
        assert "Welcome, alice-2" in (await erin.come("erin")).text
        assert await erin.who == "alice-2"


# -- what signs nobody in

FAULTS = (
    *(
        "wrong nonce",
        "no nonce",
        "wrong aud",
        "two audiences",
        "wrong iss",
        "expired",
        "no exp",
        "from tomorrow",
    ),
    *("no sub", "alg none", "alg hs256", "another key", "other userinfo"),
)


async def test_a_token_that_is_not_right_in_everything_signs_nobody_in(
    stand: Stand, provider: Provider
) -> None:
    await linked(stand)
    for fault in FAULTS:
        await provider.told(fault=fault)
        stand.clock.ahead_s += 1_000  # or so many wrong ones would be slowed down
        async with somebody(stand) as visitor:
            if fault == "other userinfo":
                await provider.told(users={**USERS, "alice": {"sub": "a-1"}})
            answer = await visitor.come("alice")
            assert answer.status_code == 403, fault
            assert "could not be verified" in answer.text, fault
            assert await visitor.who is None, fault
    await provider.told(fault="", users=USERS)
    stand.clock.ahead_s = 0
    async with somebody(stand) as visitor:
        assert (await visitor.come("alice")).status_code == 303


async def test_a_forged_replayed_or_foreign_answer_signs_nobody_in(stand: Stand, provider: Provider) -> None:
    await linked(stand)
    async with somebody(stand) as alice, somebody(stand) as mallory:
        back = await alice.consent(await alice.start(), "alice")
        state = parse_qs(urlsplit(back).query)["state"][0]
        forged = await alice.http.get(back.replace(state, "f" * len(state)))
        assert forged.status_code == 400
        assert "no sign-in that began in this browser" in forged.text
    async with somebody(stand) as alice, somebody(stand) as mallory:
        back = await alice.consent(await alice.start(), "alice")
        await mallory.start()  # has a cookie of its own
        assert (await mallory.http.get(back)).status_code == 400
        assert await mallory.who is None
        mixed = await alice.http.get(back.replace("iss=http", "iss=https"))
        assert mixed.status_code == 403
        back = await alice.consent(await alice.start(), "alice")
        assert (await alice.http.get(back)).status_code == 303
        again = await alice.http.get(back)
        assert again.status_code == 400
    async with somebody(stand) as mallory:  # a code that was used, with a state that is right
        address = await mallory.start()
        asked = parse_qs(urlsplit(address).query)
        code = parse_qs(urlsplit(back).query)["code"][0]
        used = await mallory.http.get(stand.url + BACK, params={"state": asked["state"][0], "code": code})
        assert used.status_code == 403
        assert await mallory.who is None


async def test_a_sign_in_that_takes_too_long_begins_again(stand: Stand, visitor: Visitor) -> None:
    back = await visitor.consent(await visitor.start(), "alice")
    stand.clock.ahead_s = 601
    assert (await visitor.http.get(back)).status_code == 400


async def test_a_code_of_another_sign_in_is_worth_nothing(stand: Stand, provider: Provider) -> None:
    """PKCE: a code that somebody caught does not fit the verifier of their own sign-in."""
    await linked(stand)
    async with somebody(stand) as alice, somebody(stand) as mallory:
        caught = parse_qs(urlsplit(await alice.consent(await alice.start(), "alice")).query)["code"][0]
        state = parse_qs(urlsplit(await mallory.start()).query)["state"][0]
        answer = await mallory.http.get(stand.url + BACK, params={"state": state, "code": caught})
        assert answer.status_code == 403
        assert await mallory.who is None


@pytest.mark.parametrize("where", ["//evil.example", "https://evil.example/x", "/\\evil.example", "/a\r\nb"])
async def test_the_way_back_leads_nowhere_else(stand: Stand, visitor: Visitor, where: str) -> None:
    await linked(stand)
    answer = await visitor.come("alice", where=where)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")


async def test_linking_needs_a_page_of_ours_and_the_same_member(stand: Stand, visitor: Visitor) -> None:
    await visitor.sign_in(stand.keys["bob"])
    without = await visitor.http.post(stand.url + "/account/oidc", headers={"hx-request": "true"})
    assert without.status_code == 403
    answer = await visitor.post("/account/oidc")
    back = await visitor.consent(answer.headers["hx-redirect"], "alice")
    await visitor.sign_in(stand.keys["alice"])
    changed = await visitor.http.get(back)
    assert changed.status_code == 403
    assert await events(stand, Action.IDENTITY_LINKED) == []


async def test_an_invitation_that_is_not_good_makes_no_member(stand: Stand, visitor: Visitor) -> None:
    answer = await visitor.post("/invite/oidc", token="pli_" + "x" * 43, name="carol")
    refused = await visitor.http.get(await visitor.consent(answer.headers["hx-redirect"], "carol"))
    assert refused.status_code == 404
    assert await visitor.who is None


# -- the provider


@pytest.mark.parametrize("fault", ["down", "other issuer"])
async def test_a_provider_that_is_down_is_said_to_be(
    stand: Stand, provider: Provider, visitor: Visitor, fault: str
) -> None:
    await provider.told(fault=fault)
    answer = await visitor.http.get(stand.url + "/sign-in/oidc")
    assert answer.status_code == 503
    assert "Example does not answer as it should" in answer.text
    await provider.told(fault="")
    assert (await visitor.start()).startswith(provider.issuer)


async def test_keys_that_the_provider_changed_are_fetched_again(
    stand: Stand, provider: Provider, visitor: Visitor
) -> None:
    await linked(stand)
    before = (await provider.told(rotate=True)).count("/jwks")
    assert (await visitor.come("alice")).status_code == 303
    assert (await provider.told()).count("/jwks") == before + 1


async def test_what_is_asked_of_the_provider(stand: Stand, visitor: Visitor) -> None:
    asked = parse_qs(urlsplit(await visitor.start()).query)
    assert asked["redirect_uri"] == [stand.url + BACK]
    assert (asked["response_type"], asked["code_challenge_method"]) == (["code"], ["S256"])
    assert asked["scope"] == ["openid profile email"]
    again = parse_qs(urlsplit(await visitor.start()).query)
    assert all(asked[name] != again[name] for name in ("state", "nonce", "code_challenge"))
    [cookie] = [c for c in visitor.http.cookies.jar if c.name == "potluck_oidc"]
    assert cookie.path == "/sign-in/oidc"
    assert cookie.has_nonstandard_attr("HttpOnly")


# -- settings and values


async def test_without_a_provider_there_is_no_such_page(tmp_path: Path) -> None:
    async with open_stand(tmp_path) as stand, somebody(stand) as visitor:
        assert (await visitor.http.get(stand.url + "/sign-in/oidc")).status_code == 404
        assert "Sign in with" not in (await visitor.http.get(stand.url + "/sign-in")).text.replace(
            "Sign in with your", ""
        )


def test_the_secret_is_shown_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTLUCK_OIDC_CLIENT_SECRET", "hunter2")
    settings = Settings(home=tmp_path, oidc_issuer="https://id.example", oidc_client_id="pool")
    assert settings.oidc_secret == "hunter2"
    assert "hunter2" not in f"{settings.view()}{settings!r}{settings.model_dump_json()}"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"oidc_issuer": "http://id.example", "oidc_client_id": "x"}, "https://"),
        ({"oidc_issuer": "https://id.example"}, "oidc_client_id"),
        ({"oidc_issuer": "https://id.example/?a=b", "oidc_client_id": "x"}, "issuer"),
        ({"oidc_scopes": "profile"}, "openid"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path: Path, wrong: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        Settings.load({"home": tmp_path, **wrong})


def test_only_a_verified_address_counts(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, oidc_join_domains="Club.example", oidc_join_groups="cooks")
    claims = {"iss": "https://id.example", "sub": "1", "email": "a@club.EXAMPLE"}
    for verified, lets_in in ((True, True), ("true", True), (False, False), ("no", False), (None, False)):
        assert may_join(identity_of({**claims, "email_verified": verified}, settings), settings) is lets_in
    for email in ("a@club.example.evil.example", "club.example", "a@sub.club.example", ""):
        identity = identity_of({**claims, "email": email, "email_verified": True}, settings)
        assert not may_join(identity, settings), email
    for groups, lets_in in ((["cooks"], True), ("cooks", True), ([["cooks"]], False), (None, False)):
        assert may_join(identity_of({**claims, "groups": groups}, settings), settings) is lets_in
    nobody = Settings(home=tmp_path)
    assert not may_join(identity_of({**claims, "email": "", "groups": [""]}, nobody), nobody)


def test_names_of_new_members() -> None:
    def first(name: str) -> str:
        return next(names_for(Identity(issuer="i", subject="s", name=name)))

    assert [first(name) for name in ("carol", "carol@x.example", "a/b", "", "x" * 99)] == [
        *("carol", "carol", "a-b", "member", "x" * 62),
    ]
    assert list(names_for(Identity(issuer="i", subject="s", name="carol")))[-1] == "carol-9"


def test_sign_ins_are_bounded_and_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.oidc.pending.PENDING_MAX", 2)
    sign_ins = SignIns()
    pending = Pending(browser=digest_of("b"), nonce="n", verifier="v", redirect_uri="r", expires_at=10.0)
    states = [sign_ins.begin(pending) for _ in range(3)]
    assert [sign_ins.take(state, "b", 9.0) is not None for state in states] == [False, True, True]
    assert sign_ins.take(states[2], "b", 9.0) is None
    assert sign_ins.take(sign_ins.begin(pending), "b", 10.0) is None


def test_a_coordinator_without_the_extra_starts() -> None:
    """Nothing of it is imported before a provider is set."""
    told = "import sys; sys.modules['authlib'] = None; import coordinator.app, coordinator.cli"
    subprocess.run([sys.executable, "-c", told], check=True)
