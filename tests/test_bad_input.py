"""What members and the world do wrong, seen from outside: the official client against a whole coordinator.

Malformed bodies, wrong keys and too many requests have files of their own (`test_api_*`), workers that lie
`test_sessions*`.
"""

import asyncio
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from fixtures_sessions import (
    ANSWER,
    MODEL,
    SERVED,
    TOKENS,
    House,
    RawWorker,
    delta,
    frame,
    open_house,
    vectors,
)

from coordinator.tokens import TokenCounter
from potluck.catalogue import Catalogue
from potluck.v1 import session_pb2, work_pb2

UNSPOKEN = "unspoken-1b"  # a model whose tokenizer nobody has
HELLO: Any = [{"role": "user", "content": "a b c"}]


def error_of(caught: "pytest.ExceptionInfo[openai.APIStatusError]") -> dict[str, Any]:
    """The error object, which is all of the body."""
    response: httpx2.Response = caught.value.response
    body: dict[str, Any] = response.json()
    assert list(body) == ["error"]
    error: dict[str, Any] = body["error"]
    return error


def models_of_the_house(folder: Path) -> None:
    """An own catalogue with a model that has no vocabulary, and one that no machine could hold."""
    builtin = Catalogue.builtin(emulator=True).get(MODEL)
    assert builtin is not None
    like = json.loads(builtin.model_dump_json())
    unspoken = {**like, "name": UNSPOKEN, "family": "llama", "aliases": []}
    huge = {**unspoken, "name": "huge-400b"}
    huge["variants"] = [{**like["variants"][0], "memory_bytes": 40 * 10**9}]
    path = folder / "coordinator" / "catalogue.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"models": [unspoken, huge]}), encoding="utf-8")


# -- credit -----------------------------------------------------------------------------------------------


async def test_no_credit(house: House) -> None:
    """402: what it would cost, what there is, how to earn; the same question in small still goes."""
    await house.honest()
    await house.member("poor", credit_line=2_000)
    with pytest.raises(openai.APIStatusError) as caught:
        await house.ask("poor", max_tokens=4_000)
    assert caught.value.status_code == 402
    error = error_of(caught)
    assert (error["code"], error["type"]) == ("insufficient_credits", "insufficient_credits")
    told = error["potluck"]
    assert told["cost"] > told["available"] == told["credit_line"] == 2_000
    assert (told["balance"], told["reserved"]) == (0, 0)
    for words in ("credits", "balance", "join-token", "worker join", "Lower max_tokens"):
        assert words in error["message"]
    assert (await house.get("/pool/v1/balance", "poor"))["reserved"] == 0
    answer = await house.ask("poor", max_tokens=1)
    assert answer.usage.completion_tokens == 1


async def test_the_own_worker_of_a_poor_member_serves_it_for_free(house: House) -> None:
    """And only that one: another member's idle worker is not used."""
    other = await house.honest("other")
    await house.member("poor", credit_line=0)
    own = await house.honest("own", by="poor")
    for stream in (False, True):
        answer = await house.ask("poor", stream=stream)
        if stream:
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in answer if chunk.choices])
        else:
            text = answer.choices[0].message.content
            assert answer.usage.potluck["charge"] == 0
        assert text == ANSWER
    assert (own.seen.successes, other.seen.successes) == (2, 0)
    balance = await house.get("/pool/v1/balance", "poor")
    assert (balance["balance"], balance["reserved"]) == (0, 0)
    assert (await house.get("/pool/v1/balance", "bob"))["balance"] == 0
    await house.settled()


async def test_a_poor_member_whose_own_worker_is_lost_is_not_served_on_others_machines(house: House) -> None:
    """Its worker lies in mid-answer: the job ends with the reason, and nobody else works for nothing."""
    other = await house.honest("other")
    await house.member("poor", credit_line=0)
    own = await house.join("own", by="poor")
    await own.connect()
    asking = house.ask("poor")
    assign = await own.until("assign")
    await own.send(frame(assign, 1, delta(0, 2)), frame(assign, 7, delta(2, 3)))
    with pytest.raises(openai.InternalServerError, match="frame 7 after frame 1"):
        await asking
    assert other.seen.successes == 0
    assert (await house.get("/pool/v1/balance", "poor"))["balance"] == 0


