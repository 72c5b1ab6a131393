"""The owner takes the machine back while the daemon works: against a coordinator behind real mutual TLS."""

import asyncio
import io
from pathlib import Path

import psutil
import pytest
from fixtures_worker import EMULATOR, WAIT_S, FakeCoordinator, coordinating, working

from potluck.catalogue import Catalogue, ModelEntry
from potluck.logs import configure
from potluck.v1 import session_pb2, work_pb2
from worker.daemon import Daemon
from worker.errors import WorkerConflict
from worker.rules import Caps, Hours, Sharing
from worker.state import WorkerState
from worker.wish import FILE, Wish

MEGABYTE = 1_000_000


@pytest.fixture(autouse=True)
def _log() -> None:
    configure("json", stream=io.StringIO())


def entry(name: str, memory_bytes: int) -> ModelEntry:
    variants = (EMULATOR.variants[0].model_copy(update={"memory_bytes": memory_bytes}),)
    return EMULATOR.model_copy(update={"name": name, "variants": variants})


def engines(daemon: Daemon) -> list[psutil.Process]:
    hosts = [
        service.host for service in daemon._serving.supervisor.models.values() if service.host is not None
    ]
    return [psutil.Process(host.pids[0]) for host in hosts]


def say(daemon: Daemon, word: Wish) -> None:
    """As the command does, and heard at once instead of within a second."""
    word.save(daemon.places.worker)
    daemon._owner.heed()


async def paused(coordinator: FakeCoordinator) -> session_pb2.Heartbeat:
    await coordinator.until(lambda: coordinator.heartbeats[-1].state == "paused")
    return coordinator.heartbeats[-1]


async def test_a_pause_in_mid_answer_hands_it_over_and_ends_the_engines_process(tmp_path: Path) -> None:
    async with coordinating() as coordinator, working(coordinator, tmp_path) as daemon:
        await coordinator.ready()
        [engine] = engines(daemon)
        told = coordinator.assign("job_a", tokens=100_000)
        await coordinator.until(lambda: told.sequence >= 3)
        say(daemon, Wish(word="pause"))
        await coordinator.until(lambda: told.result is not None)
        assert told.result is not None
        assert (told.result.failed.code, told.result.failed.fault) == ("yielded", work_pb2.FAULT_NONE)
        beat = await paused(coordinator)
        assert (beat.why, beat.next_change_ms) == ("its owner paused it", 0)
        await asyncio.to_thread(engine.wait, WAIT_S)
        await coordinator.until(
            lambda: coordinator.heartbeats[-1].models[0].state == session_pb2.MODEL_STATE_PRESENT
        )
        refused = coordinator.assign("job_b")
        await coordinator.until(lambda: refused.refused is not None)
        assert refused.refused is not None
        assert (refused.refused.code, refused.refused.fault) == ("paused", work_pb2.FAULT_NONE)
        daemon._reporter.save()
        state = WorkerState.load(daemon.places.worker)
        assert (state.state, state.why, state.attempts) == ("paused", "its owner paused it", ())
        assert [(model.state, model.memory_bytes) for model in state.models] == [("present", 0)]

        say(daemon, Wish(word="share"))
        await coordinator.until(lambda: coordinator.heartbeats[-1].state == "sharing")
        await coordinator.ready()
        loading = [
            model
            for beat in coordinator.heartbeats[coordinator.heartbeats.index(beat) :]
            for model in beat.models
            if model.state == session_pb2.MODEL_STATE_LOADING
        ]
        assert {model.why for model in loading} == {""}, "the pause is over"
        again = coordinator.assign("job_c", tokens=5)
        await coordinator.until(lambda: again.result is not None)
        assert again.result is not None
        assert again.result.HasField("completed")


async def test_a_pause_survives_a_restart_of_the_daemon_and_loads_nothing_then(tmp_path: Path) -> None:
    async with coordinating() as coordinator:
        async with working(coordinator, tmp_path) as daemon:
            await coordinator.ready()
            Wish(word="pause").save(daemon.places.worker)
        before = len(coordinator.heartbeats)
        async with working(coordinator, tmp_path) as daemon:
            await coordinator.until(lambda: len(coordinator.heartbeats) > before)
            beats = coordinator.heartbeats[before:]
            assert {beat.state for beat in beats} == {"paused"}
            await coordinator.until(lambda: bool(coordinator.heartbeats[-1].models))
            assert engines(daemon) == []
            assert coordinator.heartbeats[-1].models[0].why == "paused: its owner paused it"


async def test_a_drain_is_for_the_daemon_that_ran_when_it_was_said(tmp_path: Path) -> None:
    async with coordinating() as coordinator, working(coordinator, tmp_path) as daemon:
        await coordinator.ready()
        say(daemon, Wish(word="drain", process=(daemon._owner._process[0], 1.0)))
        assert daemon.core.draining == ""
        say(daemon, Wish(word="drain", process=daemon._owner._process))
        assert daemon.core.draining == "its owner drains it"
        await asyncio.wait_for(asyncio.shield(daemon._finished), WAIT_S)


