"""`potluck worker`: what a person types, what is printed, and the exit codes."""

import json
from pathlib import Path
from typing import Any

import pytest
import structlog
from fixtures_worker import FakeCa, FakeDoor, opened

from potluck.cli.main import run
from potluck.errors import ExitCode
from worker.state import ModelNow, RunningFor, WorkerState, process_start


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POTLUCK_HOME", str(tmp_path))
    monkeypatch.setenv("POTLUCK_MACHINE_DIR", str(tmp_path / "machine"))
    return tmp_path


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run(["worker", *arguments])
    structlog.reset_defaults()  # `start` let the log write where this test's output went
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return code, printed.out, printed.err


def test_a_mistyped_token_is_told_from_an_unknown_one(capsys: Any) -> None:
    token = str(FakeCa().token)
    code, _, error = call(
        capsys, "join", "http://127.0.0.1:9", "--token", token[:-1] + ("0" if token[-1] != "0" else "1")
    )
    assert (code, "mistyped" in error) == (ExitCode.INVALID, True)


def test_a_token_file_that_is_not_there_is_named(capsys: Any, tmp_path: Path) -> None:
    code, _, error = call(capsys, "join", "http://127.0.0.1:9", "--token", f"file:{tmp_path / 'no'}")
    assert (code, "cannot be read: No such file" in error) == (ExitCode.USAGE, True)
    (tmp_path / "noise").write_bytes(b"\xff\xfe")
    code, _, error = call(capsys, "join", "http://127.0.0.1:9", "--token", f"file:{tmp_path / 'noise'}")
    assert (code, "holds no join token" in error) == (ExitCode.USAGE, True)


def test_nobody_at_the_address_is_exit_code_8(capsys: Any) -> None:
    code, _, error = call(capsys, "join", "http://127.0.0.1:9", "--token", str(FakeCa().token))
    assert (code, "no coordinator answers" in error) == (ExitCode.UNREACHABLE, True)
    assert error.rstrip().endswith(": connection refused. Check the address, and that the coordinator runs.")


def test_starting_without_having_joined_says_how_to_join(capsys: Any) -> None:
    code, _, error = call(capsys, "start")
    assert (code, "potluck worker join" in error) == (ExitCode.NOT_LOGGED_IN, True)


def test_a_wrong_setting_ends_before_anything_starts(capsys: Any, home: Path) -> None:
    (home / "worker").mkdir()
    (home / "worker" / "worker.toml").write_text("threds = 2")
    code, _, error = call(capsys, "start")
    assert (code, "Did you mean `threads`" in error) == (ExitCode.INVALID, True)
    code, _, error = call(capsys, "start", "--engine-option", "fast")
    assert (code, "NAME=VALUE" in error) == (ExitCode.INVALID, True)


async def test_joining_prints_as_whom_and_keeps_the_token_out_of_the_arguments(
    capsys: Any, tmp_path: Path
) -> None:
    import asyncio

    async with opened(FakeDoor(FakeCa())) as door:
        (tmp_path / "token").write_text(f"{door.ca.token}\n")
        arguments = (
            "join",
            door.url,
            "--token",
            f"file:{tmp_path / 'token'}",
            "--name",
            "attic",
            "-o",
            "json",
        )
        code, out, _ = await asyncio.to_thread(call, capsys, *arguments)
    assert code == ExitCode.OK
    assert json.loads(out)["name"] == "attic"
    assert json.loads(out)["member"] == "ada"


def test_status_says_what_runs_and_for_whom(capsys: Any, home: Path) -> None:
    import os

    code, out, _ = call(capsys, "status")
    assert (code, out) == (0, "not running: it was never started here: potluck worker start\n")
    attempt = RunningFor(job_id="job_a", attempt=1, model="m", member="ada", tokens=7, since=0.0)
    model = ModelNow(name="m", engine="torch", state="ready", memory_bytes=5_000_000)
    state = WorkerState(
        pid=os.getpid(), process_started=process_start(os.getpid()), state="sharing", worker_id="wrk_a",
        attempts=(attempt,), models=(model,), attempts_served=3, tokens_served=40,
    )  # fmt: skip
    state.save(home / "worker")
    code, out, _ = call(capsys, "status")
    assert "serving ada: m, 7 tokens so far (job_a)" in out
    assert "model m (torch): ready, 5 MB in memory" in out
    code, out, _ = call(capsys, "status", "-o", "json")
    assert WorkerState.model_validate_json(out) == state


@pytest.mark.parametrize("command", ["", "join", "start", "status"])
def test_help_has_an_example(capsys: Any, command: str) -> None:
    code, out, _ = call(capsys, *([command] if command else []), "--help")
    assert code == 0
    assert "Example:" in out
