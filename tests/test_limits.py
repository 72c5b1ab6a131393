"""Limits of members and keys, and keys' scopes and models, through the real API."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fixtures_api import MODEL, Said, Stand, chat_body, error_of, open_stand
from fixtures_sessions import TOKENS, open_house

from coordinator.api.pool_keys import ANCESTORS_MAX
from coordinator.core.budgets import DAY_S, Budgets, Limit, period_ends
from coordinator.core.jobs import JobId
from potluck.credits import exact
from potluck.v1 import session_pb2, work_pb2

QUOTED = 50  # tokens asked for in these tests


async def quote_of(stand: Stand, **more: Any) -> int:
    request = chat_body(max_tokens=QUOTED, **more)
    answer = await stand.ask("POST", "/pool/v1/quote", json={"kind": "chat", "request": request})
    found: int = answer.raise_for_status().json()["quote"]
    return found


async def new_key(stand: Stand, name: str = "ci", by: str = "alice", **more: Any) -> dict[str, Any]:
    answer = await stand.ask("POST", "/pool/v1/keys", by=by, json={"name": name, **more})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    stand.keys[name] = made["key"]
    return made


async def limit(stand: Stand, member: str = "alice", **limits: int) -> dict[str, Any]:
    answer = await stand.ask("PUT", f"/pool/v1/members/{member}/limits", by="admin", json=limits)
    set_to: dict[str, Any] = answer.raise_for_status().json()
    return set_to


async def chat(stand: Stand, by: str = "alice", **more: Any) -> httpx2.Response:
    body = chat_body(**{"max_tokens": QUOTED, **more})
    return await stand.ask("POST", "/v1/chat/completions", by=by, json=body)


async def used(stand: Stand, what: Limit, by: str = "alice") -> dict[str, Any]:
    """The row of the narrowest that limits it: the key's, if it has one."""
    rows = (await stand.ask("GET", "/pool/v1/limits", by=by)).raise_for_status().json()["data"]
    row: dict[str, Any] = [row for row in rows if row["limit"] == what.value][-1]
    return row


def charge_of(response: httpx2.Response) -> int:
    charge: int = response.json()["usage"]["potluck"]["charge"]
    return charge


def rates_of(response: httpx2.Response, what: str) -> tuple[int, int]:
    """What its headers say is allowed within a minute, and what is left of it."""
    found = (response.headers[f"x-ratelimit-{name}-{what}"] for name in ("limit", "remaining"))
    allowed, left = map(int, found)
    return allowed, left


@dataclass
class Watched(Budgets):
    """Notes the most that one name ever spent and held together; changes nothing."""

    subject: str = ""
    most: int = 0

    def reserve(self, job: JobId, subjects: Sequence[str], tokens: int, amount: int, now: float) -> None:
        super().reserve(job, subjects, tokens, amount, now)
        spent = self.spent(self.subject, now)
        self.most = max(self.most, spent.day + spent.held)


# ---- credits


async def test_a_days_credits_are_a_budget_that_renews_at_midnight(stand: Stand) -> None:
    """402 says what it can cost, whose budget, how much is used and when it renews; then it does."""
    worst = await quote_of(stand)
    assert (await limit(stand, credits_per_day=worst + 1))["limits"] == {"credits_per_day": worst + 1}
    first = await chat(stand)
    assert first.status_code == 200
    cost = charge_of(first)
    assert 1 < cost < worst
    refused = await chat(stand)
    error = error_of(refused)
    assert (refused.status_code, error["code"], error["type"]) == (
        402,
        "budget_exceeded",
        "insufficient_credits",
    )
    pool = stand.context.pool
    renews = datetime.fromtimestamp(period_ends(Limit.DAY, pool.now()), UTC)
    facts = error["potluck"]
    assert (facts["limit"], facts["of"], facts["name"]) == ("credits_per_day", "member", "alice")
    assert (facts["allowed"], facts["used"], facts["wanted"]) == (worst + 1, cost, worst)
    assert f"This can cost up to {exact(worst)} credits." in error["message"]
    assert datetime.fromisoformat(facts["renews_at"]) == renews
    assert facts["renews_at"] in error["message"]
    assert (await chat(stand, "bob")).status_code == 200  # another member's
    steady = pool.now
    pool.now = lambda: steady() + DAY_S
    assert (await chat(stand)).status_code == 200


