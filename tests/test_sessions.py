"""The coordinator against workers that misbehave: real TLS, real streams, real receipts, and every lie we know.

After each: the member's answer is whole all the same (from an honest worker), nothing stays held, the books sum
to zero, and only who misbehaved is less reliable.
"""

import asyncio
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from fixtures_sessions import (
    ANSWER,
    MODEL,
    SERVED,
    TOKENS,
    WAIT_S,
    House,
    RawWorker,
    Up,
    delta,
    frame,
    result,
    vectors,
)
from structlog.testing import capture_logs

from coordinator import sessions
from coordinator.core.jobs import WorkerId
from coordinator.sessions import Sessions
from potluck.v1 import session_pb2, work_pb2

Wrong = Callable[[session_pb2.Assign], Sequence[Up]]


def text_of(answer: Any) -> str:
    return str(answer.choices[0].message.content)


async def given_to(house: House, name: str = "rig", **more: Any) -> tuple[RawWorker, Any, session_pb2.Assign]:
    """A worker that has just been given a job, the question under way, and the assignment."""
    worker = await house.join(name)
    await worker.connect()
    asking = house.ask(**more)
    return worker, asking, await worker.until("assign")


WRONG: dict[str, Wrong] = {
    "skips a sequence": lambda a: [frame(a, 2, delta(0, 1))],
    "skips one later": lambda a: [frame(a, 1, delta(0, 1)), frame(a, 3, delta(1, 2))],
    "writes elsewhere": lambda a: [frame(a, 1, delta(0, 1), delta(1, 2, text_offset=99))],
    "says other ids": lambda a: [frame(a, 1, delta(0, 2)), frame(a, 2, delta(2, 3, token_ids=[77]))],
    "says ids that are none": lambda a: [frame(a, 1, delta(0, 1, token_ids=[2**31]))],
    "says too much": lambda a: [frame(a, 1, delta(0, TOKENS + 1))],
    "says too much in pieces": lambda a: (
        [frame(a, n + 1, delta(n, n + 1)) for n in range(TOKENS) if n < TOKENS - 1]
        + [frame(a, TOKENS, delta(TOKENS - 1, TOKENS + 3))]
    ),
    "goes on after the end": lambda a: [frame(a, 1, delta(0, 1, reason="stop"), delta(1, 2))],
    "answers a choice that is none": lambda a: [frame(a, 1, delta(0, 1, choice=7))],
    "answers a huge choice": lambda a: [frame(a, 1, delta(0, 1, choice=2**32 - 1))],
    "sends an oversized frame": lambda a: [frame(a, 1, delta(0, 1, text="x" * 300_000, token_ids=[]))],
    "sends more text than tokens hold": lambda a: [frame(a, 1, delta(0, 1, text="x" * 4_000, token_ids=[]))],
    "sends an empty frame": lambda a: [frame(a, 1)],
    "is done too early": lambda a: [
        frame(a, 1, delta(0, 3)),
        result(a, 2, completed=session_pb2.Completed()),
    ],
    "is done at once": lambda a: [result(a, completed=session_pb2.Completed())],
    "sends vectors for a chat": lambda a: [vectors(a, [1.0, 2.0])],
    "ends without an outcome": lambda a: [result(a)],
    "fails without a word": lambda a: [result(a, failed=work_pb2.Failure())],
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
async def test_an_answer_survives_a_worker_that_lies(house: House, wrong: Wrong) -> None:
    """Its attempt ends, it is blamed, and another one finishes the answer from what was delivered."""
    liar, asking, assign = await given_to(house)
    honest = await house.honest()
    await liar.send(*wrong(assign))
    answer = await asking
    assert (text_of(answer), answer.usage.completion_tokens) == (ANSWER, TOKENS)
    job = await house.job(assign.attempt.job_id)
    assert [a["state"] for a in job["attempts"]] == ["failed", "succeeded"]
    assert sum(a["tokens"] for a in job["attempts"]) == TOKENS
    assert job["charge"] <= job["quote"]
    assert (liar.seen.faults, honest.seen.faults) == (1, 0)
    await house.settled()


WRONG_VECTORS: dict[str, Wrong] = {
    "not a number": lambda a: [vectors(a, [1.0, float("nan")], [1.0, 2.0])],
    "infinite": lambda a: [vectors(a, [1.0, float("-inf")], [1.0, 2.0])],
    "too few": lambda a: [vectors(a, [1.0, 2.0])],
    "too many": lambda a: [vectors(a, [1.0], [1.0], [1.0])],
    "none": lambda a: [vectors(a)],
    "ragged": lambda a: [vectors(a, [1.0, 2.0], [1.0])],
    "empty": lambda a: [vectors(a, [], [])],
    "too long": lambda a: [vectors(a, [0.0] * 65_537, [0.0] * 65_537)],
    "text instead": lambda a: [frame(a, 1, delta(0, 1, reason="stop"))],
    "a prompt instead": lambda a: [frame(a, 1, prompt=work_pb2.RenderedPrompt(text="x"))],
}


@pytest.mark.parametrize("wrong", WRONG_VECTORS.values(), ids=WRONG_VECTORS)
async def test_vectors_that_are_none_are_not_delivered(house: House, wrong: Wrong) -> None:
    liar = await house.join("rig")
    await liar.connect()
    asking = house.embed("a b", "c")
    assign = await liar.until("assign")
    honest = await house.honest()
    await liar.send(*wrong(assign))
    answer = await asking
    assert [item.embedding for item in answer.data] == [[1.0, 0.5], [1.0, 0.5]]
    assert answer.usage.prompt_tokens == 3
    assert (liar.seen.faults, honest.seen.faults) == (1, 0)
    await house.settled()


async def test_the_only_worker_lies_and_the_member_is_told(house: House) -> None:
    """A clear error, nothing charged, nothing held."""
    liar, asking, assign = await given_to(house)
    await liar.send(frame(assign, 2, delta(0, 1)))
    with pytest.raises(Exception, match=r"frame 2 after frame 0; no worker that serves .* is left to try"):
        await asking
    assert (await house.get("/pool/v1/balance", "alice"))["balance"] == 0
    await house.settled()


async def test_frames_that_come_again_are_taken_once(house: House) -> None:
    """Said twice over a bad line is no lie: no token is delivered or paid twice, nobody is blamed."""
    worker, asking, assign = await given_to(house)
    first, rest = frame(assign, 1, delta(0, 2)), frame(assign, 2, delta(2, TOKENS, reason="length"))
    await worker.send(first, first, first, rest, rest, first)
    answer = await asking
    assert (text_of(answer), answer.usage.completion_tokens) == (ANSWER, TOKENS)
    assert worker.seen.faults == 0
    await house.settled()


def as_frames(said: list[session_pb2.WorkerMessage]) -> session_pb2.WorkerMessage:
    return session_pb2.WorkerMessage(frames=session_pb2.Frames(frames=[message.frame for message in said]))


def as_bundle(said: list[session_pb2.WorkerMessage]) -> session_pb2.WorkerMessage:
    return session_pb2.WorkerMessage(bundle=session_pb2.WorkerBundle(messages=said))


@pytest.mark.parametrize("together", [as_frames, as_bundle])
async def test_frames_travel_together_and_are_judged_apart(
    house: House, together: Callable[[list[session_pb2.WorkerMessage]], session_pb2.WorkerMessage]
) -> None:
    """In one message: anothers', late ones and good ones; the good ones count."""
    worker, asking, assign = await given_to(house)
    alien = session_pb2.Assign(attempt=work_pb2.Attempt(job_id="job_none", number=1))
    said = [
        frame(alien, 1, delta(0, 1)),
        frame(assign, 1, delta(0, 2)),
        frame(assign, 1, delta(0, 2)),
        frame(assign, 2, delta(2, TOKENS, reason="length")),
    ]
    await worker.send(together(said))
    assert text_of(await asking) == ANSWER
    assert worker.seen.faults == 0


@pytest.mark.parametrize(("reads", "messages"), [(True, [3]), (False, [1, 1, 1])])
async def test_what_is_due_together_goes_down_together_to_who_reads_it(
    house: House, reads: bool, messages: list[int]
) -> None:
    """Three results in one bundle are acknowledged in one, in their order; an older worker gets them apart."""
    worker = await house.join("rig")
    await worker.connect(bundles=reads)
    assert worker.welcome is not None
    assert worker.welcome.bundles
    said = [session_pb2.Assign(attempt=work_pb2.Attempt(job_id=f"job_{n}", number=1)) for n in range(3)]
    await worker.send(as_bundle([result(assign) for assign in said]))
    came = [await worker.read() for _ in messages]
    parts = [list(one.bundle.messages) if one.HasField("bundle") else [one] for one in came]
    assert [len(part) for part in parts] == messages
    assert [one.ack.attempt.job_id for part in parts for one in part] == ["job_0", "job_1", "job_2"]


async def test_anothers_attempt_is_nobodys_to_speak_for(house: House) -> None:
    """Output, success, failure, refusal and progress in another's name change nothing and blame nobody."""
    holder, asking, assign = await given_to(house)
    thief = await house.join("thief")
    await thief.connect()
    attempt = assign.attempt
    failure = work_pb2.Failure(fault=work_pb2.FAULT_JOB, code="mine_now", message="ha")
    await thief.send(
        session_pb2.WorkerMessage(accepted=session_pb2.Accepted(attempt=attempt)),
        session_pb2.WorkerMessage(refused=session_pb2.Refused(attempt=attempt, reason=failure)),
        session_pb2.WorkerMessage(progress=session_pb2.Progress(attempt=attempt, stage="loading")),
        frame(assign, 1, delta(0, TOKENS, text="stolen words", token_ids=[], reason="stop")),
        frame(assign, 1, delta(0, 1, text="x" * 300_000, token_ids=[])),
        result(assign, 2, completed=session_pb2.Completed()),
        result(assign, 3, failed=failure),
    )
    assert (await thief.until("ack")).sequence == 2  # a result is acknowledged whatever it is worth
    beat = session_pb2.Heartbeat(attempts=[session_pb2.Running(attempt=attempt)])
    await thief.send(session_pb2.WorkerMessage(heartbeat=beat))
    assert (await thief.until("cancel")).attempt == attempt
    await holder.send(frame(assign, 1, delta(0, TOKENS, reason="length")))
    answer = await asking
    assert text_of(answer) == ANSWER
    job = await house.job(attempt.job_id)
    assert [(a["worker"], a["state"]) for a in job["attempts"]] == [(holder.id, "succeeded")]
    assert (holder.seen.faults, thief.seen.faults) == (0, 0)
    await house.settled()


# -- the beginning of a stream ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "code", "words"),
    [
        (session_pb2.WorkerMessage(), grpc.StatusCode.INVALID_ARGUMENT, "must be Hello"),
        (
            session_pb2.WorkerMessage(heartbeat=session_pb2.Heartbeat()),
            grpc.StatusCode.INVALID_ARGUMENT,
            "must be Hello",
        ),
        (
            session_pb2.WorkerMessage(hello=session_pb2.Hello(protocol=0)),
            grpc.StatusCode.FAILED_PRECONDITION,
            "update the worker",
        ),
        (b"\xff\xff\xff\xff", grpc.StatusCode.INVALID_ARGUMENT, "cannot be read"),
    ],
    ids=["nothing", "a heartbeat", "an older protocol", "no protobuf"],
)
async def test_a_stream_begins_with_hello(house: House, first: Up, code: grpc.StatusCode, words: str) -> None:
    worker = await house.join("rig")
    worker.open()
    await worker.send(first)
    ended, sentence = await worker.end()
    assert ended is code
    assert words in sentence
    assert worker.id not in house.running.pool.sessions.streams


