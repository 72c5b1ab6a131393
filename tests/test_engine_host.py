"""The engine process lives and dies with its daemon, and whoever waited for it hears why."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest
from fixtures_engine import Heard, chat, hosted, start

from potluck.v1 import engine_pb2, work_pb2
from worker.engines.engine import RUNTIME_DIR
from worker.engines.runner import variables
from worker.hosts.host import EngineStartError
from worker.hosts.process import EngineHost

FAST = {"ttft_ms": "1", "tpot_ms": "1"}


def load(**options: str) -> engine_pb2.Load:
    return engine_pb2.Load(engine="emulator", model="emulator-small", options=FAST | options)


async def test_a_loaded_engine_reports_itself_and_its_memory() -> None:
    async with hosted(load(load_ms="20")) as (host, heard):
        assert host.loaded.sampler == "pool"
        assert host.loaded.numerics == "emulator/exact/1"
        assert host.memory_bytes() > 1_000_000
        assert heard.events[0].HasField("load_progress")
        assert heard.events[-1].loaded == host.loaded
    assert host.memory_bytes() == 0
    assert not psutil.pid_exists(host.pid)


async def test_close_ends_running_attempts_without_blame() -> None:
    async with hosted(load(hang_after_tokens="0")) as (host, heard):
        host.send(start(chat()))
        await heard.until(lambda: host.running and any(e.HasField("started") for e in heard.events))
        await host.close()
        failure = (await heard.ended()).failed.failure
        assert (failure.fault, failure.code) == (work_pb2.FAULT_NONE, "engine_closed")
        assert not host.running
        await host.close()  # twice does no harm


async def test_a_killed_engine_fails_its_attempts_and_says_so() -> None:
    async with hosted(load(hang_after_tokens="0")) as (host, heard):
        host.send(start(chat(), "one"))
        host.send(start(chat(), "two"))
        await heard.until(lambda: sum(e.HasField("started") for e in heard.events) == 2)
        psutil.Process(host.pid).kill()
        reason = await asyncio.wait_for(host.exited, 10)
        assert "died" in reason
        for job in ("one", "two"):
            failure = (await heard.ended(job)).failed.failure
            assert (failure.fault, failure.code) == (work_pb2.FAULT_WORKER, "engine_died")
        host.send(start(chat(), "three"))  # too late: told at once
        assert (await heard.ended("three")).failed.failure.code == "engine_died"


async def test_an_engine_that_dies_by_itself_delivers_what_it_said_before() -> None:
    async with hosted(load(die_after_tokens="5")) as (_, heard):
        _.send(start(chat(max_tokens=50)))
        assert (await heard.ended()).failed.failure.code == "engine_died"
        assert len(heard.ids()) == 5


async def test_a_load_that_fails_is_a_sentence_with_a_code() -> None:
    with pytest.raises(EngineStartError, match="told to fail") as raised:
        await EngineHost.start(load(load_fail="out_of_memory"), Heard())
    assert raised.value.code == "out_of_memory"
    with pytest.raises(EngineStartError, match="no engine named 'nonsense'"):
        await EngineHost.start(engine_pb2.Load(engine="nonsense"), Heard())
    with pytest.raises(EngineStartError, match=r"speed.*Known are .*ttft_ms"):
        await EngineHost.start(load(speed="11"), Heard())
    with pytest.raises(EngineStartError, match="valid number"):
        await EngineHost.start(load(ttft_ms="soon"), Heard())


async def test_a_load_that_takes_too_long_or_is_cancelled_leaves_no_process() -> None:
    before = set(psutil.Process().children())
    with pytest.raises(EngineStartError, match="did not load within 0 s"):
        slow = load(load_ms="60000")
        slow.load_s_max = 0.3
        await EngineHost.start(slow, Heard())
    heard = Heard()
    task = asyncio.create_task(EngineHost.start(load(load_ms="60000"), heard))
    await heard.until(lambda: heard.events)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert set(psutil.Process().children()) == before


async def test_a_terminal_signal_does_not_end_an_engine_that_its_daemon_still_needs() -> None:
    """Ctrl-C and a service manager reach the whole group; the daemon drains first."""
    async with hosted(load()) as (host, heard):
        if sys.platform != "win32":
            os.kill(host.pid, signal.SIGINT)
            os.kill(host.pid, signal.SIGTERM)
        host.send(start(chat(max_tokens=5)))
        assert (await heard.ended()).HasField("done")


PARENT = """
import asyncio
from potluck.v1 import engine_pb2, work_pb2
from worker.hosts.process import EngineHost

async def main():
    heard = lambda event: None
    load = engine_pb2.Load(engine="emulator", options={"ttft_ms": "0", "tpot_ms": "1"})
    host = await EngineHost.start(load, heard)
    sampling = work_pb2.Sampling(max_tokens=8000)
    work = work_pb2.Work(completion=work_pb2.CompletionWork(prompt="x", sampling=sampling))
    start = engine_pb2.Start(attempt=work_pb2.Attempt(job_id="busy", number=1), work=work)
    host.send(engine_pb2.EngineCommand(start=start))
    print(host.pid, host._directory, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_the_engine_dies_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    """In the middle of an answer, and it leaves nothing behind."""
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        PARENT,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert parent.stdout is not None
    pid, directory = (await asyncio.wait_for(parent.stdout.readline(), 60)).decode().split()
    engine = psutil.Process(int(pid))
    parent.kill()
    await parent.wait()
    gone, _ = await asyncio.to_thread(psutil.wait_procs, [engine], 10)
    assert gone, "the engine outlived its parent"
    assert not await asyncio.to_thread(Path(directory).exists), "the engine's folder was left behind"


async def test_a_command_above_the_limit_is_refused_before_anything_is_sent() -> None:
    from worker.engines import pipe

    async with hosted(load()) as (host, heard):
        with pytest.raises(pipe.PipeError):
            host.send(start(chat("x" * (pipe.MESSAGE_BYTES_MAX + 1))))
        host.send(start(chat(max_tokens=3)))
        assert (await heard.ended()).HasField("done")


async def test_an_engine_sees_only_the_cards_that_its_owner_shares() -> None:
    """As the process itself finds it in its environment."""
    wanted = load()
    wanted.gpus.extend([1, 3])
    async with hosted(wanted) as (host, _):
        environment = psutil.Process(host.pid).environ()
    assert environment["CUDA_VISIBLE_DEVICES"] == environment["HIP_VISIBLE_DEVICES"] == "1,3"
    assert environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_a_server_of_the_owner_may_fetch_its_own_models(tmp_path: Path) -> None:
    """Our engines load verified files alone; what is set for them does not reach a server that is not ours."""
    ours, bridge = (variables(engine_pb2.Load(engine=name), tmp_path) for name in ("torch", "openai"))
    assert ours["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in bridge
    assert bridge[RUNTIME_DIR] == str(tmp_path)