async def test_a_months_credits_outlive_the_day(tmp_path: Path) -> None:
    """The pool's own default, for every member; a member's own stands in its place, and 0 there is none."""
    async with open_stand(tmp_path, credits_per_month=1_000) as stand:
        refused = error_of(await chat(stand))
        assert (refused["potluck"]["limit"], refused["potluck"]["of"]) == ("credits_per_month", "pool")
        assert "this pool's limit" in refused["message"]
        assert "more than the whole budget" in refused["message"]
        assert (await limit(stand, credits_per_month=0))["effective"].get("credits_per_month") is None
        assert (await chat(stand)).status_code == 200
        assert (await limit(stand))["effective"]["credits_per_month"] == 1_000
        assert (await chat(stand)).status_code == 402


async def test_a_keys_credits_count_that_key_and_the_members_all(stand: Stand) -> None:
    worst = await quote_of(stand)
    made = await new_key(stand, limits={"credits_per_day": worst})
    assert made["limits"] == {"credits_per_day": worst}
    cost = charge_of(await chat(stand, "ci"))
    refused = error_of(await chat(stand, "ci"))
    assert (refused["potluck"]["of"], refused["potluck"]["name"]) == ("key", "ci")
    assert "Key ci may spend" in refused["message"]
    assert (await used(stand, Limit.DAY, "ci"))["used"] == cost
    second = charge_of(await chat(stand))  # by another key: only the member's count
    await limit(stand, credits_per_day=worst)
    assert error_of(await chat(stand))["potluck"]["of"] == "member"
    assert (await used(stand, Limit.DAY))["used"] == cost + second


async def test_limited_keys_share_their_budget_with_the_keys_they_make(stand: Stand) -> None:
    """Or ten keys would have ten budgets; the line of such keys ends."""
    worst = await quote_of(stand)
    await new_key(stand, limits={"credits_per_day": worst})
    child = await new_key(stand, "child", by="ci", limits={"credits_per_day": 10 * worst})
    assert child["limits"] == {"credits_per_day": worst}
    assert (await chat(stand, "child")).status_code == 200
    refused = error_of(await chat(stand, "ci"))
    assert (refused["code"], refused["potluck"]["name"]) == ("budget_exceeded", "ci")
    for number in range(ANCESTORS_MAX - 1):
        await new_key(stand, f"k{number}", by=f"k{number - 1}" if number else "child")
    last = await stand.ask("POST", "/pool/v1/keys", by=f"k{ANCESTORS_MAX - 2}", json={"name": "x"})
    assert (last.status_code, error_of(last)["code"]) == (409, "too_many_ancestors")


async def test_own_work_on_own_workers_costs_no_budget(stand: Stand) -> None:
    """Bob owns the worker: what he asks of it is free, also when his budget is used up."""
    await limit(stand, "bob", credits_per_day=1)
    for more in ({"potluck": {"workers": "mine"}}, {}):
        answer = await chat(stand, "bob", **more)
        assert answer.status_code == 200
        assert charge_of(answer) == 0
    assert (await used(stand, Limit.DAY, "bob"))["used"] == 0