@pytest.mark.parametrize("closes", [True, False])
async def test_a_hello_that_does_not_come(
    house: House, monkeypatch: pytest.MonkeyPatch, closes: bool
) -> None:
    """Whether the stream is silent or says at once that nothing will come: it ends with a sentence."""
    monkeypatch.setattr(sessions, "HELLO_S", 0.05)
    worker = await house.join("rig")
    worker.open()
    if closes:
        await worker.call.done_writing()
    assert await worker.end() == (grpc.StatusCode.DEADLINE_EXCEEDED, "no Hello within 0 s")


async def test_a_newer_protocol_is_answered_with_the_one_to_speak(house: House) -> None:
    worker = await house.join("rig")
    assert (await worker.connect(protocol=99)).protocol == 1


async def test_the_newest_stream_of_a_worker_wins(house: House) -> None:
    """The older one ends with a sentence; what runs goes on over the newer one, without blame."""
    worker, asking, assign = await given_to(house)
    await worker.send(frame(assign, 1, delta(0, 2)))
    await worker.until("ack")
    older, channel = worker.call, worker.channel
    welcome = await worker.connect(running=[session_pb2.Running(attempt=assign.attempt, last_sequence=1)])
    assert [(r.attempt, r.acknowledged_sequence) for r in welcome.resume] == [(assign.attempt, 1)]
    assert await older.code() is grpc.StatusCode.ABORTED
    assert "newer stream" in await older.details()
    assert channel is not None
    await channel.close()
    assert worker.seen.connected
    await worker.send(frame(assign, 2, delta(2, TOKENS, reason="length")))
    assert text_of(await asking) == ANSWER
    assert worker.seen.faults == 0
    await house.settled()


