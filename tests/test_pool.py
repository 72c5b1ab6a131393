"""The whole pool as real processes on loopback, with the emulator as its model: what users live through."""

import json
import os
import random
import re
import resource
import signal
import subprocess
import threading
from typing import Any

import openai
import pytest
from fixtures_pool import COMMAND, RealPool, free_port

from potluck.receipts import ReceiptBody

pytestmark = pytest.mark.processes

MODEL = "emulator-small"
HELLO: Any = [{"role": "user", "content": "Say something long."}]


def stream_text(client: openai.OpenAI, tokens: int, on_token: Any = None, **more: Any) -> tuple[str, Any]:
    """The answer's text and the last chunk's usage."""
    text, usage = "", None
    with client.chat.completions.create(
        model=MODEL,
        messages=HELLO,
        max_tokens=tokens,
        stream=True,
        stream_options={"include_usage": True},
        **more,
    ) as stream:
        for number, chunk in enumerate(stream):
            if chunk.choices and chunk.choices[0].delta.content:
                text += chunk.choices[0].delta.content
                if on_token is not None:
                    on_token(number, f"job_{chunk.id.removeprefix('chatcmpl-')}")
            usage = chunk.usage or usage
    return text, usage


def serving(pool: RealPool, job_id: str) -> str:
    """The name of the worker that runs the job now."""
    attempt = pool.job(job_id)["attempts"][-1]
    rows = pool.admin.api("GET", "/pool/v1/workers").json()
    return next(str(row["name"]) for row in rows if row["id"] == attempt["worker"])


def test_an_answer_moves_credits_from_who_asked_to_who_served(calm_pool: RealPool) -> None:
    """Carol asks, bob's worker answers: her charge is his pay plus the fee, and the sum stays zero."""
    carol, bob = calm_pool.member("carol"), calm_pool.members["bob"]
    before = bob.balance()["balance"]
    text, usage = stream_text(carol.openai(), 40)
    assert len(text.split()) == 40
    assert usage.completion_tokens == 40
    charge = usage.potluck["charge"]
    assert charge > 0
    job = calm_pool.job(usage.potluck["job_id"])
    assert job["state"] == "succeeded"
    assert job["charge"] == charge <= job["quote"]
    assert carol.balance()["balance"] == -charge
    paid = bob.balance()["balance"] - before
    assert paid == job["attempts"][0]["paid"] == charge - charge * 20 // 1000
    assert calm_pool.ledger_sum() == 0


def test_a_killed_worker_does_not_show_in_the_answer(real_pool: RealPool) -> None:
    """kill -9 in mid-answer, three times at random places: one unbroken stream, each token paid once."""
    rng = random.Random(5)
    for name, owner in (("rig1", "bob"), ("rig2", "dave")):
        real_pool.add_emulator(name, owner, tpot_ms=20)
    client = real_pool.member("carol").openai()
    undisturbed, _ = stream_text(client, 90, seed=11)
    for _ in range(3):
        cut = rng.randint(3, 60)
        killed: list[str] = []

        def kill(number: int, job_id: str, cut: int = cut, killed: list[str] = killed) -> None:
            if number >= cut and not killed:
                name = serving(real_pool, job_id)
                real_pool.workers[name].kill()
                killed.append(name)

        text, usage = stream_text(client, 90, seed=11, on_token=kill)
        assert killed
        assert text == undisturbed
        job = real_pool.job(usage.potluck["job_id"])
        assert [a["state"] for a in job["attempts"]] == ["lost", "succeeded"]
        assert sum(a["tokens"] for a in job["attempts"]) == 90
        assert all(a["paid"] > 0 for a in job["attempts"])
        real_pool.start_worker(killed[0])
    assert real_pool.ledger_sum() == 0


def test_a_frozen_worker_is_replaced_and_forgiven_nothing_it_did_not_do(real_pool: RealPool) -> None:
    """SIGSTOP in mid-answer: after 4 s of silence another goes on; the frozen one wakes up and changes nothing."""
    for name, owner in (("rig1", "bob"), ("rig2", "dave")):
        real_pool.add_emulator(name, owner, tpot_ms=30)
    client = real_pool.member("carol").openai()
    undisturbed, _ = stream_text(client, 80, seed=3)
    frozen: list[str] = []

    def freeze(number: int, job_id: str) -> None:
        if number == 20:
            frozen.append(serving(real_pool, job_id))
            os.kill(real_pool.workers[frozen[0]].popen.pid, signal.SIGSTOP)

    text, usage = stream_text(client, 80, seed=3, on_token=freeze)
    os.kill(real_pool.workers[frozen[0]].popen.pid, signal.SIGCONT)
    assert text == undisturbed
    job = real_pool.job(usage.potluck["job_id"])
    assert [a["state"] for a in job["attempts"]] == ["lost", "succeeded"]
    real_pool.until(lambda: real_pool.ready(frozen[0]), "the frozen worker to be back")
    assert real_pool.ledger_sum() == 0


