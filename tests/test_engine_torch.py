"""transformers on a real small model: converted once, the same answer after every cut, llama.cpp's own ids."""

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
import xllamacpp
from fixtures_engine import Heard, chat, completion, delivered, embedding, going_on, hosted, start
from fixtures_models import model_cache

from potluck.v1 import engine_pb2
from worker.engines import weights
from worker.engines.engine import sampling_of
from worker.engines.llamacpp import listen_privately
from worker.engines.sampling import Sampler
from worker.engines.torch import Torch

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(600),
    pytest.mark.asyncio(loop_scope="module"),  # one engine for all that can share it
]

MARGIN = 1e-3
EMOJI = "<|im_start|>user\nOnly emoji!<|im_end|>\n<|im_start|>assistant\n🎉😀🚀🎉😀🚀🎉😀🚀"
PATTERN = '<think>ok</think>{"name": "Zoë 🎉", "n": [1, 2]}\n' * 3
TEXTS = [
    "In 1969, 2 men; 3.14159 and 0x1F; 1,234,567.",
    "def f(x):\n    return x**2  # naïve\n\n\n\tif x>=10: pass",
    "日本語のテキストと 한국어 и русский",
    "🎉👩‍👩‍👧‍👦 emoji ❤️ and   spaces   \n\n",
    "I'm we'll they've DON'T",
]


def load(path: Path, **changes: Any) -> engine_pb2.Load:
    values = {"slots": 16, "context_tokens": 1024, "threads": 1} | changes
    cache = str(model_cache().parent / "torch")
    return engine_pb2.Load(engine="torch", model="smollm2", paths=[str(path)], cache_dir=cache, **values)


class Real:
    def __init__(self) -> None:
        self.heard = Heard()
        loop = asyncio.get_running_loop()

        def emit(event: engine_pb2.EngineEvent) -> None:
            loop.call_soon_threadsafe(self.heard, event)

        self.engine = Torch(emit)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(smollm2_path: Path) -> AsyncIterator[Real]:
    real = Real()
    await real.engine.load(load(smollm2_path))
    yield real
    await real.engine.close()


@pytest.fixture
def real(shared: Real) -> Real:
    """With what it says from now on: whoever asks it also waits for the end."""
    shared.heard.clear()
    return shared


async def test_chat_streams_from_an_engine_process(smollm2_path: Path) -> None:
    async with hosted(load(smollm2_path)) as (host, heard):
        assert host.loaded.numerics == "torch/float32/b179c9523d0e"
        assert host.loaded.sampler == "pool"
        assert list(host.loaded.kinds) == ["chat", "completion", "embedding"]
        assert host.loaded.decode_tokens_per_s > 0
        host.send(start(chat("What is the capital of France?", max_tokens=40)))
        assert (await heard.ended()).HasField("done")
        assert heard.text() == "The capital of France is Paris."
        assert heard.reason() == "stop"
        assert len(heard.deltas()) > 4
        host.send(
            start(
                embedding("A cat sits on the mat.", "A kitten sits on a rug.", "Integer overflow in C"), "e"
            )
        )
        one, two, three = [list(item.values) for item in (await heard.ended("e")).done.embeddings]
        near = sum(a * b for a, b in zip(one, two, strict=True))
        assert near > sum(a * b for a, b in zip(one, three, strict=True))


def margin_is_small(real: Real, ids: list[int], position: int, sampler: Sampler) -> bool:
    """Would the winner at this place be another if its logit were lower by less than the margin?"""
    with torch.inference_mode():
        logits = real.engine._loaded.model(torch.tensor([ids])).logits[0, -1].numpy()
    winner = sampler.pick(logits, position)
    logits[winner] -= MARGIN * max(sampler.temperature, 1.0)
    return sampler.pick(logits, position) != winner


