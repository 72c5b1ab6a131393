"""Credit lines, roles, freezing, closing and keys through the real API."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
from fixtures_api import CREDIT_LINE, Said, Stand, chat_body, deltas, error_of, open_stand

from coordinator.chores import tidy
from coordinator.core import entries
from coordinator.core.ledger import COMMONS, LINES
from potluck.membership import MemberAccount
from potluck.results import read
from potluck.v1 import session_pb2

CREDIT = 1_000_000


async def ask(
    stand: Stand, method: str, path: str, body: dict[str, Any] | None = None, by: str = "admin"
) -> httpx2.Response:
    more = {} if body is None else {"json": body}
    return await stand.ask(method, f"/pool/v1/{path}", by=by, **more)


async def done(
    stand: Stand, method: str, path: str, body: dict[str, Any] | None = None, by: str = "admin"
) -> Any:
    response = await ask(stand, method, path, body, by)
    assert response.is_success, response.text
    return response.json()


def refusal(response: httpx2.Response) -> tuple[int, str]:
    return response.status_code, error_of(response)["code"]


async def move(stand: Stand, name: str, to: str, amount: int) -> None:
    """Main moves, also on credit, as work would move it."""
    members = stand.members
    cause = f"moved_{name}_{to}_{amount}"
    entry = entries.transfer(cause, members[name].account, members[to].account, amount)
    await stand.context.pool.accounts.record(entry)


async def test_an_admin_changes_a_line_down_to_what_is_owed(stand: Stand) -> None:
    """The difference comes from the pool and goes back there; both numbers are said when it cannot."""
    changed = read(
        MemberAccount, await done(stand, "PATCH", "members/alice", {"credit_line": CREDIT_LINE + 7})
    )
    assert (changed.name, changed.credit_line) == ("alice", CREDIT_LINE + 7)
    assert stand.context.pool.accounts.balance(LINES)["credit_line"] == -(4 * CREDIT_LINE + 7)
    again = await done(stand, "PATCH", "members/alice", {"credit_line": CREDIT_LINE + 7})
    assert again["credit_line"] == CREDIT_LINE + 7
    await move(stand, "alice", "bob", 300)
    refused = await ask(stand, "PATCH", "members/alice", {"credit_line": 299})
    assert refusal(refused) == (409, "line_in_use")
    assert error_of(refused)["potluck"] == {"credit_line": 299, "owed": 300, "lent_by_member": 0}
    assert (await done(stand, "PATCH", "members/alice", {"credit_line": 300}))["credit_line"] == 300
    assert refusal(await ask(stand, "PATCH", "members/alice", {"credit_line": 1}, by="bob")) == (
        403,
        "admin_needed",
    )
    assert (await ask(stand, "PATCH", "members/alice", {})).status_code == 400
    assert refusal(await ask(stand, "PATCH", "members/nobody", {"role": "admin"})) == (
        404,
        "member_not_found",
    )
    assert await stand.context.store.verify() == []


async def test_the_last_admin_stays_one(stand: Stand) -> None:
    """And is neither frozen nor closed; with a second one all of it works."""
    for method, path, body in (
        ("PATCH", "members/admin", {"role": "member"}),
        ("POST", "members/admin/freeze", {"reason": "x"}),
        ("POST", "members/admin/close", {"confirm": "admin"}),
    ):
        assert refusal(await ask(stand, method, path, body)) == (409, "last_admin")
    assert (await done(stand, "PATCH", "members/alice", {"role": "admin"}))["role"] == "admin"
    assert (await done(stand, "GET", "members", by="alice"))["data"]
    assert (await done(stand, "PATCH", "members/admin", {"role": "member"}))["role"] == "member"
    assert refusal(await ask(stand, "GET", "members")) == (403, "admin_needed")


async def test_a_frozen_member_may_look_and_earn_and_nothing_else(stand: Stand) -> None:
    """The refusal has the reason and whom to ask; the worker serves on; unfreezing undoes it."""
    made = await done(stand, "POST", "jobs", {"kind": "chat", "request": chat_body()}, by="bob")
    frozen = await done(stand, "POST", "members/bob/freeze", {"reason": "the key leaked"})
    assert (frozen["state"], frozen["why"]) == ("frozen", "the key leaked")
    for path in ("me", "balance", "jobs", "status", "workers", f"jobs/{made['id']}", "keys", "invites"):
        assert (await ask(stand, "GET", path, by="bob")).status_code == 200, path
    assert (await ask(stand, "POST", f"jobs/{made['id']}/cancel", {}, by="bob")).status_code == 200
    for path, body in (
        ("jobs", {"kind": "chat", "request": chat_body()}),
        ("transfers", {"to": "alice", "amount": 1}),
        ("join-tokens", {}),
        ("keys", {"name": "more"}),
        ("invites", {}),
        ("members/bob/close", {"confirm": "bob"}),
    ):
        refused = await ask(stand, "POST", path, body, by="bob")
        assert refusal(refused) == (403, "account_frozen"), path
        assert "the key leaked" in error_of(refused)["message"]
        assert "ask admin" in error_of(refused)["message"]
    chat = await stand.ask("POST", "/v1/chat/completions", by="bob", json=chat_body())
    assert refusal(chat) == (403, "account_frozen")
    before = stand.available("bob")["balance"]
    assert (await stand.chat()).status_code == 200
    assert stand.available("bob")["balance"] > before
    assert (await done(stand, "POST", "members/bob/unfreeze"))["state"] == "active"
    assert (await ask(stand, "POST", "keys", {"name": "more"}, by="bob")).status_code == 201
    assert refusal(await ask(stand, "POST", "members/bob/freeze", {"reason": "x"}, by="alice")) == (
        403,
        "admin_needed",
    )


async def test_closing_ends_all_that_is_open_and_leaves_an_empty_account(stand: Stand) -> None:
    """Jobs are cancelled and paid, keys, tokens, invitations and workers end, what is left is the commons'."""
    begun = asyncio.Event()

    async def script(_assign: session_pb2.Assign) -> AsyncIterator[Said]:
        yield deltas("one two", " three")[:1]
        begun.set()
        await asyncio.Event().wait()

    stand.bench.script = script
    job = await done(stand, "POST", "jobs", {"kind": "chat", "request": chat_body()}, by="alice")
    await asyncio.wait_for(begun.wait(), 10)
    token = await done(stand, "POST", "join-tokens", {}, by="alice")
    invite = await done(stand, "POST", "invites", {}, by="alice")
    assert refusal(await ask(stand, "POST", "members/alice/close", {})) == (400, "missing_required_parameter")
    closed = await done(stand, "POST", "members/alice/close", {"reason": "left the lab"})
    assert (closed["state"], closed["why"], closed["balance"], closed["credit_line"]) == (
        "closed",
        "left the lab",
        0,
        0,
    )
    assert (await ask(stand, "GET", "me", by="alice")).status_code == 401
    assert (await done(stand, "GET", f"jobs/{job['id']}"))["state"] == "cancelled"
    body = {"token": invite["token"], "name": "carol"}
    assert refusal(await ask(stand, "POST", "invites/accept", body)) == (409, "invite_ended")
    enrol = {"token": token["token"], "name": "late", "csr": "x", "receipt_key": "AAAA"}
    assert (await ask(stand, "POST", "enrol", enrol)).status_code == 400
    again = await done(stand, "POST", "members/alice/close", {"reason": "left the lab"})
    assert again == closed
    gifts: dict[str, dict[str, Any]] = {
        "transfers": {"to": "alice", "amount": 1},
        "grants": {"member": "alice", "amount": 1, "reason": "x"},
    }
    for path, gift in gifts.items():
        assert refusal(await ask(stand, "POST", path, gift)) == (409, "account_closed")
    changes: list[tuple[str, str, dict[str, Any]]] = [
        ("PATCH", "members/alice", {"credit_line": 5}),
        ("POST", "members/alice/freeze", {"reason": "x"}),
        ("POST", "members/alice/unfreeze", {}),
    ]
    for method, path, change in changes:
        assert refusal(await ask(stand, method, path, change)) == (409, "account_closed")
    assert (await ask(stand, "POST", "members/alice/keys", {"name": "x"})).status_code == 409
    entry = await stand.context.store.entry(f"{closed['account']}/retire")
    assert entry is not None
    assert await stand.context.store.verify() == []


