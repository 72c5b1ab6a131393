"""Reading the machine: control groups, processors, NVML, libraries, measured speeds, and the ways to the pool."""

import asyncio
import json
import os
import stat
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from fixtures_worker import EMULATOR, FakeCa, FakeCoordinator, coordinating, join_by_hand, places_in, working

from potluck.catalogue import Catalogue
from potluck.cli.main import run
from potluck.errors import ExitCode
from potluck.identity import WorkerIdentity
from potluck.store import ModelStore
from worker import checks, libraries
from worker.cgroup import Limits, limits
from worker.libraries import FILE, Surveys, installed, survey
from worker.membership import Certificate
from worker.nvidia import Nvidia
from worker.probe import Probe
from worker.processor import cpu, from_cpuinfo
from worker.speeds import FILE as SPEEDS_FILE
from worker.speeds import KEPT_S, Speed, Speeds, Streams

GB = 1 << 30


# --- control groups ---


def group(root: Path, where: str, **files: str) -> Path:
    folder = root / where
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")
    return folder


def proc(tmp_path: Path, text: str) -> Path:
    (tmp_path / "cgroup").write_text(text)
    return tmp_path / "cgroup"


def test_the_tightest_group_on_the_way_up_counts(tmp_path: Path) -> None:
    """Version 2: a service within a slice; files in the cache are given back when memory is needed."""
    root = tmp_path / "fs"
    group(root, "", cpu__max="max 100000")
    group(root, "lab.slice", memory__max=str(4 * GB), memory__current=str(GB), cpu__max="250000 100000")
    group(root, "lab.slice/w.service", memory__max="max", memory__current="5", cpu__max="max 100000")
    group(root, "lab.slice", memory__stat=f"anon 5\ninactive_file {GB // 2}")
    found = limits(proc=proc(tmp_path, "0::/lab.slice/w.service\n"), root=root)
    assert found == Limits(memory_bytes=4 * GB, memory_free_bytes=4 * GB - GB // 2, cores=2.5)


def test_the_older_control_groups_limit_too(tmp_path: Path) -> None:
    root = tmp_path / "fs"
    group(root, "memory/docker/ab", memory__limit_in_bytes=str(2 * GB), memory__usage_in_bytes=str(GB))
    group(root, "memory", memory__limit_in_bytes="9223372036854771712")
    group(root, "cpu,cpuacct/docker/ab", cpu__cfs_quota_us="150000", cpu__cfs_period_us="100000")
    group(root, "cpu/docker/ab", cpu__cfs_quota_us="150000", cpu__cfs_period_us="100000")
    text = "5:cpu,cpuacct:/docker/ab\n4:memory:/docker/ab\n0::/\n"
    found = limits(proc=proc(tmp_path, text), root=root)
    assert found == Limits(memory_bytes=2 * GB, memory_free_bytes=GB, cores=1.5)


@pytest.mark.parametrize("text", ["", "nonsense", "0::/../../etc\n", "4:memory:/not/there\n0::/x\n"])
def test_groups_that_cannot_be_read_do_not_limit(tmp_path: Path, text: str) -> None:
    root = tmp_path / "fs"
    group(root, "", memory__max="much", cpu__max="-1 0")
    assert limits(proc=proc(tmp_path, text), root=root) == Limits()
    assert limits(proc=tmp_path / "none", root=tmp_path / "none") == Limits()


# --- processors ---

EPYC = "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu sse2 avx avx2 fma f16c avx512f amx_tile\n"
PI = "processor\t: 0\nFeatures\t: fp asimd evtstrm asimddp\n\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0\n"


def test_processors_are_told_by_name_and_features() -> None:
    assert from_cpuinfo(EPYC) == ("AMD EPYC", ("amx_tile", "avx", "avx2", "avx512f", "f16c", "fma"))
    assert from_cpuinfo(PI) == ("Raspberry Pi 5 Model B Rev 1.0", ("dotprod", "neon"))
    assert from_cpuinfo("") == ("", ())
    assert cpu()[0], "this one has a name, too"


# --- NVIDIA ---


class FakeNvml:
    """Answers as NVML does for three cards: a good one, one that is lost, and a laptop's with little support."""

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        pass

    def __init__(self, *, driver: bool = True) -> None:
        self.driver, self.lost, self.open = driver, {1}, 0

    def nvmlInit(self) -> None:  # noqa: N802 -- NVML's names
        if not self.driver:
            raise self.NVMLError("NVML Shared Library Not Found")
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802 -- as above
        self.open -= 1

    def __getattr__(self, name: str) -> Any:
        answers: dict[str, Any] = {
            "nvmlSystemGetDriverVersion": lambda: b"560.35.03",
            "nvmlSystemGetCudaDriverVersion_v2": lambda: 12060,
            "nvmlDeviceGetCount": lambda: 3,
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetName": lambda index: f"card {index}",
            "nvmlDeviceGetMemoryInfo": lambda index: SimpleNamespace(total=12 * GB, used=2 * GB),
            "nvmlDeviceGetCudaComputeCapability": lambda index: (8, 6),
            "nvmlDeviceGetUtilizationRates": lambda index: SimpleNamespace(gpu=35),
            "nvmlDeviceGetComputeRunningProcesses": lambda index: [SimpleNamespace(pid=77)],
            "nvmlDeviceGetPowerUsage": lambda index: 151_900,
            "nvmlDeviceGetEnforcedPowerLimit": lambda index: 170_000,
            "nvmlDeviceGetTemperature": lambda index, kind: 63,
        }
        if name not in answers:
            raise AttributeError(name)

        def ask(*arguments: Any) -> Any:
            if arguments and (arguments[0] in self.lost or (arguments[0] == 2 and "Power" in name)):
                raise self.NVMLError("GPU is lost" if arguments[0] in self.lost else "Not Supported")
            return answers[name](*arguments)

        return ask


def test_each_card_is_asked_alone(tmp_path: Path) -> None:
    """A lost card does not hide the others; what a card does not support is 0."""
    nvml = FakeNvml()
    nvidia = Nvidia(nvml)
    good, lost, laptop = nvidia.cards()
    assert (good.driver, good.capability, nvidia.driver_cuda) == ("560.35.03", "8.6", "12.6")
    assert (good.power_w, good.power_limit_w, good.temperature_c, good.utilisation_percent) == (
        151,
        170,
        63,
        35,
    )
    assert good.processes == (77,)
    assert lost.fault == "GPU is lost"
    assert (laptop.power_w, laptop.memory_bytes, laptop.fault) == (0, 12 * GB, "")
    nvidia.close()
    assert nvml.open == 0
    assert Nvidia(FakeNvml(driver=False)).why == "NVML Shared Library Not Found"


def test_the_load_keeps_the_order_of_the_announced_cards(tmp_path: Path) -> None:
    """Also when one of them stops to answer later: its place stays, with nothing in it."""
    nvml = FakeNvml()
    probe = Probe(tmp_path, tmp_path, nvidia=Nvidia(nvml))
    assert [load.power_w for load in probe.load().gpus] == [151, 0], "the lost one was never announced"
    nvml.lost = {0, 1}
    assert [load.memory_used_bytes for load in probe.load().gpus] == [0, 2 * GB]
    probe.close()


# --- libraries ---


def test_a_library_is_imported_elsewhere_and_its_end_is_told_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that cannot be imported, one that kills its process, one that hangs; and torch as it is here."""
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{Path(__file__).parent.parent}")
    (tmp_path / "broken_library.py").write_text("raise ImportError('libcudart.so.12: no such file')")
    (tmp_path / "newer_library.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    (tmp_path / "slow_library.py").write_text("import sys; sys.stdin.close(); import time; time.sleep(60)")
    (tmp_path / "chatty_library.py").write_text("print('hello from a library')")
    assert survey("broken_library") == {"error": "ImportError: libcudart.so.12: no such file"}
    assert "newer processor" in survey("newer_library")["error"]
    assert "took more than 1 s" in survey("slow_library", timeout_s=1.0)["error"]
    assert survey("chatty_library") == {}


def test_what_libraries_said_is_remembered_until_a_version_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    surveys, now = Surveys(tmp_path, driver="560"), time.time()
    assert surveys.remembered(now) is None
    made = surveys.ask(now)
    assert set(made.libraries) == set(installed())
    assert not any(library.error for library in made.libraries.values())
    assert made.torch is not None
    assert surveys.remembered(now + 60) == made
    assert surveys.remembered(now + 30 * 86_400) is None
    assert Surveys(tmp_path, driver="570").remembered(now) is None, "another driver, another answer"
    monkeypatch.setattr(libraries, "installed", lambda: {"torch": "99"})
    assert surveys.remembered(now) is None
    (tmp_path / FILE).write_text("{")
    assert surveys.remembered(now) is None


# --- speeds ---


class Clock:
    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


def test_speeds_outlive_the_process_and_expire(tmp_path: Path) -> None:
    clock = Clock()
    first = Speeds(tmp_path / SPEEDS_FILE, device="RTX 3060", now=clock)
    key = first.key("torch", ("a" * 64,))
    assert first.get(key) == Speed()
    first.measured(key, prefill=900.0, decode=40.0)
    again = Speeds(tmp_path / SPEEDS_FILE, device="RTX 3060", now=clock)
    assert again.get(key) == Speed(900.0, 40.0, clock.now)
    others = [
        again.key("llamacpp", ("a" * 64,)),
        again.key("torch", ("b" * 64,)),
        again.key("torch", ("a", "b")),
    ]
    other_card = Speeds(tmp_path / SPEEDS_FILE, device="RTX 4090", now=clock)
    assert {again.get(other) for other in others} == {Speed()}
    assert other_card.get(other_card.key("torch", ("a" * 64,))) == Speed()
    clock.now += KEPT_S
    assert again.get(key) == Speed()
    assert Speeds(tmp_path / SPEEDS_FILE, device="RTX 3060", now=clock).get(key) == Speed()


def test_real_answers_move_the_speed_slowly_and_a_new_measurement_replaces_it(tmp_path: Path) -> None:
    clock = Clock()
    speeds = Speeds(tmp_path / SPEEDS_FILE, now=clock)
    speeds.observed("k", decode=10.0)
    speeds.observed("k", decode=20.0)
    assert speeds.get("k").decode == pytest.approx(12.0)
    assert not (tmp_path / SPEEDS_FILE).exists(), "an answer is not worth a write"
    clock.now += 61
    speeds.observed("k", decode=0.0)
    speeds.observed("k", decode=float("nan"))
    speeds.observed("k", decode=12.0)
    assert json.loads((tmp_path / SPEEDS_FILE).read_text())["k"]["decode"] == pytest.approx(12.0)
    speeds.measured("k", prefill=100.0, decode=30.0)
    assert speeds.get("k") == Speed(100.0, 30.0, clock.now)
    speeds.measured("k", prefill=0.0, decode=31.0)
    assert speeds.get("k").prefill == 100.0, "what an engine does not measure stays known"


@pytest.mark.parametrize("text", ["", "[]", "{", '{"k": 3}', '{"k": {"prefill": "x"}}', "[" * 100_000])
def test_a_damaged_file_of_speeds_is_an_empty_one(tmp_path: Path, text: str) -> None:
    (tmp_path / SPEEDS_FILE).write_text(text)
    speeds = Speeds(tmp_path / SPEEDS_FILE, now=Clock())
    assert speeds.get("k") == Speed()
    (tmp_path / SPEEDS_FILE).unlink()
    (tmp_path / SPEEDS_FILE).mkdir()
    speeds.measured("k", prefill=1.0, decode=1.0)
    assert speeds.get("k").decode == 1.0, "a disk that refuses does not stop a worker"


def test_the_pace_of_a_stream_leaves_its_prefill_out() -> None:
    streams = Streams()
    streams.output("a", 1, now=100.0)
    streams.output("a", 40, now=102.0)
    assert streams.ended("a", now=102.0) == 20.0
    streams.output("b", 1, now=100.0)
    streams.output("b", 3, now=100.1)
    assert streams.ended("b", now=101.0) == 0.0, "too short to tell"
    assert streams.ended("never begun", now=1.0) == 0.0


async def test_a_worker_reports_its_speed_and_load_before_its_model_is_loaded(tmp_path: Path) -> None:
    """Measured in its first life, said in the Hello and first beat of the second; real answers count, too."""
    async with coordinating() as coordinator:
        async with working(coordinator, tmp_path) as daemon:
            await coordinator.ready()
            coordinator.assign("job_a", tokens=60)
            await coordinator.until(lambda: ("job_a", 1) in coordinator.receipts)
            key = daemon._serving.supervisor.models[EMULATOR.name].speed.key
            known = daemon._serving.speeds.get(key)
            assert known.decode > 0
            await coordinator.until(lambda: coordinator.heartbeats[-1].HasField("load"))
            assert coordinator.heartbeats[-1].load.memory_free_bytes > 0
            assert coordinator.heartbeats[-1].load.disk_free_bytes > 0
        assert coordinator.connections[0].hello.hardware.cpu_features == daemon_features()
        coordinator.heartbeats.clear()
        async with working(coordinator, tmp_path):
            await coordinator.until(lambda: any(beat.models for beat in coordinator.heartbeats))
            first = next(beat.models[0] for beat in coordinator.heartbeats if beat.models)
            assert first.decode_tokens_per_s == pytest.approx(known.decode)
            assert first.state != 5, "it is not loaded yet"
        kept = json.loads((tmp_path / "worker" / SPEEDS_FILE).read_text())
        assert len(kept) == 1


def daemon_features() -> list[str]:
    return list(cpu()[1])


# --- the ways to the pool ---


class Door:
    """/healthz of a coordinator whose clock is wrong by so much, over HTTP on the loopback."""

    def __init__(self, *, ahead_s: float = 0.0, status: int = 200) -> None:
        self.ahead_s, self.status = ahead_s, status

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        now = datetime.now(UTC) + timedelta(seconds=self.ahead_s)
        date = now.strftime("%a, %d %b %Y %H:%M:%S GMT")
        head = f"HTTP/1.1 {self.status} X\r\nDate: {date}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        writer.write(head.encode())
        await writer.drain()
        writer.close()


async def test_https_tells_whether_it_answers_and_by_how_much_the_clocks_differ() -> None:
    async with Door(ahead_s=600) as url:
        reach = await checks.reach_https(url)
        assert reach.works
        assert reach.skew_s == pytest.approx(-600, abs=5)
    async with Door(status=503) as url:
        assert (await checks.reach_https(url)).why == "it answers HTTP 503"
    assert not (await checks.reach_https("http://127.0.0.1:1")).works


async def reach(coordinator: FakeCoordinator, folder: Path, ca: FakeCa) -> Any:
    places = places_in(folder)
    join_by_hand(places, ca, port=coordinator.port)
    key = WorkerIdentity.load(places.worker).tls_key_pem()
    return await checks.reach_grpc(f"127.0.0.1:{coordinator.port}", Certificate.load(places.worker), key)


async def test_grpc_is_tried_with_the_workers_own_certificate(tmp_path: Path) -> None:
    """It opens no session: a daemon that runs would lose its own. Another pool's certificate is refused."""
    async with coordinating() as coordinator:
        assert (await reach(coordinator, tmp_path / "a", coordinator.ca)).works
        assert not coordinator.connections
        stranger = await reach(coordinator, tmp_path / "b", FakeCa())
        assert not stranger.works
        assert stranger.why
    gone = await reach(coordinator, tmp_path / "c", coordinator.ca)
    assert not gone.works
    assert grpc.StatusCode.UNAVAILABLE.name in gone.why


async def test_the_doctor_sees_a_joined_home_its_neighbours_and_what_is_wrong_with_it(tmp_path: Path) -> None:
    places = places_in(tmp_path)
    empty = await checks.circumstances(places, environ={})
    assert (empty.joined, empty.unwritable) == ("", ())
    assert "has not joined" in empty.not_joined
    async with coordinating() as coordinator, Door() as url, working(coordinator, tmp_path / "other"):
        join_by_hand(places, coordinator.ca, port=coordinator.port, url=url)
        (places.worker / "worker.toml").write_text("threds = 3")
        (places.worker / "tls.key").chmod(0o644)
        neighbour = places.model_copy(update={"machine": tmp_path / "other" / "machine"})
        found = await checks.circumstances(neighbour, environ={})
        assert (found.joined, found.running, found.neighbours) == (coordinator.ca.pool, 0, (1,))
        assert found.https is not None
        assert found.https.works
        assert found.grpc is not None
        assert found.grpc.works
        assert "Did you mean `threads`" in found.settings
        assert found.open_files == (str(places.worker / "tls.key"),)
        assert found.certificate_s is not None
        assert 6 * 86_400 < found.certificate_s < 7 * 86_400
        own = await checks.circumstances(places_in(tmp_path / "other"), environ={})
        assert (own.running, own.neighbours) == (os.getpid(), ()), "a daemon is no neighbour of itself"
    (places.worker / "tls.key").chmod(stat.S_IRUSR)
    assert checks.open_files(places.worker) == ()


def test_the_catalogue_of_the_pool_is_known_to_the_doctor(tmp_path: Path) -> None:
    places = places_in(tmp_path)
    assert checks.entries(places) == Catalogue.builtin().entries
    checks.remember(places, Catalogue((EMULATOR,)).to_wire())
    assert [entry.name for entry in checks.entries(places)] == [EMULATOR.name]


def test_models_on_this_disk_are_listed_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("POTLUCK_HOME", str(tmp_path))
    monkeypatch.delenv("POTLUCK_MODEL_CACHE", raising=False)
    entry = Catalogue.builtin().entries[0]
    file = entry.variants[0].files[0]
    cache = tmp_path / "cache" / "models"
    cache.mkdir(parents=True)
    (cache / file.sha256).write_bytes(bytes(1_000))
    assert run(["worker", "models", "-o", "json"]) == 0
    [shown] = json.loads(capsys.readouterr().out)
    assert (shown["model"], shown["size_bytes"], shown["in_use"]) == (entry.name, 1_000, False)
    with ModelStore(cache).using([file]):
        assert run(["worker", "models", "--remove", entry.name]) == ExitCode.INVALID
        assert "is in use" in capsys.readouterr().err
    assert run(["worker", "models", "--remove", entry.name]) == 0
    assert not (cache / file.sha256).exists()
    assert run(["worker", "models", "--remove", entry.name]) == ExitCode.INVALID


def test_the_command_prints_its_verdict_and_exits_by_it(tmp_path: Path) -> None:
    """As a person runs it: nothing joined, so this machine cannot share, and JSON is all of stdout."""
    done = subprocess.run(
        [sys.executable, "-m", "potluck", "worker", "doctor", "-o", "json"],
        env=os.environ | {"POTLUCK_HOME": str(tmp_path), "POTLUCK_MACHINE_DIR": str(tmp_path / "m")},
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )
    told = json.loads(done.stdout)
    assert (done.returncode, told["can_share"]) == (1, False)
    assert {f["topic"] for f in told["findings"] if f["state"] == "problem"} == {"pool"}
    assert told["machine"]["libraries"]["torch"]["error"] == ""
    assert "Traceback" not in done.stderr
