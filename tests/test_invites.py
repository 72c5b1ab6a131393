"""Invitations through the real API: whose line it is, once, in time, and what a crash leaves to finish."""

import asyncio
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fixtures_api import CREDIT_LINE, Stand, error_of, open_stand
from hypothesis import given
from hypothesis import strategies as st

from coordinator import keys
from coordinator.chores import EVERY_S, keep_tidy, tidy
from coordinator.core import entries
from coordinator.core.ledger import LINES, IdConflict
from coordinator.invitations import Wanted, digest_of, looks_like_invite
from coordinator.records import Invite
from potluck.membership import Accepted, NewInvite
from potluck.membership import Invite as InviteResult
from potluck.results import read, read_all

DAY = 86_400
USUAL = 100_000_000


async def post(
    stand: Stand, path: str, body: dict[str, Any], by: str = "alice", key: str = ""
) -> httpx2.Response:
    headers = {"idempotency-key": key} if key else {}
    return await stand.ask("POST", f"/pool/v1/{path}", by=by, json=body, headers=headers)


async def invited(stand: Stand, by: str = "alice", **body: Any) -> dict[str, Any]:
    response = await post(stand, "invites", body, by)
    assert response.status_code == 201, response.text
    made: dict[str, Any] = response.json()
    return made


async def accept(stand: Stand, token: str, name: str = "carol", key: str = "") -> httpx2.Response:
    """As somebody without a key."""
    headers = {"idempotency-key": key} if key else {}
    body = {"token": token, "name": name}
    return await stand.http.post(f"{stand.url}/pool/v1/invites/accept", json=body, headers=headers)


async def states(stand: Stand, by: str = "alice") -> list[str]:
    response = await stand.ask("GET", "/pool/v1/invites", by=by)
    return [invite.state for invite in read_all(InviteResult, response.json()["data"])]


def line(stand: Stand, name: str = "alice") -> int:
    found: int = stand.available(name)["credit_line"]
    return found


def refusal(response: httpx2.Response) -> tuple[int, str]:
    return response.status_code, error_of(response)["code"]


async def test_an_invited_member_has_the_line_that_the_inviter_lends(stand: Stand) -> None:
    """Set aside when it is made, shown once, good once; the lender stands in the account."""
    made = read(NewInvite, await invited(stand, credit_line=300, note="for Carol"))
    assert looks_like_invite(made.token)
    assert made.commands == (f"potluck login {stand.url} --invite {made.token} --name NAME",)
    assert line(stand) == CREDIT_LINE - 300
    response = await accept(stand, made.token)
    assert response.status_code == 201
    carol = read(Accepted, response.json())
    assert (carol.name, carol.credit_line, carol.pool) == ("carol", 300, "potluck")
    me = (await stand.ask("GET", "/pool/v1/me", by=carol.key)).json()
    assert (me["member"]["id"], me["member"]["role"]) == (carol.id, "member")
    loan = await stand.context.store.loan_of(me["account"])
    assert (loan.lender, loan.lent) == (stand.members["alice"].account, 300)
    assert refusal(await accept(stand, made.token, "dave")) == (409, "invite_used")
    (listed,) = (await stand.ask("GET", "/pool/v1/invites")).json()["data"]
    assert (listed["state"], listed["by"], listed["accepted_by"], listed["note"]) == (
        "accepted",
        "alice",
        "carol",
        "for Carol",
    )
    assert made.token not in str(listed)
    raw = (Path(stand.context.settings.home) / "potluck.db").read_bytes()
    assert made.token.encode() not in raw
    assert line(stand) == CREDIT_LINE - 300
    assert await stand.context.store.verify() == []