async def test_a_member_closes_the_own_account_by_its_name(stand: Stand) -> None:
    """Its worker leaves, and what was earned goes to the commons; nobody else's account can be closed so."""
    await move(stand, "alice", "bob", 500)
    assert refusal(await ask(stand, "POST", "members/alice/close", {"confirm": "alice"}, by="bob")) == (
        403,
        "admin_needed",
    )
    for wrong in ({}, {"confirm": "Bob"}, {"reason": "x"}):
        refused = await ask(stand, "POST", "members/bob/close", wrong, by="bob")
        assert refusal(refused) == (400, "confirmation_needed")
    stream = stand.context.pool.sessions.streams[stand.worker]
    await done(stand, "POST", "members/bob/close", {"confirm": "bob"}, by="bob")
    assert stream.ended.is_set()
    assert await done(stand, "GET", "workers") == []
    assert stand.context.pool.accounts.balance(COMMONS)["balance"] == 500
    assert (await ask(stand, "GET", "balance", by="bob")).status_code == 401


async def test_the_lender_answers_for_a_debt_and_the_commons_for_the_pools_part(stand: Stand) -> None:
    invite = await done(stand, "POST", "invites", {"credit_line": 400}, by="alice")
    carol = await done(stand, "POST", "invites/accept", {"token": invite["token"], "name": "carol"})
    member = await stand.context.store.member_by_name("carol")
    assert member is not None
    stand.members["carol"] = member
    refused = await ask(stand, "PATCH", "members/carol", {"credit_line": 399})
    assert refusal(refused) == (409, "line_lent_by_member")
    assert "lent by another member" in error_of(refused)["message"]
    await done(stand, "PATCH", "members/carol", {"credit_line": 500})
    await move(stand, "carol", "bob", 450)
    await done(stand, "POST", "members/carol/close", {"reason": "vanished"})
    alice = stand.available("alice")
    assert (alice["balance"], alice["credit_line"]) == (-400, CREDIT_LINE)
    assert stand.context.pool.accounts.balance(COMMONS)["balance"] == -50
    assert (await ask(stand, "GET", "me", by=carol["key"])).status_code == 401
    assert await stand.context.store.verify() == []


