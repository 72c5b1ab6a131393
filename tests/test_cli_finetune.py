"""`potluck submit finetune` and what `potluck jobs` does with one, against a real pool: asked, quoted, followed,
paused, ended, and what goes wrong. Training itself is tested elsewhere.
"""

import asyncio
import io
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog.testing
from fixtures_api import MODEL, Stand
from fixtures_learner import learner_of

from potluck import Pool
from potluck.cli.block import Block, fitted
from potluck.cli.curve import BLOCKS, TRAIN, Curve, sparkline
from potluck.cli.durations import spoken
from potluck.cli.main import run
from potluck.cli.printing import Printer
from potluck.cli.training import lines_of, spoken_course
from potluck.errors import JobCancelled
from potluck.finetune import FineTune, FineTuneFacts, Recipe

LIMIT_S = 60.0
ROOT = Path(__file__).parent.parent
PAIR = {
    "input": {"messages": [{"role": "user", "content": "well?"}]},
    "preferred_output": [{"role": "assistant", "content": "yes"}],
    "non_preferred_output": [{"role": "assistant", "content": "no"}],
}


def example(number: int, words: int = 3) -> dict[str, Any]:
    asked = " ".join(["word"] * words)
    return {
        "messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": f"answer {number}"}]
    }


def write(path: Path, examples: list[Any]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in examples))
    return path


def write_dear(folder: Path) -> Path:
    """More than a credit line pays for."""
    return write(folder / "dear.jsonl", [example(number, 2_000) for number in range(40)])


