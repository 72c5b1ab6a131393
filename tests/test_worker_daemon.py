"""The daemon, with a real engine process, against a coordinator behind real mutual TLS."""

import asyncio
import io
import json
import os
import signal
import sys
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import grpc
import psutil
import pytest
import structlog
from fixtures_worker import (
    EMULATOR,
    WAIT_S,
    FakeCa,
    FakeCoordinator,
    FakeDoor,
    Told,
    coordinating,
    emulator_settings,
    join_by_hand,
    opened,
    places_in,
    working,
)

from potluck.errors import ExitCode
from potluck.logs import configure
from potluck.v1 import session_pb2, work_pb2
from worker.daemon import Daemon
from worker.errors import NotJoined, Revoked, WorkerConflict
from worker.journal import Journal
from worker.membership import Membership
from worker.state import WorkerState
from worker.status_cli import status

IDLE_BYTES_MAX = 150_000_000  # the design's limit for a daemon beside its engines


@pytest.fixture(autouse=True)
def log() -> io.StringIO:
    stream = io.StringIO()
    configure("json", stream=stream)
    return stream


async def test_a_job_streams_ends_and_leaves_a_receipt(tmp_path: Path) -> None:
    async with coordinating() as coordinator, working(coordinator, tmp_path) as daemon:
        await coordinator.ready()
        told = coordinator.assign("job_a", tokens=20)
        await coordinator.until(lambda: ("job_a", 1) in coordinator.receipts)
        assert (told.accepted, told.prompts, told.repeated) == (1, 1, 0)
        assert told.result is not None
        assert told.result.HasField("completed")
        assert len(told.text.split()) == 20
        body = coordinator.receipts["job_a", 1]
        assert (body.output_tokens, body.worker_id, body.model) == (20, "wrk_fake", EMULATOR.name)
        async with asyncio.timeout(WAIT_S):
            while not daemon._claims.countersigned:  # noqa: ASYNC110 -- nobody announces that an answer arrived
                await asyncio.sleep(0)
    kept = [json.loads(line) for line in (tmp_path / "worker" / "receipts.jsonl").read_text().splitlines()]
    assert [(line["number"], line["body"].encode()) for line in kept] == [(1, body.encode())]
    assert WorkerState.load(tmp_path / "worker").receipts_countersigned == 1


async def test_many_streams_at_once_stay_whole_and_share_frames(tmp_path: Path) -> None:
    async with coordinating() as coordinator, working(coordinator, tmp_path):
        await coordinator.ready()
        told = [coordinator.assign(f"job_{n}", tokens=60) for n in range(16)]
        await coordinator.until(lambda: all(one.result is not None for one in told))
        assert {len(one.text.split()) for one in told} == {60}
        assert sum(one.frames for one in told) < 16 * 60


async def test_what_comes_in_one_bundle_is_done_like_what_comes_apart(tmp_path: Path) -> None:
    """Two assignments and a cancellation of the first; what is no event inside a bundle changes nothing."""
    async with coordinating() as coordinator, working(coordinator, tmp_path):
        await coordinator.ready()
        at = work_pb2.Attempt(job_id="job_0", number=1)
        cancel = session_pb2.CoordinatorMessage(cancel=session_pb2.Cancel(attempt=at, why="not needed"))
        nothing = session_pb2.CoordinatorMessage()
        first, second = coordinator.assign_together(["job_0", "job_1"], cancel, nothing)
        await coordinator.until(lambda: second.result is not None)
        assert len(second.text.split()) == 20
        assert len(first.text.split()) < 20


async def test_an_embedding_comes_back_as_a_result(tmp_path: Path) -> None:
    async with coordinating() as coordinator, working(coordinator, tmp_path):
        await coordinator.ready()
        assert coordinator.live is not None
        inputs = [work_pb2.EmbeddingInput(text="one two"), work_pb2.EmbeddingInput(text="three")]
        work = work_pb2.Work(embedding=work_pb2.EmbeddingWork(inputs=inputs))
        at = work_pb2.Attempt(job_id="job_e", number=1)
        coordinator.live.send(assign=session_pb2.Assign(attempt=at, model=EMULATOR.name, work=work))
        await coordinator.until(lambda: ("job_e", 1) in coordinator.receipts)
        result = coordinator.told["job_e", 1].result
        assert result is not None
        assert len(result.completed.embedding.embeddings) == 2
        assert list(result.completed.embedding.prompt_tokens) == [2, 1]
        assert coordinator.receipts["job_e", 1].output_tokens == 0