async def test_the_usual_line_is_capped_by_what_can_be_lent(stand: Stand) -> None:
    """A line that is owed or lent already cannot be lent; more than that is refused with both numbers."""
    assert (await invited(stand))["credit_line"] == USUAL
    refused = await post(stand, "invites", {"credit_line": CREDIT_LINE - USUAL + 1})
    assert refusal(refused) == (402, "insufficient_credits")
    assert error_of(refused)["potluck"] == {
        "credit_line": CREDIT_LINE - USUAL + 1,
        "lendable": CREDIT_LINE - USUAL,
    }
    members = stand.members
    owing = CREDIT_LINE - USUAL - 7
    spent = entries.transfer("spent", members["alice"].account, members["bob"].account, owing)
    await stand.context.pool.accounts.record(spent)
    assert (await invited(stand))["credit_line"] == 7
    assert (await invited(stand))["credit_line"] == 0
    assert len(await states(stand)) == 3


async def test_an_invitation_is_taken_back_by_who_made_it_or_an_admin(stand: Stand) -> None:
    """The line returns, once; nobody can accept it any more; an accepted one stays accepted."""
    first, second, third = [await invited(stand, credit_line=100) for _ in range(3)]
    path = f"/pool/v1/invites/{first['id']}"
    assert refusal(await stand.ask("DELETE", path, by="bob")) == (404, "invite_not_found")
    for _ in range(2):
        assert (await stand.ask("DELETE", path)).json()["state"] == "revoked"
        assert line(stand) == CREDIT_LINE - 200
    assert refusal(await accept(stand, first["token"])) == (409, "invite_ended")
    assert (await stand.ask("DELETE", f"/pool/v1/invites/{second['id']}", by="admin")).status_code == 200
    assert (await accept(stand, third["token"])).status_code == 201
    assert refusal(await stand.ask("DELETE", f"/pool/v1/invites/{third['id']}")) == (409, "invite_used")
    assert await states(stand) == ["accepted", "revoked", "revoked"]
    assert line(stand) == CREDIT_LINE - 100
    assert await states(stand, "bob") == []
    everybody = (await stand.ask("GET", "/pool/v1/invites?all=true", by="admin")).json()["data"]
    assert len(everybody) == 3
    assert refusal(await stand.ask("GET", "/pool/v1/invites?all=true")) == (403, "admin_needed")


async def test_an_invitation_expires_and_gives_its_line_back(stand: Stand) -> None:
    """When somebody tries it, when it is looked at, and by the hourly sweep."""
    looked, tried = [await invited(stand, credit_line=100, expires_s=DAY) for _ in range(2)]
    stand.clock.ahead_s = DAY + 1
    assert refusal(await accept(stand, tried["token"])) == (409, "invite_ended")
    assert line(stand) == CREDIT_LINE
    assert looked["id"] != tried["id"]
    await invited(stand, credit_line=100, expires_s=DAY)
    stand.clock.ahead_s = 3 * DAY
    assert await states(stand) == ["expired", "expired", "expired"]
    assert line(stand) == CREDIT_LINE
    stand.clock.ahead_s = 0
    await invited(stand, credit_line=100, expires_s=DAY)
    await stand.context.pool.invitations.resume(stand.clock.now() + DAY + 1)
    assert line(stand) == CREDIT_LINE
    for wrong in (0, 30 * DAY + 1):
        assert (await post(stand, "invites", {"expires_s": wrong})).status_code == 400
    assert await stand.context.store.verify() == []


async def test_an_admin_invites_out_of_the_pools_lines(stand: Stand) -> None:
    """Nobody's own line shrinks; taken back, nothing has moved."""
    before = stand.context.pool.accounts.balance(LINES)["credit_line"]
    kept, revoked = [await invited(stand, "admin", from_pool=True, credit_line=500) for _ in range(2)]
    assert line(stand, "admin") == CREDIT_LINE
    assert (await stand.ask("DELETE", f"/pool/v1/invites/{revoked['id']}", by="admin")).status_code == 200
    assert stand.context.pool.accounts.balance(LINES)["credit_line"] == before
    carol = (await accept(stand, kept["token"])).json()
    assert carol["credit_line"] == 500
    assert stand.context.pool.accounts.balance(LINES)["credit_line"] == before - 500
    member = await stand.context.store.member_by_name("carol")
    assert member is not None
    assert (await stand.context.store.loan_of(member.account)).lender is None
    assert refusal(await post(stand, "invites", {"from_pool": True})) == (403, "admin_needed")
    assert await stand.context.store.verify() == []


