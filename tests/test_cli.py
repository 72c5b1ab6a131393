"""The command: what it prints for people and for machines, and the exit codes, in processes of its own."""

import json
import os
import select
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fixtures_fake_pool import ADMIN_KEY, KEY, WAIT_S, FakePool, fake_pool

from potluck.cli.durations import seconds_of
from potluck.cli.jobs import result_text
from potluck.cli.main import Root, asked_output, run
from potluck.cli.printing import Output, Printer, columns, printable
from potluck.client import ClientFile
from potluck.errors import UsageError

__all__ = ["fake_pool"]

PRESSES_MAX = 10
LIMIT_S = 60.0


@dataclass(slots=True)
class Command:
    """Runs the command in a process of its own, logged in to the fake pool by variables."""

    environment: dict[str, str]
    capsys: pytest.CaptureFixture[str]

    @contextmanager
    def process(self, *arguments: str, **more: Any) -> Iterator[subprocess.Popen[str]]:
        """The running command; a test that fails leaves none behind."""
        process = subprocess.Popen(
            [sys.executable, "-m", "potluck", *arguments],
            env=self.environment,
            stdin=more.pop("stdin", subprocess.DEVNULL),
            stdout=more.pop("stdout", subprocess.PIPE),
            stderr=more.pop("stderr", subprocess.PIPE),
            encoding="utf-8",
            **more,
        )
        with process:
            try:
                yield process
            finally:
                process.kill()

    def __call__(self, *arguments: str, text: str | None = None) -> tuple[int, str, str]:
        with self.process(
            *arguments, stdin=subprocess.DEVNULL if text is None else subprocess.PIPE
        ) as process:
            out, err = process.communicate(text, timeout=LIMIT_S)
        assert "Traceback" not in err
        return process.returncode, out, err

    def here(self, *arguments: str) -> tuple[int, str, str]:
        """The same in this process: quicker."""
        code = run(list(arguments))
        captured = self.capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err