# -- nobody could ever serve it ---------------------------------------------------------------------------


async def test_no_worker_could_ever_serve_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, with the reason in words: nobody there, none has the model, the memory, the kind, the context."""
    models_of_the_house(tmp_path)
    async with open_house(tmp_path, monkeypatch) as house:

        async def refused(**more: Any) -> str:
            before = house.clock.now()
            with pytest.raises(openai.BadRequestError) as caught:
                await house.ask(**more)
            assert house.clock.now() - before < house.settings.wait_for_worker_s / 4
            error = error_of(caught)
            assert error["code"] == "no_worker_could_serve"
            return str(error["message"])

        assert "no worker has joined this pool yet" in await refused()
        worker = await house.join("rig")
        narrow = session_pb2.ServedModel(name=MODEL, engine="emulator", kinds=["chat"], context_tokens=100)
        narrow.state = session_pb2.MODEL_STATE_READY
        hardware = session_pb2.Hardware(memory_bytes=24 * 10**9)
        await worker.connect(models=[narrow], hardware=hardware)
        said = await refused(model="huge-400b")
        assert "huge-400b needs 40.0 GB, the largest worker has 24.0 GB" in said
        assert f"no worker of this pool serves {UNSPOKEN}" in await refused(model=UNSPOKEN)
        assert "needs a context of" in await refused(max_tokens=200)
        assert "the workers have 100" in await refused(max_tokens=200)
        with pytest.raises(openai.BadRequestError, match="do no embedding"):
            await house.embed("a")
        mine = {"potluck": {"workers": "mine"}}
        assert "you have no worker of your own" in await refused(extra_body=mine)
        named = {"potluck": {"workers": ["wrk_nobody"]}}
        assert "none of the workers you named is in this pool" in await refused(extra_body=named)
        await house.settled()


async def test_a_stored_job_that_nobody_could_ever_do_is_not_kept_waiting(house: House) -> None:
    """Refused as the interactive one is: at once, with the reason, and no job of it stays."""
    request = {"model": MODEL, "messages": HELLO, "max_tokens": 5}
    made = await house.api("POST", "/pool/v1/jobs", "alice", json={"kind": "chat", "request": request})
    assert made.status_code == 400
    error = made.json()["error"]
    assert error["code"] == "no_worker_could_serve"
    assert "no worker has joined this pool yet" in error["message"]
    assert (await house.get("/pool/v1/jobs", "alice"))["data"] == []
    await house.settled()


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("emulator-smal", MODEL),
        ("EMULATOR_SMALL", MODEL),
        ("smollm2-135m-instrukt", "smollm2-135m-instruct"),
        ("☃", "`potluck models`"),
        ("../../etc/passwd\x00\x1b[31m", "`potluck models`"),
    ],
)
async def test_an_unknown_model_wherever_it_is_named(house: House, name: str, close: str) -> None:
    """404 with the names close to it, or where to look, on each route; nothing strange comes back raw or whole."""
    await house.honest()
    chat, completion = {"messages": HELLO}, {"prompt": "a"}
    asked: list[tuple[str, dict[str, Any]]] = [
        ("/v1/chat/completions", {"model": name, **chat}),
        ("/v1/chat/completions", {"model": name, **chat, "stream": True}),
        ("/v1/completions", {"model": name, **completion}),
        ("/v1/embeddings", {"model": name, "input": "a"}),
        ("/pool/v1/quote", {"kind": "chat", "request": {"model": name, **chat}}),
        ("/pool/v1/jobs", {"kind": "completion", "request": {"model": name, **completion}}),
    ]
    for path, body in asked:
        answer = await house.api("POST", path, "alice", json=body)
        assert answer.status_code == 404, path
        error = answer.json()["error"]
        assert (error["code"], error["type"]) == ("model_not_found", "not_found_error")
        assert error["param"] in {"model", "request.model"}
        assert close in error["message"]
        assert len(error["message"]) < 500
        assert error["message"].isprintable()
    await house.settled()


async def test_a_pool_with_as_many_jobs_as_it_may_have_says_when_to_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is held for the one too many; when another has ended, it is taken."""
    async with open_house(tmp_path, monkeypatch, queue_jobs_max=1) as house:
        worker = await house.join("rig")
        await worker.connect()
        first = house.ask()
        assign = await worker.until("assign")
        held = (await house.get("/pool/v1/balance", "alice"))["reserved"]
        with pytest.raises(openai.InternalServerError) as caught:
            await house.ask()
        assert (caught.value.status_code, error_of(caught)["code"]) == (503, "pool_busy")
        assert int(caught.value.response.headers["retry-after"]) > 0
        assert (await house.get("/pool/v1/balance", "alice"))["reserved"] == held > 0
        await worker.answer(assign)
        await first
        again = house.ask()
        await worker.answer(await worker.until("assign"))
        await again
        await house.settled()


