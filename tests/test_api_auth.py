"""Who gets in, how wrong keys are slowed down, and how busy members are."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fixtures_api import Said, Stand, chat_body, error_of, open_stand
from starlette.requests import Request

from coordinator.api.auth import CACHE_S, FAILURES_MAX, FAILURES_S, Auth, client_address
from coordinator.records import Authenticated
from coordinator.store import Store
from potluck.v1 import session_pb2, work_pb2


@pytest.mark.parametrize("header", [None, "", "Bearer", "Basic abc", "sk-potluck-x", "Bearer \xff" * 9])
async def test_without_a_key_every_route_says_what_is_missing(stand: Stand, header: str | None) -> None:
    headers = {} if header is None else {b"authorization": header.encode("latin-1")}
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/chat/completions"), ("GET", "/pool/v1/status")):
        response = await stand.http.request(method, stand.url + path, headers=headers)
        assert response.status_code == 401
        assert error_of(response)["type"] == "authentication_error"
        assert response.headers["www-authenticate"] == "Bearer"


OPEN = {
    "/",
    "/docs",
    "/openapi.json",
    "/healthz",
    "/readyz",
    "/pool/v1/enrol",
    "/pool/v1/renew",
    "/pool/v1/leave",
    "/pool/v1/invites/accept",  # by the invitation's own secret
}


async def test_no_route_answers_without_a_key_but_those_that_say_so(stand: Stand) -> None:
    """All that the description lists, so that a new route cannot forget to ask; before a body is looked at."""
    described = (await stand.http.get(f"{stand.url}/openapi.json")).json()
    closed = {
        (method, path)
        for path, methods in described["paths"].items()
        for method in methods
        if path not in OPEN
    }
    assert len(closed) > 20
    for method, path in sorted(closed):
        response = await stand.http.request(
            method, stand.url + path, content=b"{" if method == "post" else None
        )
        assert response.status_code == 401, (method, path)
        assert error_of(response)["code"] == "missing_api_key", (method, path)


async def test_wrong_keys_are_slowed_down_and_right_ones_are_not(stand: Stand) -> None:
    """After ten failures from an address unknown keys are not even looked up; one that worked before is."""
    assert (await stand.ask("GET", "/pool/v1/me")).status_code == 200
    for number in range(FAILURES_MAX):
        assert (await stand.ask("GET", "/pool/v1/me", by=f"sk-potluck-{number}")).status_code == 401
    blocked = await stand.ask("GET", "/pool/v1/me", by="sk-potluck-11")
    assert blocked.status_code == 429
    assert error_of(blocked)["code"] == "too_many_failures"
    assert 0 < int(blocked.headers["retry-after"]) <= FAILURES_S
    assert (
        await stand.ask("GET", "/pool/v1/me", by="bob")
    ).status_code == 429  # never seen: it may be a guess
    stand.clock.ahead_s += CACHE_S + 1
    assert (await stand.ask("GET", "/pool/v1/me")).status_code == 200
    stand.clock.ahead_s += FAILURES_S
    assert (await stand.ask("GET", "/pool/v1/me", by="bob")).status_code == 200


async def test_forwarded_headers_count_only_behind_a_proxy(tmp_path: Path, stand: Stand) -> None:
    """A stranger cannot wear out another's address, nor wash its own clean, by writing a header."""

    async def try_from(of: Stand, address: str) -> int:
        headers = {"x-forwarded-for": f"1.1.1.1, {address}"}
        return (await of.ask("GET", "/pool/v1/me", by="sk-potluck-wrong", headers=headers)).status_code

    for number in range(FAILURES_MAX):
        assert await try_from(stand, f"9.9.9.{number}") == 401
    assert await try_from(stand, "8.8.8.8") == 429
    folder = tmp_path / "proxied"
    folder.mkdir()
    async with open_stand(folder, behind_proxy=True) as proxied:
        for _ in range(FAILURES_MAX):
            assert await try_from(proxied, "9.9.9.9") == 401
        assert await try_from(proxied, "9.9.9.9") == 429
        assert await try_from(proxied, "8.8.8.8") == 401