def test_a_client_that_leaves_pays_for_what_was_produced(calm_pool: RealPool) -> None:
    """Closing the stream cancels the job; the charge is that of the tokens until then."""
    leah = calm_pool.member("leah")
    with leah.openai().chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=500, stream=True
    ) as stream:
        for number, chunk in enumerate(stream):
            if number == 10:
                job_id = f"job_{chunk.id.removeprefix('chatcmpl-')}"
                break
    calm_pool.until(lambda: calm_pool.job(job_id)["state"] == "cancelled", "the job to be cancelled")
    job = calm_pool.job(job_id)
    assert 0 < job["attempts"][0]["tokens"] < 100
    assert 0 < job["charge"] < job["quote"]
    assert leah.balance()["reserved"] == 0
    assert leah.balance()["balance"] == -job["charge"]


def test_a_killed_coordinator_returns_what_it_held(real_pool: RealPool) -> None:
    """kill -9 of the coordinator in mid-answer: the hold is returned, workers come back by themselves, a late
    receipt moves nothing, a stored job goes on, and the books add up."""
    real_pool.add_emulator("rig", "bob", tpot_ms=20)
    carol = real_pool.member("carol")
    stored = carol.api(
        "POST",
        "/pool/v1/jobs",
        json={"kind": "chat", "request": {"model": MODEL, "messages": HELLO, "max_tokens": 100}},
    )
    stored_id = stored.raise_for_status().json()["id"]
    seen = threading.Event()

    def ask() -> None:
        with (
            pytest.raises(openai.APIError),
            carol.openai().chat.completions.create(
                model=MODEL, messages=HELLO, max_tokens=400, stream=True
            ) as stream,
        ):
            for number, _ in enumerate(stream):
                if number == 5:
                    seen.set()
            raise openai.APIConnectionError(request=stream.response.request)

    asking = threading.Thread(target=ask)
    asking.start()
    assert seen.wait(30)
    assert carol.balance()["reserved"] > 0
    assert real_pool.coordinator is not None
    real_pool.coordinator.kill()
    asking.join(30)
    real_pool.start_coordinator()
    real_pool.until(lambda: real_pool.ready("rig"), "the worker to come back")
    real_pool.until(lambda: real_pool.job(stored_id)["state"] == "succeeded", "the stored job to end")
    stored_job = real_pool.job(stored_id)
    assert carol.api("GET", f"/pool/v1/jobs/{stored_id}/result").json()["usage"]["completion_tokens"] == 100
    failed = carol.api("GET", "/pool/v1/jobs", params={"state": "failed"}).json()["data"]
    assert [job["charge"] for job in failed] == [0]
    assert carol.balance()["reserved"] == 0
    assert carol.balance()["balance"] == -stored_job["charge"]
    assert real_pool.ledger_sum() == 0
    text, _ = stream_text(carol.openai(), 10)
    assert len(text.split()) == 10


def test_waiting_ends_when_all_workers_are_gone(real_pool: RealPool) -> None:
    """The only worker leaves and does not come back: a clear 503 in bounded time, and the hold is returned."""
    worker = real_pool.add_emulator("rig", "bob", tpot_ms=1)
    worker.stop()
    carol = real_pool.member("carol")
    with pytest.raises(openai.InternalServerError) as caught:
        carol.openai().chat.completions.create(model=MODEL, messages=HELLO, max_tokens=10)
    assert caught.value.status_code == 503
    assert caught.value.code == "no_worker_available"
    assert carol.balance()["reserved"] == carol.balance()["balance"] == 0


