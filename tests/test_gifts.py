"""Transfers and grants through the real API: what is refused, what is done once, and what stands in the books."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fixtures_api import CREDIT_LINE, Stand, error_of, open_stand

from coordinator.core.ledger import COMMONS
from potluck.membership import Grant, Transfer
from potluck.results import read

CREDIT = 1_000_000


async def post(stand: Stand, path: str, body: dict[str, Any], by: str, key: str = "") -> httpx2.Response:
    headers = {"idempotency-key": key} if key else {}
    return await stand.ask("POST", f"/pool/v1/{path}", by=by, json=body, headers=headers)


async def send(stand: Stand, amount: int, to: str = "bob", by: str = "alice", **more: Any) -> httpx2.Response:
    key = more.pop("key", "")
    return await post(stand, "transfers", {"to": to, "amount": amount, **more}, by, key)


async def endow(stand: Stand, amount: int, name: str = "alice") -> None:
    body = {"member": name, "amount": amount, "reason": "a start"}
    assert (await post(stand, "grants", body, "admin")).status_code == 201


def refusal(response: httpx2.Response) -> tuple[int, str]:
    return response.status_code, error_of(response)["code"]


async def test_a_grant_comes_out_of_the_commons_in_the_open(stand: Stand) -> None:
    """The reason stands in the entry's details; the same key grants once; the commons has a floor."""
    body = {"member": "Alice", "amount": 5 * CREDIT, "reason": "wrote the docs"}
    first, second = [await post(stand, "grants", body, "admin", "once") for _ in range(2)]
    assert first.status_code == 201
    assert first.json() == second.json()
    assert read(Grant, first.json()).commons.balance == -5 * CREDIT
    assert first.json()["to"] == {"id": stand.members["alice"].id, "name": "alice"}
    assert stand.available("alice")["balance"] == 5 * CREDIT
    assert stand.context.pool.accounts.balance(COMMONS)["balance"] == -5 * CREDIT
    recorded = await stand.context.store.entry(f"{first.json()['id']}/grant")
    assert recorded is not None
    assert json.loads(recorded.entry.details) == {
        "reason": "wrote the docs",
        "to": stand.members["alice"].account,
        "by": stand.members["admin"].account,
    }
    assert refusal(await post(stand, "grants", {**body, "amount": 1}, "admin", "once")) == (
        409,
        "idempotency_conflict",
    )
    assert refusal(await post(stand, "grants", body, "alice")) == (403, "admin_needed")
    for wrong in ("", " ", "x" * 201, "two\nlines"):
        refused = await post(stand, "grants", {**body, "reason": wrong}, "admin")
        assert (refused.status_code, error_of(refused)["param"]) == (400, "reason")
    more = {**body, "amount": CREDIT_LINE - 5 * CREDIT + 1}
    short = await post(stand, "grants", more, "admin")
    assert refusal(short) == (402, "commons_short")
    assert error_of(short)["potluck"]["available"] == CREDIT_LINE - 5 * CREDIT
    assert await stand.context.store.verify() == []


async def test_what_one_has_is_sent_and_a_credit_line_is_not(stand: Stand) -> None:
    refused = await send(stand, 1)
    assert refusal(refused) == (402, "insufficient_credits")
    assert error_of(refused)["potluck"]["sendable"] == 0
    await endow(stand, 3 * CREDIT)
    done = await send(stand, 2 * CREDIT, to=stand.members["bob"].id, note="for the night shift 🌙")
    assert done.status_code == 201
    body = done.json()
    sent = read(Transfer, body)
    assert (sent.to.name, sent.available, sent.note) == ("bob", CREDIT + CREDIT_LINE, body["note"])
    assert (body["to"]["name"], body["amount"], body["balance"]) == ("bob", 2 * CREDIT, CREDIT)
    recorded = await stand.context.store.entry(f"{body['id']}/transfer")
    assert recorded is not None
    assert recorded.at == body["at"]
    assert json.loads(recorded.entry.details) == {
        "from": stand.members["alice"].account,
        "to": stand.members["bob"].account,
        "note": "for the night shift 🌙",
    }
    assert refusal(await send(stand, CREDIT + 1)) == (402, "insufficient_credits")
    assert stand.available("bob")["balance"] == 2 * CREDIT
    assert await stand.context.store.verify() == []


