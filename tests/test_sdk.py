"""The Python SDK against a real HTTP server: results, errors, streams, retries, and where settings come from."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures_fake_pool import ADMIN_KEY, ERRORS, KEY, FakePool, fake_pool

from potluck import Pool
from potluck.answers import ToolCall
from potluck.client import ClientFile, checked_url, masked, read_key, resolve
from potluck.errors import (
    ExitCode,
    InsufficientCredits,
    InvalidRequest,
    JobCancelled,
    JobFailed,
    JobNotFinished,
    LimitReached,
    NotFound,
    NotLoggedIn,
    PermissionDenied,
    PotluckError,
    Unavailable,
    UnexpectedAnswer,
    Unreachable,
    UsageError,
    error_from,
)
from potluck.pool import soonest
from potluck.results import Balance, Job, Model, read

__all__ = ["fake_pool"]


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing of the developer's own settings reaches these tests, nor do they write there."""
    for name in [name for name in os.environ if name.startswith("POTLUCK_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("POTLUCK_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def connect(fake: FakePool, key: str = KEY, retries_max: int = 0) -> Pool:
    return Pool(fake.url, key, retries_max=retries_max, sleep=lambda _: None)


# ---- asking


def test_chat_returns_text_usage_and_what_it_cost(fake_pool: FakePool) -> None:
    with connect(fake_pool) as pool:
        answer = pool.chat("hello", max_tokens=9, temperature=0.5)
    assert answer.text == "You said: hello \u2028🍲"
    assert answer.finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.completion_tokens, answer.usage.charge) == (4, 1_080)
    assert answer.job_id == "job_0000"
    sent = fake_pool.bodies("/v1/chat/completions")[0]
    assert sent == {
        "model": "small",  # the loaded one, not the catalogue's first
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 9,
        "temperature": 0.5,
    }


def test_the_model_that_answers_soonest_is_asked() -> None:
    """A pool begins with a catalogue that nobody serves."""
    first, second, third = (
        Model(name="first", state="unserved"),
        Model(name="second", state="present", workers=1),
        Model(name="third", state="ready", workers=1),
    )
    assert soonest([first, second, third]) == third
    assert soonest([first, second]) == second
    assert soonest([first]) == first


def test_streaming_gives_pieces_in_order_and_the_whole_at_the_end(fake_pool: FakePool) -> None:
    """U+2028 inside a piece is no line end of the event stream."""
    with connect(fake_pool) as pool, pool.stream("hello", model="small") as pieces:
        texts = [piece.text for piece in pieces]
    assert "".join(texts) == "You said: hello \u2028🍲"
    assert len(texts) == 5  # four words and the finish
    assert pieces.answer.finish_reason == "stop"
    assert pieces.usage is not None
    assert pieces.usage.charge == 1_080
    assert pieces.job_id == "job_0000"


@pytest.mark.parametrize("streamed", [False, True])
def test_reasoning_and_tool_calls(fake_pool: FakePool, streamed: bool) -> None:
    """Apart from the text, whole and streamed; the answer's message goes into the next request."""
    with connect(fake_pool) as pool:
        if streamed:
            with pool.stream("hello", model="thinking") as pieces:
                thoughts = "".join(piece.reasoning for piece in pieces)
            answer = pieces.answer
            assert thoughts == answer.reasoning == "Hm, \x1b[2Jsoup."
        else:
            answer = pool.chat("hello", model="thinking")
            assert answer.reasoning == "Hm, soup."
    assert answer.text == "You said: hello \u2028🍲"
    assert answer.tool_calls == (ToolCall(id="call_1", name="f", arguments='{"a": 1}'),)
    function = {"name": "f", "arguments": '{"a": 1}'}
    assert answer.message == {
        "role": "assistant",
        "content": answer.text,
        "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
    }


def test_leaving_a_stream_early_closes_the_connection(fake_pool: FakePool) -> None:
    with connect(fake_pool) as pool:
        with pool.stream("hello", model="slow") as pieces:
            for piece in pieces:
                if piece.text == " said:":
                    break
        assert pieces.text == "You said:"
        assert pieces.usage is None
    assert fake_pool.left_early.wait(10)


def test_a_stream_that_breaks_off_is_an_error_and_keeps_what_came(fake_pool: FakePool) -> None:
    with connect(fake_pool) as pool:
        stream = pool.stream("hello", model="broken")
        with pytest.raises(Unreachable, match="broke"), stream as pieces:
            list(pieces)
        assert stream.text == "You said:"


def test_an_error_event_ends_the_stream_as_a_failed_job(fake_pool: FakePool) -> None:
    with connect(fake_pool) as pool:
        stream = pool.stream("hello", model="erring")
        with pytest.raises(JobFailed, match="Every worker is gone"), stream as pieces:
            list(pieces)


def test_completions_and_embeddings(fake_pool: FakePool) -> None:
    with connect(fake_pool) as pool:
        assert pool.complete("Once", max_tokens=3).text == "Once and on"
        found = pool.embed(["a", "b"])
    assert found.vectors == ((0.5, 0.0), (0.5, 1.0))  # in the order of the texts, whatever came first
    assert found.job_id == "job_e"


def test_what_json_cannot_hold_is_refused_before_it_is_sent(fake_pool: FakePool) -> None:
    with connect(fake_pool) as pool:
        for parameters in ({"temperature": float("nan")}, {"user": "\ud800"}, {"user": object()}):
            with pytest.raises(InvalidRequest):
                pool.chat("x", model="small", **parameters)
    assert not fake_pool.requests


# ---- looking


def test_me_balance_models_workers_status(fake_pool: FakePool) -> None:
    with connect(fake_pool) as pool:
        assert (pool.me().member.name, pool.me().pool) == ("carol", "kitchen")
        assert pool.balance().available == 999_728_766
        assert [model.name for model in pool.models()] == ["far", "small"]
        assert pool.workers()[0].models[0].engine == "llamacpp"
        assert pool.status().ledger_sum == 0
        quote = pool.quote("chat", {"model": "small", "messages": []})
        assert quote.quote == 1_234_567


def test_keys_members_and_join_tokens(fake_pool: FakePool) -> None:
    with connect(fake_pool, ADMIN_KEY) as pool:
        assert pool.create_key("laptop", expires_s=60).key == "sk-potluck-new"
        assert pool.keys()[0].id == "key_1"
        pool.revoke_key("key_1")
        assert pool.add_member("dave", credit_line=5).key == "sk-potluck-dave"
        assert pool.members()[0].name == "carol"
        assert pool.join_token(uses=3, expires_s=60).token == "pl1_x"
    assert fake_pool.bodies("/pool/v1/join-tokens") == [{"uses": 3, "expires_s": 60}]
    assert fake_pool.bodies("/pool/v1/members")[0] == {"name": "dave", "credit_line": 5}


def test_secrets_are_not_in_representations(fake_pool: FakePool) -> None:
    """A log of a result must not hold a key."""
    with connect(fake_pool, ADMIN_KEY) as pool:
        assert "sk-potluck-new" not in repr(pool.create_key("laptop"))
        assert "pl1_x" not in repr(pool.join_token())
    assert KEY not in repr(resolve({"url": fake_pool.url, "key": KEY}))


# ---- stored jobs


def test_a_stored_job_is_submitted_followed_and_fetched(fake_pool: FakePool) -> None:
    fake_pool.looks_until_end = 2
    with connect(fake_pool) as pool:
        job_id = pool.submit("chat", {"model": "small", "messages": []}, idempotency_key="one")
        with pytest.raises(JobNotFinished):
            pool.result(job_id)
        states = [job.state for job in pool.follow(job_id)]
        assert states == ["running", "succeeded"]
        assert pool.wait(job_id).charge == 1_080
        assert pool.result(job_id)["choices"][0]["message"]["content"] == "An answer that was kept."
        assert pool.jobs(limit=1).data[0].id == job_id
    assert fake_pool.headers("/pool/v1/jobs")[0]["idempotency-key"] == "one"


@pytest.mark.parametrize(
    ("state", "kind"), [("failed", JobFailed), ("expired", JobFailed), ("cancelled", JobCancelled)]
)
def test_how_a_job_ended_is_the_error_of_waiting_for_it(
    fake_pool: FakePool, state: str, kind: type[PotluckError]
) -> None:
    fake_pool.end_state = state
    with connect(fake_pool) as pool:
        job_id = pool.submit("chat", {"model": "small"})
        with pytest.raises(kind, match=job_id):
            pool.wait(job_id)
        if state != "expired":
            with pytest.raises(kind):
                pool.result(job_id)


def test_waiting_has_an_end(fake_pool: FakePool) -> None:
    fake_pool.looks_until_end = 10**9
    with connect(fake_pool) as pool, pytest.raises(JobNotFinished, match=r"still running after 0 s"):
        pool.wait(pool.submit("chat", {"model": "small"}), timeout_s=0)


def test_cancel(fake_pool: FakePool) -> None:
    with connect(fake_pool) as pool:
        assert pool.cancel(pool.submit("chat", {"model": "small"})).state == "cancelled"


@pytest.mark.parametrize(
    "job_id", ["", ".", "..", "../keys", "a/b", "?state=x", "☃", "\udcff", "a\n", "j" * 65]
)
def test_an_id_never_becomes_another_path(fake_pool: FakePool, job_id: str) -> None:
    """It is not even sent, and what was given is shown so that a terminal can show it."""
    for call in (Pool.job, Pool.cancel, Pool.result, Pool.revoke_key):
        with connect(fake_pool) as pool, pytest.raises(NotFound, match="is no id") as caught:
            call(pool, job_id)
        assert caught.value.message.isprintable()
        assert caught.value.message.encode()
    assert fake_pool.requests == []


# ---- errors


@pytest.mark.parametrize(
    ("model", "kind", "code"),
    [
        ("poor", InsufficientCredits, 6),
        ("missing", NotFound, 4),
        ("long", InvalidRequest, 5),
        ("limited", LimitReached, 7),
        ("conflict", InvalidRequest, 5),
        ("forbidden", PermissionDenied, 1),
        ("crashed", PotluckError, 1),
        ("loading", Unavailable, 8),
    ],
)
def test_each_status_has_its_class_and_exit_code(
    fake_pool: FakePool, model: str, kind: type[PotluckError], code: int
) -> None:
    fake_pool.loading_left = 9
    with connect(fake_pool) as pool, pytest.raises(kind) as raised:
        pool.chat("hello", model=model)
    assert type(raised.value) is kind
    assert raised.value.exit_code == code
    assert raised.value.request_id == "req_1"
    if model in ERRORS:
        assert (raised.value.status, raised.value.code, raised.value.message) == ERRORS[model]
    else:
        assert isinstance(raised.value, Unavailable)
        assert raised.value.loading == {"state": "downloading"}


def test_a_wrong_key_is_not_logged_in(fake_pool: FakePool) -> None:
    with connect(fake_pool, "sk-potluck-wrong") as pool, pytest.raises(NotLoggedIn):
        pool.balance()


def test_nobody_listens(fake_pool: FakePool) -> None:
    """Port 9 of loopback: nothing is there."""
    with (
        Pool("http://127.0.0.1:9", KEY, retries_max=0) as pool,
        pytest.raises(Unreachable, match="cannot be reached"),
    ):
        pool.balance()


@pytest.mark.parametrize("body", [None, "text", [], {}, {"error": "text"}, {"error": None}])
def test_an_error_without_our_shape_is_still_an_error(body: object) -> None:
    assert isinstance(error_from(body, status=502), Unavailable)
    assert isinstance(error_from(body, status=404), NotFound)
    assert isinstance(error_from(body, status=302), UnexpectedAnswer)


def test_every_exit_code_of_the_design_is_there() -> None:
    assert [int(code) for code in ExitCode] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 100, 101, 103, 130]