async def test_concurrent_requests_never_spend_a_microcredit_too_much(stand: Stand) -> None:
    """64 at once against a budget for a few: what is spent and held stays within it at every moment."""
    worst = await quote_of(stand)
    budget = 5 * worst + worst // 2
    await new_key(stand, limits={"credits_per_day": budget})
    pool, subject = stand.context.pool, (await stand.ask("GET", "/pool/v1/me", by="ci")).json()["key"]["id"]
    pool.budgets = watched = Watched(subject=subject)
    answers = await asyncio.gather(*(chat(stand, "ci") for _ in range(64)))
    assert {answer.status_code for answer in answers} == {200, 402}
    spent = sum(charge_of(answer) for answer in answers if answer.status_code == 200)
    assert 0 < spent <= watched.most <= budget
    assert (await used(stand, Limit.DAY, "ci"))["used"] == spent
    assert -stand.available()["balance"] == spent


async def test_a_restart_keeps_what_was_spent_and_what_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the member, of the key, and of the key that made the key; the job that runs on counts in full."""
    async with open_house(tmp_path, monkeypatch) as house:
        await house.honest()
        body = {"name": "parent", "limits": {"credits_per_month": 10**9}}
        house.keys["parent"] = (await house.api("POST", "/pool/v1/keys", "alice", json=body)).json()["key"]
        made = (await house.api("POST", "/pool/v1/keys", "parent", json={"name": "child"})).json()
        house.keys["child"] = made["key"]
        answer = await house.ask("child")
        cost = answer.usage.model_extra["potluck"]["charge"]
        assert cost > 0
        for worker in house.workers:
            await worker.close()
        request = {"model": MODEL, "messages": [{"role": "user", "content": "a"}], "max_tokens": TOKENS}
        stored = await house.api(
            "POST", "/pool/v1/jobs", "child", json={"kind": "chat", "request": {**request}}
        )
        held = stored.raise_for_status().json()["quote"]
        keys, job_id = house.keys, JobId(stored.json()["id"])
        before = (await house.get("/pool/v1/limits", "child"))["data"]
    async with open_house(tmp_path, monkeypatch, keys) as house:
        rows = (await house.get("/pool/v1/limits", "child"))["data"]
        months = [row for row in rows if row["limit"] == "credits_per_month"]
        assert [(row["of"], row["name"]) for row in months] == [
            ("member", "alice"),
            ("key", "child"),
            ("key", "parent"),
        ]
        assert [row["used"] for row in months] == [cost + held] * 3
        assert months == [row for row in before if row["limit"] == "credits_per_month"]
        assert house.running.pool.live(job_id) is not None
        cancelled = await house.api("POST", f"/pool/v1/jobs/{job_id}/cancel", "child")
        assert cancelled.json()["cancelled"]
        await house.eventually(lambda: not house.running.pool.budgets.reserved, "the job's end was told")
        rows = (await house.get("/pool/v1/limits", "child"))["data"]
        assert {row["used"] for row in rows if row["limit"] == "credits_per_month"} == {cost}


# ---- requests, tokens, places


async def test_a_keys_requests_are_limited_beside_its_members(tmp_path: Path) -> None:
    async with open_stand(tmp_path, requests_per_minute=3) as stand:
        await new_key(stand, limits={"requests_per_minute": 1})
        assert (await chat(stand, "ci")).status_code == 200
        refused = await chat(stand, "ci")
        assert (refused.status_code, error_of(refused)["code"]) == (429, "rate_limit_exceeded")
        assert "Key ci made 1 requests within a minute, the key's own limit" in error_of(refused)["message"]
        assert 0 < int(refused.headers["retry-after"]) <= 60
        assert rates_of(refused, "requests") == (1, 0)
        assert 0 < float(refused.headers["x-ratelimit-reset-requests"].removesuffix("s")) <= 60
        assert [(await chat(stand)).status_code for _ in range(3)] == [200, 200, 429]
        await limit(stand, requests_per_minute=9)
        answer = await chat(stand)
        assert answer.status_code == 200
        assert answer.headers["x-ratelimit-limit-requests"] == "9"
        assert answer.headers["x-ratelimit-remaining-requests"] == "5"
        assert 0 < float(answer.headers["x-ratelimit-reset-requests"].removesuffix("s")) <= 60


async def test_tokens_are_reserved_at_worst_and_settled_to_what_came(tmp_path: Path) -> None:
    """429 says when it fits; what never fits has no time to come back at."""
    async with open_stand(tmp_path, tokens_per_minute=1_000) as stand:
        row = await used(stand, Limit.TOKENS)
        assert (row["used"], row["allowed"], row["set_by"]) == (0, 1_000, "pool")
        body = {"kind": "chat", "request": chat_body(max_tokens=QUOTED)}
        quoted = (await stand.ask("POST", "/pool/v1/quote", json=body)).json()
        allowed = quoted["prompt_tokens"] + QUOTED
        await limit(stand, tokens_per_minute=allowed)
        first = await chat(stand)
        assert first.status_code == 200
        counted = first.json()["usage"]["total_tokens"]
        assert counted < allowed
        row = await used(stand, Limit.TOKENS)
        assert (row["used"], row["allowed"], row["set_by"]) == (counted, allowed, "member")
        assert first.headers["x-ratelimit-limit-tokens"] == str(allowed)
        refused = await chat(stand)
        assert (refused.status_code, error_of(refused)["code"]) == (429, "tokens_per_minute_exceeded")
        assert error_of(refused)["potluck"]["used"] == counted
        assert rates_of(refused, "tokens") == (allowed, allowed - counted)
        stored = await stand.ask("POST", "/pool/v1/jobs", json=body)
        assert (stored.status_code, rates_of(stored, "tokens")) == (429, (allowed, allowed - counted))
        assert 0 < int(refused.headers["retry-after"]) <= 60
        never = await chat(stand, max_tokens=500)
        assert (never.status_code, error_of(never)["code"]) == (429, "tokens_per_minute_exceeded")
        assert "retry-after" not in never.headers
        assert never.headers["x-should-retry"] == "false"
        pool = stand.context.pool
        steady = pool.now
        pool.now = lambda: steady() + 61
        assert (await chat(stand)).status_code == 200


async def test_the_headers_tell_the_tightest_limit_and_streams_have_them_too(stand: Stand) -> None:
    await new_key(stand, limits={"tokens_per_minute": 200, "requests_per_minute": 5})
    answer = await chat(stand, "ci", stream=True)
    assert answer.headers["x-ratelimit-limit-requests"] == "5"
    assert answer.headers["x-ratelimit-remaining-requests"] == "4"
    assert answer.headers["x-ratelimit-limit-tokens"] == "200"
    assert int(answer.headers["x-ratelimit-remaining-tokens"]) < 200 - QUOTED
    plain = await chat(stand)
    assert "x-ratelimit-limit-tokens" not in plain.headers  # where no limit applies
    assert plain.headers["x-ratelimit-limit-requests"] == "600"


async def test_a_keys_places_are_its_own_and_its_members_are_all(stand: Stand) -> None:
    go_on, begun = asyncio.Event(), asyncio.Event()

    async def script(_assign: session_pb2.Assign) -> AsyncIterator[Said]:
        begun.set()
        await go_on.wait()
        yield [work_pb2.Delta(text="x", finish_reason="stop")]

    stand.bench.script = script
    await new_key(stand, limits={"concurrent_jobs": 1})
    await limit(stand, concurrent_jobs=2)
    first = asyncio.create_task(chat(stand, "ci"))
    await asyncio.wait_for(begun.wait(), 10)
    answer = await chat(stand, "ci")
    refused = error_of(answer)
    assert refused["code"] == "too_many_concurrent_jobs"
    assert rates_of(answer, "requests") == (600, 598)
    assert "Key ci has 1 jobs under way" in refused["message"]
    assert (await used(stand, Limit.CONCURRENT, "ci"))["used"] == 1
    two = await stand.ask(
        "POST", "/v1/completions", json={"model": MODEL, "prompt": ["a", "b"], "max_tokens": 4}
    )
    assert (two.status_code, error_of(two)["code"]) == (429, "too_many_concurrent_jobs")
    assert "the member's own limit is 2 at once" in error_of(two)["message"]
    go_on.set()
    assert (await first).status_code == 200
    assert (await used(stand, Limit.CONCURRENT, "ci"))["used"] == 0
    assert (await chat(stand, "ci")).status_code == 200


# ---- scopes and models


async def test_a_key_does_only_what_its_scopes_say(stand: Stand) -> None:
    """403 with a sentence that names the key, what it has and what is needed."""
    for scope in ("inference", "read", "account"):
        await new_key(stand, scope, scopes=[scope])
    refused = await chat(stand, "read")
    assert (refused.status_code, error_of(refused)["code"]) == (403, "scope_missing")
    assert (
        "Key read may not do this: it needs the scope inference, and the key has read."
        in (error_of(refused)["message"])
    )
    job = {"kind": "chat", "request": chat_body()}
    routes: list[tuple[str, str, Any, set[str]]] = [
        ("POST", "/v1/chat/completions", chat_body(), {"inference"}),
        ("POST", "/v1/completions", {"model": MODEL, "prompt": "a"}, {"inference"}),
        ("POST", "/v1/embeddings", {"model": MODEL, "input": "a"}, {"inference"}),
        ("POST", "/pool/v1/quote", job, {"inference"}),
        ("POST", "/pool/v1/jobs", job, {"inference"}),
        ("GET", "/pool/v1/jobs", None, {"inference", "read"}),
        ("GET", "/pool/v1/balance", None, {"read"}),
        ("GET", "/pool/v1/status", None, {"read"}),
        ("GET", "/pool/v1/workers", None, {"read"}),
        ("GET", "/pool/v1/keys", None, {"read"}),
        ("POST", "/pool/v1/keys", {"name": "more"}, {"account"}),
        ("POST", "/pool/v1/join-tokens", {}, {"account"}),
        ("GET", "/pool/v1/me", None, {"inference", "read", "account"}),
        ("GET", "/pool/v1/limits", None, {"inference", "read", "account"}),
        ("GET", "/v1/models", None, {"inference", "read", "account"}),
        ("GET", "/pool/v1/models", None, {"inference", "read", "account"}),
        ("GET", "/pool/v1/members", None, set()),
    ]
    for method, path, body, allowed in routes:
        for scope in ("inference", "read", "account"):
            more = {} if body is None else {"json": body}
            status = (await stand.ask(method, path, by=scope, **more)).status_code
            assert (status < 400) == (scope in allowed), (method, path, scope, status)
            assert status < 400 or status == 403


async def test_a_key_made_by_a_narrower_key_is_narrower(stand: Stand) -> None:
    await new_key(stand, "narrow", scopes=["account", "read"], models=[MODEL], expires_s=100)
    child = await new_key(stand, "child", by="narrow")
    assert child["scopes"] == ["read", "account"]
    assert child["models"] == [MODEL]
    assert child["expires_at"] is not None
    for wider in ("inference", "admin"):
        body = {"name": "x", "scopes": [wider]}
        refused = await stand.ask("POST", "/pool/v1/keys", by="narrow", json=body)
        assert (refused.status_code, error_of(refused)["code"]) == (403, "scope_not_allowed")
    refused = await stand.ask("POST", "/pool/v1/keys", json={"name": "x", "scopes": ["admin"]})
    assert refused.status_code == 403  # alice is no admin
    wrongs: list[dict[str, Any]] = [
        {"scopes": []},
        {"scopes": ["all"]},
        {"models": []},
        {"limits": {"credits_per_day": 0}},
    ]
    for wrong in wrongs:
        refused = await stand.ask("POST", "/pool/v1/keys", json={"name": "x", **wrong})
        assert refused.status_code == 400
    unknown = await stand.ask("POST", "/pool/v1/keys", json={"name": "x", "models": ["emulator-smal"]})
    assert (unknown.status_code, error_of(unknown)["code"]) == (404, "model_not_found")


async def test_a_key_for_some_models_sees_and_asks_only_those(stand: Stand) -> None:
    others = [e.name for e in stand.context.catalogue().entries if e.name != MODEL]
    await new_key(stand, "one", models=[others[0]])
    listed = (await stand.ask("GET", "/v1/models", by="one")).json()["data"]
    assert [model["id"] for model in listed] == [others[0]]
    listed = (await stand.ask("GET", "/pool/v1/models", by="one")).json()
    assert [model["name"] for model in listed] == [others[0]]
    assert (await stand.ask("GET", f"/v1/models/{others[0]}", by="one")).status_code == 200
    job = {"kind": "chat", "request": chat_body()}
    for answer in (
        await chat(stand, "one"),
        await stand.ask("POST", "/pool/v1/jobs", by="one", json=job),
        await stand.ask("POST", "/pool/v1/quote", by="one", json=job),
        await stand.ask("GET", f"/v1/models/{MODEL}", by="one"),
        await stand.ask("POST", "/pool/v1/keys", by="one", json={"name": "x", "models": [MODEL]}),
    ):
        assert (answer.status_code, error_of(answer)["code"]) == (403, "model_not_allowed")
        assert f"it is for {others[0]}" in error_of(answer)["message"]


async def test_an_admin_who_is_one_no_longer_has_no_admins_key(stand: Stand) -> None:
    """Scopes are checked on use: those of the key and those of its member's role now."""
    await new_key(stand, "ops", by="admin", scopes=["admin", "read"])
    await new_key(stand, "looks", by="admin", scopes=["read"])
    assert (await stand.ask("GET", "/pool/v1/members", by="ops")).status_code == 200
    refused = await stand.ask("GET", "/pool/v1/members", by="looks")
    assert (refused.status_code, error_of(refused)["code"]) == (403, "scope_missing")
    everybody = await stand.ask("GET", "/pool/v1/jobs?all=true", by="looks")
    assert everybody.status_code == 403
    async with stand.context.store.writing() as connection:
        await connection.exec_driver_sql("UPDATE members SET role = 'member' WHERE name = 'admin'")
    stand.clock.ahead_s += 6  # what is remembered of a key is over
    refused = await stand.ask("GET", "/pool/v1/members", by="ops")
    assert (refused.status_code, error_of(refused)["code"]) == (403, "admin_needed")
    me = (await stand.ask("GET", "/pool/v1/me", by="ops")).json()
    assert me["key"]["scopes"] == ["read"]
    assert (await stand.ask("GET", "/pool/v1/balance", by="ops")).status_code == 200