@pytest.fixture
def potluck(
    tmp_path: Path, fake_pool: FakePool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    for name in [name for name in os.environ if name.startswith("POTLUCK_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("POTLUCK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("POTLUCK_URL", fake_pool.url)
    monkeypatch.setenv("POTLUCK_KEY", KEY)
    monkeypatch.setenv("COLUMNS", "200")
    return Command(dict(os.environ), capsys)


@pytest.fixture
def nobody(potluck: Command, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Not logged in."""
    monkeypatch.delenv("POTLUCK_URL")
    monkeypatch.delenv("POTLUCK_KEY")
    return Command(dict(os.environ), potluck.capsys)


def test_a_folder_that_cannot_be_written_is_named_with_what_to_do(nobody: Command, tmp_path: Path) -> None:
    """Before anything is started: the demo's models have no place."""
    (tmp_path / "file").touch()
    nobody.environment["POTLUCK_MODEL_CACHE"] = str(tmp_path / "file" / "models")
    code, _, err = nobody("demo", "--engine", "emulator")
    assert code == 1
    assert f"{tmp_path / 'file' / 'models'} cannot be used: Not a directory." in err
    assert "POTLUCK_MODEL_CACHE" in err


# ---- exit codes, each in a process of its own


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["balance"], 0),
        (["chat", "hello", "-m", "forbidden"], 1),
        (["chat", "hello", "-m", "crashed"], 1),
        (["nonsense"], 2),
        (["chat", "hello", "--nonsense"], 2),
        (["jobs", "list", "--last", "0"], 2),
        (["balance", "--key", "sk-potluck-wrong"], 3),
        (["chat", "hello", "-m", "missing"], 4),
        (["jobs", "show", "job_none"], 4),
        (["chat", "hello", "-m", "long"], 5),
        (["keys", "revoke", "key_1"], 0),
        (["quote", "hello", "-m", "conflict"], 5),
        (["chat", "hello", "-m", "poor"], 6),
        (["submit", "chat", "hello", "-m", "limited"], 7),
        (["balance", "--url", "http://127.0.0.1:9"], 8),
        (["chat", "hello", "-m", "broken"], 8),
        (["chat", "hello", "-m", "erring"], 100),
    ],
)
def test_exit_codes_and_errors_as_json(potluck: Command, arguments: list[str], code: int) -> None:
    """In JSON mode stdout holds JSON or nothing, and an error is one JSON object on stderr with its code."""
    found, out, err = potluck(*arguments, "-o", "json")
    assert found == code, err
    if code == 0:
        assert err == ""
        json.loads(out)
    else:
        assert out == ""
        error = json.loads(err)["error"]
        assert error["exit_code"] == code
        assert error["message"]


def test_exit_code_when_nobody_is_logged_in(nobody: Command) -> None:
    code, out, err = nobody("balance")
    assert (code, out) == (3, "")
    assert "potluck login" in err


@pytest.mark.parametrize(
    ("state", "code"), [("succeeded", 0), ("failed", 100), ("expired", 100), ("cancelled", 103)]
)
def test_watching_a_job_ends_as_the_job_did(
    potluck: Command, fake_pool: FakePool, state: str, code: int
) -> None:
    fake_pool.end_state, fake_pool.looks_until_end = state, 1
    job_id = fake_pool.new_job("chat", "small")
    found, out, err = potluck.here("jobs", "watch", job_id)
    assert found == code
    assert [line.split()[1].strip(",") for line in out.splitlines()] == ["running", state]
    assert (code == 0) == (err == "")


def test_a_job_that_is_not_finished(potluck: Command, fake_pool: FakePool) -> None:
    fake_pool.looks_until_end = 10**9
    job_id = fake_pool.new_job("chat", "small")
    assert potluck.here("jobs", "watch", job_id, "--timeout", "0")[0] == 101
    assert potluck.here("jobs", "result", job_id)[0] == 101
    assert potluck.here("submit", "chat", "x", "--wait", "--timeout", "0")[0] == 101


def test_ctrl_c_ends_a_single_question_with_130_and_cancels_it(potluck: Command, fake_pool: FakePool) -> None:
    with potluck.process("chat", "hello", "-m", "slow") as process:
        assert process.stdout is not None
        assert process.stdout.read(9) == "You said:"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130
    assert out == "\n"  # the line is ended
    assert "Traceback" not in err
    assert fake_pool.left_early.wait(WAIT_S)


def test_ctrl_c_ends_the_looking_at_a_job_and_not_the_job(potluck: Command, fake_pool: FakePool) -> None:
    fake_pool.looks_until_end = 10**9
    job_id = fake_pool.new_job("chat", "small")
    with potluck.process("jobs", "watch", job_id) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(job_id)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 101
    assert f"Attach again with `potluck jobs watch {job_id}`" in err


def test_ctrl_c_while_the_command_is_still_loading_is_no_traceback(potluck: Command, tmp_path: Path) -> None:
    """The interrupt comes in the middle of an import, as that of a quick finger does."""
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt")
    hasty = Command({**potluck.environment, "PYTHONPATH": str(tmp_path)}, potluck.capsys)
    assert hasty("balance") == (130, "", "")


WRONG: list[tuple[list[str], int, str]] = [
    (["jobs", "show", "nonsense"], 4, "You have no such job"),
    (["jobs", "show", "näh/../☃"], 4, "is no id"),
    (["jobs", "show", "\udcff"], 4, "is no id"),
    (["jobs", "cancel", ""], 4, "is no id"),
    (["keys", "revoke", "a/b"], 4, "is no id"),
    (["chat", "\udcff\udcfe", "-m", "small"], 5, "no valid Unicode"),
    (["chat", "", "-m", "small"], 2, "nothing to ask"),
    (["balance", "--key", "schlüssel"], 2, "no API key"),
    (["balance", "--key", "sk-potluck-\udcff"], 2, "no API key"),
    (["balance", "--url", "http://127.0.0.1:99999"], 2, "no address of a pool"),
    (["balance", "--url", "http://☃.example"], 2, "no address of a pool"),
    (["balance", "--url", "http://[::1"], 2, "no address of a pool"),
    (["balance", "--profile", "\udcff"], 2, "There is no profile"),
    (["workers", "\x1b[31m"], 2, "No such command"),
    (["models", "\x1b[31m"], 2, "No such command"),
    (["☃"], 2, "There is no command"),
]


@pytest.mark.parametrize(("arguments", "code", "words"), WRONG)
@pytest.mark.parametrize("output", list(Output))
def test_whatever_is_typed_wrongly_ends_with_one_sentence(
    potluck: Command, arguments: list[str], code: int, words: str, output: Output
) -> None:
    """For machines one JSON object; never `something went wrong that should not have`."""
    found, out, err = potluck.here(*arguments, "-o", output)
    assert (found, out) == (code, "")
    [line] = err.splitlines()
    message = line if output is Output.TEXT else json.loads(line)["error"]["message"]
    assert words in message
    assert "should not have" not in message
    assert "\x1b" not in line


@pytest.mark.parametrize("url", ["http://127.0.0.1:99999", "http://☃.example", "nonsense"])
def test_a_wrong_address_beside_a_saved_key_is_said(nobody: Command, fake_pool: FakePool, url: str) -> None:
    """The address is compared with the one that the key was saved for, whatever it is."""
    assert nobody.here("login", fake_pool.url, "--key", KEY)[0] == 0
    code, out, err = nobody.here("balance", "--url", url)
    assert (code in {2, 3}, out) == (True, "")
    assert "no address of a pool" in err or "The saved key of profile" in err
    assert nobody.here("config", "view", "--url", url)[0] == 0


def test_a_reader_that_leaves_early_gets_no_complaint(potluck: Command) -> None:
    """`potluck models | head -0`."""
    reading, writing = os.pipe()
    os.close(reading)
    with potluck.process("models", stdout=writing) as process:
        os.close(writing)
        _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1
    assert err == ""


# ---- JSON


@pytest.mark.parametrize(
    "arguments",
    [
        ["whoami"],
        ["config", "view"],
        ["balance"],
        ["balance", "--micro"],
        ["quote", "hello"],
        ["models"],
        ["workers"],
        ["keys", "list"],
        ["keys", "create", "laptop", "--expires", "7d"],
        ["jobs", "list"],
        ["chat", "hello"],
        ["submit", "chat", "hello"],
        ["submit", "chat", "hello", "--wait"],
        ["submit", "embed", "hello", "you", "--wait"],
        ["coordinator", "join-token", "--uses", "2", "--expires", "1h"],
        ["members", "list", "--key", ADMIN_KEY],
        ["members", "add", "dave", "--key", ADMIN_KEY, "--credit-line", "2.5"],
        ["limits"],
        ["members", "limit", "carol", "--key", ADMIN_KEY, "--concurrent", "2"],
    ],
)
@pytest.mark.parametrize("output", ["json", "jsonl"])
def test_json_and_nothing_else(
    potluck: Command, fake_pool: FakePool, arguments: list[str], output: str
) -> None:
    fake_pool.new_job("chat", "small")
    code, out, err = potluck.here(*arguments, "-o", output)
    assert (code, err) == (0, "")
    if output == "json":
        json.loads(out)
    else:
        assert [json.loads(line) for line in out.splitlines()]


def test_amounts_are_integers_for_machines(potluck: Command) -> None:
    assert json.loads(potluck.here("balance", "-o", "json")[1])["balance"] == -271_234


def test_a_usage_error_is_json_too(potluck: Command) -> None:
    for form in (["-o", "json"], ["--output=json"], ["-ojson"]):
        code, out, err = potluck.here("balance", "--nonsense", *form)
        assert (code, out) == (2, "")
        assert "--nonsense" in json.loads(err)["error"]["message"]


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (["a"], Output.TEXT),
        (["a", "-o", "jsonl"], Output.JSONL),
        (["a", "--output=json"], Output.JSON),
        (["a", "-o"], Output.TEXT),
        (["a", "-o", "xml"], Output.TEXT),
        (["a", "--", "-o", "json"], Output.TEXT),
    ],
)
def test_how_to_print_an_early_error(potluck: Command, arguments: list[str], output: Output) -> None:
    assert asked_output(arguments) is output


