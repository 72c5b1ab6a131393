"""The emulator keeps its promises: speed, determinism, seams, failures on demand."""

import asyncio

import pytest
import uvloop
from fixtures_engine import (
    Heard,
    chat,
    completion,
    delivered,
    embedding,
    going_on,
    hosted,
    start,
    stop,
)

from potluck.v1 import engine_pb2, work_pb2
from worker.engines.emulator import Emulator, names, token_of
from worker.hosts.process import EngineHost

FAST = {"ttft_ms": "1", "tpot_ms": "0"}


def load(context_tokens: int = 0, **options: str) -> engine_pb2.Load:
    return engine_pb2.Load(
        engine="emulator", model="emulator-small", options=FAST | options, context_tokens=context_tokens
    )


async def answer(host: EngineHost, heard: Heard, work: work_pb2.Work, job: str) -> str:
    host.send(start(work, job))
    event = await heard.ended(job)
    assert event.HasField("done"), event
    return heard.text(job)


async def test_text_follows_from_the_seed_and_ids_spell_it() -> None:
    async with hosted(load()) as (host, heard):
        one = await answer(host, heard, chat(seed=1, max_tokens=50), "one")
        assert one == await answer(host, heard, completion("other prompt", seed=1, max_tokens=50), "again")
        assert one != await answer(host, heard, chat(seed=2, max_tokens=50), "two")
        assert heard.ids("one") == [token_of(1, 0, position) for position in range(50)]
        assert names(heard.ids("one")) == one
        assert len(one.split()) == 50
        assert heard.reason("one") == "length"
        usage = heard.end("one")
        assert usage is not None
        assert usage.done.usage.output_tokens == 50


async def test_choices_differ_and_each_has_its_offsets() -> None:
    async with hosted(load()) as (host, heard):
        await answer(host, heard, chat(choices=3, max_tokens=20), "n")
        texts = [heard.text("n", choice=choice) for choice in range(3)]
        assert len(set(texts)) == 3
        for choice in range(3):
            at = 0
            for delta in heard.deltas("n", choice=choice):
                assert delta.text_offset == at
                at += len(delta.text)


async def test_a_stop_string_is_never_shown_even_in_part() -> None:
    async with hosted(load()) as (host, heard):
        whole = await answer(host, heard, chat(max_tokens=30), "whole")
        words = whole.split()
        string = f"{words[7]} {words[8][:3]}"
        cut = await answer(host, heard, chat(max_tokens=30, stop=["absent", string]), "cut")
        assert cut == whole[: whole.index(string)]
        assert heard.reason("cut") == "stop"
        assert heard.ids("cut") == heard.ids("whole")[:9]


@pytest.mark.parametrize("stopping", [False, True])
async def test_every_cut_goes_on_to_the_same_answer(stopping: bool) -> None:
    """Delivered pieces of each length are the prefix of an attempt that ends with the very same text."""
    async with hosted(load(tpot_ms="1")) as (host, heard):
        host.send(start(chat(max_tokens=24, choices=2), "probe"))
        await heard.ended("probe")
        words = heard.text("probe").split()
        work = chat(
            max_tokens=24, choices=2, stop=[f"{words[11]} {words[12]} {words[13][:2]}"] if stopping else []
        )
        host.send(start(work, "whole"))
        await heard.ended("whole")
        pieces = heard.deltas("whole")
        for cut in range(len(pieces) + 1):
            second = heard.deltas("whole", choice=1)[:cut]
            before = [delivered(pieces[:cut]), delivered(second)]
            before[1].choice = 1
            host.send(start(work, f"cut{cut}", 2, going_on(heard.prompt("whole"), before)))
            await heard.ended(f"cut{cut}", 2)
            for choice in range(2):
                text = before[choice].text + heard.text(f"cut{cut}", 2, choice)
                assert text == heard.text("whole", choice=choice)
                ids = list(before[choice].token_ids) + heard.ids(f"cut{cut}", 2, choice)
                assert ids == heard.ids("whole", choice=choice)
                reason = before[choice].finish_reason + heard.reason(f"cut{cut}", 2, choice)
                assert reason == heard.reason("whole", choice=choice)