def test_a_port_in_use_is_said_and_not_shared(calm_pool: RealPool) -> None:
    """Another coordinator on the same port, or the same home, ends with a sentence and exit code 1."""
    for home, word in ((calm_pool.folder / "other", "cannot be bound"), (calm_pool.folder, "already runs")):
        port = calm_pool.http_port if word == "cannot be bound" else 0
        done = subprocess.run(
            [*COMMAND, "coordinator", "start", "--http", f"127.0.0.1:{port}", "--grpc", "127.0.0.1:0"],
            env={**os.environ, "POTLUCK_HOME": str(home)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 1
        assert word in done.stderr
        assert "Traceback" not in done.stderr


def test_mistakes_at_a_terminal(calm_pool: RealPool) -> None:
    """Typed at a real pool: one JSON object on stderr, nothing on stdout, the exit code of the design. An answer
    that is stopped with Ctrl-C is cancelled. Afterwards nothing is held."""
    tess = calm_pool.member("tess")
    variables = {"POTLUCK_HOME": str(calm_pool.folder / "tess"), "POTLUCK_KEY": tess.key}
    environment = {**os.environ, **variables, "POTLUCK_URL": calm_pool.url}
    chat = ["chat", "hello", "-m", MODEL]
    mistakes = [
        (["nonsense"], 2, "no command `nonsense`"),
        (["balance", "--key", "sk-potluck-wrong"], 3, "not valid here"),
        (["chat", "hello", "-m", "emulator-smal"], 4, "Close to it: emulator-small"),
        (["jobs", "show", "nonsense"], 4, "no job nonsense"),
        (["jobs", "show", "näh/☃"], 4, "is no id"),
        (["jobs", "list", "--before", "nonsense"], 5, "no job nonsense"),
        ([*chat, "--max-tokens", "100000"], 5, "8,192 tokens; the prompt has 2 and 100,000 more"),
        ([*chat, "--seed", "99999999999999999999"], 5, "64 bits"),
        (["chat", "\udcff", "-m", MODEL], 5, "no valid Unicode"),
        (["balance", "--url", f"http://127.0.0.1:{free_port()}"], 8, "cannot be reached: connection refused"),
    ]
    for arguments, code, words in mistakes:
        command = [*COMMAND, *arguments, "-o", "json"]
        done = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False)
        assert (done.returncode, done.stdout) == (code, b""), (arguments, done.stderr)
        assert words in json.loads(done.stderr)["error"]["message"]
    command = [*COMMAND, *chat, "--max-tokens", "2000"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as asking:
        assert asking.stdout is not None
        assert asking.stdout.read(20)
        asking.send_signal(signal.SIGINT)
        _, said = asking.communicate(timeout=60)
    assert asking.returncode == 130
    assert re.fullmatch(rb"\[0\.\d+ credits for what was written\]\n", said), "and no traceback"
    calm_pool.until(lambda: tess.balance()["reserved"] == 0, "the hold to return")
    [job] = tess.api("GET", "/pool/v1/jobs").json()["data"]
    assert job["state"] == "cancelled"
    assert calm_pool.ledger_sum() == 0


def test_receipts_are_kept_beside_the_job(calm_pool: RealPool) -> None:
    """The worker's signed statement arrives after the close and is matched with the coordinator's count."""
    _, usage = stream_text(calm_pool.member("rita").openai(), 25)
    job_id = usage.potluck["job_id"]
    calm_pool.until(lambda: bool(calm_pool.job(job_id).get("receipts")), "the receipt")
    receipt = calm_pool.job(job_id)["receipts"][0]
    assert receipt["state"] == "matched"
    body = ReceiptBody.decode(receipt["body"].encode())
    assert (body.job_id, body.output_tokens, body.model) == (job_id, 25, MODEL)


def test_the_disk_fills_up_and_nothing_is_lost(real_pool: RealPool) -> None:
    """While the books cannot be written, requests are refused with a reason; afterwards all goes on."""
    real_pool.add_emulator("rig", "bob", tpot_ms=1)
    carol = real_pool.member("carol")
    stream_text(carol.openai(), 5)
    assert real_pool.coordinator is not None
    pid = real_pool.coordinator.popen.pid
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, before[1]))
    with pytest.raises(openai.APIError) as caught:
        for _ in range(3):
            stream_text(carol.openai(), 5)
    assert getattr(caught.value, "code", "") == "storage_unavailable"
    assert getattr(caught.value, "status_code", 0) == 503, "also of the job that was under way"
    resource.prlimit(pid, resource.RLIMIT_FSIZE, before)

    def works() -> bool:
        try:
            return bool(stream_text(carol.openai(), 5))
        except openai.InternalServerError:
            return False

    real_pool.until(works, "the coordinator to write again")
    assert carol.balance()["reserved"] == 0
    assert real_pool.ledger_sum() == 0


def test_a_new_pool_says_first_where_it_is(real_pool: RealPool) -> None:
    """Also into a file: what it logs comes after the lines that whoever starts it shall read."""
    started = real_pool.coordinator
    assert started is not None
    started.wait_for("head signed")
    assert "is open at" in started.lines[0]
    assert "Workers connect to" in started.lines[1]