# ---- retries


def test_a_loading_model_is_asked_again_as_often_as_allowed(fake_pool: FakePool) -> None:
    fake_pool.loading_left = 2
    waits: list[float] = []
    with Pool(fake_pool.url, KEY, retries_max=2, sleep=waits.append) as pool:
        assert pool.chat("hello", model="loading").text.startswith("You said")
    assert waits == [1.0, 1.0]  # what Retry-After asks, not our own shorter pause


def test_what_a_second_try_cannot_help_is_not_tried_again(fake_pool: FakePool) -> None:
    with connect(fake_pool, retries_max=5) as pool, pytest.raises(InsufficientCredits):
        pool.chat("hello", model="poor")
    assert len(fake_pool.requests) == 1


def test_a_stored_job_carries_a_key_of_its_own_so_that_trying_again_pays_once(fake_pool: FakePool) -> None:
    with connect(fake_pool) as pool:
        pool.submit("chat", {"model": "small"})
        pool.submit("chat", {"model": "small"})
    first, second = (headers["idempotency-key"] for headers in fake_pool.headers("/pool/v1/jobs"))
    assert first != second
    assert len(first) >= 32


# ---- shapes


def test_unknown_fields_are_left_out_and_missing_ones_said() -> None:
    amounts = {"balance": 1, "reserved": 0, "held": 0, "credit_line": 0, "available": 1}
    assert read(Balance, {"account": "a", **amounts, "newer": True}).balance == 1
    with pytest.raises(UnexpectedAnswer, match=r"Balance\.balance should be there"):
        read(Balance, {"account": "a"})
    with pytest.raises(UnexpectedAnswer, match=r"Balance\.held should be of type int"):
        read(Balance, {"account": "a", **amounts, "held": True})
    with pytest.raises(UnexpectedAnswer, match=r"Job\.attempts\.number"):
        read(Job, {"id": "j", "kind": "chat", "state": "x", "model": "m", "member": "m", "attempts": [{}]})


