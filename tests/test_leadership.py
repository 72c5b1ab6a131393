"""Of several coordinators on one PostgreSQL one writes, and never two: who waits, who takes over, and what becomes of
a leader that was stopped and wakes up."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from fixtures_postgres import Postgres
from fixtures_store import NOW

from coordinator import leadership
from coordinator.leadership import LedElsewhere, Seat
from coordinator.store import Store
from coordinator.store_errors import LeadershipLost, StoreUnavailable

FIRST, SECOND = Seat("http://a", "a:1"), Seat("http://b", "b:1")


@pytest.fixture
def url(postgres: Postgres, postgres_template: str) -> Iterator[str]:
    with postgres.database(postgres_template) as name:
        yield postgres.url(name)


@asynccontextmanager
async def leading(url: str, seat: Seat = FIRST) -> AsyncIterator[Store]:
    store = await Store.open(url, NOW, seat, lambda *_: None)
    try:
        yield store
    finally:
        await store.close()


def asleep(store: Store) -> None:
    """As far as others see, its process was stopped."""
    assert store.leadership is not None
    store.leadership._beating.cancel()


async def test_a_tool_is_refused_while_somebody_leads_and_let_in_afterwards(url: str) -> None:
    async with leading(url) as first:
        with pytest.raises(LedElsewhere, match="a coordinator at http://a runs on this database"):
            await Store.open(url, NOW)
        await first.put_setting("still", "mine")
    await (await Store.open(url, NOW)).close()


async def test_who_waits_takes_over_at_a_clean_end_and_is_known_before(url: str) -> None:
    seen: list[Seat] = []
    async with asyncio.timeout(60):
        async with leading(url) as first:
            assert first.leadership is not None
            told = asyncio.Event()
            first.leadership.on_others = told.set
            waits = asyncio.create_task(Store.open(url, NOW, SECOND, lambda seat, _: seen.append(seat)))
            await told.wait()
            assert first.leadership.others == ("b:1",)
            await first.put_setting("who", "first")
            assert not waits.done()
        second = await waits
    assert set(seen) == {FIRST}
    assert await second.setting("who") == "first"
    await second.put_setting("who", "second")
    await second.close()


async def test_a_leader_that_wakes_up_writes_nothing(url: str) -> None:
    """Neither by the tick's way nor by the others'; and it knows."""
    async with leading(url) as first:
        await first.put_setting("who", "first")
        asleep(first)
        async with leading(url, SECOND) as second:
            with pytest.raises(LeadershipLost, match="has taken over"):
                await first.put_setting("who", "first again")
            with pytest.raises(LeadershipLost):
                await first.transact(
                    lambda transaction: transaction.read("DELETE FROM settings RETURNING name")
                )
            assert first.leadership is not None
            assert isinstance(first.leadership.lost.result(), LeadershipLost)
            assert await second.setting("who") == "first"
            await second.put_setting("who", "second")
            assert second.leadership is not None
            assert second.leadership.epoch == first.leadership.epoch + 1
            asleep(second)  # closing the first must not free what is the second's
        async with leading(url) as third:
            assert await third.setting("who") == "second"


async def test_a_beat_that_finds_another_epoch_tells(url: str) -> None:
    async with leading(url) as first:
        assert first.leadership is not None
        first.leadership.epoch -= 1
        async with asyncio.timeout(60):
            assert isinstance(await first.leadership.lost, LeadershipLost)


async def test_a_loop_that_is_busy_does_not_cost_the_pool_its_leader(url: str, postgres: Postgres) -> None:
    """Nothing is awaited here: the loop does not come round while the beats are counted."""
    name = url.rpartition("/")[2]
    async with leading(url):
        beats, ends = set[str](), time.monotonic() + 60
        while len(beats) < 4 and time.monotonic() < ends:
            beats.add(postgres.ask("psql", "--command=SELECT beat FROM leader", name))
        assert len(beats) == 4


async def test_a_loop_that_never_comes_round_any_more_is_given_up(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leadership, "SILENT_S", 1.0)
    async with leading(url) as first, asyncio.timeout(60):
        assert first.leadership is not None
        first.leadership._beating.busy_s_max = -1.0  # as if it had been away for so long each time
        async with leading(url, SECOND) as second:
            assert second.leadership is not None
            assert second.leadership.epoch == first.leadership.epoch + 1
            asleep(first)


async def test_a_transaction_in_which_the_leader_fell_asleep_is_undone(url: str) -> None:
    """The takeover waits for what is being written, and the server ends what nobody goes on with."""
    async with leading(url) as first:
        await first.put_setting("who", "first")
        with pytest.raises(StoreUnavailable):
            async with first.writing() as connection:
                await connection.exec_driver_sql("UPDATE settings SET value = 'half' WHERE name = 'who'")
                asleep(first)
                second = await Store.open(url, NOW, SECOND, lambda *_: None)
                await connection.exec_driver_sql("UPDATE settings SET value = 'whole' WHERE name = 'who'")
        assert await second.setting("who") == "first"
        await second.close()


async def test_a_cut_connection_is_refused_and_then_all_goes_on(url: str, postgres: Postgres) -> None:
    """Nothing that was committed is lost, and the leader stays the leader."""
    name = url.rpartition("/")[2]
    cut = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
    async with leading(url) as first, asyncio.timeout(60):
        assert first.leadership is not None
        epoch = first.leadership.epoch
        await first.put_setting("one", "1")
        with pytest.raises(StoreUnavailable):
            async with first.writing() as connection:
                await connection.exec_driver_sql("UPDATE settings SET value = '2' WHERE name = 'one'")
                await asyncio.to_thread(postgres.ask, "psql", f"--command={cut}", "postgres")
        await first.put_setting("two", "2")
        with pytest.raises(LedElsewhere):  # it still beats
            await Store.open(url, NOW)
        assert (await first.setting("one"), await first.setting("two")) == ("1", "2")
        assert first.leadership.epoch == epoch
