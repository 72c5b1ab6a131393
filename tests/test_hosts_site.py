"""Several engines as one host, shown with engines in real processes: who is asked, and what a death costs."""

import asyncio
from collections.abc import Sequence

import psutil
import pytest
from fixtures_engine import Heard, chat, start, stop

from potluck.v1 import engine_pb2, work_pb2
from worker.hosts.host import EngineStartError, Host, OnEvent
from worker.hosts.process import EngineHost
from worker.hosts.site import SiteHost, together


class Replicas:
    """Starts an emulator for each place; places in `broken` do not start."""

    def __init__(self, *places: str) -> None:
        self.places = list(places)
        self.broken: set[str] = set()
        self.hosts: dict[str, list[Host]] = {place: [] for place in places}

    async def now(self) -> Sequence[str]:
        return self.places

    async def start(self, place: str, heard: OnEvent) -> Host:
        if place in self.broken:
            raise EngineStartError("no_room", f"no room in {place}")
        options = {"ttft_ms": "1", "tpot_ms": "5", "hang_after_tokens": "3"}
        load = engine_pb2.Load(engine="emulator", model="m", slots=2, options=options)
        host = await EngineHost.start(load, heard)
        self.hosts[place].append(host)
        return host

    async def site(self, heard: Heard) -> SiteHost[str]:
        """When all that can start are there."""
        site = await SiteHost.start("m", heard, self.now, self.start)
        await heard.until(lambda: site.loaded.slots == 2 * len(set(self.places) - self.broken))
        return site


async def test_slots_add_up_and_the_least_busy_replica_is_asked() -> None:
    heard, replicas = Heard(), Replicas("a", "b")
    site = await replicas.site(heard)
    try:
        for job in ("one", "two", "three", "four"):
            site.send(start(chat(), job))
        assert [len(hosts[0].running) for hosts in replicas.hosts.values()] == [2, 2]
        assert len(site.running) == 4
        assert len(site.pids) == 2
        assert site.memory_bytes() > 2_000_000
        site.send(stop("one"))
        assert (await heard.ended("one")).failed.failure.code == "stopped"
        site.send(start(chat(), "five"))
        assert [len(hosts[0].running) for hosts in replicas.hosts.values()] == [2, 2]
    finally:
        await site.close()
    assert {heard.end(job) is not None for job in ("two", "three", "four", "five")} == {True}
    assert site.memory_bytes() == 0
    assert not any(psutil.pid_exists(host.pids[0]) for hosts in replicas.hosts.values() for host in hosts)


async def test_a_replica_that_dies_costs_its_own_attempts_and_comes_back() -> None:
    """The room shrinks and grows again, told each time by another Loaded; the others go on undisturbed."""
    heard, replicas = Heard(), Replicas("a", "b")
    site = await replicas.site(heard)
    try:
        site.send(start(chat(), "one"))
        site.send(start(chat(), "two"))
        first = replicas.hosts["a"][0]
        psutil.Process(first.pids[0]).kill()
        lost, kept = ("one", "two") if ("one", 1) in first.running else ("two", "one")
        failure = (await heard.ended(lost)).failed.failure
        assert (failure.fault, failure.code) == (work_pb2.FAULT_WORKER, "engine_died")
        assert heard.end(kept) is None
        assert [key[0] for key in site.running] == [kept]
        await heard.until(lambda: len(replicas.hosts["a"]) == 2 and site.loaded.slots == 4)
        slots = [event.loaded.slots for event in heard.events if event.HasField("loaded")]
        assert slots == [2, 4, 2, 4]
        assert not site.exited.done()
    finally:
        await site.close()


async def test_the_host_is_gone_with_its_last_replica() -> None:
    heard, replicas = Heard(), Replicas("a")
    site = await replicas.site(heard)
    try:
        psutil.Process(site.pids[0]).kill()
        assert "died" in await asyncio.wait_for(site.exited, 10)
        site.send(start(chat(), "late"))
        assert (await heard.ended("late")).failed.failure.code == "engine_died"
    finally:
        await site.close()


async def test_a_place_without_room_does_not_keep_the_others_from_serving() -> None:
    heard, replicas = Heard(), Replicas("a", "b")
    replicas.broken = {"a"}
    site = await replicas.site(heard)
    assert site.loaded.slots == 2
    await site.close()
    replicas.broken = {"a", "b"}
    with pytest.raises(EngineStartError, match="no room in"):
        await SiteHost.start("m", heard, replicas.now, replicas.start)
    with pytest.raises(EngineStartError, match="no machine of this site has room"):
        await SiteHost.start("m", heard, Replicas().now, replicas.start)


def test_engines_together_promise_what_each_of_them_keeps() -> None:
    one = engine_pb2.Loaded(
        numerics="x", sampler="pool", slots=2, context_tokens=100, memory_bytes=5, decode_tokens_per_s=9
    )
    one.features.extend(["tools", "lora"])
    two = engine_pb2.Loaded(
        numerics="x", sampler="pool", slots=3, context_tokens=50, memory_bytes=6, decode_tokens_per_s=4
    )
    two.features.append("tools")
    both = together([one, two])
    assert (both.slots, both.memory_bytes, both.context_tokens) == (5, 6, 50)
    assert (both.numerics, both.decode_tokens_per_s, list(both.features)) == ("x", 4, ["tools"])
    two.numerics = "y"
    assert together([one, two]).numerics == "mixed/x+y", "no continuation there is promised to be identical"
    assert together([]) == engine_pb2.Loaded()