async def test_a_wrong_token_or_name_spends_nothing(stand: Stand) -> None:
    made = await invited(stand)
    assert refusal(await accept(stand, "pl1_wrong")) == (400, "invite_malformed")
    assert refusal(await accept(stand, "pli_" + "x" * 43)) == (404, "invite_unknown")
    taken = await accept(stand, made["token"], "Bob")
    assert (*refusal(taken), error_of(taken)["param"]) == (409, "name_taken", "name")
    assert refusal(await accept(stand, made["token"], "a\nb")) == (400, "invalid_value")
    assert (await accept(stand, made["token"], "carol")).status_code == 201


async def test_guessing_tokens_is_slowed_down(stand: Stand) -> None:
    for n in range(10):
        assert (await accept(stand, f"pli_{n:043d}")).status_code == 404
    assert refusal(await accept(stand, "pli_" + "y" * 43)) == (429, "too_many_failures")


async def test_of_many_who_accept_at_once_one_comes_in(stand: Stand) -> None:
    """And one who takes it back meanwhile cannot also get the line."""
    made = await invited(stand, credit_line=100)
    answers = await asyncio.gather(
        *(accept(stand, made["token"], f"guest-{n}") for n in range(4)),
        stand.ask("DELETE", f"/pool/v1/invites/{made['id']}"),
    )
    assert sum(answer.status_code in {200, 201} for answer in answers) == 1
    guests = [m for m in await stand.context.store.members() if m.name.startswith("guest")]
    assert line(stand) == CREDIT_LINE - 100 * len(guests)
    assert await stand.context.store.verify() == []


async def test_lost_answers_are_given_again_under_the_same_key(stand: Stand) -> None:
    """The same invitation and token, and the same first key; for another request the key is refused."""
    body = {"credit_line": 100, "note": "x"}
    first, second = [await post(stand, "invites", body, key="k") for _ in range(2)]
    assert first.json() == second.json()
    assert line(stand) == CREDIT_LINE - 100
    assert refusal(await post(stand, "invites", {**body, "note": "y"}, key="k")) == (
        409,
        "idempotency_conflict",
    )
    assert (await post(stand, "invites", body, by="bob", key="k")).json()["token"] != first.json()["token"]
    token = first.json()["token"]
    one, two = [await accept(stand, token, "carol", key="mine") for _ in range(2)]
    assert (one.status_code, one.json()) == (201, two.json())
    assert refusal(await accept(stand, token, "dave", key="mine")) == (409, "idempotency_conflict")
    assert refusal(await accept(stand, token, "carol", key="other")) == (409, "invite_used")
    assert refusal(await accept(stand, token, "carol")) == (409, "invite_used")


async def test_a_frozen_member_lets_nobody_in(stand: Stand) -> None:
    made = await invited(stand)
    await post(stand, "members/alice/freeze", {"reason": "x"}, by="admin")
    assert refusal(await accept(stand, made["token"])) == (409, "invite_suspended")
    await post(stand, "members/alice/unfreeze", {}, by="admin")
    assert (await accept(stand, made["token"])).status_code == 201