async def test_a_connection_that_blinks_goes_on_without_a_seam(tmp_path: Path) -> None:
    async with coordinating() as coordinator, working(coordinator, tmp_path):
        await coordinator.ready()
        told = coordinator.assign(
            "job_a", tokens=800
        )  # so long that it is still being told when the last cut comes
        for cut in (20, 60, 100):
            await coordinator.until(partial(has_words, told, cut))
            connections = len(coordinator.connections)
            coordinator.drop()
            await coordinator.until(partial(has_connected, coordinator, connections))
        await coordinator.until(lambda: told.result is not None)
        assert len(told.text.split()) == 800
        assert [len(c.hello.running) for c in coordinator.connections] == [0, 1, 1, 1]
        assert len({c.hello.session_id for c in coordinator.connections}) == 1


def has_words(told: Told, number: int) -> bool:
    return len(told.text.split()) > number


def has_connected(coordinator: FakeCoordinator, before: int) -> bool:
    return len(coordinator.connections) > before


async def test_what_was_lost_on_the_way_is_sent_again_after_a_blink(tmp_path: Path) -> None:
    async with coordinating() as coordinator, working(coordinator, tmp_path):
        await coordinator.ready()
        coordinator.acknowledges = False
        told = coordinator.assign("job_a", tokens=50)
        await coordinator.until(lambda: told.sequence >= 10)
        told.sequence, told.text = 0, ""  # as if nothing had arrived
        coordinator.acknowledges = True
        coordinator.drop()
        await coordinator.until(lambda: told.result is not None)
        assert len(told.text.split()) == 50


async def test_a_fenced_attempt_stops_and_its_slot_is_free_again(tmp_path: Path) -> None:
    async with coordinating() as coordinator, working(coordinator, tmp_path, slots=1) as daemon:
        await coordinator.ready()
        told = coordinator.assign("job_a", tokens=5000)
        await coordinator.until(lambda: told.sequence >= 3)
        coordinator.fenced.add(("job_a", 1))
        coordinator.drop()
        await coordinator.until(lambda: len(coordinator.connections) == 2 and coordinator.live)
        other = coordinator.assign("job_b", tokens=5)
        await coordinator.until(lambda: ("job_b", 1) in coordinator.receipts)
        assert other.refused is None
        assert told.result is None
        assert daemon.core.busy() == 0
        assert coordinator.receipts.keys() == {("job_a", 1), ("job_b", 1)}


async def test_a_cancelled_attempt_stops_at_once(tmp_path: Path) -> None:
    async with coordinating() as coordinator, working(coordinator, tmp_path) as daemon:
        await coordinator.ready()
        told = coordinator.assign("job_a", tokens=5000)
        await coordinator.until(lambda: told.sequence >= 3)
        coordinator.cancel("job_a")
        await coordinator.until(lambda: ("job_a", 1) in coordinator.receipts)
        assert daemon.core.busy() == 0
        assert coordinator.receipts["job_a", 1].output_tokens <= len(told.text.split())


async def test_the_same_assignment_twice_is_one_attempt(tmp_path: Path) -> None:
    async with coordinating() as coordinator, working(coordinator, tmp_path):
        await coordinator.ready()
        told = coordinator.assign("job_a", tokens=30)
        coordinator.assign("job_a", tokens=30)
        await coordinator.until(lambda: ("job_a", 1) in coordinator.receipts)
        coordinator.assign("job_a", tokens=30)
        other = coordinator.assign("job_b", tokens=3)
        await coordinator.until(lambda: other.result is not None)
        assert len(told.text.split()) == 30
        assert told.accepted == 2


