"""API keys, and the first start that writes one into a file."""

import sys
from pathlib import Path
from typing import Any

import pytest
from fixtures_store import NOW, url_in

from coordinator import keys
from coordinator.bootstrap import ensure_first_start
from coordinator.ids import new_id
from coordinator.keys import KeyFileError
from coordinator.records import Role
from coordinator.settings import Settings
from coordinator.store import Store

pytestmark = pytest.mark.usefixtures("on_both")


def test_a_key_looks_like_one_and_its_digest_does_not_tell_it() -> None:
    key = keys.generate()
    assert keys.looks_like_key(key.text)
    assert len(key.text) == len("sk-potluck-") + 43
    assert key.text.startswith(key.display.removesuffix("…"))
    assert len(key.digest) == 64
    assert keys.same_digest(key.digest, keys.digest_of(key.text))
    assert not keys.same_digest(key.digest, keys.generate().digest)
    assert key.text not in repr(key)
    for wrong in (key.text[:-1], key.text + "a", "sk-" + key.text, "", "sk-potluck-" + "ä" * 43):
        assert not keys.looks_like_key(wrong)
    assert keys.digest_of("\ud800")  # whatever a header holds has a digest


def test_ids_say_what_they_name_and_sort_by_time() -> None:
    ids = [new_id("job") for _ in range(100)]
    assert len(set(ids)) == 100
    moments = [one[4:13] for one in ids]  # 45 of the 48 bits of the moment
    assert moments == sorted(moments)
    assert all(one.startswith("job_") and one == one.lower() for one in ids)


@pytest.fixture
async def first(tmp_path: Path) -> Any:
    store = await Store.open(url_in(tmp_path), NOW)
    yield store, Settings(home=tmp_path)
    await store.close()


async def test_the_first_start_makes_a_commons_an_admin_and_a_key(first: Any, tmp_path: Path) -> None:
    store, settings = first
    file = tmp_path / "coordinator" / "admin.key"
    assert await ensure_first_start(store, settings, NOW) == str(file)
    key = file.read_text().strip()
    found = await store.authenticate(keys.digest_of(key), NOW)
    assert found is not None
    assert (found.member.name, found.member.role) == ("admin", Role.ADMIN)
    assert {account.id for account in (await store.load()).accounts} == {
        "commons",
        "lines",
        found.member.account,
    }
    if sys.platform != "win32":
        assert file.stat().st_mode & 0o777 == 0o600
    assert await ensure_first_start(store, settings, NOW + 1) is None
    assert file.read_text().strip() == key


async def test_a_lost_key_file_makes_no_second_admin(first: Any, tmp_path: Path) -> None:
    """Whoever can delete a file must not be handed a key by it."""
    store, settings = first
    await ensure_first_start(store, settings, NOW)
    file = tmp_path / "coordinator" / "admin.key"
    file.unlink()
    assert await ensure_first_start(store, settings, NOW + 1) is None
    assert not file.exists()
    assert len(await store.members()) == 1


async def test_a_crash_between_file_and_database_is_mended(first: Any, tmp_path: Path) -> None:
    """The key in the file becomes the admin's."""
    store, settings = first
    key = keys.generate()
    keys.write_admin_key(settings.folder, key)
    assert await ensure_first_start(store, settings, NOW) is not None
    assert await store.authenticate(key.digest, NOW) is not None


async def test_a_key_file_that_cannot_be_used_is_said(first: Any, tmp_path: Path) -> None:
    store, settings = first
    path = settings.folder / "admin.key"
    path.parent.mkdir()
    for content in (b"", b"noise\n", b"\xff" * 400):
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(KeyFileError, match="holds no API key"):
            await ensure_first_start(store, settings, NOW)
        with pytest.raises(KeyFileError, match="is there already"):
            keys.write_admin_key(settings.folder, keys.generate())
        assert path.read_bytes() == content
    if sys.platform != "win32":
        path.write_text(keys.generate().text)
        path.chmod(0o640)
        with pytest.raises(KeyFileError, match="others can read"):
            await ensure_first_start(store, settings, NOW)
    path.unlink()
    path.mkdir(0o700)
    with pytest.raises(KeyFileError, match="cannot be read"):
        await ensure_first_start(store, settings, NOW)
    assert await store.members() == []