class Line:
    """The command line of a member, in a thread beside the pool."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    async def __call__(self, *arguments: str) -> tuple[int, str, str]:
        code = await asyncio.to_thread(run, list(arguments))
        captured = self._capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    async def json(self, *arguments: str) -> Any:
        code, out, err = await self(*arguments, "-o", "json")
        assert code == 0, err
        return json.loads(out)


@pytest.fixture
def line(
    stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Line]:
    monkeypatch.setenv("POTLUCK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("POTLUCK_URL", stand.url)
    monkeypatch.setenv("POTLUCK_KEY", stand.keys["alice"])
    monkeypatch.setenv("POTLUCK_MODEL", MODEL)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "data.jsonl", [example(number) for number in range(12)])
    with structlog.testing.capture_logs():  # the pool's own words, which are none of the command's
        yield Line(capsys)


def terminal(monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    typed = io.StringIO(answer)
    typed.isatty = lambda: True  # type: ignore[method-assign]  # what makes it a person's
    monkeypatch.setattr("sys.stdin", typed)


async def started(line: Line, *more: str) -> str:
    code, out, err = await line("submit", "finetune", "data.jsonl", "--yes", *more)
    assert code == 0, err
    return out.strip()


async def files_of(stand: Stand) -> list[str]:
    return [file.id async for file in stand.openai().files.list()]


async def jobs_of(stand: Stand) -> list[Any]:
    return [job async for job in stand.openai().fine_tuning.jobs.list()]


async def test_nothing_begins_unless_somebody_said_so(stand: Stand, line: Line) -> None:
    """No terminal and no --yes: refused before anything is sent, with what would help."""
    for output in ("text", "json"):
        code, out, err = await line("submit", "finetune", "data.jsonl", "-o", output)
        assert (code, out) == (2, "")
        assert "--yes" in err
        assert "--dry-run" in err
    assert await files_of(stand) == []


async def test_a_dry_run_says_what_is_in_the_files_and_what_it_can_cost(
    stand: Stand, line: Line, tmp_path: Path
) -> None:
    write(tmp_path / "valid.jsonl", [example(number, 40) for number in range(10)])
    code, out, _ = await line(
        *("submit", "finetune", "data.jsonl", "--validation", "valid.jsonl", "--dry-run"),
        *(
            "--sequence-tokens",
            "32",
            "--epochs",
            "3",
            "--batch-size",
            "4",
            "--rank",
            "8",
            "--suffix",
            "supper",
        ),
    )
    facts = dict(row.split("  ", 1) for row in out.splitlines())
    assert code == 0
    assert facts["model"].strip().startswith(f"{MODEL}:ft-supper, supervised, LoRA of rank 8 (")
    assert facts["examples"].strip() == "12 with 84 tokens; the longest has 7"
    assert facts["cut"].strip() == "none: all fit into 32 tokens"
    assert facts["validation"].strip() == "10 examples; 10 longer than 32 tokens, at their ends"
    assert facts["training"].strip() == "3 epochs in batches of 4: 9 steps, learning rate 0.0002"
    assert facts["cost"].strip().startswith("at most ")
    assert facts["you have"].strip() == "1,000.00 credits to spend"
    quoted = await line.json("submit", "finetune", "data.jsonl", "--dry-run")
    assert (quoted["examples"], quoted["longest"], quoted["quote"] > 0) == (12, 7, True)
    assert await jobs_of(stand) == []
    assert len(await files_of(stand)) == 2, "the same bytes are not sent again"


async def test_a_person_sees_the_price_and_decides(
    stand: Stand, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal(monkeypatch, "n\n")
    code, out, err = await line("submit", "finetune", "data.jsonl")
    assert (code, out) == (0, "")
    assert "12 with 84 tokens" in err
    assert "Start it? [y/N]" in err
    assert "Nothing was done." in err
    assert await jobs_of(stand) == []
    terminal(monkeypatch, "y\n")
    code, out, err = await line("submit", "finetune", "data.jsonl")
    assert code == 0
    assert "data.jsonl is there already as file-" in err
    (job,) = await jobs_of(stand)
    assert job.id.removeprefix("ftjob-") == out.strip().removeprefix("job_")
    assert f"potluck jobs watch {out.strip()}" in err


async def test_what_is_asked_for_arrives(stand: Stand, line: Line) -> None:
    told = await line.json(
        *("submit", "finetune", "data.jsonl", "--yes", "--suffix", "supper", "--seed", "7", "--workers", "2"),
        *("--epochs", "2", "--batch-size", "auto", "--learning-rate", "3e-4", "--rank", "4", "--alpha", "12"),
        *("--targets", "v_proj", "--local-steps", "3", "--only", "rig, box"),
        *("--idempotency-key", "mine"),
    )
    assert told["model"] == f"{MODEL}:ft-supper"
    (job,) = await jobs_of(stand)
    assert (job.id, job.seed, job.hyperparameters.n_epochs) == (told["finetune"], 7, 2)
    found = (job.model_extra or {})["potluck"]
    assert (found["workers_wanted"], found["lora"]["rank"], found["lora"]["alpha"]) == (2, 4, 12.0)
    assert (found["lora"]["learning_rate"], found["lora"]["targets"]) == (3e-4, ["v_proj"])
    kept = await stand.context.store.finetune(job.id)
    assert kept is not None
    assert (kept.wanted.local_steps, kept.wanted.only) == (3, ("rig", "box"))
    again = await line(
        *("submit", "finetune", "data.jsonl", "--yes", "--suffix", "supper", "--seed", "8"),
        *("--idempotency-key", "mine"),
    )
    assert (again[0], "was used for another request" in again[2]) == (5, True)
    taken = await line("submit", "finetune", "data.jsonl", "--yes", "--suffix", "supper")
    assert (taken[0], "is taken" in taken[2]) == (5, True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--epochs", "many"), "--epochs: 'many' is neither a number above 0 nor auto"),
        (("--batch-size", "0"), "--batch-size"),
        (("--rank", "0"), "--rank"),
        (("--learning-rate", "nan"), "--learning-rate: nan is no number to train with"),
        (("--alpha", "inf"), "--alpha: inf is no number to train with"),
        (("--beta", "0.2"), "--beta is of dpo, which learns from preference pairs"),
        (("--targets", ","), "--targets: names with commas between them are needed"),
        (("--method", "rl"), "--method"),
        (("--model-name", "x"), "--model-name"),
    ],
)
async def test_an_option_that_makes_no_sense_is_named(
    stand: Stand, line: Line, options: tuple[str, str], said: str
) -> None:
    code, _, err = await line("submit", "finetune", "data.jsonl", "--yes", *options)
    assert (code, said in err) == (2, True), err
    assert await files_of(stand) == []


async def test_a_rank_of_ten_thousand_is_the_pools_to_refuse(stand: Stand, line: Line) -> None:
    code, _, err = await line("submit", "finetune", "data.jsonl", "--yes", "--rank", "10000")
    assert (code, "potluck.rank" in err) == (5, True)


async def test_data_that_teaches_nothing_is_not_sent(stand: Stand, line: Line, tmp_path: Path) -> None:
    """Both files are read before either goes, and every problem has its line."""
    good = json.dumps(example(1)) + "\n"
    for text, said in (
        (good * 6 + '{"messages": }\n' + good * 6, "line 7, column 14"),
        (good * 9 + '{"messages": [{"role": "user", "content": "x"}]}\n', "no turn of the assistant"),
        (good * 3, "at least 10 examples"),
    ):
        (tmp_path / "bad.jsonl").write_text(text)
        for arguments in (("bad.jsonl",), ("data.jsonl", "--validation", "bad.jsonl")):
            code, _, err = await line("submit", "finetune", *arguments, "--yes")
            assert (code, said in err) == (5, True), err
    code, _, err = await line("submit", "finetune", "none.jsonl", "--yes")
    assert (code, "none.jsonl cannot be read" in err) == (5, True)
    assert await files_of(stand) == []


async def test_preference_pairs_are_trained_by_dpo_and_a_files_id_will_do(
    stand: Stand, line: Line, tmp_path: Path
) -> None:
    write(tmp_path / "pairs.jsonl", [PAIR] * 12)
    assert (await line.json("submit", "finetune", "pairs.jsonl", "--dry-run"))["method"] == "dpo"
    (pairs,) = await files_of(stand)
    refused = await line("submit", "finetune", pairs, "--dry-run")
    assert (refused[0], "preference pairs" in refused[2]) == (5, True)
    quoted = await line.json("submit", "finetune", pairs, "--method", "dpo", "--beta", "0.3", "--dry-run")
    assert (quoted["method"], quoted["examples"]) == ("dpo", 12)


async def test_who_has_too_little_is_told_before_anything_begins(
    stand: Stand, line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless a worker of the own would do it for nothing."""
    dear = ("submit", "finetune", str(write_dear(tmp_path)), "--epochs", "50", "--yes")
    code, _, err = await line(*dear)
    assert code == 6
    assert "Share a machine to earn" in err
    assert await jobs_of(stand) == []
    monkeypatch.setenv("POTLUCK_KEY", stand.keys["bob"])
    code, out, err = await line(*dear)
    assert (code, out.startswith("job_")) == (0, True), err
    assert "only workers of your own" in err