async def test_what_makes_no_sense_is_refused_by_name(stand: Stand) -> None:
    await endow(stand, CREDIT)
    assert refusal(await send(stand, 1, to="alice")) == (400, "invalid_value")
    assert refusal(await send(stand, 1, to="ALICE")) == (400, "invalid_value")
    assert refusal(await send(stand, 1, to="nobody")) == (404, "member_not_found")
    for change in ({"amount": 0}, {"amount": -1}, {"amount": 1.5}, {"note": "x" * 201}, {"note": "a\nb"}):
        refused = await post(stand, "transfers", {"to": "bob", "amount": 1, **change}, "alice")
        assert (refused.status_code, error_of(refused)["param"]) == (400, next(iter(change)))
    assert stand.available("alice")["balance"] == CREDIT


async def test_the_same_idempotency_key_sends_once(stand: Stand) -> None:
    """Also many at once, also when what is left would not do for a second time; another request is refused."""
    await endow(stand, CREDIT)
    answers = await asyncio.gather(*(send(stand, CREDIT, key="rent") for _ in range(5)))
    assert {a.status_code for a in answers} == {201}
    assert len({a.json()["id"] for a in answers}) == 1
    assert stand.available("bob")["balance"] == CREDIT
    assert refusal(await send(stand, 1, key="rent")) == (409, "idempotency_conflict")
    assert refusal(await send(stand, CREDIT, key="rent", note="other")) == (409, "idempotency_conflict")
    await endow(stand, CREDIT, "bob")
    assert (await send(stand, 1, to="alice", by="bob", key="rent")).status_code == 201  # bob's own key


async def test_two_at_once_never_send_the_same_credit_twice(stand: Stand) -> None:
    await endow(stand, 3)
    answers = await asyncio.gather(*(send(stand, 2) for _ in range(4)))
    assert sorted(a.status_code for a in answers) == [201, 402, 402, 402]
    assert stand.available("bob")["balance"] == 2


async def test_the_days_limit_is_counted_from_the_ledger_and_ends_with_the_day(tmp_path: Path) -> None:
    """In UTC; grants and what is received do not count; it says what is left and until when."""
    async with open_stand(tmp_path, transfer_day_max=100) as stand:
        await endow(stand, 1_000)
        await endow(stand, 1_000, "bob")
        assert (await send(stand, 60)).status_code == 201
        assert (await send(stand, 50, to="alice", by="bob")).status_code == 201
        refused = await send(stand, 41)
        assert refusal(refused) == (429, "transfer_limit")
        said = error_of(refused)["potluck"]
        assert (said["sent"], said["limit"], said["left"]) == (60, 100, 40)
        assert said["until"].endswith("T00:00:00.000Z")
        assert 0 < int(refused.headers["retry-after"]) <= 86_400
        assert sorted(a.status_code for a in await asyncio.gather(*(send(stand, 30) for _ in range(3)))) == [
            201,
            429,
            429,
        ]
        account = stand.members["alice"].account
        assert await stand.context.store.sent_since(account, said["until"][:4]) == 90
        stand.clock.ahead_s = 86_400
        assert (await send(stand, 100)).status_code == 201


@pytest.mark.parametrize("body", [{}, {"to": "bob"}, {"to": "bob", "amount": 1, "memo": "x"}])
async def test_a_transfer_names_all_that_it_needs_and_nothing_else(
    stand: Stand, body: dict[str, Any]
) -> None:
    assert (await post(stand, "transfers", body, "alice")).status_code == 400


async def test_a_key_with_a_budget_gives_nothing_away(stand: Stand) -> None:
    """Nor does a key that it makes: else whoever has the key takes by a transfer what no job may cost."""
    await endow(stand, 5 * CREDIT)
    limited = {"name": "ci", "limits": {"credits_per_day": CREDIT}}
    stand.keys["ci"] = (await post(stand, "keys", limited, "alice")).json()["key"]
    stand.keys["child"] = (await post(stand, "keys", {"name": "child"}, "ci")).json()["key"]
    for key in ("ci", "child"):
        assert refusal(await send(stand, 1, by=key)) == (403, "key_limited")
        assert refusal(await post(stand, "invites", {"credit_line": CREDIT}, key)) == (403, "key_limited")
    unhurried = {"name": "slow", "limits": {"requests_per_minute": 100}}
    stand.keys["slow"] = (await post(stand, "keys", unhurried, "alice")).json()["key"]
    assert (await send(stand, 1, by="slow")).status_code == 201