# ---- settings


def test_flag_before_variable_before_file_before_default(own_home: Path) -> None:
    file = ClientFile.load()
    assert resolve({}).url.origin == "default"
    file.save_profile("default", "http://file:1", "sk-potluck-file", default=True)
    found = resolve({}, {})
    assert (found.url.value, found.key.value) == ("http://file:1", "sk-potluck-file")
    assert found.url.origin == f"{own_home / 'client.toml'} [profiles.default]"
    found = resolve({}, {"POTLUCK_URL": "http://variable:1", "POTLUCK_KEY": "k"})
    assert (found.url.value, found.url.origin) == ("http://variable:1", "POTLUCK_URL")
    found = resolve({"url": "http://flag:1", "key": "k"}, {"POTLUCK_URL": "http://variable:1"})
    assert (found.url.value, found.url.origin) == ("http://flag:1", "--url")


def test_a_saved_key_goes_to_no_other_address() -> None:
    ClientFile.load().save_profile("default", "http://mine:1", "sk-potluck-mine", default=True)
    assert resolve({"url": "http://mine:1/"}, {}).secret == "sk-potluck-mine"
    for other in ("http://mine:2", "https://mine:1", "http://other:1"):
        with pytest.raises(NotLoggedIn, match="is for http://mine:1"):
            _ = resolve({"url": other}, {}).secret


