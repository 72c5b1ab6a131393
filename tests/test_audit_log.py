"""The audit log: every change that is administration or security leaves one event, which says who and what and no
secret, and which nobody can change. The terms and the announcement of a pool, whose changes it tells.
"""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute
from fixtures_api import Stand, error_of, open_stand
from fixtures_store import NOW, url_in
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from coordinator.api import create_api
from coordinator.app import coordinator
from coordinator.audit_log.event import DETAILS_CHARS_MAX, Action, AuditEvent, details_text
from coordinator.audit_log.restart import Facts, changes
from coordinator.ca import CertificateAuthority
from coordinator.notices.notice import Announcement, Level
from coordinator.presence import Presence
from coordinator.settings import Settings
from coordinator.store import Store
from coordinator.store_errors import StoreError

# What changes something and is neither administration nor security: jobs, their data, and what the ledger tells.
UNRECORDED = {
    "/pool/v1/quote",
    "/pool/v1/jobs",
    "/pool/v1/jobs/{job_id}/cancel",
    "/pool/v1/transfers",
    "/pool/v1/renew",
    "/pool/v1/profile",
    "/pool/v1/teams",
    "/pool/v1/teams/leave",
    "/pool/v1/teams/{team}/join",
    "/pool/v1/invites/accept",  # `accept` itself writes it, for the page and the route
}


async def events(stand: Stand, query: str = "") -> list[dict[str, Any]]:
    answer = await stand.ask("GET", f"/pool/v1/audit{query}", by="admin")
    answer.raise_for_status()
    found: list[dict[str, Any]] = answer.json()["data"]
    return found


def test_every_route_that_changes_something_is_recorded_or_need_not_be(stand: Stand) -> None:
    """A new one gets `@audited(...)`, or stands above with those of its kind."""
    routers = [getattr(one, "original_router", None) for one in create_api(stand.context).routes]
    changing = [
        route
        for router in routers
        for route in (router.routes if router is not None else ())
        if isinstance(route, APIRoute)
        and (route.methods or set()) - {"GET", "HEAD"}
        and route.path.startswith("/pool/v1/")
    ]
    told = {route.endpoint.action for route in changing if hasattr(route.endpoint, "action")}
    assert {Action.KEY_MADE, Action.WORKER_PAUSED, Action.TERMS_CHANGED} <= told
    silent = {route.path for route in changing if not hasattr(route.endpoint, "action")}
    assert silent == UNRECORDED


async def test_what_admins_do_to_a_member_is_told_with_who_and_why(stand: Stand) -> None:
    alice, admin = stand.members["alice"], stand.members["admin"]
    path = f"/pool/v1/members/{alice.id}"
    done = [
        ("PATCH", path, {"credit_line": 2_000_000_000}),
        ("PUT", f"{path}/limits", {"requests_per_minute": 5_000}),
        ("POST", f"{path}/freeze", {"reason": "a stolen key"}),
        ("POST", f"{path}/unfreeze", None),
        ("POST", "/pool/v1/grants", {"member": "alice", "amount": 7, "reason": "for the cake"}),
    ]
    for method, where, body in done:
        more = {} if body is None else {"json": body}
        (await stand.ask(method, where, by="admin", **more)).raise_for_status()
    told = [(event["action"], event["subject"], event["by"]["id"]) for event in await events(stand)]
    assert told == [
        (action, alice.id, admin.id)
        for action in (
            "credits_granted",
            "member_unfrozen",
            "member_frozen",
            "member_limited",
            "member_changed",
        )
    ]
    by_action = {event["action"]: event["details"] for event in await events(stand)}
    assert by_action["member_frozen"] == {"name": "alice", "reason": "a stolen key"}
    assert by_action["credits_granted"]["reason"] == "for the cake"
    assert by_action["member_changed"]["credit_line"] == 2_000_000_000


async def test_secrets_are_made_and_not_told(stand: Stand) -> None:
    """Keys, invitations and join tokens: that they were made stands there, what they are nowhere."""
    key = (await stand.ask("POST", "/pool/v1/keys", json={"name": "ci", "scopes": ["read"]})).json()
    invite = (await stand.ask("POST", "/pool/v1/invites", json={"note": "for Dora"})).json()
    token = (await stand.ask("POST", "/pool/v1/join-tokens", json={})).json()
    accept = {"token": invite["token"], "name": "dora"}
    new = (await stand.http.post(f"{stand.url}/pool/v1/invites/accept", json=accept)).json()
    (await stand.ask("DELETE", f"/pool/v1/keys/{key['id']}")).raise_for_status()
    found = await events(stand)
    assert [event["action"] for event in found] == [
        "key_revoked", "member_joined", "join_token_made", "invitation_made", "key_made",
    ]  # fmt: skip
    assert found[-1]["subject"] == key["id"] == found[0]["subject"]
    assert found[-1]["details"] == {"name": "ci", "scopes": ["read"], "models": [], "limits": key["limits"]}
    assert found[1]["by"]["id"] == new["id"]
    for secret in (key["key"], invite["token"], token["token"], new["key"]):
        assert secret not in json.dumps(found)