@pytest.mark.parametrize(
    ("client", "forwarded", "expected"),
    [
        ("10.0.0.1", None, "10.0.0.1"),
        ("10.0.0.1", "1.2.3.4, 5.6.7.8", "5.6.7.8"),
        ("10.0.0.1", "2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("10.0.0.1", "  ", "10.0.0.1"),
        ("::ffff:10.0.0.1", None, "::ffff:a00:1"),
        ("10.0.0.1", "unknown", "unknown"),
    ],
)
def test_the_address_that_failures_count_for(client: str, forwarded: str | None, expected: str) -> None:
    """The proxy's own, last entry; a whole home's IPv6 addresses are one."""
    headers = [] if forwarded is None else [(b"x-forwarded-for", forwarded.encode())]
    request = Request({"type": "http", "client": (client, 1), "headers": headers})
    assert client_address(request, behind_proxy=True) == expected


async def test_a_revoked_key_is_worth_nothing_at_once(stand: Stand) -> None:
    """The cache of keys does not outlive a revocation."""
    made = (await stand.ask("POST", "/pool/v1/keys", json={"name": "laptop"})).json()
    assert (await stand.ask("GET", "/pool/v1/me", by=made["key"])).status_code == 200
    assert (await stand.ask("DELETE", f"/pool/v1/keys/{made['id']}")).status_code == 200
    assert (await stand.ask("GET", "/pool/v1/me", by=made["key"])).status_code == 401


async def test_requests_that_come_together_look_their_key_up_once(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But whoever comes after a revocation does not get the answer to an older question."""
    context, asked = stand.context, 0
    auth = Auth(
        context.store, context.clock, context.settings, context.board, context.presence, context.lateness
    )
    header = (b"authorization", f"Bearer {stand.keys['alice']}".encode())
    scope = {"type": "http", "method": "GET", "client": ("10.0.0.1", 1), "headers": [header]}
    request = Request(scope)
    authenticate = Store.authenticate

    async def counted(store: Store, key_digest: str, now: float) -> Authenticated | None:
        nonlocal asked
        asked += 1
        return await authenticate(store, key_digest, now)

    async def look() -> str:
        return (await auth.look(request)).member.name

    async def look_after_a_revocation() -> str:
        auth.forget()
        return await look()

    monkeypatch.setattr(Store, "authenticate", counted)
    assert set(await asyncio.gather(look(), look(), look())) == {"alice"}
    assert asked == 1
    auth.forget()
    assert set(await asyncio.gather(look(), look_after_a_revocation(), look())) == {"alice"}
    assert asked == 3


async def test_an_expired_key_is_worth_nothing_at_once(stand: Stand) -> None:
    """Though it was cached a moment before it expired."""
    made = (await stand.ask("POST", "/pool/v1/keys", json={"name": "guest", "expires_s": 2})).json()
    assert (await stand.ask("GET", "/pool/v1/me", by=made["key"])).status_code == 200
    stand.clock.ahead_s += 2
    assert (await stand.ask("GET", "/pool/v1/me", by=made["key"])).status_code == 401


async def test_requests_per_minute_are_limited_for_each_member(tmp_path: Path) -> None:
    """Work and looking have budgets of their own; Retry-After is when the next request fits."""
    async with open_stand(tmp_path, requests_per_minute=2) as stand:
        for _ in range(2):
            assert (await stand.chat()).status_code == 200
        refused = await stand.chat()
        assert refused.status_code == 429
        assert error_of(refused)["code"] == "rate_limit_exceeded"
        wait_s = int(refused.headers["retry-after"])
        assert 0 < wait_s <= 60
        assert (await stand.ask("GET", "/pool/v1/me")).status_code == 200
        assert (
            await stand.ask("POST", "/v1/chat/completions", by="bob", json=chat_body())
        ).status_code == 200
        stand.clock.ahead_s += wait_s
        assert (await stand.chat()).status_code == 200


async def test_concurrent_jobs_are_limited_for_each_member(tmp_path: Path) -> None:
    """A place is taken from the submission to the end, whichever end it is."""
    go_on = asyncio.Event()
    begun = asyncio.Event()

    async def script(_assign: session_pb2.Assign) -> AsyncIterator[Said]:
        begun.set()
        await go_on.wait()
        yield [work_pb2.Delta(text="x", finish_reason="stop")]

    async with open_stand(tmp_path, concurrent_jobs=1) as stand:
        stand.bench.script = script
        first = asyncio.create_task(stand.chat(stream=True))
        await asyncio.wait_for(begun.wait(), 10)
        refused = await stand.chat()
        assert refused.status_code == 429
        assert error_of(refused)["code"] == "too_many_concurrent_jobs"
        assert "retry-after" in refused.headers
        go_on.set()
        assert (await first).status_code == 200
        assert (await stand.chat()).status_code == 200