async def test_a_drain_finishes_what_runs_refuses_more_and_ends(tmp_path: Path, log: io.StringIO) -> None:
    before = set(psutil.Process().children(recursive=True))  # what other tests keep in this process
    async with coordinating() as coordinator:
        coordinator.receipt_key = join_by_hand(places_in(tmp_path), coordinator.ca, port=coordinator.port)
        daemon = Daemon(settings=emulator_settings(), places=places_in(tmp_path))
        task = asyncio.create_task(daemon.run())
        await coordinator.ready()
        told = coordinator.assign("job_a", tokens=200)
        await coordinator.until(lambda: told.sequence >= 1)
        assert coordinator.live is not None
        coordinator.live.send(drain=session_pb2.Drain(why="maintenance"))
        refused = coordinator.assign("job_b")
        await asyncio.wait_for(task, WAIT_S)
        assert told.result is not None
        assert len(told.text.split()) == 200
        assert refused.refused is not None
        assert refused.refused.code == "draining"
        assert "finishing 1 attempt: maintenance" in log.getvalue()
        assert coordinator.heartbeats[-1].draining
        assert coordinator.receipts.keys() == {("job_a", 1)}
        assert set(psutil.Process().children(recursive=True)) <= before, "no process is left behind"
        assert WorkerState.load(places_in(tmp_path).worker).state == "stopped"


async def test_a_drain_that_may_not_take_long_hands_over(tmp_path: Path) -> None:
    async with coordinating() as coordinator, working(coordinator, tmp_path, drain_timeout_s=0.2) as daemon:
        await coordinator.ready()
        told = coordinator.assign("job_a", tokens=5000)
        await coordinator.until(lambda: told.sequence >= 1)
        daemon.stop_asked()
        await coordinator.until(lambda: told.result is not None)
        assert told.result is not None
        assert (told.result.failed.fault, told.result.failed.code) == (work_pb2.FAULT_NONE, "draining")


async def test_work_for_a_model_that_loads_waits_with_signs_of_life(tmp_path: Path) -> None:
    slow = {"load_ms": "1000"}
    async with coordinating() as coordinator, working(coordinator, tmp_path, engine_options=slow):
        await coordinator.until(lambda: coordinator.heartbeats and coordinator.heartbeats[-1].models)
        told = coordinator.assign("job_a", tokens=3)
        await coordinator.until(lambda: told.result is not None)
        assert told.accepted == 1
        assert {sign.stage for sign in coordinator.progress} <= {"loading", "downloading"}
        assert coordinator.progress


async def test_an_engine_that_dies_fails_its_attempts_and_is_started_again(tmp_path: Path) -> None:
    async with coordinating() as coordinator, working(coordinator, tmp_path) as daemon:
        await coordinator.ready()
        told = coordinator.assign("job_a", tokens=5000)
        await coordinator.until(lambda: told.sequence >= 1)
        [service] = daemon._serving.supervisor.models.values()
        assert service.host is not None
        psutil.Process(service.host.pids[0]).kill()
        await coordinator.until(lambda: told.result is not None)
        assert told.result is not None
        assert (told.result.failed.fault, told.result.failed.code) == (work_pb2.FAULT_WORKER, "engine_died")
        again = coordinator.assign("job_a", 2, tokens=5)
        await coordinator.until(lambda: again.result is not None)
        assert again.text


async def test_a_model_that_does_not_load_is_shown_and_its_work_refused(tmp_path: Path) -> None:
    broken = {"load_fail": "out_of_memory"}
    async with coordinating() as coordinator, working(coordinator, tmp_path, engine_options=broken):
        await coordinator.until(
            lambda: (
                coordinator.heartbeats
                and [m.state for m in coordinator.heartbeats[-1].models] == [session_pb2.MODEL_STATE_FAILED]
            )
        )
        assert coordinator.heartbeats[-1].models[0].why
        told = coordinator.assign("job_a")
        await coordinator.until(lambda: told.refused is not None)
        assert told.refused is not None
        assert told.refused.code == "model_not_served"


