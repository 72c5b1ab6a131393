"""The torch engine with a tiny random model: seams do not show, limits hold, every Start has one end.

The model's answers are full of half emoji, tags and JSON, so that cuts fall inside all of them.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
from fixtures_engine import Heard, chat, completion, delivered, embedding, going_on, start, stop

from potluck.v1 import engine_pb2, work_pb2
from worker.engines.torch import Torch

ODD = [" bst", "</think>", "###", "🎉"]  # some of them stand in the answers below


class Tiny:
    """An engine in this process and what it said."""

    def __init__(self) -> None:
        self.heard = Heard()
        loop = asyncio.get_running_loop()

        def emit(event: engine_pb2.EngineEvent) -> None:
            loop.call_soon_threadsafe(self.heard, event)

        self.engine = Torch(emit)
        self.loaded = engine_pb2.Loaded()

    def send(self, command: engine_pb2.EngineCommand) -> None:
        if command.HasField("start"):
            self.engine.start(command.start)
        else:
            self.engine.stop(command.stop.attempt)


def load(paths: list[Path], **changes: Any) -> engine_pb2.Load:
    values = {"slots": 8, "context_tokens": 256, "threads": 1} | changes
    return engine_pb2.Load(engine="torch", model="tiny", paths=[str(path) for path in paths], **values)


@pytest_asyncio.fixture
async def tiny(tiny_paths: list[Path]) -> AsyncIterator[Tiny]:
    torch.set_num_threads(1)
    tiny = Tiny()
    tiny.loaded = await tiny.engine.load(load(tiny_paths))
    yield tiny
    await tiny.engine.close()


async def run(tiny: Tiny, work: work_pb2.Work, job: str) -> engine_pb2.Done:
    tiny.send(start(work, job))
    event = await tiny.heard.ended(job)
    assert event.HasField("done"), event
    return event.done


async def test_it_says_what_it_is(tiny: Tiny) -> None:
    assert tiny.loaded.numerics.startswith("torch/float32/")
    assert (tiny.loaded.sampler, tiny.loaded.slots, tiny.loaded.context_tokens) == ("pool", 8, 256)
    assert list(tiny.loaded.kinds) == ["chat", "completion", "embedding"]
    assert tiny.loaded.prefill_tokens_per_s > 0
    assert tiny.loaded.decode_tokens_per_s > 0


async def test_ids_and_text_agree_piece_by_piece(tiny: Tiny) -> None:
    vocabulary = tiny.engine._loaded.vocabulary
    for seed in range(6):
        job = f"job{seed}"
        done = await run(tiny, chat("hi", seed=seed, temperature=1.0, max_tokens=60, stop=ODD[:2]), job)
        deltas = tiny.heard.deltas(job)
        at = 0
        for delta in deltas:
            assert delta.text_offset == at
            at += len(delta.text)
            spelled = vocabulary.decode(delta.token_ids)
            assert delta.text == spelled or (delta.finish_reason == "stop" and spelled.startswith(delta.text))
        assert done.usage.output_tokens == len(tiny.heard.ids(job))
        assert done.usage.prompt_tokens == len(tiny.heard.prompt(job).ids)
        assert not vocabulary.end_ids & set(tiny.heard.ids(job))
        assert not any(string in tiny.heard.text(job) for string in ODD[:2])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("strings", [[], ODD])
async def test_every_cut_goes_on_to_the_same_answer(
    tiny: Tiny, temperature: float, strings: list[str]
) -> None:
    """All continuations run at once, so each row of the batch also has others beside it."""
    work = chat("go", seed=11, temperature=temperature, max_tokens=48, choices=2, stop=strings)
    await run(tiny, work, "whole")
    lists = [tiny.heard.deltas("whole", choice=choice) for choice in range(2)]
    cuts = range(max(map(len, lists)) + 1)
    for cut in cuts:
        before = [delivered(deltas[:cut]) for deltas in lists]
        before[1].choice = 1
        tiny.send(start(work, f"cut{cut}", 2, going_on(tiny.heard.prompt("whole"), before)))
    for cut in cuts:
        event = await tiny.heard.ended(f"cut{cut}", 2)
        assert event.HasField("done"), event
        for choice, deltas in enumerate(lists):
            before_one = delivered(deltas[:cut])
            assert before_one.text + tiny.heard.text(f"cut{cut}", 2, choice) == tiny.heard.text(
                "whole", choice=choice
            )
            ids = [*before_one.token_ids, *tiny.heard.ids(f"cut{cut}", 2, choice)]
            assert ids == tiny.heard.ids("whole", choice=choice)
            reason = before_one.finish_reason + tiny.heard.reason(f"cut{cut}", 2, choice)
            assert reason == tiny.heard.reason("whole", choice=choice)


async def test_a_stop_cuts_the_answer_where_the_string_begins(tiny: Tiny) -> None:
    await run(tiny, completion("ab", seed=3, temperature=1.0, max_tokens=40), "whole")
    whole = tiny.heard.text("whole")
    string = whole[9:14]
    await run(tiny, completion("ab", seed=3, temperature=1.0, max_tokens=40, stop=[string]), "cut")
    assert tiny.heard.text("cut") == whole[: whole.index(string)]
    assert tiny.heard.reason("cut") == "stop"
    ids = tiny.heard.ids("cut")
    assert ids == tiny.heard.ids("whole")[: len(ids)]


async def test_text_of_an_engine_without_ids_is_gone_on_from(tiny: Tiny) -> None:
    """Delivered text is read anew; positions follow the coordinator's count."""
    before = work_pb2.Delivered(text=" a b", tokens=2)
    prompt = work_pb2.RenderedPrompt(text="<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n")
    tiny.send(start(chat("ignored", max_tokens=6), "job", 2, going_on(prompt, [before])))
    done = (await tiny.heard.ended("job", 2)).done
    assert done.usage.output_tokens <= 4
    assert tiny.heard.deltas("job", 2)[0].text_offset == 4
    assert tiny.heard.prompt("job", 2).ids


