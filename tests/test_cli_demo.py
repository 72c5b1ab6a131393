"""`potluck demo` for real: a coordinator, two workers and a member, as processes; and the command against them."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx2
import psutil
import pytest

from potluck import Pool
from potluck.client import ClientFile
from potluck.demo import PROFILE, progress_of
from potluck.results import Worker, WorkerModel

pytestmark = pytest.mark.processes

LIMIT_S = 150.0


@dataclass(slots=True)
class Place:
    """A folder of this test's own in which a demo leaves whatever it leaves."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("POTLUCK_")}
        temporary = self.folder / "tmp"
        temporary.mkdir(exist_ok=True)
        return {**kept, "POTLUCK_HOME": str(self.folder / "home"), "TMPDIR": str(temporary), "COLUMNS": "200"}

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        command = [sys.executable, "-m", "potluck", *arguments]
        done = subprocess.run(
            command,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=LIMIT_S,
            check=False,
        )
        out, err = done.stdout.decode(), done.stderr.decode()
        assert "Traceback" not in err
        return done.returncode, out, err

    @contextmanager
    def running(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        command = [sys.executable, "-m", "potluck", *arguments]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(command, env=self.environment, encoding="utf-8", **pipes) as process:  # type: ignore[call-overload]  # mypy wants each pipe spelt out
            try:
                yield process
            finally:
                process.kill()

    def processes(self) -> list[psutil.Process]:
        """Those that live in this folder."""
        return [process for process in psutil.process_iter() if _lives_in(process, self.folder)]

    def is_clean(self) -> bool:
        """No process and no folder of a demo are left. An engine ends a moment after its daemon."""
        _, alive = psutil.wait_procs(self.processes(), timeout=10)
        return not alive and not list((self.folder / "tmp").glob("potluck-demo-*"))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    for process in place.processes():  # only after a failure
        process.kill()


def _lives_in(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.environ().get("POTLUCK_HOME", "").startswith(str(folder))
    except psutil.Error:
        return False


def test_the_demo_works_and_leaves_nothing(place: Place) -> None:
    code, out, err = place("demo", "--engine", "emulator", "-o", "json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    balances = {account["name"]: account["balance"] for account in found["balances"]}
    assert sum(balances.values()) == found["ledger_sum"] == 0
    charged = found["answer"]["usage"]["potluck"]["charge"] + found["embedding"]["usage"]["potluck"]["charge"]
    assert balances["carol"] == -charged
    assert min(balances["alice"], balances["bob"], balances["the commons"]) > 0
    assert found["answer"]["choices"][0]["text"].strip()
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(found["url"])
    assert place.is_clean()


def test_a_worker_that_was_only_just_started_connects_and_is_not_away() -> None:
    started = Worker(id="w1", name="alice-pc", member="alice", state="away", why="not connected")
    assert progress_of(started) == "connecting"
    assert progress_of(replace(started, state="sharing")) == "sharing"
    loading = WorkerModel(name="tiny", engine="emulator", state="loading")
    assert progress_of(replace(started, models=(loading,))) == "tiny (emulator, loading)"


def test_ctrl_c_leaves_nothing(place: Place) -> None:
    with place.running("demo", "--engine", "emulator") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "join" in line:  # the coordinator runs, and the workers are on their way
                break
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert place.is_clean()


def test_a_failure_shows_the_guilty_log_and_leaves_nothing(place: Place) -> None:
    code, _, err = place("demo", "--engine", "emulator", "--model", "no-such-model")
    assert code not in {0, 130}
    assert "no-such-model" in err
    assert place.is_clean()


def test_a_kept_demo_answers_the_whole_command_and_ends_when_told(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = place("demo", "--engine", "emulator", "--keep")
    assert code == 0, err
    for line in ("potluck chat", "potluck balance", "potluck workers", "potluck demo --stop"):
        assert line in out
    assert "away" not in out
    assert place("demo", "--keep")[0] == 5  # one at a time
    everything_answers(place)
    stored_jobs_work(place)
    monkeypatch.setenv("POTLUCK_HOME", place.environment["POTLUCK_HOME"])
    file = ClientFile.load()
    assert file.default_profile == PROFILE
    code, _, err = place("demo", "--stop")
    assert code == 0
    assert all(name in err for name in ("alice's worker", "bob's worker", "the coordinator"))
    assert place.is_clean()
    assert PROFILE not in ClientFile.load().profiles
    assert place("balance")[0] == 3
    assert "No demo was left" in place("demo", "--stop")[2]
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(file.profiles[PROFILE]["url"])


def everything_answers(place: Place) -> None:
    """Each command that looks, against the real coordinator."""
    code, out, err = place("chat", "Good evening", "--max-tokens", "5")
    assert code == 0, err
    assert out.strip()
    assert "5 out" in err
    for arguments in (
        ["whoami"],
        ["balance"],
        ["quote", "hi"],
        ["models"],
        ["workers"],
        ["keys", "list"],
        ["jobs", "list"],
    ):
        code, out, err = place(*arguments, "-o", "json")
        assert (code, err) == (0, ""), arguments
        assert json.loads(out)
    assert place("coordinator", "join-token", "--uses", "2")[1].startswith("pl1_")
    code, out, _ = place("keys", "create", "laptop")
    assert code == 0
    assert out.startswith("sk-potluck-")
    assert place("members", "list")[0] == 1  # carol is no admin
    assert place("chat", "hi", "-m", "emulator-smal")[0] == 4
    assert place("chat", "hi", "--max-tokens", "100000000")[0] == 5


def stored_jobs_work(place: Place) -> None:
    """Submit, follow, fetch, list, cancel."""
    code, out, err = place("submit", "chat", "Remember this", "--max-tokens", "4", "--wait", "-o", "json")
    assert code == 0, err
    found = json.loads(out)
    assert found["job"]["state"] == "succeeded"
    assert found["result"]["choices"][0]["message"]["content"].strip()
    shown = json.loads(place("jobs", "show", found["id"], "-o", "json")[1])
    assert shown["charge"] == found["job"]["charge"] > 0
    assert place("jobs", "result", found["id"])[0] == 0
    assert place("jobs", "result", "job_none")[0] == 4
    code, out, err = place("submit", "embed", "one", "two", "--wait")
    assert (code, len(out.splitlines())) == (0, 2), err
    code, out, err = place("submit", "chat", "Long", "--max-tokens", "4000")
    assert code == 0, err
    assert place("jobs", "cancel", out.strip())[0] == 0
    assert place("jobs", "watch", out.strip(), "--timeout", "60")[0] == 103
    environment = place.environment
    file = ClientFile.load(Path(environment["POTLUCK_HOME"]) / "client.toml")
    with Pool(file.profiles[PROFILE]["url"], file.profiles[PROFILE]["key"]) as pool:
        before = pool.balance().balance
        answer = pool.complete("Once", model="emulator-small", max_tokens=3)
        assert answer.usage is not None
        assert pool.balance().balance == before - (answer.usage.charge or 0)
        assert pool.status().ledger_sum == 0
