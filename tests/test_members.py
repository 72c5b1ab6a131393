"""Members, their names, credit lines and keys."""

from pathlib import Path

import pytest
from fixtures_store import LINE, NOW, world

from coordinator import keys, members
from coordinator.core import ledger
from coordinator.core.jobs import MemberId
from coordinator.records import Role
from coordinator.store_errors import NameTaken, StoreConflict, StoreError, Unknown

pytestmark = pytest.mark.usefixtures("on_both")


@pytest.mark.sqlite
async def test_a_new_member_has_an_account_and_a_key_that_opens(tmp_path: Path) -> None:
    async with world(tmp_path, members=0) as pool:
        member, key = await pool.store.create_member("Zoë", Role.ADMIN, 5, "laptop", NOW)
        assert member.account.startswith("acc_")
        assert member.id not in member.account
        found = await pool.store.authenticate(keys.digest_of(key), NOW)
        assert found is not None
        assert found.member == member == await pool.store.member(member.id)
        assert (found.key.name, found.key.display) == ("laptop", key[:17] + "…")
        accounts = {a.id: a for a in (await pool.store.load()).accounts}
        assert accounts[member.account] == ledger.Account(member.account)
        raw = (tmp_path / "potluck.db").read_bytes() + (tmp_path / "potluck.db-wal").read_bytes()
        assert key.encode() not in raw
        assert keys.digest_of(key).encode() in raw


async def test_one_name_in_any_spelling(tmp_path: Path) -> None:
    """Case and Unicode forms do not make two members."""
    async with world(tmp_path, members=0) as pool:
        await pool.store.create_member("Zoë", Role.MEMBER, 0, "k", NOW)
        for name in ("zoë", "ZOË", "Zoe\u0308", " Zoë "):
            with pytest.raises(NameTaken, match="choose another name"):
                await pool.store.create_member(name, Role.MEMBER, 0, "k", NOW)
            found = await pool.store.member_by_name(name)
            assert found is not None
            assert found.name == "Zoë"
        assert len(await pool.store.members()) == 1


@pytest.mark.parametrize("name", ["", " ", "a" * 65, "two\nlines", "null\0", "\ud800"])
async def test_names_that_cannot_be_shown_are_refused(tmp_path: Path, name: str) -> None:
    async with world(tmp_path, members=0) as pool:
        with pytest.raises(StoreError, match="1 to 64 characters"):
            await pool.store.create_member(name, Role.MEMBER, 0, "k", NOW)
        assert await pool.store.members() == []


async def test_a_revoked_or_expired_key_opens_nothing(tmp_path: Path) -> None:
    async with world(tmp_path, members=2) as pool:
        mine, other = (member.id for member in pool.members)
        key, text = await pool.store.create_key(mine, "phone", NOW, expires_at=NOW + 10)
        digest = keys.digest_of(text)
        assert await pool.store.authenticate(digest, NOW + 9) is not None
        assert await pool.store.authenticate(digest, NOW + 10) is None
        with pytest.raises(Unknown):
            await pool.store.revoke_key(key.id, NOW, member=other)
        revoked = await pool.store.revoke_key(key.id, NOW + 1, member=mine)
        assert revoked.revoked_at == NOW + 1
        assert (await pool.store.revoke_key(key.id, NOW + 5)).revoked_at == NOW + 1
        assert await pool.store.authenticate(digest, NOW + 2) is None
        assert await pool.store.authenticate("0" * 64, NOW) is None
        assert [k.name for k in await pool.store.list_keys(mine)] == ["key", "phone"]
        with pytest.raises(Unknown):
            await pool.store.create_key(MemberId("mem_nobody"), "x", NOW)


async def test_keys_of_a_member_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Revoked ones do not count."""
    monkeypatch.setattr(members, "KEYS_PER_MEMBER_MAX", 2)
    async with world(tmp_path, members=2) as pool:
        mine = pool.members[0].id
        key, _ = await pool.store.create_key(mine, "second", NOW)
        with pytest.raises(StoreConflict, match="at most 2 keys"):
            await pool.store.create_key(mine, "third", NOW)
        await pool.store.revoke_key(key.id, NOW)
        await pool.store.create_key(mine, "third", NOW)


async def test_a_line_stands_in_unopened_until_it_is_in_the_ledger(tmp_path: Path) -> None:
    """What a crash between the two would leave, the next start lends; what is lent is not lent again."""
    async with world(tmp_path) as pool:
        assert await pool.store.unopened() == []
        rich, _ = await pool.store.create_member("rich", Role.MEMBER, 700, "key", NOW)
        await pool.store.create_member("poor", Role.MEMBER, 0, "key", NOW)
        assert await pool.store.unopened() == [(rich.account, 700)]
        pool.book.accounts[rich.account] = ledger.Account(rich.account)
        await pool.open_lines()
        assert await pool.store.unopened() == []
        loaded = {account.id: account for account in (await pool.store.load()).accounts}
        assert loaded[rich.account] == ledger.Account(rich.account, 700)
        assert loaded[ledger.LINES].credit_line == -(4 * LINE + 700)
        with pytest.raises(StoreError, match="0 or more"):
            await pool.store.create_member("odd", Role.MEMBER, -1, "key", NOW)
        assert await pool.store.verify() == []


async def test_the_pools_own_accounts_are_made_once(tmp_path: Path) -> None:
    """A later start with another line leaves them alone."""
    async with world(tmp_path) as pool:
        await pool.store.create_own_accounts(7)
        assert await pool.store.unopened() == []
        commons = {account.id: account for account in (await pool.store.load()).accounts}[ledger.COMMONS]
        assert commons.credit_line == LINE