async def test_a_lease_that_ends_out_of_reach_stops_the_attempt(tmp_path: Path) -> None:
    """The coordinator is gone for good: after five seconds nothing runs any more."""
    async with coordinating() as coordinator, working(coordinator, tmp_path) as daemon:
        await coordinator.ready()
        told = coordinator.assign("job_a", tokens=100_000)
        await coordinator.until(lambda: told.sequence >= 1)
        stopped = asyncio.Event()
        perform = daemon._perform

        def watched(instruction: object) -> None:
            perform(instruction)  # type: ignore[arg-type] # passed through
            if type(instruction).__name__ == "StopEngine":
                stopped.set()

        daemon._perform = watched  # type: ignore[method-assign] # to wait by event
        await coordinator.stop()
        await asyncio.wait_for(stopped.wait(), WAIT_S)
        assert daemon.core.running() == []


@pytest.mark.parametrize(
    ("status", "sentence", "error", "code"),
    [
        (grpc.StatusCode.FAILED_PRECONDITION, "update the worker", WorkerConflict, ExitCode.INVALID),
        (grpc.StatusCode.PERMISSION_DENIED, "this worker was revoked", Revoked, ExitCode.NOT_LOGGED_IN),
        (grpc.StatusCode.UNAUTHENTICATED, "unknown certificate", Revoked, ExitCode.NOT_LOGGED_IN),
    ],
)
async def test_who_is_not_wanted_ends_with_a_sentence(
    tmp_path: Path, status: grpc.StatusCode, sentence: str, error: type[Exception], code: ExitCode
) -> None:
    async with coordinating() as coordinator:
        coordinator.refuses = (status, sentence)
        join_by_hand(places_in(tmp_path), coordinator.ca, port=coordinator.port)
        daemon = Daemon(settings=emulator_settings(), places=places_in(tmp_path))
        with pytest.raises(error, match=sentence) as raised:
            await asyncio.wait_for(daemon.run(), WAIT_S)
        assert getattr(raised.value, "exit_code", None) == code


async def test_a_newer_protocol_is_refused_with_what_to_update(tmp_path: Path) -> None:
    async with coordinating() as coordinator:
        coordinator.protocol = 2
        join_by_hand(places_in(tmp_path), coordinator.ca, port=coordinator.port)
        daemon = Daemon(settings=emulator_settings(), places=places_in(tmp_path))
        with pytest.raises(WorkerConflict, match="update this worker"):
            await asyncio.wait_for(daemon.run(), WAIT_S)


async def test_a_pool_without_the_wanted_model_is_told_in_a_sentence(tmp_path: Path) -> None:
    async with coordinating() as coordinator:
        coordinator.catalogue = b'{"models": []}'
        join_by_hand(places_in(tmp_path), coordinator.ca, port=coordinator.port)
        daemon = Daemon(settings=emulator_settings(), places=places_in(tmp_path))
        with pytest.raises(WorkerConflict, match="has no model"):
            await asyncio.wait_for(daemon.run(), WAIT_S)