async def test_loans_of_a_closed_member_are_owed_to_its_own_lender(stand: Stand) -> None:
    """Alice lent to carol, and carol to dave: when carol goes, dave's line is alice's to get back."""
    for by, name in (("alice", "carol"), ("carol", "dave")):
        line = {"alice": 400, "carol": 150}[by]
        invite = await done(stand, "POST", "invites", {"credit_line": line}, by=by)
        made = await done(stand, "POST", "invites/accept", {"token": invite["token"], "name": name})
        stand.keys[name] = made["key"]
    await done(stand, "POST", "members/carol/close", {"reason": "gone"})
    assert stand.available("alice")["credit_line"] == CREDIT_LINE - 150
    dave = await stand.context.store.member_by_name("dave")
    assert dave is not None
    loan = await stand.context.store.loan_of(dave.account)
    assert (loan.lender, loan.lent) == (stand.members["alice"].account, 150)
    await done(stand, "POST", "members/dave/close", {"reason": "gone"})
    assert stand.available("alice")["credit_line"] == CREDIT_LINE
    assert await stand.context.store.verify() == []


async def test_an_account_whose_debt_the_commons_cannot_bear_is_not_closed(tmp_path: Path) -> None:
    async with open_stand(tmp_path) as stand:
        await done(stand, "PATCH", "members/alice", {"credit_line": 3 * CREDIT_LINE})
        await move(stand, "alice", "bob", CREDIT_LINE + 1)
        refused = await ask(stand, "POST", "members/alice/close", {"reason": "x"})
        assert refusal(refused) == (409, "commons_short")
        assert error_of(refused)["potluck"] == {"debt": CREDIT_LINE + 1, "commons_available": CREDIT_LINE}
        assert (await ask(stand, "GET", "me", by="alice")).status_code == 200