async def test_a_word_that_cannot_be_read_is_taken_as_a_pause(tmp_path: Path) -> None:
    async with coordinating() as coordinator, working(coordinator, tmp_path) as daemon:
        await coordinator.ready()
        (daemon.places.worker / FILE).write_bytes(b"{")
        daemon._owner.heed()
        await paused(coordinator)


async def test_the_hours_are_told_to_the_coordinator_with_the_next_change(tmp_path: Path) -> None:
    async with coordinating() as coordinator:
        changes = {"hours": Hours(every_day=()), "sharing": Sharing(on_battery=True, members=("bob",))}
        async with working(coordinator, tmp_path, **changes) as daemon:
            await coordinator.until(lambda: bool(coordinator.heartbeats))
            beat = await paused(coordinator)
            assert beat.why == "outside its owner's hours for sharing"
            assert coordinator.live is not None
            for sharing in (coordinator.live.hello.sharing, beat.sharing):
                assert list(sharing.members) == ["bob"]
            assert engines(daemon) == []


# --- several models


def ready(coordinator: FakeCoordinator) -> set[str]:
    models = coordinator.heartbeats[-1].models if coordinator.heartbeats else ()
    return {model.name for model in models if model.state == session_pb2.MODEL_STATE_READY}


async def test_two_models_that_do_not_fit_together_take_turns_in_memory(tmp_path: Path) -> None:
    """The first named is loaded at once; the other is loaded for its job, and the idle one leaves for it."""
    async with coordinating() as coordinator:
        coordinator.catalogue = Catalogue((entry("a", 60 * MEGABYTE), entry("b", 60 * MEGABYTE))).to_wire()
        caps = Caps(memory="100 MB", gpu_temperature_c=0)
        async with working(coordinator, tmp_path, models=("a", "b"), caps=caps):
            await coordinator.until(lambda: len(ready(coordinator)) == 1)
            [first] = ready(coordinator)
            other = "b" if first == "a" else "a"
            told = coordinator.assign("job_1", model=other, tokens=5)
            await coordinator.until(lambda: told.result is not None)
            assert told.result is not None
            assert told.result.HasField("completed")
            await coordinator.until(lambda: ready(coordinator) == {other})
            back = coordinator.assign("job_2", model=first, tokens=5)
            await coordinator.until(lambda: back.result is not None)
            await coordinator.until(lambda: ready(coordinator) == {first})


async def test_models_that_fit_together_stay_together(tmp_path: Path) -> None:
    async with coordinating() as coordinator:
        coordinator.catalogue = Catalogue((entry("a", 40 * MEGABYTE), entry("b", 40 * MEGABYTE))).to_wire()
        caps = Caps(memory="100 MB", gpu_temperature_c=0)
        async with working(coordinator, tmp_path, models=("a", "b"), caps=caps):
            await coordinator.until(lambda: ready(coordinator) == {"a", "b"})


async def test_a_job_for_which_there_is_no_room_is_given_back_without_blame(tmp_path: Path) -> None:
    """The model in memory works and works: the other's job is better done elsewhere."""
    async with coordinating() as coordinator:
        coordinator.catalogue = Catalogue((entry("a", 60 * MEGABYTE), entry("b", 60 * MEGABYTE))).to_wire()
        caps = Caps(memory="100 MB", gpu_temperature_c=0)
        async with working(coordinator, tmp_path, models=("a", "b"), caps=caps) as daemon:
            await coordinator.until(lambda: len(ready(coordinator)) == 1)
            daemon._serving.memory._wait_s = 0.1
            [first] = ready(coordinator)
            other = "b" if first == "a" else "a"
            long = coordinator.assign("job_1", model=first, tokens=100_000)
            await coordinator.until(lambda: long.sequence >= 2)
            told = coordinator.assign("job_2", model=other)
            await coordinator.until(lambda: told.result is not None)
            assert told.result is not None
            failed = told.result.failed
            assert (failed.code, failed.fault) == ("no_room", work_pb2.FAULT_NONE)
            assert failed.message == f"{other} needs 0.1 GB, 0.0 GB are free while {first} works"
            assert long.result is None, "whoever works is not disturbed"


async def test_a_model_that_can_never_fit_is_refused_at_the_start_with_a_sentence(tmp_path: Path) -> None:
    async with coordinating() as coordinator:
        coordinator.catalogue = Catalogue((entry("a", 200 * MEGABYTE),)).to_wire()
        caps = Caps(memory="100 MB", gpu_temperature_c=0)
        with pytest.raises(WorkerConflict, match=r"a needs 0\.2 GB of memory, and 0\.1 GB are free here"):
            async with working(coordinator, tmp_path, models=("a",), caps=caps) as daemon:
                await asyncio.wait_for(asyncio.shield(daemon._finished), WAIT_S)