async def test_open_invitations_are_limited(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.invites.INVITES_OPEN_MAX", 1)
    await invited(stand, credit_line=0)
    assert refusal(await post(stand, "invites", {})) == (409, "too_many_invites")
    assert line(stand) == CREDIT_LINE


async def test_chores_are_done_again_and_again(stand: Stand) -> None:
    """About hourly: an invitation whose time is over gives its line back without anybody looking."""
    pool, slept, done = stand.context.pool, asyncio.Event(), asyncio.Event()

    async def sleep(seconds: float) -> None:
        assert seconds == EVERY_S
        if slept.is_set():
            done.set()
            await asyncio.Event().wait()
        wanted = Wanted(credit_line=100, expires_s=60, note="", from_pool=False)
        await pool.invitations.create(stand.members["alice"], wanted, key=None, now=pool.now() - 61)
        assert line(stand) == CREDIT_LINE - 100
        slept.set()

    task = asyncio.create_task(keep_tidy(pool, (stand.context.files, stand.context.uploads), sleep))
    await asyncio.wait_for(done.wait(), 10)
    assert line(stand) == CREDIT_LINE
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


# ---- what a crash leaves between a row and its entry


async def test_what_a_crash_cuts_off_is_finished_at_the_next_start(tmp_path: Path) -> None:
    """Accepted, taken back, never lent, closed: the rows are written and their entries are not."""
    async with open_stand(tmp_path) as stand:
        store, now = stand.context.store, stand.clock.now()
        accepted, revoked, closing = [
            await invited(stand, by, credit_line=100) for by in ("alice", "alice", "bob")
        ]
        assert closing["state"] == "open"
        new = keys.generate()
        _, carol = await store.accept_invite(digest_of(accepted["token"]), "carol", "first", new, now)
        await store.revoke_invite(revoked["id"], now)
        unlent = Invite(
            id="inv_unlent",
            member=stand.members["alice"].id,
            lender=stand.members["alice"].account,
            credit_line=50,
            from_pool=False,
            note="",
            created_at=now,
            expires_at=now + DAY,
        )
        await store.create_invite(unlent, "d" * 64)
        await store.close_member(stand.members["bob"].id, "gone", now)
        assert [m.name for m in await store.unretired()] == ["bob"]
        stand.context.pool.accounts.know(carol.account)
        for _ in range(2):  # a second time nothing is left to do
            await tidy(stand.context.pool, (stand.context.files, stand.context.uploads))
            assert stand.context.pool.accounts.balance(carol.account)["credit_line"] == 100
            assert line(stand) == CREDIT_LINE - 100
            assert line(stand, "bob") == 0
            assert await store.unretired() == []
            assert await store.invite("inv_unlent") is None
            assert await store.unsettled_invites() == []
        assert await store.verify() == []


async def test_loans_of_a_member_whose_closing_was_cut_off_are_handed_on(stand: Stand) -> None:
    """The account was emptied, and nobody else answers for its loans yet."""
    made = await invited(stand, credit_line=400)
    stand.keys["carol"] = (await accept(stand, made["token"])).json()["key"]
    made = await invited(stand, "carol", credit_line=150)
    await accept(stand, made["token"], "dave")
    store = stand.context.store
    carol, dave = [await store.member_by_name(name) for name in ("carol", "dave")]
    assert carol is not None
    assert dave is not None
    await store.close_member(carol.id, "gone", stand.clock.now())
    accounts = stand.context.pool.accounts
    retired = entries.retire(accounts.account(carol.account), stand.members["alice"].account, 400)
    await accounts.record(retired)
    assert [member.name for member in await store.closed_lenders()] == ["carol"]
    await tidy(stand.context.pool, (stand.context.files, stand.context.uploads))
    loan = await store.loan_of(dave.account)
    assert (loan.lender, loan.lent) == (stand.members["alice"].account, 150)
    assert await store.closed_lenders() == []


async def test_the_books_refuse_a_second_end_whatever_the_rows_say(stand: Stand) -> None:
    made = await invited(stand, credit_line=100)
    await accept(stand, made["token"])
    again = entries.ended(made["id"], stand.members["alice"].account, 100)
    with pytest.raises(IdConflict):
        await stand.context.pool.accounts.record(again)


@given(st.text(max_size=60))
def test_what_is_no_token_is_told_apart(text: str) -> None:
    assert not looks_like_invite(text) or text.startswith("pli_")
    assert not looks_like_invite("pli_" + "a" * 43 + "\n")