async def test_a_stop_ends_the_attempt_at_once_and_is_answered() -> None:
    async with hosted(load(tpot_ms="1")) as (host, heard):
        host.send(start(chat(max_tokens=5000)))
        await heard.until(heard.ids)
        host.send(stop())
        failure = (await heard.ended()).failed.failure
        assert (failure.fault, failure.code) == (work_pb2.FAULT_NONE, "stopped")
        said = len(heard.ids())
        await answer(host, heard, chat(max_tokens=20), "next")
        assert len(heard.ids()) == said
        host.send(stop())  # unknown by now: ignored
        await answer(host, heard, chat(max_tokens=1), "last")


@pytest.mark.parametrize(
    ("options", "fault", "code", "tokens"),
    [
        ({"refuse": "out_of_memory"}, work_pb2.FAULT_WORKER, "out_of_memory", 0),
        ({"fail_after_tokens": "4"}, work_pb2.FAULT_WORKER, "emulated", 4),
        ({"fail_after_tokens": "0"}, work_pb2.FAULT_WORKER, "emulated", 0),
    ],
)
async def test_failures_come_as_ordered(options: dict[str, str], fault: int, code: str, tokens: int) -> None:
    async with hosted(load(0, **options)) as (host, heard):
        host.send(start(chat()))
        failure = (await heard.ended()).failed.failure
        assert (failure.fault, failure.code) == (fault, code)
        assert len(heard.ids()) == tokens


async def test_an_answer_may_end_by_itself() -> None:
    async with hosted(load(output_tokens="6")) as (host, heard):
        await answer(host, heard, chat(max_tokens=50), "job")
        assert heard.reason() == "stop"
        assert len(heard.ids()) == 6


async def test_a_prompt_above_the_context_is_the_jobs_fault_with_both_numbers() -> None:
    async with hosted(load(context_tokens=32)) as (host, heard):
        host.send(start(completion("word " * 40)))
        failure = (await heard.ended()).failed.failure
        assert (failure.fault, failure.code) == (work_pb2.FAULT_JOB, "context_too_long")
        assert "40" in failure.message
        assert "32" in failure.message
        await answer(host, heard, completion("word " * 30, max_tokens=10), "full")
        assert len(heard.ids("full")) == 2
        assert heard.reason("full") == "length"


async def test_embeddings_are_unit_vectors_that_follow_from_the_text() -> None:
    async with hosted(load(dimensions="8")) as (host, heard):
        host.send(start(embedding("a b", "c", "a b")))
        result = (await heard.ended()).done
        first, second, third = [list(item.values) for item in result.embeddings]
        assert first == third != second
        assert sum(value * value for value in first) == pytest.approx(1)
        assert list(result.embedding_tokens) == [2, 1, 2]
        assert result.usage.prompt_tokens == 5


async def test_many_streams_at_full_rate_lose_nothing() -> None:
    """32 streams at 200 tokens/s: each has every token, in few messages when the reader is late."""
    async with hosted(load(ttft_ms="20", tpot_ms="5")) as (host, heard):
        for index in range(32):
            host.send(start(chat(seed=index, max_tokens=60), f"job{index}"))
        await asyncio.gather(*(heard.ended(f"job{index}") for index in range(32)))
        for index in range(32):
            assert heard.ids(f"job{index}") == [token_of(index, 0, position) for position in range(60)]


def test_it_runs_on_the_loop_of_ray_too() -> None:
    """Actors run on uvloop, whose timers that are due at once are no timers."""

    async def two_at_once() -> bool:
        heard = Heard()
        emulator = Emulator(heard, lambda: None)
        await emulator.load(engine_pb2.Load(options={"ttft_ms": "0", "tpot_ms": "0"}))
        for job in ("one", "two"):
            emulator.start(start(chat(max_tokens=2), job).start)
        return all([(await heard.ended(job)).HasField("done") for job in ("one", "two")])

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(two_at_once())