def test_the_file_is_closed_to_others_and_keeps_what_else_is_in_it(own_home: Path) -> None:
    own_home.mkdir()
    path = own_home / "client.toml"
    path.write_text(
        '# mine\nextra = 1\n[profiles.lab]\nurl = "http://lab:1"\nkey = "k"\nmodel = "m" # best\n'
    )
    ClientFile.load().save_profile("home", "http://home:1", "sk-potluck-home", default=True)
    text = path.read_text()
    if sys.platform != "win32":  # where a mode does not tell
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "extra = 1" in text
    assert "# best" in text
    file = ClientFile.load()
    assert set(file.profiles) == {"lab", "home"}
    assert file.default_profile == "home"
    file.save_profile("lab", "http://lab:2", "k2", default=False)
    assert ClientFile.load().profiles["lab"] == {"url": "http://lab:2", "key": "k2", "model": "m"}
    assert ClientFile.load().default_profile == "home"
    ClientFile.load().forget_profile("home", url="http://other:1")
    assert "home" in ClientFile.load().profiles
    ClientFile.load().forget_profile("home", url="http://home:1")
    assert (set(ClientFile.load().profiles), ClientFile.load().default_profile) == ({"lab"}, None)


@pytest.mark.parametrize(
    "text", ["[", "profiles = 1", "profiles.a = 1", "default_profile = 1", "[profiles.a]\nurl = 1"]
)
def test_a_file_that_makes_no_sense_is_said_with_its_place(own_home: Path, text: str) -> None:
    own_home.mkdir()
    (own_home / "client.toml").write_text(text)
    with pytest.raises(InvalidRequest, match=r"client\.toml"):
        resolve({}, {})


def test_keys_come_from_files_and_are_masked(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("sk-potluck-abcdefgh\n")
    assert read_key(f"file:{path}") == "sk-potluck-abcdefgh"
    assert masked("sk-potluck-abcdefgh") == "sk-potluck-abcd..."
    assert masked("something") == "..."
    for given in ("", "two words", "ü", f"file:{tmp_path / 'none'}", f"file:{tmp_path}"):
        with pytest.raises(UsageError):
            read_key(given)


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("pool.example.org:8420", "http://pool.example.org:8420"),
        ("https://pool.example.org/", "https://pool.example.org"),
        ("https://example.org/potluck/v1", "https://example.org/potluck"),
        ("http://[::1]:8420", "http://[::1]:8420"),
    ],
)
def test_addresses(given: str, url: str) -> None:
    assert checked_url(given) == url


@pytest.mark.parametrize(
    "given", ["", "ftp://x", "http://", "http://a b", "http://u:p@x", "http://x:99999", "http://x?y"]
)
def test_what_is_no_address(given: str) -> None:
    with pytest.raises(UsageError):
        checked_url(given)


def test_a_host_that_no_name_server_could_know_is_no_address() -> None:
    for url in ("http://☃.example", "https://" + "a" * 70 + ".example", "http://xn--a"):
        with pytest.raises((UsageError, Unreachable)):
            Pool(url, KEY, retries_max=0).status()


def test_importing_potluck_is_cheap() -> None:
    """Neither the heavy packages nor an HTTP client are loaded by `import potluck`, nor by the SDK's import."""
    heavy = "{'torch', 'ray', 'grpc', 'fastapi', 'transformers', 'sqlalchemy', 'numpy', 'typer', 'pydantic'}"
    code = (
        "import sys; import potluck; assert 'potluck.pool' not in sys.modules;"
        f" assert not {heavy} & set(sys.modules); assert 'httpx2' not in sys.modules;"
        f" from potluck import Pool; assert not ({heavy} | {{'httpx2'}}) & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