@pytest.mark.parametrize(
    ("prompt", "temperature", "strings"),
    [
        (EMOJI, 0.0, []),
        (EMOJI, 0.8, ["🚀🎉"]),
        (PATTERN, 0.0, []),
        (PATTERN, 0.7, []),
        ("Once upon a time", 1.0, ["\n\n", "the end"]),
    ],
)
async def test_every_cut_goes_on_to_the_same_answer(
    real: Real, prompt: str, temperature: float, strings: list[str]
) -> None:
    """Inside emoji, JSON, a tag, a stop string; all continuations beside each other in one batch."""
    work = completion(prompt, seed=5, temperature=temperature, max_tokens=36, stop=strings)
    real.engine.start(start(work, "whole").start)
    await real.heard.ended("whole")
    deltas = real.heard.deltas("whole")
    prompt_ids = list(real.heard.prompt("whole").ids)
    whole = real.heard.ids("whole")
    cuts = range(1, len(deltas), max(1, len(deltas) // 12))
    for cut in cuts:
        continuation = going_on(real.heard.prompt("whole"), [delivered(deltas[:cut])])
        real.engine.start(start(work, f"cut{cut}", 2, continuation).start)
    for cut in cuts:
        assert (await real.heard.ended(f"cut{cut}", 2)).HasField("done")
        before = delivered(deltas[:cut])
        ids = [*before.token_ids, *real.heard.ids(f"cut{cut}", 2)]
        if ids != whole:
            place = next(i for i, pair in enumerate(zip(ids, whole, strict=False)) if pair[0] != pair[1])
            assert margin_is_small(real, prompt_ids + whole[:place], place, Sampler.of(sampling_of(work), 0))
            continue
        assert before.text + real.heard.text(f"cut{cut}", 2) == real.heard.text("whole")
        assert real.heard.reason(f"cut{cut}", 2) == real.heard.reason("whole")


async def test_a_model_is_converted_once(smollm2_path: Path) -> None:
    """The second load finds the first one's folder; nothing half-made is left in the cache."""
    device = weights.Device("cpu", "float32")
    cache = model_cache().parent / "torch"
    first = await asyncio.to_thread(weights.load_model, [smollm2_path], cache, device)
    folder = next(cache.glob("b179c9523d0e*-float32-*"))
    made = (folder / "model.safetensors").stat().st_mtime_ns
    second = await asyncio.to_thread(weights.load_model, [smollm2_path], cache, device)
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    assert first.digest == second.digest == "b179c9523d0e"
    assert not list(cache.glob("converting-*"))
    assert first.context_tokens == 8192


async def test_both_engines_read_text_as_the_same_tokens(smollm2_path: Path) -> None:
    """llama.cpp counts what it reads; a wrong cut of digits or spaces would count otherwise."""
    tokenizer = weights._text_of_gguf(smollm2_path).tokenizer
    params = xllamacpp.CommonParams()
    listen_privately(params, "linux")
    params.model.path, params.n_ctx, params.verbosity, params.embedding = str(smollm2_path), 256, -1, True
    params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = await asyncio.to_thread(xllamacpp.Server, params)
    for text in TEXTS:
        answer = await asyncio.to_thread(server.handle_embeddings, {"input": [text]})
        assert answer["usage"]["prompt_tokens"] == len(tokenizer.encode(text).ids), text
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


async def test_the_numbers_of_the_torch_answer_are_llama_cpps_too(real: Real) -> None:
    """The converted weights are the file's: the first token's logprobs agree to a few hundredths."""
    work = completion("The capital of France is", max_tokens=1, logprobs=True, top_logprobs=5)
    real.engine.start(start(work).start)
    await real.heard.ended()
    (item,) = [item for delta in real.heard.deltas() for item in delta.logprobs]
    assert item.token == " Paris"
    assert item.logprob == pytest.approx(-0.26, abs=0.05)  # llama.cpp says -0.259


async def test_many_streams_share_each_step(real: Real) -> None:
    jobs = [f"job{index}" for index in range(12)]
    for index, job in enumerate(jobs):
        real.engine.start(
            start(chat(f"Count to {index}.", seed=index, temperature=0.9, max_tokens=16), job).start
        )
    await asyncio.gather(*(real.heard.ended(job) for job in jobs))
    order = [event.output.attempt.job_id for event in real.heard.events if event.HasField("output")]
    turns = sum(one != other for one, other in pairwise(order))
    assert turns > 3 * len(jobs), "streams ran one after the other"