async def test_what_was_refused_is_not_told(stand: Stand) -> None:
    grant = {"member": "alice", "amount": 10**15, "reason": "too much"}
    assert (await stand.ask("POST", "/pool/v1/grants", by="admin", json=grant)).status_code == 402
    assert (await stand.ask("POST", "/pool/v1/grants", json=grant)).status_code == 403
    assert await events(stand) == []


@pytest.mark.usefixtures("on_both")
async def test_it_is_read_by_admins_page_by_page(stand: Stand) -> None:
    for number in range(5):
        body = {"member": "bob", "amount": number + 1, "reason": f"round {number}"}
        (await stand.ask("POST", "/pool/v1/grants", by="admin", json=body)).raise_for_status()
    (await stand.ask("POST", "/pool/v1/keys", json={"name": "mine"})).raise_for_status()
    assert (await stand.ask("GET", "/pool/v1/audit")).status_code == 403
    first = (await stand.ask("GET", "/pool/v1/audit?limit=4", by="admin")).json()
    assert first["has_more"]
    rest = (
        await stand.ask("GET", f"/pool/v1/audit?limit=4&before={first['data'][-1]['number']}", by="admin")
    ).json()
    assert [event["number"] for event in first["data"] + rest["data"]] == [6, 5, 4, 3, 2, 1]
    assert not rest["has_more"]
    assert [event["number"] for event in await events(stand, "?member=alice")] == [6]
    assert [event["number"] for event in await events(stand, "?action=credits_granted&limit=2")] == [5, 4]
    assert len(await events(stand, f"?subject={stand.members['bob'].id}")) == 5
    assert error_of(await stand.ask("GET", "/pool/v1/audit?acton=x", by="admin"))["param"] == "acton"
    assert error_of(await stand.ask("GET", "/pool/v1/audit?action=x", by="admin"))["param"] == "action"


async def test_nobody_changes_it_afterwards(on_both: str, tmp_path: Any) -> None:
    store = await Store.open(url_in(tmp_path), NOW)
    try:
        event = AuditEvent(action=Action.SIGNED_IN, at=NOW, details={"a": 1})
        assert [await store.record_event(event) for _ in range(2)] == [1, 2]
        for statement in (
            "UPDATE audit_events SET action = 'x'",
            "DELETE FROM audit_events",
            *(["INSERT OR REPLACE INTO audit_events SELECT * FROM audit_events"] * (on_both == "sqlite")),
        ):
            with pytest.raises(StoreError, match="the audit log is append-only"):
                async with store.writing() as connection:
                    await connection.execute(text(statement))
        assert await store.last_event() == 2
    finally:
        await store.close()


@pytest.mark.usefixtures("on_both")
async def test_when_a_member_was_last_here_outlives_the_coordinator(stand: Stand) -> None:
    async def seen() -> dict[str, Any]:
        found = (await stand.ask("GET", "/pool/v1/members", by="admin")).json()["data"]
        return {one["name"]: one["seen_at"] for one in found}

    assert (await seen())["alice"] is None
    (await stand.ask("GET", "/pool/v1/balance")).raise_for_status()
    first = (await seen())["alice"]
    stand.clock.ahead_s += 100
    (await stand.ask("GET", "/pool/v1/balance")).raise_for_status()
    assert (await seen())["alice"] > first
    await stand.context.presence.keep()
    again = Presence(stand.context.store)
    await again.load()
    assert again.last == stand.context.presence.last
    assert stand.members["bob"].id not in again.last


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=600),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(max_size=12), JSON, max_size=12))
def test_details_are_bounded_json_whatever_was_sent(details: dict[str, Any]) -> None:
    written = details_text(details)
    assert len(written) <= DETAILS_CHARS_MAX
    assert json.loads(written).keys() <= details.keys()


async def test_what_changed_while_the_coordinator_was_stopped_is_told(tmp_path: Path) -> None:
    """Settings, models and the authority are files of its machine: a start finds what is another, once."""
    (tmp_path / "coordinator").mkdir()
    toml = tmp_path / "coordinator" / "coordinator.toml"

    async def started(*, emulator: bool = False) -> list[tuple[str, str, Any]]:
        settings = Settings(home=tmp_path, http="127.0.0.1:0", grpc="127.0.0.1:0", emulator=emulator)
        async with coordinator(settings) as running:
            found = await running.store.events(limit=50)
            return [(e.action.value, e.subject, e.details.get("to")) for e in found if e.member is None]

    first = await started()
    assert [action for action, _, _ in first] == ["member_added"]
    assert await started() == first
    toml.write_text("fee_permille = 30\n")
    changed = await started(emulator=True)
    assert sorted(changed[:-1]) == [
        ("model_added", "emulator-small", None),
        ("setting_changed", "emulator", True),
        ("setting_changed", "fee_permille", 30),
    ]
    assert await started(emulator=True) == changed
    CertificateAuthority.rotate(tmp_path, "potluck", time.time())
    assert (await started(emulator=True))[0][0] == "authority_rotated"