async def test_a_model_that_left_the_catalogue_is_not_shown_as_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A restarted coordinator may have other models; when it has the old one again, all is as before."""
    async with coordinating() as coordinator:
        join_by_hand(places_in(tmp_path), coordinator.ca, port=coordinator.port)
        daemon = Daemon(settings=emulator_settings(), places=places_in(tmp_path))
        task = asyncio.create_task(daemon.run())
        await coordinator.ready()
        before, coordinator.catalogue = coordinator.catalogue, b'{"models": []}'
        coordinator.drop()
        await coordinator.until(lambda: daemon._reporter.snapshot().models[0].state == "withdrawn")
        daemon._reporter.save()
        monkeypatch.setenv("POTLUCK_HOME", str(tmp_path))
        status(watch=False)
        said = capsys.readouterr().out
        assert said.startswith("sharing: nothing that the pool has")
        assert "withdrawn" in said
        assert "ready" not in said
        coordinator.catalogue = before
        coordinator.drop()
        await coordinator.until(lambda: daemon._reporter.snapshot().models[0].state == "ready")
        assert daemon._reporter.snapshot().why == ""
        daemon.stop_asked()
        await asyncio.wait_for(task, WAIT_S)


async def test_a_coordinator_of_another_pool_is_not_spoken_to(tmp_path: Path, log: io.StringIO) -> None:
    async with coordinating() as coordinator:
        join_by_hand(places_in(tmp_path), FakeCa(), port=coordinator.port)
        daemon = Daemon(settings=emulator_settings(), places=places_in(tmp_path))
        task = asyncio.create_task(daemon.run())
        refused = asyncio.Event()
        lost = daemon._reporter.lost

        def watched(why: str) -> None:
            lost(why)
            refused.set()

        daemon._reporter.lost = watched  # type: ignore[method-assign] # to wait by event
        await asyncio.wait_for(refused.wait(), WAIT_S)
        assert "disconnected" in log.getvalue()
        assert not coordinator.connections
        daemon.stop_asked()
        await asyncio.wait_for(task, WAIT_S)


async def test_a_revoked_worker_in_the_middle_of_its_work_ends(tmp_path: Path) -> None:
    async with coordinating() as coordinator:
        join_by_hand(places_in(tmp_path), coordinator.ca, port=coordinator.port)
        daemon = Daemon(settings=emulator_settings(), places=places_in(tmp_path))
        task = asyncio.create_task(daemon.run())
        await coordinator.ready()
        coordinator.refuses = (grpc.StatusCode.PERMISSION_DENIED, "this worker was revoked")
        coordinator.drop()
        with pytest.raises(Revoked):
            await asyncio.wait_for(task, WAIT_S)


@pytest.mark.parametrize("days_ago", [4.5, 30.0])
async def test_a_certificate_past_its_half_life_or_its_end_is_renewed(
    tmp_path: Path, days_ago: float
) -> None:
    """Also a month after it expired, the worker comes back by itself."""
    async with coordinating() as coordinator, opened(FakeDoor(coordinator.ca)) as door:
        start = datetime.now(UTC) - timedelta(days=days_ago)
        places = places_in(tmp_path)
        door.receipt_key = join_by_hand(
            places, coordinator.ca, port=coordinator.port, url=door.url, start=start
        )
        before = (places.worker / "certificate.pem").read_bytes()
        async with working(coordinator, tmp_path):
            await coordinator.ready()
            assert [path for path, _ in door.requests] == ["/pool/v1/renew"]
            assert (places.worker / "certificate.pem").read_bytes() != before


async def test_a_certificate_is_renewed_where_the_pool_leads_now_if_nobody_is_where_it_was_joined(
    tmp_path: Path,
) -> None:
    async with coordinating() as coordinator, opened(FakeDoor(coordinator.ca)) as door:
        places = places_in(tmp_path)
        start = datetime.now(UTC) - timedelta(days=30)
        door.receipt_key = join_by_hand(places, coordinator.ca, port=coordinator.port, start=start)
        Membership.load(places.worker).welcomed_at(door.url).save(places.worker)
        async with working(coordinator, tmp_path):
            await coordinator.ready()
            assert [path for path, _ in door.requests] == ["/pool/v1/renew"]


async def test_a_revoked_worker_gets_no_certificate_and_says_so(tmp_path: Path) -> None:
    ca = FakeCa()
    async with opened(FakeDoor(ca)) as door:
        door.answer = (403, {"error": {"message": "revoked by the admin", "code": "worker_revoked"}})
        start = datetime.now(UTC) - timedelta(days=30)
        join_by_hand(places_in(tmp_path), ca, port=1, url=door.url, start=start)
        daemon = Daemon(settings=emulator_settings(), places=places_in(tmp_path))
        with pytest.raises(Revoked, match="revoked by the admin"):
            await asyncio.wait_for(daemon.run(), WAIT_S)


async def test_a_second_daemon_on_one_home_is_refused(tmp_path: Path) -> None:
    async with coordinating() as coordinator, working(coordinator, tmp_path):
        await coordinator.ready()
        with pytest.raises(WorkerConflict, match=f"already.*process {os.getpid()}"):
            Daemon(settings=emulator_settings(), places=places_in(tmp_path))


async def test_a_worker_whose_keys_are_gone_is_told_to_join_again(tmp_path: Path) -> None:
    join_by_hand(places_in(tmp_path), FakeCa(), port=1)
    (tmp_path / "worker" / "tls.key").write_bytes(b"garbage")
    with pytest.raises(NotJoined, match="cannot be read"):
        Daemon(settings=emulator_settings(), places=places_in(tmp_path))


async def test_the_state_file_says_for_whom_it_works(tmp_path: Path) -> None:
    async with coordinating() as coordinator, working(coordinator, tmp_path) as daemon:
        await coordinator.ready()
        told = coordinator.assign("job_a", tokens=5000)
        await coordinator.until(lambda: told.sequence >= 1)
        daemon._reporter.save()
        state = WorkerState.load(places_in(tmp_path).worker)
        assert state.state == "sharing"
        assert [(a.member, a.model) for a in state.attempts] == [("ada", EMULATOR.name)]
        assert [model.state for model in state.models] == ["ready"]


async def test_the_logs_hold_no_word_of_a_job(tmp_path: Path, log: io.StringIO) -> None:
    async with coordinating() as coordinator, working(coordinator, tmp_path) as daemon:
        await coordinator.ready()
        told = coordinator.assign("job_a", tokens=30)
        await coordinator.until(lambda: ("job_a", 1) in coordinator.receipts)
        daemon._reporter.save()
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert all("action" in line for line in lines)
    written = log.getvalue() + await asyncio.to_thread(all_files, tmp_path)
    assert "secret question" not in written
    assert not any(word in written for word in told.text.split())
    assert structlog.is_configured()


def all_files(folder: Path) -> str:
    return "".join(
        path.read_bytes().decode("utf-8", "replace") for path in folder.rglob("*") if path.is_file()
    )


@pytest.mark.processes
@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is POSIX")
async def test_receipts_survive_kill_9_and_are_sent_again(tmp_path: Path) -> None:
    async with coordinating() as coordinator:
        places = places_in(tmp_path)
        coordinator.receipt_key = join_by_hand(places, coordinator.ca, port=coordinator.port)
        coordinator.acknowledges_receipts = False
        first = await start_process(tmp_path)
        await coordinator.ready()
        coordinator.assign("job_a", tokens=5)
        await coordinator.until(lambda: ("job_a", 1) in coordinator.receipts)
        process = psutil.Process(first.pid)
        engines = process.children(recursive=True)
        print(f"resident memory of the daemon: {process.memory_info().rss / 1e6:.0f} MB")
        assert process.memory_info().rss < IDLE_BYTES_MAX
        first.kill()
        await first.wait()
        said = coordinator.receipts.pop(("job_a", 1))
        status = await asyncio.to_thread(WorkerState.load, places.worker)
        assert status.state == "not running"
        await asyncio.to_thread(psutil.wait_procs, engines, WAIT_S)
        assert not any(engine.is_running() for engine in engines), "an engine dies with its daemon"

        coordinator.acknowledges_receipts = True
        second = await start_process(tmp_path)
        await coordinator.until(lambda: ("job_a", 1) in coordinator.receipts)
        assert coordinator.receipts["job_a", 1] == said
        await coordinator.until(coordinator._is_ready)
        second.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(second.wait(), WAIT_S) == 0
        journal, warning = Journal.open(places.worker / "receipts.sqlite3")
        assert (journal.load(), warning) == ([], "")
        journal.close()


async def start_process(home: Path) -> asyncio.subprocess.Process:
    command = ["-m", "potluck", "worker", "start", "--engine", "emulator", "--models", EMULATOR.name]
    environment = os.environ | {"POTLUCK_HOME": str(home), "POTLUCK_MACHINE_DIR": str(home / "machine")}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        "--engine-option",
        "ttft_ms=1",
        env=environment,
        stderr=asyncio.subprocess.DEVNULL,
    )