async def test_limits_of_members_are_set_by_admins_by_name_or_id(stand: Stand) -> None:
    path = "/pool/v1/members/alice/limits"
    assert (await stand.ask("PUT", path, json={})).status_code == 403
    assert (await stand.ask("GET", path)).status_code == 403
    by_id = f"/pool/v1/members/{stand.members['alice'].id}/limits"
    put = await stand.ask("PUT", by_id, by="admin", json={"concurrent_jobs": 7})
    assert put.json()["limits"] == {"concurrent_jobs": 7}
    shown = (await stand.ask("GET", path, by="admin")).json()
    assert (shown["name"], shown["effective"]) == (
        "alice",
        {"requests_per_minute": 600, "concurrent_jobs": 7},
    )
    listed = (await stand.ask("GET", "/pool/v1/members", by="admin")).json()["data"]
    assert {m["name"]: m["limits"] for m in listed}["alice"] == {"concurrent_jobs": 7}
    nobody = await stand.ask("PUT", "/pool/v1/members/nobody/limits", by="admin", json={})
    assert (nobody.status_code, error_of(nobody)["code"]) == (404, "member_not_found")
    for wrong in ({"concurrent_jobs": 0}, {"credits_per_day": -1}, {"credits_per_year": 1}):
        assert (await stand.ask("PUT", path, by="admin", json=wrong)).status_code == 400