async def test_all_workers_gone_in_the_middle_of_a_stream(house: House) -> None:
    """What came stays, the last event is the error with its reason, and nothing is charged or held."""
    worker = await house.join("rig")
    await worker.connect()
    asking = house.ask(stream=True)
    assign = await worker.until("assign")
    await worker.send(frame(assign, 1, delta(0, 2)))
    stream = await asking
    seen: list[str] = []

    async def read() -> None:
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                seen.append(chunk.choices[0].delta.content)
                await worker.close()
                await house.eventually(lambda: not worker.seen.running, "the attempt to be taken away")
                house.clock.ahead_s += house.settings.wait_for_worker_s + 1

    with pytest.raises(openai.APIError) as caught:
        await read()
    assert "".join(seen) == ANSWER[: len("".join(seen))] != ""
    assert caught.value.code == "no_worker_available"
    job = await house.job(assign.attempt.job_id)
    assert (job["state"], job["charge"]) == ("expired", 0)
    await house.settled()


async def test_all_workers_gone_while_waiting(house: House) -> None:
    """Bounded by the pool's setting, a sentence and when to try again; the hold is returned."""
    worker = await house.join("rig")
    await worker.connect()
    asking = house.ask()
    assign = await worker.until("assign")
    await worker.send(frame(assign, 1, delta(0, 2)))
    await worker.until("ack")
    await worker.close()
    job_id = assign.attempt.job_id
    await house.eventually(lambda: not worker.seen.running, "the attempt to be taken away")
    assert (await house.get("/pool/v1/balance", "alice"))["reserved"] > 0
    house.clock.ahead_s += house.settings.wait_for_worker_s + 1
    with pytest.raises(openai.InternalServerError) as caught:
        await asking
    assert caught.value.status_code == 503
    assert int(caught.value.response.headers["retry-after"]) > 0
    error = error_of(caught)
    assert error["code"] == "no_worker_available"
    assert "loading" not in error
    assert (await house.job(job_id))["charge"] == 0
    await house.settled()


# -- several choices --------------------------------------------------------------------------------------


async def test_several_choices_survive_their_worker(house: House) -> None:
    """One choice has ended, one is half way, one has not begun: the next worker makes what is missing, no more."""
    liar = await house.join("liar")
    await liar.connect()
    asking = house.ask(n=3)
    assign = await liar.until("assign")
    honest = await house.join("honest")
    await honest.connect()
    first = [delta(0, TOKENS, choice=0, reason="length"), delta(0, 2, choice=1)]
    await liar.send(frame(assign, 1, *first), frame(assign, 2, delta(0, 1, choice=0)))
    again = await honest.until("assign")
    known = {d.choice: (d.tokens, d.finish_reason) for d in again.continuation.delivered}
    assert known == {0: (TOKENS, "length"), 1: (2, ""), 2: (0, "")}
    await honest.answer(again)
    answer = await asking
    assert [c.message.content for c in answer.choices] == [ANSWER] * 3
    assert [c.finish_reason for c in answer.choices] == ["length"] * 3
    assert answer.usage.completion_tokens == 3 * TOKENS
    job = await house.job(assign.attempt.job_id)
    assert [a["tokens"] for a in job["attempts"]] == [TOKENS + 2, 2 * TOKENS - 2]
    assert (liar.seen.faults, honest.seen.faults) == (1, 0)
    await house.settled()


# -- a cold model -----------------------------------------------------------------------------------------


