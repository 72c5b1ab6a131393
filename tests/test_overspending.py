"""Many ask at once with hardly anything left, over real HTTP: not one microcredit too much."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from fixtures_api import Said, Stand, chat_body, error_of, open_stand

from coordinator.core import entries
from coordinator.core.ledger import LINES
from potluck.v1 import session_pb2

AT_ONCE = 64


async def quote_of(stand: Stand) -> int:
    asked = {"kind": "chat", "request": chat_body()}
    return int((await stand.ask("POST", "/pool/v1/quote", json=asked)).json()["quote"])


async def keep_only(stand: Stand, name: str, amount: int) -> None:
    """Take all of the member's credit line back but this."""
    account = stand.members[name].account
    line = stand.available(name)["credit_line"]
    entry = entries.line(f"lin_{name}", LINES, account, amount - line)
    await stand.context.pool.accounts.record(entry)


def floor_of(stand: Stand, name: str) -> int:
    return int(stand.available(name)["available"])


@pytest.mark.parametrize("worth", [1, 3])
async def test_one_account_through_many_keys_cannot_overspend(tmp_path: Any, worth: int) -> None:
    """64 keys of one account, with a credit line for a few answers: so many are held at most at any moment."""
    async with open_stand(tmp_path, concurrent_jobs=AT_ONCE) as stand:
        worst = await quote_of(stand)
        keys = []
        for n in range(AT_ONCE):
            made = await stand.ask("POST", "/pool/v1/keys", json={"name": f"k{n}"})
            keys.append(made.raise_for_status().json()["key"])
        await keep_only(stand, "alice", worth * worst + worst - 1)

        async def ask(key: str) -> httpx2.Response:
            headers = {"authorization": f"Bearer {key}"}
            url = f"{stand.url}/v1/chat/completions"
            return await stand.http.post(url, headers=headers, json=chat_body())

        held, script = asyncio.Event(), stand.bench.script

        async def after_all_have_asked(assign: session_pb2.Assign) -> AsyncIterator[Said]:
            await held.wait()
            async for said in script(assign):
                yield said

        stand.bench.script = after_all_have_asked
        asked = [asyncio.create_task(ask(key)) for key in keys]
        for first in itertools.islice(asyncio.as_completed(asked), AT_ONCE - worth):
            await first
        held.set()
        answers = await asyncio.gather(*asked)
        served = [answer for answer in answers if answer.status_code == 200]
        refused = [answer for answer in answers if answer.status_code != 200]
        assert len(served) == worth
        assert {error_of(answer)["code"] for answer in refused} == {"insufficient_credits"}
        spent = sum(answer.json()["usage"]["potluck"]["charge"] for answer in served)
        after = stand.available("alice")
        assert (after["reserved"], after["balance"]) == (0, -spent)
        assert after["available"] >= 0
        assert stand.context.pool.engine.book.total() == 0


async def test_many_members_on_one_lent_line_cannot_overspend_together(tmp_path: Any) -> None:
    """64 members whose lines were all lent out of one: together they owe no more than that line."""
    async with open_stand(tmp_path, concurrent_jobs=AT_ONCE) as stand:
        worst = await quote_of(stand)
        pool, lender = stand.context.pool, stand.members["alice"].account
        await keep_only(stand, "alice", AT_ONCE * worst + worst // 2)
        keys, accounts = [], []
        for n in range(AT_ONCE):
            body = {"name": f"guest-{n}", "credit_line": 0}
            made = await stand.ask("POST", "/pool/v1/members", by="admin", json=body)
            keys.append(made.raise_for_status().json()["key"])
            found = await stand.context.store.member_by_name(f"guest-{n}")
            assert found is not None
            accounts.append(found.account)
            pool.accounts.know(found.account)
            await pool.accounts.record(entries.line(f"inv_{n}", lender, found.account, worst))

        async def ask(key: str) -> list[int]:
            headers = {"authorization": f"Bearer {key}"}
            url = f"{stand.url}/v1/chat/completions"
            twice = [await stand.http.post(url, headers=headers, json=chat_body()) for _ in range(2)]
            return [answer.status_code for answer in twice]

        codes = await asyncio.gather(*(ask(key) for key in keys))
        assert {first for first, _ in codes} == {200}
        assert {second for _, second in codes} == {402}, "what is left is less than another answer may cost"
        book = pool.engine.book
        owed = -sum(book.accounts[account].main for account in accounts)
        assert 0 < owed <= AT_ONCE * worst
        assert all(book.accounts[account].available >= 0 for account in (*accounts, lender))
        assert book.total() == 0