async def test_what_comes_to_a_closed_account_later_is_cleared(stand: Stand) -> None:
    """For instance for a job that its worker had served before, and that ended elsewhere; each time anew."""
    await done(stand, "POST", "members/bob/close", {"reason": "gone"})
    for amount in (30, 40):
        await move(stand, "alice", "bob", amount)
        await tidy(stand.context.pool, (stand.context.files, stand.context.uploads))
        assert stand.available("bob")["balance"] == 0
    assert stand.context.pool.accounts.balance(COMMONS)["balance"] == 70
    assert await stand.context.store.verify() == []


async def test_held_earnings_of_a_closed_account_are_the_commons_and_nobody_frees_them(
    tmp_path: Path,
) -> None:
    """Not by vouching for the worker, and not at the next start."""
    async with open_stand(tmp_path, trust="strangers") as stand:
        assert (await stand.chat()).status_code == 200
        held = stand.available("bob")["held"]
        assert held > 0
        before = stand.context.pool.accounts.balance(COMMONS)["balance"]
        await done(stand, "POST", "members/bob/close", {"reason": "gone"})
        assert stand.available("bob")["held"] == 0
        assert stand.context.pool.accounts.balance(COMMONS)["balance"] == before + held
        assert refusal(await ask(stand, "POST", f"workers/{stand.worker}/vouch")) == (404, "worker_not_found")
        assert (await stand.context.store.load()).standings[stand.worker].held == 0
        assert await stand.context.store.verify() == []


async def test_an_admin_makes_and_lists_keys_for_a_member_who_lost_theirs(stand: Stand) -> None:
    made = await done(stand, "POST", "members/alice/keys", {"name": "again"})
    assert (await done(stand, "GET", "me", by=made["key"]))["member"]["name"] == "alice"
    listed = await done(stand, "GET", "members/alice/keys")
    assert [key["name"] for key in listed["data"]] == ["first", "again"]
    assert made["key"] not in str(listed)
    for method, body in (("GET", None), ("POST", {"name": "x"})):
        assert refusal(await ask(stand, method, "members/bob/keys", body, by="alice")) == (
            403,
            "admin_needed",
        )
    await done(stand, "DELETE", f"keys/{made['id']}")
    assert (await ask(stand, "GET", "me", by=made["key"])).status_code == 401


async def test_the_last_key_is_not_revoked_by_mistake(stand: Stand) -> None:
    """One's own only with force; an admin may revoke a member's; the last admin's never. Expired ones are none."""
    (first,) = (await done(stand, "GET", "keys", by="alice"))["data"]
    await done(stand, "POST", "keys", {"name": "short", "expires_s": 60}, by="alice")
    stand.clock.ahead_s = 61
    assert refusal(await ask(stand, "DELETE", f"keys/{first['id']}", by="alice")) == (409, "last_key")
    await done(stand, "DELETE", f"keys/{first['id']}?force=true", by="alice")
    assert (await ask(stand, "GET", "me", by="alice")).status_code == 401
    (bobs,) = (await done(stand, "GET", "members/bob/keys"))["data"]
    await done(stand, "DELETE", f"keys/{bobs['id']}")
    (own,) = (await done(stand, "GET", "keys"))["data"]
    assert refusal(await ask(stand, "DELETE", f"keys/{own['id']}?force=true")) == (409, "last_admin")
    await done(stand, "POST", "keys", {"name": "spare"})
    await done(stand, "DELETE", f"keys/{own['id']}?force=true")