async def test_a_fine_tune_is_shown_paused_resumed_and_cancelled_by_its_jobs_id(
    stand: Stand, line: Line
) -> None:
    job_id = await started(line, "--suffix", "supper")
    shown = (await line("jobs", "show", job_id))[1]
    assert "becomes" in shown
    assert f"{MODEL}:ft-supper" in shown
    assert (await line("jobs", "pause", job_id))[1] == f"Job {job_id} is paused.\n"
    assert (await line("jobs", "pause", job_id))[0] == 5
    assert (await line.json("jobs", "show", job_id))["finetune"]["status"] == "paused"
    code, out, err = await line("jobs", "watch", job_id, "--timeout", "0")
    assert (code, out) == (101, f"{job_id} paused\n")
    assert f"potluck jobs watch {job_id}" in err
    assert (await line("jobs", "result", job_id))[0] == 101
    code, out, _ = await line("jobs", "resume", job_id.replace("job_", "ftjob-"))
    assert (code, out.startswith(f"Job {job_id} is ")) == (0, True)
    assert (await line("jobs", "cancel", job_id))[0] == 0
    assert (await line("jobs", "watch", job_id))[0] == 103
    assert (await line("jobs", "result", job_id))[0] == 103
    code, _, err = await line("jobs", "cancel", job_id)
    assert (code, "has ended" in err) == (5, True)


async def test_other_jobs_cannot_be_paused_and_what_is_not_there_is_said(stand: Stand, line: Line) -> None:
    job_id = (await line("submit", "chat", "hello"))[1].strip()
    assert (await line("jobs", "watch", job_id))[0] == 0
    for verb in ("pause", "resume"):
        code, _, err = await line("jobs", verb, job_id)
        assert (code, "is no fine-tune" in err) == (5, True)
        assert (await line("jobs", verb, "job_none"))[0] == 4
    for verb in ("show", "watch", "cancel", "result"):
        assert (await line("jobs", verb, "ftjob-none"))[0] == 4