async def test_the_welcome_is_the_first_message_down(house: House) -> None:
    """A stream that is open but not yet greeted gets nothing: the assignment goes elsewhere or waits."""
    streams = Sessions()
    worker = WorkerId("wrk_a")
    stream = streams.open(worker)
    message = session_pb2.CoordinatorMessage(cancel=session_pb2.Cancel(why="x"))
    assert not streams.send(worker, message)
    stream.greet(session_pb2.Welcome())
    assert streams.send(worker, message)
    assert [stream.outbox.get_nowait().WhichOneof("body") for _ in range(2)] == ["welcome", "cancel"]


async def test_a_worker_that_does_not_read_is_cut_off() -> None:
    streams = Sessions()
    stream = streams.open(WorkerId("wrk_a"))
    stream.greet(session_pb2.Welcome())
    message = session_pb2.CoordinatorMessage(cancel=session_pb2.Cancel(why="x"))
    sent = sum(streams.send(WorkerId("wrk_a"), message) for _ in range(sessions.OUTBOX_MAX + 10))
    assert sent == sessions.OUTBOX_MAX - 1
    assert stream.verdict is not None
    assert stream.verdict.code is grpc.StatusCode.RESOURCE_EXHAUSTED


# -- connections that break -------------------------------------------------------------------------------