FACTS = st.builds(
    Facts,
    st.dictionaries(st.text(max_size=3), st.integers(0, 2), max_size=4),
    st.dictionaries(st.text(max_size=3), st.sampled_from(["x", "y"]), max_size=4),
    st.sampled_from(["one", "two"]),
)


@given(FACTS, FACTS)
def test_each_difference_is_told_once_and_nothing_else(before: Facts, now: Facts) -> None:
    found = changes(before, now, NOW)
    told = [(event.action, event.subject) for event in found]
    assert len(set(told)) == len(told)
    assert {name for action, name in told if action is Action.SETTING_CHANGED} == {
        name for name, value in now.settings.items() if before.settings.get(name, value) != value
    }
    models = {name for action, name in told if action.value.startswith("model_")}
    assert models == {name for name, _ in set(before.models.items()) ^ set(now.models.items())}
    assert ((Action.AUTHORITY_ROTATED, "") in told) == (before.authority != now.authority)
    assert changes(now, now, NOW) == []


# -- terms and announcement


async def test_terms_are_asked_about_once_for_each_version(stand: Stand) -> None:
    async def terms(by: str = "alice") -> dict[str, Any]:
        found: dict[str, Any] = (await stand.ask("GET", "/pool/v1/terms", by=by)).json()
        return found

    assert (await terms())["accepted"]
    for text_, version in (("Be kind.", 1), ("Be kind.", 1), ("Be kind.\n\nAsk nicely.", 2)):
        put = await stand.ask("PUT", "/pool/v1/terms", by="admin", json={"text": text_})
        assert put.json()["version"] == version
    assert not (await terms())["accepted"]
    accept = "/pool/v1/terms/accept"
    assert error_of(await stand.ask("POST", accept, json={"version": 1}))["code"] == "terms_changed"
    assert (await stand.ask("POST", accept, json={"version": 2})).json()["accepted"]
    assert (await terms())["accepted"]
    assert not (await terms("bob"))["accepted"]
    assert (await stand.ask("PUT", "/pool/v1/terms", json={"text": "mine"})).status_code == 403
    (await stand.chat()).raise_for_status()
    (await stand.ask("POST", "/v1/chat/completions", by="bob", json={
        "model": "emulator-small", "messages": [{"role": "user", "content": "hi"}]})).raise_for_status()  # fmt: skip
    assert [e["action"] for e in await events(stand)][:2] == ["terms_accepted", "terms_changed"]


async def test_a_pool_may_wait_until_its_terms_are_accepted(tmp_path: Any) -> None:
    async with open_stand(tmp_path, terms_required=True) as stand:
        (await stand.chat()).raise_for_status()
        (await stand.ask("PUT", "/pool/v1/terms", by="admin", json={"text": "Be kind."})).raise_for_status()
        assert error_of(await stand.chat())["code"] == "terms_not_accepted"
        assert (await stand.ask("GET", "/pool/v1/balance")).status_code == 200
        (await stand.ask("POST", "/pool/v1/terms/accept", json={"version": 1})).raise_for_status()
        (await stand.chat()).raise_for_status()


async def test_an_announcement_holds_until_its_time_is_over(stand: Stand) -> None:
    async def shown() -> Any:
        return (await stand.ask("GET", "/pool/v1/announcement")).json()["text"]

    body = {"text": "Down at noon", "level": "warn", "expires_s": 60}
    assert (await stand.ask("PUT", "/pool/v1/announcement", json=body)).status_code == 403
    (await stand.ask("PUT", "/pool/v1/announcement", by="admin", json=body)).raise_for_status()
    assert await shown() == "Down at noon"
    stand.clock.ahead_s += 61
    assert await shown() is None
    (
        await stand.ask("PUT", "/pool/v1/announcement", by="admin", json={"text": "Up again"})
    ).raise_for_status()
    assert await shown() == "Up again"
    again = await stand.context.store.announcement()
    assert again is not None
    assert (again.text, again.level, again.expires_at) == ("Up again", Level.INFO, None)
    (await stand.ask("PUT", "/pool/v1/announcement", by="admin", json={"text": ""})).raise_for_status()
    assert await stand.context.store.announcement() is None


@given(st.floats(0, 1e9), st.none() | st.floats(0, 1e9))
def test_an_announcement_is_shown_exactly_before_its_end(now: float, end: float | None) -> None:
    made = Announcement(text="x", level=Level.INFO, at=0.0, expires_at=end)
    assert made.shown(now) == (end is None or now < end)


async def test_settings_say_where_they_came_from(stand: Stand) -> None:
    found = (await stand.ask("GET", "/pool/v1/settings", by="admin")).json()["data"]
    assert found["emulator"]["value"] is True
    assert found["terms_required"] == {
        "value": False, "origin": "default", "description": "who has not accepted the pool's terms may only look",
    }  # fmt: skip
    assert (await stand.ask("GET", "/pool/v1/settings")).status_code == 403