def cold(state: str, done: int, total: int) -> session_pb2.ServedModel:
    served = session_pb2.ServedModel()
    served.CopyFrom(SERVED)
    served.state = session_pb2.ModelState.Value(f"MODEL_STATE_{state.upper()}")
    served.bytes_done, served.bytes_total = done, total
    return served


async def says(
    worker: RawWorker, assign: session_pb2.Assign, model: session_pb2.ServedModel, stage: str
) -> None:
    """A beat and a sign of life, taken in by the pool."""
    beat = session_pb2.Heartbeat(models=[model], attempts=[session_pb2.Running(attempt=assign.attempt)])
    progress = session_pb2.Progress(attempt=assign.attempt, stage=stage)
    await worker.send(session_pb2.WorkerMessage(heartbeat=beat), session_pb2.WorkerMessage(progress=progress))
    await worker.heard()


@pytest.mark.parametrize(
    ("beats", "loading"),
    [
        (
            [("downloading", 10), ("downloading", 40), ("downloading", 70)],
            {"state": "downloading", "bytes_done": 70, "bytes_total": 100},
        ),
        (
            [("loading", 0), ("loading", 0), ("loading", 0)],
            {"state": "loading", "bytes_done": 0, "bytes_total": 100},
        ),
    ],
    ids=["downloading", "loading"],
)
async def test_a_cold_model_says_how_far_it_is(
    house: House, beats: Sequence[tuple[str, int]], loading: dict[str, Any]
) -> None:
    """503 with Retry-After and `loading`; the time left only where it follows from what came."""
    worker = await house.join("rig")
    await worker.connect(models=[cold("present", 0, 100)])
    asking = house.ask()
    assign = await worker.until("assign")
    for state, done in beats:
        await says(worker, assign, cold(state, done, 100), state)
        for _ in range(15):  # in steps, or the lease would end
            house.clock.ahead_s += 1.5
            await says(worker, assign, cold(state, done, 100), state)
            await house.eventually(
                lambda: house.running.pool.engine._swept_at > house.clock.now() - 1, "a sweep"
            )
    with pytest.raises(openai.InternalServerError) as caught:
        await asking
    assert caught.value.status_code == 503
    assert int(caught.value.response.headers["retry-after"]) > 0
    error = error_of(caught)
    assert error["code"] == "model_loading"
    told = error["loading"]
    eta_s = told.pop("eta_s", None)
    assert told == loading
    if told["bytes_done"]:
        assert 10 < eta_s < 40  # 60 bytes came in about 50 s, 30 are left
    else:
        assert eta_s is None
    assert worker.seen.faults == 0
    await house.settled()


# -- counting ---------------------------------------------------------------------------------------------