async def test_a_blink_goes_on_from_the_acknowledged_sequence(house: House) -> None:
    """Back within 500 ms: the same attempt, no token twice, no blame."""
    worker, asking, assign = await given_to(house)
    await worker.send(frame(assign, 1, delta(0, 2)))
    await worker.until("ack")
    await worker.close()
    await house.eventually(lambda: not worker.seen.connected, "the coordinator to notice")
    welcome = await worker.connect(running=[session_pb2.Running(attempt=assign.attempt, last_sequence=2)])
    assert [(r.attempt, r.acknowledged_sequence) for r in welcome.resume] == [(assign.attempt, 1)]
    await worker.send(frame(assign, 1, delta(0, 2)), frame(assign, 2, delta(2, TOKENS, reason="length")))
    answer = await asking
    assert text_of(answer) == ANSWER
    job = await house.job(assign.attempt.job_id)
    assert [(a["state"], a["tokens"]) for a in job["attempts"]] == [("succeeded", TOKENS)]
    assert worker.seen.faults == 0
    await house.settled()


@pytest.mark.parametrize(("away_s", "faults"), [(3.0, 0), (6.0, 1)])
async def test_who_is_away_longer_loses_its_attempt(house: House, away_s: float, faults: int) -> None:
    """Another goes on at once; blamed is only who is not back within 5 s. Its late words change nothing."""
    gone, asking, assign = await given_to(house)
    honest = await house.honest()
    await gone.send(frame(assign, 1, delta(0, 2)))
    await gone.until("ack")
    await gone.close()
    answer = await asking
    assert text_of(answer) == ANSWER
    house.clock.ahead_s += away_s
    if faults:
        await house.eventually(lambda: gone.seen.faults == 1, "the blame")
    welcome = await gone.connect(running=[session_pb2.Running(attempt=assign.attempt, last_sequence=2)])
    assert not welcome.resume
    await gone.send(frame(assign, 2, delta(2, TOKENS, reason="length")), gone.receipt(assign.attempt, TOKENS))
    assert (await gone.until("receipt_ack")).state == "late"
    job = await house.job(assign.attempt.job_id)
    assert [(a["state"], a["tokens"]) for a in job["attempts"]] == [("lost", 2), ("succeeded", TOKENS - 2)]
    assert all(a["paid"] > 0 for a in job["attempts"])
    assert (gone.seen.faults, honest.seen.faults) == (faults, 0)
    await house.settled()