async def test_what_fails_when_it_is_read_is_said_with_its_exit_code(
    stand: Stand, line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool checks again when it begins: another job may have taken the credits since the quote."""
    monkeypatch.setattr("potluck.cli.finetune._refuse_too_dear", lambda *_: None)
    code, out, err = await line("submit", "finetune", str(write_dear(tmp_path)), "--epochs", "50", "--yes")
    assert (code, out, "Ask for fewer epochs" in err) == (6, "", True), err
    (job,) = await jobs_of(stand)
    job_id = job.id.replace("ftjob-", "job_")
    assert (await line("jobs", "watch", job_id))[0] == 6
    assert (await line("jobs", "result", job_id))[0] == 6
    assert "error" in (await line("jobs", "show", job_id))[1]


async def test_it_ends_as_a_model_that_is_asked_and_taken_along(
    stand: Stand, line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--wait` prints nothing but its name; what was there to see stands beside it, and later too."""
    monkeypatch.setattr("potluck.finetuning.POLL_S", 0.05)
    learner_of(stand, steps=7)
    write(tmp_path / "valid.jsonl", [example(number) for number in range(10)])
    name = f"{MODEL}:ft-supper"
    code, out, err = await line(
        *("submit", "finetune", "data.jsonl", "--validation", "valid.jsonl", "--suffix", "supper"),
        *("--epochs", "4", "--batch-size", "2", "--yes", "--wait"),
    )
    assert (code, out) == (0, f"{name}\n"), err
    assert "24 steps, loss " in err
    assert f"potluck chat -m {name}" in err
    (job,) = await jobs_of(stand)
    job_id = job.id.replace("ftjob-", "job_")
    code, out, err = await line("jobs", "watch", job_id)
    assert (code, out.splitlines()[-1]) == (0, name)
    assert "validation loss " in err
    assert (await line.json("jobs", "result", job_id))["fine_tuned_model"] == name
    shown = dict(row.split("  ", 1) for row in (await line("jobs", "show", job_id))[1].splitlines() if row)
    assert (shown["state"].strip(), shown["steps"].strip()) == ("succeeded", "24 of 24")
    assert (await line("chat", "-m", name, "hello"))[0] == 0
    assert (await line("models", "download", name, "--to", "taken"))[0] == 0
    assert "README.md" in {path.name for path in (tmp_path / "taken").iterdir()}
    with Pool() as pool:
        kept = await asyncio.to_thread(lambda: list(pool.finetunes.checkpoints(job_id)))
    assert kept[0].step_number == 24


@asynccontextmanager
async def process(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    made = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "potluck", *arguments),
        env=dict(os.environ),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(LIMIT_S):
            yield made
    finally:
        if made.returncode is None:
            made.kill()
            await made.wait()


async def test_ctrl_c_ends_the_looking_and_not_the_fine_tune(stand: Stand, line: Line) -> None:
    job_id = await started(line)
    async with process("jobs", "watch", job_id) as watching:
        assert watching.stdout is not None
        assert (await watching.stdout.readline()).decode().startswith(job_id)
        watching.send_signal(signal.SIGINT)
        _, err = await watching.communicate()
    assert watching.returncode == 101
    assert f"Attach again with `potluck jobs watch {job_id}`" in err.decode()
    assert (await jobs_of(stand))[0].status in ("queued", "running")


async def test_machines_get_each_event_once_and_the_fine_tune_at_the_end(stand: Stand, line: Line) -> None:
    job_id = await started(line)
    await line("jobs", "pause", job_id)
    async with process("jobs", "watch", job_id, "-o", "jsonl") as watching:
        assert watching.stdout is not None
        first = json.loads(await watching.stdout.readline())
        await line("jobs", "cancel", job_id)
        rest, _ = await watching.communicate()
    *events, last = [first, *map(json.loads, rest.splitlines())]
    assert watching.returncode == 103
    assert {event["object"] for event in events} == {"fine_tuning.job.event"}
    assert len({event["id"] for event in events}) == len(events)
    assert "Paused." in [event["message"] for event in events]
    assert (last["object"], last["status"]) == ("fine_tuning.job", "cancelled")


async def test_the_sdk_makes_lists_and_streams(stand: Stand, line: Line, tmp_path: Path) -> None:
    def work() -> None:
        with Pool() as pool:
            file = pool.files.upload(tmp_path / "data.jsonl")
            made = pool.finetunes.create(
                MODEL, file.id, Recipe(epochs=2, multiplier=0.5), metadata={"a": "b"}
            )
            for found in pool.finetunes.follow(made.id):
                if found.status != "validating_files":
                    break
            assert (found.metadata, found.hyperparameters["learning_rate_multiplier"]) == ({"a": "b"}, 0.5)
            assert [one.id for one in pool.finetunes.list()] == [made.id]
            assert list(pool.finetunes.checkpoints(made.potluck.job)) == []
            pool.finetunes.pause(made.id)
            pool.finetunes.resume(made.id)
            stream = pool.finetunes.stream(made.id)
            seen = [next(stream)]
            pool.finetunes.cancel(made.id)
            seen += stream
            assert seen == list(pool.finetunes.events(made.id))
            assert {"Paused.", "Resumed."} <= {event.message for event in seen}
            assert list(pool.finetunes.stream(made.id, after=seen[-2].id)) == seen[-1:]
            with pytest.raises(JobCancelled):
                pool.finetunes.wait(made.id)

    await asyncio.to_thread(work)


# ---- what a terminal shows


def tune(status: str = "running", **facts: Any) -> FineTune:
    said = {
        "steps": 96,
        "steps_done": 48,
        "quote": 3_200_000,
        "charge": 1_240_000,
        "result": "base:ft-supper",
    }
    return FineTune(
        id="ftjob-1",
        status=status,
        hyperparameters={"n_epochs": 3},
        potluck=FineTuneFacts(job="job_1", **{**said, **facts}),
    )


def curve(*losses: float) -> Curve:
    made = Curve()
    made.add({"step": step, TRAIN: loss} for step, loss in enumerate(losses, 1))
    return made


def test_what_there_is_to_see_of_a_fine_tune_that_runs() -> None:
    seen = curve(2.0, 1.5, 1.0)
    seen.add([{"step": 3, "valid_loss": 0.91}])
    found = tune(tokens_per_second=152.4, workers=("rig", "box"), eta_s=130.0)
    assert lines_of(found, seen, Printer(), blocks=True) == [
        "base:ft-supper: training on rig, box",
        "[############............] step 48 of 96, epoch 2 of 3, about 2 min left",
        f"loss 1.000 {BLOCKS[-1]}{BLOCKS[4]}{BLOCKS[0]}   validation loss 0.910",
        "152 tokens/s   1.24 of at most 3.20 credits",
    ]
    assert lines_of(found, seen, Printer(), blocks=False)[2] == "loss 1.000   validation loss 0.910"


def test_what_there_is_to_see_of_one_that_waits() -> None:
    waiting = tune("queued", steps_done=0, charge=0, why="no worker that trains base is connected")
    assert lines_of(waiting, Curve(), Printer()) == [
        "base:ft-supper: waiting for a worker (no worker that trains base is connected)",
        "[........................] step 0 of 96, epoch 1 of 3",
        "0.00 of at most 3.20 credits",
    ]
    assert "potluck jobs resume job_1" in lines_of(tune("paused"), Curve(), Printer())[0]


def test_who_trains_it_trains_it_though_it_is_said_to_be_queued_yet() -> None:
    begun = tune("queued", workers=("rig",), stage="training")
    assert lines_of(begun, Curve(), Printer())[0] == "base:ft-supper: training on rig"
    begun = tune("queued", workers=("rig",), stage="starting")
    assert lines_of(begun, Curve(), Printer())[0] == "base:ft-supper: beginning on rig"


def test_of_a_curve_whose_begin_is_forgotten_no_begin_is_said() -> None:
    whole, rest = curve(2.0, 1.0), Curve()
    rest.add([{"step": 9, TRAIN: 1.5}, {"step": 10, TRAIN: 1.0}])
    assert spoken_course(whole) == ["loss 2.000 to 1.000"]
    assert spoken_course(rest) == ["loss 1.000"]


def test_a_curve_is_drawn_as_wide_as_there_is_room() -> None:
    assert sparkline([], 10) == ""
    assert sparkline([1.0], 10) == BLOCKS[0]
    assert sparkline([1.0, 1.0, 1.0], 10) == BLOCKS[0] * 3
    assert sparkline([3.0, 2.0, 1.0, 0.0], 2) == BLOCKS[-1] + BLOCKS[0]
    assert len(sparkline([float(n) for n in range(1_000)], 24)) == 24
    assert curve(2.0, 1.0).values(TRAIN) == [2.0, 1.0]
    same = curve(2.0, 1.0)
    same.add([{"step": 2, TRAIN: 1.5}, {"step": "x"}, {}])
    assert same.values(TRAIN) == [2.0, 1.5]


def test_lines_are_drawn_in_their_place_and_taken_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "10")
    with Block(shown=True) as block:
        block.show(["one", "a line that is too long"])
        block.show(["two"])
    clear, up = "\r\x1b[2K", "\x1b[1A"
    first = f"{clear}one\na line t…\n"
    second = f"{(clear + up) * 2}{clear}two\n"
    assert capsys.readouterr().err == first + second + f"{clear}{up}{clear}"
    with Block(shown=False) as silent:
        silent.show(["nothing"])
    assert capsys.readouterr().err == ""
    assert fitted("日本語", 5) == "日本…"


def test_a_span_of_time_is_said_as_people_say_it() -> None:
    said = [spoken(s) for s in (0.2, 45, 89, 90, 130, 3_600, 4_800, 86_400, 98_000)]
    assert said == ["1 s", "45 s", "89 s", "2 min", "2 min", "1 h", "1 h 20 min", "1 d", "1 d 3 h"]
