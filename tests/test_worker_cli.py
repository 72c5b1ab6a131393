"""`potluck worker`: what a person types, what is printed, and the exit codes."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import structlog
from fixtures_worker import FakeCa, FakeDoor, join_by_hand, opened

from potluck.cli.main import run
from potluck.errors import ExitCode
from worker.earned import Earned
from worker.settings import Places
from worker.state import CardNow, ModelNow, RunningFor, WorkerState, process_start
from worker.status_cli import headline, lines
from worker.wish import Wish


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
    assert (code, out) == (
        ExitCode.NOT_FOUND,
        "not running: it was never started here: potluck worker start\n",
    )
    attempt = RunningFor(job_id="job_a", attempt=1, model="m", member="ada", tokens=7, since=0.0)
    model = ModelNow(name="m", engine="torch", state="ready", memory_bytes=5_000_000)
    state = WorkerState(
        pid=os.getpid(), process_started=process_start(os.getpid()), state="sharing", worker_id="wrk_a",
        attempts=(attempt,), models=(model,), attempts_served=3, tokens_served=40,
    )  # fmt: skip
    state.save(home / "worker")
    code, out, _ = call(capsys, "status")
    assert code == ExitCode.OK
    assert "serving ada: m, 7 tokens so far (job_a)" in out
    assert "model m (torch): ready, 5 MB in memory" in out
    code, out, _ = call(capsys, "status", "-o", "json")
    assert WorkerState.model_validate_json(out) == state


def joined(home: Path) -> None:
    places = Places(worker=home / "worker", cache=home / "cache", machine=home / "machine")
    join_by_hand(places, FakeCa(), port=1)


def test_a_pause_without_a_daemon_is_kept_for_the_next_one_and_says_so(capsys: Any, home: Path) -> None:
    joined(home)
    code, out, _ = call(capsys, "pause", "--for", "2h")
    assert code == ExitCode.OK
    assert out.startswith("No worker runs here; one that is started is paused. The pause ends at ")
    wish = Wish.load(home / "worker")
    assert (wish.word, wish.until) == ("pause", wish.given_at + 7200)
    code, out, _ = call(capsys, "pause", "-o", "json")
    assert json.loads(out) == {
        "word": "pause", "until": None, "running": False, "state": "not running",
        "why": "it was never started here: potluck worker start",
    }  # fmt: skip
    code, out, _ = call(capsys, "resume")
    assert (code, out) == (0, "No worker runs here; one that is started shares: potluck worker start\n")
    assert Wish.load(home / "worker").pause() is None
    code, out, _ = call(capsys, "drain")
    assert (code, out) == (0, "No worker runs here: there is nothing to drain.\n")


@pytest.mark.parametrize("command", ["pause", "resume"])
def test_the_owners_word_needs_a_worker_that_has_joined(capsys: Any, command: str) -> None:
    code, _, error = call(capsys, command)
    assert (code, "potluck worker join" in error) == (ExitCode.NOT_LOGGED_IN, True)


def test_a_pause_for_no_time_that_makes_sense_is_a_mistake_in_typing(capsys: Any, home: Path) -> None:
    joined(home)
    code, _, error = call(capsys, "pause", "--for", "soon")
    assert (code, "no span of time" in error) == (ExitCode.USAGE, True)
    assert Wish.load(home / "worker").word == "share", "nothing was said"


def test_the_headline_says_why_and_when_it_changes_by_itself() -> None:
    now = time.mktime((2026, 11, 27, 12, 0, 0, 0, 0, -1))
    night = WorkerState(state="paused", why="outside its owner's hours for sharing", next_change=now + 36_000)
    assert headline(night, now) == (
        "paused: outside its owner's hours for sharing; shares again at 22:00 (in 10 h 0 min)"
    )
    day = WorkerState(state="sharing", next_change=now + 86_400 + 300)
    assert headline(day, now) == "sharing; pauses at Sat 12:05 (in 24 h 5 min)"
    assert headline(WorkerState(state="paused", why="it is hot"), now) == "paused: it is hot"


def test_status_shows_what_was_earned_today_the_cards_and_rules_that_cannot_be_kept() -> None:
    earned = Earned(day=time.strftime("%Y-%m-%d"), microcredits=2_500_000, tokens=900, own_tokens=50)
    card = CardNow(index=0, temperature_c=71.4, power_w=180.2)
    loading = ModelNow(
        name="m", engine="torch", state="loading", bytes_done=10**8, bytes_total=4 * 10**8, eta_s=12.0
    )
    state = WorkerState(
        state="sharing", pid=1, earned=earned, cards=(card,), models=(loading,), notes=("x cannot be seen",)
    )
    shown = lines(state, time.time())
    assert "card 0: 71 °C, 180 W" in shown
    assert "note: x cannot be seen" in shown
    assert "model m (torch): loading 100 of 400 MB, about 12 s left" in shown
    [today] = [line for line in shown if line.startswith("today: ")]
    assert today.startswith(
        "today: about 2.50 credits for 900 tokens, 50 tokens for yourself, free (by matched"
    )
    yesterday = state.model_copy(update={"earned": earned.model_copy(update={"day": "2000-01-01"})})
    assert not any(line.startswith("today: ") for line in lines(yesterday, time.time()))


@pytest.mark.parametrize("command", ["", "join", "start", "status", "pause", "resume", "drain", "leave"])
def test_help_has_an_example(capsys: Any, command: str) -> None:
    code, out, _ = call(capsys, *([command] if command else []), "--help")
    assert code == 0
    assert "Example:" in out