# ---- text


def test_balance_for_people(potluck: Command) -> None:
    out = potluck.here("balance")[1]
    assert "-0.2712 credits" in out
    assert "1,000.00" in out
    assert "-271234 microcredits" in potluck.here("balance", "--micro")[1]


def test_quote_models_workers_whoami_for_people(potluck: Command) -> None:
    assert potluck.here("quote", "hello")[1].startswith("At most 1.235 credits: 7 tokens in, up to 1024 out")
    assert "tools json_schema" in potluck.here("models")[1]
    assert "small (llamacpp, ready)" in potluck.here("workers")[1]
    assert "kitchen" in potluck.here("whoami")[1]


def test_empty_states_say_what_to_do_next(potluck: Command, fake_pool: FakePool) -> None:
    fake_pool.empty = True
    for arguments, hint in (
        (["jobs", "list"], "potluck chat"),
        (["workers"], "join-token"),
        (["models"], "potluck worker start"),
    ):
        code, out, err = potluck.here(*arguments)
        assert (code, out) == (0, "")
        assert hint in err
        assert potluck.here(*arguments, "-o", "jsonl") == (0, "", "")


def test_what_others_wrote_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b[31mb\x07\tc\n") == "a�[31mb�\tc\n"
    assert printable("\ud800") == "�"
    assert columns("a🍲日") == 5


def test_tables_line_up_also_with_wide_characters(capsys: pytest.CaptureFixture[str]) -> None:
    Printer().table(("NAME", "N"), [("日本", "1"), ("a\nb", "22")], right=(1,))
    assert capsys.readouterr().out == "NAME   N\n日本   1\na b   22\n"


def test_spans_of_time() -> None:
    assert [seconds_of(text) for text in ("90", "90s", "2m", "1h", "7D", None)] == [
        90,
        90,
        120,
        3600,
        604800,
        None,
    ]
    for wrong in ("", "0", "-1s", "1y", "1.5h", "9999999w"):
        with pytest.raises(UsageError):
            seconds_of(wrong)


# ---- login and settings


def test_login_tries_the_key_and_remembers_it(nobody: Command, fake_pool: FakePool, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(KEY)
    code, out, err = nobody.here("login", fake_pool.url, "--key", f"file:{key}")
    assert (code, err) == (0, "")
    assert "Logged in to kitchen as carol" in out
    assert nobody.here("whoami")[0] == 0
    file = ClientFile.load()
    assert file.profiles["default"] == {"url": fake_pool.url, "key": KEY}
    assert not file.open_to_others


def test_login_with_a_wrong_key_remembers_nothing(nobody: Command, fake_pool: FakePool) -> None:
    code, _, err = nobody.here("login", fake_pool.url, "--key", "sk-potluck-wrong")
    assert code == 3
    assert "not valid" in err
    assert not ClientFile.load().path.exists()


def test_login_without_a_terminal_and_without_a_key(nobody: Command, fake_pool: FakePool) -> None:
    code, _, err = nobody("login", fake_pool.url)
    assert code == 2
    assert "--key file:PATH" in err


def test_profiles_are_chosen_by_name(nobody: Command, fake_pool: FakePool) -> None:
    assert nobody.here("login", fake_pool.url, "--key", KEY, "--profile", "lab")[0] == 0
    assert nobody.here("whoami", "--profile", "lab")[0] == 0
    code, _, err = nobody.here("whoami", "--profile", "other")
    assert code == 2
    assert "lab" in err


def test_config_view_says_where_everything_comes_from_and_shows_no_secret(potluck: Command) -> None:
    code, out, err = potluck.here("config", "view", "--output", "json", "--url", "http://flag:1")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["url"] == {"value": "http://flag:1", "origin": "--url"}
    assert found["key"] == {"value": "sk-potluck-caro...", "origin": "POTLUCK_KEY"}
    assert found["model"]["origin"] == "default"
    assert KEY not in out


def test_an_output_that_makes_no_sense(potluck: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTLUCK_OUTPUT", "xml")
    code, _, err = potluck.here("balance")
    assert code == 2
    assert "POTLUCK_OUTPUT" in err


# ---- chat


def test_chat_prints_the_answer_on_stdout_and_the_cost_on_stderr(potluck: Command) -> None:
    code, out, err = potluck.here("chat", "hello")
    assert (code, out) == (0, "You said: hello \u2028🍲\n")
    assert err == "[7 tokens in, 4 out · 0.00108 credits · small]\n"


def test_chat_reads_its_question_from_standard_input(potluck: Command) -> None:
    assert potluck("chat", text="from a pipe")[1] == "You said: from a pipe \u2028🍲\n"
    code, _, err = potluck("chat", text="  \n")
    assert code == 2
    assert "nothing to ask" in err


def test_chat_passes_its_options_on(potluck: Command, fake_pool: FakePool) -> None:
    options = [
        "--system",
        "be short",
        "--max-tokens",
        "5",
        "--temperature",
        "0",
        "--seed",
        "7",
        "--workers",
        "a,b",
    ]
    assert potluck.here("chat", "hello", *options)[0] == 0
    sent = fake_pool.bodies("/v1/chat/completions")[0]
    assert sent == {
        "model": "small",
        "messages": [{"role": "system", "content": "be short"}, {"role": "user", "content": "hello"}],
        "max_tokens": 5,
        "temperature": 0.0,
        "seed": 7,
        "potluck": {"workers": ["a", "b"]},
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_chat_in_json_lines_streams_pieces(potluck: Command) -> None:
    lines = [json.loads(line) for line in potluck.here("chat", "hello", "-o", "jsonl")[1].splitlines()]
    assert "".join(line["text"] for line in lines[:-1]) == "You said: hello \u2028🍲"
    assert lines[-1]["usage"]["potluck"]["charge"] == 1_080


@pytest.mark.parametrize(
    ("options", "shown"), [([], False), (["--reasoning", "show"], True), (["--reasoning", "hide"], False)]
)
def test_chat_keeps_reasoning_away_from_the_answer(potluck: Command, options: list[str], shown: bool) -> None:
    """Standard output has the answer alone; where stderr is no terminal, thoughts are shown only if asked for."""
    code, out, err = potluck.here("chat", "hello", "-m", "thinking", *options)
    assert (code, out) == (0, "You said: hello \u2028🍲\n")
    assert ("Hm, �[2Jsoup.\n\n" in err) is shown
    assert "\x1b" not in err


def test_chat_passes_the_effort_on(potluck: Command, fake_pool: FakePool) -> None:
    assert potluck.here("chat", "hello", "--reasoning-effort", "low")[0] == 0
    assert fake_pool.bodies("/v1/chat/completions")[0]["reasoning_effort"] == "low"


def test_the_text_of_a_result_with_calls() -> None:
    """A line of JSON for each call, below the content if there is any."""
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = {"content": None, "reasoning_content": "Hm.", "tool_calls": [call]}
    assert result_text({"choices": [{"message": message}]}) == '{"name": "f", "arguments": "{}"}'
    both = {"choices": [{"message": message | {"content": "Look:"}}]}
    assert result_text(both) == 'Look:\n{"name": "f", "arguments": "{}"}'


def test_chat_waits_while_the_model_loads(potluck: Command, fake_pool: FakePool) -> None:
    fake_pool.loading_left = 1
    code, out, err = potluck.here("chat", "hello", "-m", "loading")
    assert code == 0
    assert out.startswith("You said")
    assert "not ready. Trying again in 1 s." in err
    fake_pool.loading_left = 1
    assert potluck.here("chat", "hello", "-m", "loading", "--wait", "0")[0] == 8


def test_a_conversation_remembers_and_obeys(potluck: Command, fake_pool: FakePool) -> None:
    lines = [
        "first",
        "second",
        "/reset",
        "third",
        "/model tiny",
        "/model none",
        "/nonsense",
        "/help",
        "",
        "/quit",
        "x",
    ]
    code, out, err = potluck("chat", "-i", "-m", "far", text="\n".join(lines))
    assert code == 0
    assert [line for line in out.splitlines() if line][:1] == ["You said: first "]
    sent = fake_pool.bodies("/v1/chat/completions")
    assert [[message["role"] for message in body["messages"]] for body in sent] == [
        ["user"],
        ["user", "assistant", "user"],
        ["user"],
    ]
    assert "Asking small." in err
    assert "no model 'none'" in err
    assert "no /nonsense" in err


def test_an_error_does_not_end_the_conversation(potluck: Command) -> None:
    code, out, err = potluck("chat", "-i", "-m", "poor", text="first\n/model small\nsecond\n")
    assert code == 0
    assert "This can cost 5 credits" in err
    assert "You said: second" in out


def test_ctrl_c_stops_the_answer_and_keeps_the_conversation(potluck: Command, fake_pool: FakePool) -> None:
    """What had been written stays in the conversation, so that the model knows what it said."""
    with potluck.process("chat", "-i", "-m", "slow", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write("first\n")
        process.stdin.flush()
        assert fake_pool.streaming.wait(WAIT_S)
        assert process.stdout is not None
        assert process.stdout.read(9) == "You said:"
        process.send_signal(signal.SIGINT)
        assert fake_pool.left_early.wait(WAIT_S)
        out, err = process.communicate("/model small\nsecond\n/quit\n", timeout=LIMIT_S)
    assert process.returncode == 0, err
    assert "stopped" in err
    assert "You said: second" in out
    last = fake_pool.bodies("/v1/chat/completions")[-1]["messages"]
    assert [message["content"] for message in last] == ["first", "You said:", "second"]


def test_in_a_terminal_there_is_a_prompt_and_ctrl_c_at_it_leaves_only_the_second_time(
    potluck: Command,
) -> None:
    import pty

    master, slave = pty.openpty()
    with potluck.process("chat", stdin=slave, stdout=slave, stderr=slave, start_new_session=True) as process:
        os.close(slave)
        terminal = Terminal(master)
        terminal.until(">>> ")
        os.write(master, b"hello\n")
        terminal.until("You said: hello")
        terminal.until(">>> ")
        terminal.interrupt(process, "Ctrl-D or /quit leaves")
        terminal.until(">>> ")
        terminal.interrupt(process, None)
        assert process.wait(LIMIT_S) == 130
    os.close(master)


@dataclass(slots=True)
class Terminal:
    master: int
    seen: str = ""

    def until(self, text: str) -> None:
        """Read on until the text has come."""
        assert self.comes(text, WAIT_S), f"{text!r} did not come, but {self.seen!r}"

    def interrupt(self, process: subprocess.Popen[str], text: str | None) -> None:
        """Press Ctrl-C until the text has come, or until the end.

        Again, because `input` misses a signal between its prompt and its wait; what it missed is handled
        together with the next one, as one.
        """
        for _ in range(PRESSES_MAX):
            process.send_signal(signal.SIGINT)
            if self.comes(text, 2.0):
                return
        raise AssertionError(f"{text!r} did not come, but {self.seen!r}")

    def comes(self, text: str | None, within_s: float) -> bool:
        """None: the end, which Linux tells by an error."""
        deadline = time.monotonic() + within_s
        while text is None or text not in self.seen:
            ready, _, _ = select.select([self.master], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                return False
            try:
                self.seen += os.read(self.master, 4096).decode(errors="replace")
            except OSError:
                return text is None
        self.seen = self.seen.partition(text)[2]
        return True


def test_a_job_that_waits_shows_its_place_and_the_reason(potluck: Command, fake_pool: FakePool) -> None:
    job_id = fake_pool.new_job("chat", "small")
    fake_pool.queue = {
        "place": 4,
        "of": 9,
        "expected_start_s": 12.4,
        "why": "3 jobs are ahead: you took more",
    }
    _, out, _ = potluck.here("jobs", "show", job_id)
    shown = dict(line.split(maxsplit=1) for line in out.splitlines() if line.strip())
    assert shown["place"] == "4 of 9, starts in about 12 s"
    assert shown["reason"] == "3 jobs are ahead: you took more"
    fake_pool.queue |= {"expected_start_s": None, "why": "no worker that serves small is connected"}
    assert "4 of 9\n" in potluck.here("jobs", "show", job_id)[1]
    fake_pool.queue |= {"expected_start_s": 0.0}
    assert "4 of 9, may start now\n" in potluck.here("jobs", "show", job_id)[1]
    found = json.loads(potluck.here("jobs", "show", job_id, "-o", "json")[1])
    assert found["queue"] == fake_pool.queue


def test_a_job_shows_how_long_it_took_as_far_as_that_is_known(potluck: Command, fake_pool: FakePool) -> None:
    job_id = fake_pool.new_job("chat", "small")
    timing = {"waited_s": 0.25, "prefill_s": None, "decode_s": None, "total_s": 4.0}
    fake_pool.jobs[job_id]["timing"] = timing
    assert "4.0 s: waited 0.2 s\n" in potluck.here("jobs", "show", job_id)[1]
    fake_pool.jobs[job_id]["timing"] = timing | {"prefill_s": 0.5, "decode_s": 3.25}
    said = "4.0 s: waited 0.2 s, first output after 0.5 s more\n"
    assert said in potluck.here("jobs", "show", job_id)[1]


def test_jobs_are_listed_by_their_kind(potluck: Command, fake_pool: FakePool) -> None:
    ids = [fake_pool.new_job(kind, "small") for kind in ("chat", "embedding")]
    _, out, _ = potluck.here("jobs", "list", "--kind", "embedding", "-o", "json")
    assert [job["id"] for job in json.loads(out)["data"]] == ids[1:]
    assert potluck.here("jobs", "list", "--kind", "poem")[0] == 2


# ---- help


def paths() -> Iterator[list[str]]:
    yield []
    for name in Root.entries:
        if name not in {"worker", "coordinator"}:  # the greater part of these two is not the client's
            yield [name]
    for pair in (
        "submit chat",
        "submit embed",
        "jobs list",
        "jobs show",
        "jobs watch",
        "jobs cancel",
        "jobs result",
    ):
        yield pair.split()
    for pair in ("keys list", "keys create", "keys revoke", "members list", "members add", "config view"):
        yield pair.split()
    yield ["coordinator", "join-token"]
    yield ["members", "limit"]


@pytest.mark.parametrize("path", list(paths()), ids=" ".join)
def test_every_command_has_help_with_an_example(potluck: Command, path: list[str]) -> None:
    code, out, err = potluck.here(*path, "--help")
    assert (code, err) == (0, "")
    is_group = "COMMAND" in out.splitlines()[0]
    assert is_group or f"Example:  potluck {' '.join(path)}" in out
    assert all(len(line) <= 100 for line in out.splitlines())


def test_a_mistyped_command_gets_a_hint(potluck: Command) -> None:
    code, _, err = potluck.here("balanse")
    assert code == 2
    assert "Did you mean `balance`?" in err


def test_version(potluck: Command) -> None:
    code, out, _ = potluck.here("--version")
    assert code == 0
    assert out.startswith("potluck 0.")


def test_without_the_extra_a_sentence_says_what_to_install(potluck: Command, tmp_path: Path) -> None:
    """A `grpc` that cannot be imported stands for one that is not installed."""
    (tmp_path / "grpc.py").write_text("raise ModuleNotFoundError(\"No module named 'grpc'\", name='grpc')\n")
    (tmp_path / "uvicorn.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'uvicorn'\", name='uvicorn')\n"
    )
    potluck.environment["PYTHONPATH"] = str(tmp_path)
    code, _, err = potluck("coordinator", "start")
    assert code == 2
    assert "pip install 'potluck[coordinator]'" in err
    assert potluck("coordinator", "join-token")[0] == 0  # needs no more than a client has
    assert "join-token" in potluck("coordinator", "--help")[1]


def test_help_loads_none_of_what_is_heavy() -> None:
    heavy = "{'torch', 'ray', 'grpc', 'fastapi', 'httpx2', 'pydantic', 'cryptography', 'rich', 'tomlkit'}"
    code = (
        "import sys; from potluck.cli.main import run; code = run(['--help']);"
        f" found = {heavy} & set(sys.modules); assert code == 0 and not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_time_of_help_is_printed() -> None:
    """The aim is 300 ms on two cores; a time is printed, not asserted, since machines differ."""
    times = []
    for _ in range(10):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "potluck", "--help"], check=True, capture_output=True)
        times.append((time.perf_counter() - began) * 1_000)
    print(f"potluck --help: median {statistics.median(times):.0f} ms, least {min(times):.0f} ms, of 10 runs")