async def test_nothing_is_left_to_do_for_choices_at_their_end(tiny: Tiny) -> None:
    before = [
        work_pb2.Delivered(choice=0, text="x", token_ids=[120], tokens=1, finish_reason="stop"),
        work_pb2.Delivered(choice=1, text=" a b", token_ids=[256, 257], tokens=2),
    ]
    prompt = work_pb2.RenderedPrompt(text="p", ids=[112])
    tiny.send(start(chat(max_tokens=2, choices=2), "job", 2, going_on(prompt, before)))
    assert (await tiny.heard.ended("job", 2)).done.usage.output_tokens == 0
    assert tiny.heard.reason("job", 2, 1) == "length"
    assert not tiny.heard.deltas("job", 2, 0)


async def test_the_context_is_the_limit_with_both_numbers(tiny: Tiny) -> None:
    tiny.send(start(completion("x" * 300), "long"))
    failure = (await tiny.heard.ended("long")).failed.failure
    assert (failure.fault, failure.code) == (work_pb2.FAULT_JOB, "context_too_long")
    assert "300" in failure.message
    assert "256" in failure.message
    await run(tiny, completion("x" * 250, max_tokens=50, seed=2, temperature=1.0), "full")
    assert tiny.heard.reason("full") in ("length", "stop")
    assert len(tiny.heard.ids("full")) <= 6


@pytest.mark.parametrize(
    "work",
    [
        completion(""),
        work_pb2.Work(completion=work_pb2.CompletionWork(prompt_ids=[5, 99999])),
        embedding("fine", ""),
    ],
)
async def test_what_the_model_cannot_take_is_the_jobs_fault(tiny: Tiny, work: work_pb2.Work) -> None:
    tiny.send(start(work))
    failure = (await tiny.heard.ended()).failed.failure
    assert (failure.fault, failure.code) == (work_pb2.FAULT_JOB, "invalid_request")
    await run(tiny, completion("still alive", max_tokens=3), "next")


async def test_a_stop_leaves_the_batch_at_the_next_step(tiny: Tiny) -> None:
    """Others go on; what is computed after the answer to the Stop is for them alone."""
    work = completion("", max_tokens=200)
    work.completion.prompt_ids.append(260)  # goes on and on
    tiny.send(start(work, "gone"))
    work.completion.sampling.max_tokens = 100
    tiny.send(start(work, "stays"))
    await tiny.heard.until(lambda: len(tiny.heard.ids("gone")) > 3)
    tiny.send(stop("gone"))
    tiny.send(stop("gone"))  # twice is once
    failure = (await tiny.heard.ended("gone")).failed.failure
    assert (failure.fault, failure.code) == (work_pb2.FAULT_NONE, "stopped")
    said = len(tiny.heard.ids("gone"))
    assert (await tiny.heard.ended("stays")).HasField("done")
    assert len(tiny.heard.ids("gone")) == said < 200
    assert tiny.engine._batch.idle
    assert not tiny.engine._batch.rows.lengths


async def test_a_stop_before_the_first_token_ends_it_too(tiny: Tiny) -> None:
    for job in ("one", "two", "three"):
        tiny.send(start(completion("x" * 200, max_tokens=50), job))
        tiny.send(stop(job))
    for job in ("one", "two", "three"):
        assert (await tiny.heard.ended(job)).failed.failure.code == "stopped"
    await run(tiny, completion("a", max_tokens=3), "next")


async def test_logprobs_come_with_alternatives(tiny: Tiny) -> None:
    work = completion("ab", max_tokens=12, temperature=1.0, seed=4, logprobs=True, top_logprobs=3)
    await run(tiny, work, "job")
    items = [item for delta in tiny.heard.deltas() for item in delta.logprobs]
    assert len(items) == len(tiny.heard.ids())
    assert b"".join(item.bytes for item in items).decode(errors="replace") == tiny.heard.text()
    for item in items:
        assert len(item.top) == 3
        assert item.logprob <= item.top[0].logprob + 1e-9
        assert item.top[0].logprob >= item.top[1].logprob >= item.top[2].logprob


async def test_embeddings_are_unit_vectors_in_the_order_of_the_inputs(tiny: Tiny) -> None:
    texts = ["a b c", "x" * 100, "th", "a b c"]
    done = await run(tiny, embedding(*texts), "job")
    vectors = [list(item.values) for item in done.embeddings]
    assert vectors[0] == pytest.approx(vectors[3], abs=1e-4)
    assert vectors[0] != pytest.approx(vectors[1], abs=1e-2)
    assert [sum(value * value for value in vector) for vector in vectors] == pytest.approx([1] * 4)
    assert list(done.embedding_tokens)[1:3] == [100, 2]


async def test_a_failure_of_the_computing_fails_attempts_and_not_the_engine(tiny: Tiny) -> None:
    model = tiny.engine._batch.model

    def broken(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("no memory")

    tiny.engine._batch.model = type("Broken", (), {"__call__": broken, "device": model.device})()
    tiny.send(start(completion("a", max_tokens=5), "one"))
    tiny.send(start(completion("b", max_tokens=5), "two"))
    for job in ("one", "two"):
        failure = (await tiny.heard.ended(job)).failed.failure
        assert (failure.fault, failure.code) == (work_pb2.FAULT_WORKER, "out_of_memory")
    tiny.engine._batch.model = model
    await run(tiny, completion("a", max_tokens=5), "three")