async def test_inputs_of_an_embedding_are_counted_once_and_not_on_the_event_loop(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long texts are counted in a thread by the API; nothing counts them again for the quote."""
    counted: list[tuple[bool, int]] = []
    count_text = TokenCounter.count_text

    def spy(self: TokenCounter, model: str, text: str) -> int:
        counted.append((threading.current_thread() is threading.main_thread(), len(text)))
        return count_text(self, model, text)

    monkeypatch.setattr(TokenCounter, "count_text", spy)
    await house.honest()
    texts = ["word " * 1_000, "more " * 1_500, "x"]
    answer = await house.embed(*texts)
    assert answer.usage.prompt_tokens == 2_501
    assert counted == [(False, len(text)) for text in texts]
    quoted = await house.api(
        "POST",
        "/pool/v1/quote",
        "alice",
        json={"kind": "embedding", "request": {"model": MODEL, "input": texts}},
    )
    assert quoted.raise_for_status().json()["quote"] == answer.usage.potluck["charge"]
    await house.settled()


@pytest.mark.parametrize("claim", [2, 7, 10**4, 0], ids=["fewer", "some", "more than bytes", "none"])
async def test_a_prompt_without_a_tokenizer_is_bounded_by_its_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, claim: int
) -> None:
    """The quote is for the bytes; the worker's own count is believed up to it and never raises it."""
    models_of_the_house(tmp_path)
    async with open_house(tmp_path, monkeypatch) as house:
        worker = await house.join("rig")
        served = session_pb2.ServedModel()
        served.CopyFrom(SERVED)
        served.name = UNSPOKEN
        await worker.connect(models=[served])
        asking = house.ask(model=UNSPOKEN, messages=[{"role": "user", "content": "é" * 20}])
        assign = await worker.until("assign")
        quoted = (await house.job(assign.attempt.job_id))["quote"]
        prompt = work_pb2.RenderedPrompt(ids=range(claim))
        await worker.send(
            frame(assign, 1, delta(0, TOKENS - 1), prompt=prompt),
            frame(
                assign, 2, delta(TOKENS - 1, TOKENS, reason="length"), prompt=work_pb2.RenderedPrompt(ids=[1])
            ),
        )
        answer = await asking
        bound = house.running.pool.counter.count_chat(UNSPOKEN, list(assign.work.chat.messages))
        assert bound >= 40
        assert answer.usage.prompt_tokens == (claim if 0 < claim < bound else bound)
        charge = answer.usage.potluck["charge"]
        assert (charge < quoted) if 0 < claim < bound else (charge == quoted)
        job = await house.job(assign.attempt.job_id)
        assert (job["state"], job["charge"]) == ("succeeded", charge)
        await house.settled()


async def test_inputs_without_a_tokenizer_are_counted_by_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each input up to its bytes; a count for other inputs than asked is not believed at all."""
    models_of_the_house(tmp_path)
    async with open_house(tmp_path, monkeypatch) as house:
        worker = await house.join("rig")
        served = session_pb2.ServedModel()
        served.CopyFrom(SERVED)
        served.name = UNSPOKEN
        await worker.connect(models=[served])
        charges = []
        for counts, tokens in (([3, 99], 3 + 4), ([3], 12), ([], 12), ([0, 2], 8 + 2)):
            asking = asyncio.create_task(
                house.openai().embeddings.create(model=UNSPOKEN, input=["abcdefgh", "abcd"])
            )
            assign = await worker.until("assign")
            await worker.send(vectors(assign, [1.0], [2.0], prompt_tokens=counts))
            answer = await asking
            assert answer.usage.prompt_tokens == tokens
            charges.append((await house.job(assign.attempt.job_id))["charge"])
        assert charges[0] < charges[3] < charges[1] == charges[2]
        await house.settled()


async def test_where_the_tokenizer_is_known_the_worker_is_not_asked(house: House) -> None:
    """Its prompt may be longer or shorter: the coordinator's own count stands."""
    worker = await house.join("rig")
    await worker.connect()
    asking = house.ask()
    assign = await worker.until("assign")
    prompt = work_pb2.RenderedPrompt(ids=[1])
    await worker.send(frame(assign, 1, delta(0, TOKENS, reason="length"), prompt=prompt))
    answer = await asking
    counted = house.running.pool.counter.count_chat(MODEL, list(assign.work.chat.messages))
    assert answer.usage.prompt_tokens == counted > 1


async def test_a_stored_job_keeps_its_count_over_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its hold is for the count of then. Counted anew while the tokenizer is not there yet, it would cost more."""
    async with open_house(tmp_path, monkeypatch) as first:
        idle = await first.join("idle")
        await idle.connect()
        request = {"model": MODEL, "input": ["one two three", "four"]}
        made = await first.api(
            "POST", "/pool/v1/jobs", "alice", json={"kind": "embedding", "request": request}
        )
        job_id = made.raise_for_status().json()["id"]
        await idle.until("assign")
        keys, quoted = first.keys, (await first.job(job_id))["quote"]
    monkeypatch.setattr(TokenCounter, "exact", lambda *_: False)
    monkeypatch.setattr(TokenCounter, "count_text", lambda _self, _model, text: len(text.encode()))
    async with open_house(tmp_path, monkeypatch, keys) as again:
        await again.honest()
        await again.eventually(lambda: again.no_longer(job_id), "the stored job to end")
        await again.running.ticker.committed()
        job = await again.job(job_id)
        assert (job["state"], 0 < job["charge"] <= quoted) == ("succeeded", True)
        result = await again.get(f"/pool/v1/jobs/{job_id}/result", "alice")
        assert (len(result["data"]), result["usage"]["prompt_tokens"]) == (2, 4)
        await again.settled()