async def test_a_worker_that_dies_between_frame_and_receipt_is_paid(house: House) -> None:
    """The charge needs no receipt; the one that comes after a new start is matched."""
    worker, asking, assign = await given_to(house)
    await worker.send(frame(assign, 1, delta(0, TOKENS, reason="length")))
    await asking
    await worker.close()
    job = await house.job(assign.attempt.job_id)
    assert job["attempts"][0]["paid"] > 0
    await worker.connect()
    await worker.send(worker.receipt(assign.attempt, TOKENS))
    assert (await worker.until("receipt_ack")).state == "matched"
    assert worker.seen.faults == 0
    await house.settled()


async def test_a_receipt_whose_stream_breaks_while_it_is_looked_up_is_taken_when_it_comes_again(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The books are asked whether they have it already, as after a new start; the worker does not wait for that."""
    worker, asking, assign = await given_to(house)
    await worker.send(frame(assign, 1, delta(0, TOKENS, reason="length")))
    await asking
    pool, looking = house.running.pool, asyncio.Event()
    pool.receipts.forgot = True

    async def never(*_: object) -> None:
        looking.set()
        await asyncio.Event().wait()

    with monkeypatch.context() as patched:
        patched.setattr(pool.receipts, "store", SimpleNamespace(receipt=never))
        await worker.send(worker.receipt(assign.attempt, TOKENS))
        async with asyncio.timeout(WAIT_S):
            await looking.wait()
        await worker.close()
        await house.eventually(lambda: not worker.seen.connected, "the stream to end")
    await worker.connect()
    await worker.send(worker.receipt(assign.attempt, TOKENS))
    assert (await worker.until("receipt_ack")).state == "matched"


async def test_a_worker_that_comes_back_without_its_attempt(house: House) -> None:
    """A daemon that started anew: another one goes on at once."""
    worker, asking, assign = await given_to(house)
    honest = await house.honest()
    await worker.send(frame(assign, 1, delta(0, 2)))
    await worker.until("ack")
    assert not (await worker.connect(session_id="another")).resume
    assert text_of(await asking) == ANSWER
    assert (worker.seen.faults, honest.seen.faults) == (0, 0)
    await house.settled()


# -- too much of everything -------------------------------------------------------------------------------

NOISE: dict[str, Callable[[RawWorker], session_pb2.WorkerMessage]] = {
    "frames": lambda w: frame(session_pb2.Assign(attempt=work_pb2.Attempt(job_id="job_x")), 1, delta(0, 1)),
    "results": lambda w: result(session_pb2.Assign(attempt=work_pb2.Attempt(job_id="job_x"))),
    "heartbeats": lambda w: session_pb2.WorkerMessage(heartbeat=session_pb2.Heartbeat()),
    "nothing": lambda w: session_pb2.WorkerMessage(),
    "hellos": lambda w: session_pb2.WorkerMessage(hello=session_pb2.Hello(protocol=1)),
    "receipts": lambda w: w.receipt(work_pb2.Attempt(job_id="job_none", number=1), 3),
    "unreadable receipts": lambda w: session_pb2.WorkerMessage(receipt=session_pb2.Receipt(body=b"{}")),
    "packed frames": lambda w: session_pb2.WorkerMessage(
        frames=session_pb2.Frames(frames=[session_pb2.Frame(sequence=n) for n in range(1_000)])
    ),
    "overpacked frames": lambda w: session_pb2.WorkerMessage(
        frames=session_pb2.Frames(frames=[session_pb2.Frame()] * 5_000)
    ),
    "a bundle of nothing": lambda w: as_bundle([session_pb2.WorkerMessage()] * 1_000),
    "an overpacked bundle": lambda w: as_bundle([session_pb2.WorkerMessage()] * 5_000),
    "bundles in a bundle": lambda w: as_bundle([as_bundle([session_pb2.WorkerMessage()])] * 100),
    "frames in a bundle": lambda w: as_bundle([as_frames([])] * 100),
    "heartbeats in a bundle": lambda w: as_bundle(
        [session_pb2.WorkerMessage(heartbeat=session_pb2.Heartbeat())] * 100
    ),
}


@pytest.mark.parametrize("noise", NOISE.values(), ids=NOISE)
async def test_a_flood_is_cut_off(
    house: House, monkeypatch: pytest.MonkeyPatch, noise: Callable[[RawWorker], session_pb2.WorkerMessage]
) -> None:
    """What changes nothing is counted, over reconnections too; others are served meanwhile."""
    monkeypatch.setattr(sessions, "USELESS_MAX", 200)
    honest = await house.honest()
    flooder = await house.join("flooder")
    for times in (1_000, 60):
        await flooder.connect(models=[])
        flooding = asyncio.create_task(flooder.flood(noise(flooder), times))
        asking = house.ask()
        with capture_logs() as logs:
            await flooder.end()  # who writes into a closed stream learns no more than that it ended
        assert "more than 200 messages of this worker changed nothing" in [line.get("why") for line in logs]
        assert text_of(await asking) == ANSWER
        await flooding
    assert honest.seen.faults == 0
    await house.settled()


async def test_useful_words_never_add_up_to_a_flood(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each job has a result that changes nothing; a busy worker says thousands of them."""
    monkeypatch.setattr(sessions, "USELESS_MAX", 5)
    honest = await house.honest()
    for _ in range(12):
        assert text_of(await house.ask()) == ANSWER
    assert honest.seen.connected
    assert honest.seen.successes == 12


async def test_a_message_beyond_all_limits_ends_the_stream_and_nothing_else(house: House) -> None:
    worker, asking, assign = await given_to(house)
    await house.honest()
    await worker.flood(frame(assign, 1, delta(0, 1, text="x" * (20 << 20), token_ids=[])), 1)
    code, _ = await worker.end()
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert text_of(await asking) == ANSWER
    await house.settled()


async def test_bytes_that_are_no_message_end_the_stream_with_a_sentence(house: House) -> None:
    """A string that is not UTF-8 inside an otherwise sound frame, and no traceback in the log."""
    worker, asking, assign = await given_to(house)
    await house.honest()
    sound = frame(assign, 1, delta(0, 1, text="QQQQ", token_ids=[])).SerializeToString()
    await worker.send(sound.replace(b"QQQQ", b"\xff\xfe\xfd\xfc"))
    code, sentence = await worker.end()
    assert (code, "cannot be read" in sentence) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    assert text_of(await asking) == ANSWER
    await house.settled()


async def test_what_a_worker_calls_itself_is_bounded(house: House) -> None:
    """Huge and unprintable words, speeds that are no numbers, ten thousand models: shown short, or not at all."""
    huge = "\x1b[2J\n" + "x" * 20_000
    silly = session_pb2.ServedModel(
        name=MODEL,
        engine=huge,
        kinds=["chat", "nonsense", huge],
        state=session_pb2.MODEL_STATE_READY,
        slots=2**32 - 1,
        prefill_tokens_per_s=float("nan"),
        decode_tokens_per_s=float("inf"),
        numerics=huge,
        sampler=huge,
        why=huge,
        bytes_done=2**64 - 1,
    )
    many = [session_pb2.ServedModel(name=f"m{n}", kinds=["chat"]) for n in range(10_000)]
    gpu = session_pb2.Gpu(name=huge, memory_bytes=2**64 - 1, backend=huge, driver=huge, capability=huge)
    busy = session_pb2.GpuLoad(utilisation_percent=2**32 - 1, temperature_c=2**32 - 1, power_w=2**32 - 1)
    load = session_pb2.MachineLoad(cpu_percent=2**32 - 1, gpus=[busy] * 100)
    worker = await house.join("rig")
    await worker.connect(
        models=[silly, *many],
        version=huge,
        session_id=huge,
        slots=2**32 - 1,
        hardware=session_pb2.Hardware(
            system=huge, cpu=huge, gpus=[gpu] * 100, cpu_features=[huge] * 40, nodes=2**32 - 1
        ),
        running=[session_pb2.Running(attempt=work_pb2.Attempt(job_id="x" * 1_000, number=2**32 - 1))],
    )
    beat = session_pb2.Heartbeat(models=[silly, *many], state="sharing", why=huge, load=load)
    await worker.send(session_pb2.WorkerMessage(heartbeat=beat))
    worker.serving()
    assert text_of(await house.ask()) == ANSWER
    response = await house.api("GET", "/pool/v1/workers")
    assert len(response.content) < 150_000
    [shown] = response.json()
    assert shown["load"]["cpu_percent"] == 100
    assert (
        shown["load"]["gpus"]
        == [{"memory_used_bytes": 0, "utilisation_percent": 100, "temperature_c": 200, "power_w": 10_000}]
        * 64
    )
    assert (len(shown["hardware"]["cpu_features"]), shown["hardware"]["nodes"]) == (32, 4_096)
    assert [m["name"] for m in shown["models"]] == [MODEL]
    assert shown["speed"] == {MODEL: {"prefill": 0.0, "decode": 0.0}}
    assert "\x1b" not in response.text
    assert "\\u001b" not in response.text
    assert len(house.running.pool.engine.fleet.by_model) == 1
    assert len(house.running.pool.hardware[worker.id].SerializeToString()) < 100_000


async def test_the_reasons_of_a_worker_are_words_for_people(house: House) -> None:
    """A refusal with a huge, unprintable reason: shown short; the owner's reasons cost no reliability."""
    worker, asking, assign = await given_to(house)
    honest = await house.honest()
    reason = work_pb2.Failure(fault=work_pb2.FAULT_NONE, code="ü\n" * 500, message="\x1b[2J" + "y" * 100_000)
    await worker.send(
        session_pb2.WorkerMessage(refused=session_pb2.Refused(attempt=assign.attempt, reason=reason))
    )
    assert text_of(await asking) == ANSWER
    job = await house.job(assign.attempt.job_id)
    assert [a["state"] for a in job["attempts"]] == ["refused", "succeeded"]
    assert len(job["attempts"][0]["why"]) <= 300
    assert job["attempts"][0]["why"].isprintable()
    assert (worker.seen.faults, honest.seen.faults) == (0, 0)


async def test_signs_of_life_do_not_hold_a_job_for_ever(house: House) -> None:
    """A worker that beats and says `prefill` for ever has half an hour, then another one is asked."""
    liar, asking, assign = await given_to(house)
    honest = await house.honest()
    progress = session_pb2.Progress(attempt=assign.attempt, stage="prefill")
    beat = session_pb2.Heartbeat(attempts=[session_pb2.Running(attempt=assign.attempt)])
    signs = (session_pb2.WorkerMessage(progress=progress), session_pb2.WorkerMessage(heartbeat=beat))
    pushed = 0.0
    while liar.seen.running and pushed < 3_000:
        house.clock.ahead_s += 2
        pushed += 2
        await liar.send(*signs)
        await liar.heard()
    assert text_of(await asking) == ANSWER
    assert 1_800 <= pushed < 3_000  # the clock outruns a busy machine
    assert (liar.seen.faults, honest.seen.faults) == (1, 0)


async def test_a_worker_cannot_end_a_job_by_saying_that_it_loads(house: House) -> None:
    """Progress after output began says nothing: the job does not expire as if its model were cold."""
    liar, asking, assign = await given_to(house)
    await house.honest()
    await liar.send(frame(assign, 1, delta(0, 2)))
    await liar.until("ack")
    progress = session_pb2.Progress(attempt=assign.attempt, stage="loading")
    await liar.send(session_pb2.WorkerMessage(progress=progress))
    for _ in range(40):
        house.clock.ahead_s += 2
        await liar.send(session_pb2.WorkerMessage(progress=progress))
        await liar.heard()
    assert not asking.done()
    await liar.send(frame(assign, 2, delta(2, TOKENS, reason="length")))
    assert text_of(await asking) == ANSWER


async def test_models_that_the_pool_does_not_know_are_not_offered(house: House) -> None:
    worker = await house.join("rig")
    await worker.connect(models=[SERVED, session_pb2.ServedModel(name="free-beer", kinds=["chat"])])
    [shown] = await house.get("/pool/v1/workers")
    assert [m["name"] for m in shown["models"]] == [MODEL]
