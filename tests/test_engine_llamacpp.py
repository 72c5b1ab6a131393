"""llama.cpp on a real small model: streams, seams, limits, and a cancel that stops the work."""

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import pytest_asyncio
import xllamacpp
from fixtures_engine import (
    Heard,
    chat,
    completion,
    delivered,
    embedding,
    going_on,
    hosted,
    start,
)

from potluck.v1 import engine_pb2, work_pb2
from worker.engines.llamacpp import LlamaCpp, listen_privately
from worker.hosts.host import EngineStartError
from worker.hosts.process import EngineHost

pytestmark = [
    pytest.mark.engine,
    pytest.mark.asyncio(loop_scope="module"),
]  # one engine for all that can share it

Shared = tuple[EngineHost, Heard]
EMOJI = "<|im_start|>user\nOnly emoji!<|im_end|>\n<|im_start|>assistant\n🎉😀🚀🎉😀🚀"


def load(path: Path, **changes: object) -> engine_pb2.Load:
    values = {"slots": 4, "context_tokens": 1024, "threads": 1} | changes
    return engine_pb2.Load(engine="llamacpp", model="smollm2", paths=[str(path)], **values)  # type: ignore[arg-type]  # tests name the fields


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(smollm2_path: Path) -> AsyncIterator[Shared]:
    async with hosted(load(smollm2_path)) as (host, heard):
        yield host, heard


@pytest.fixture
def engine(shared: Shared) -> Shared:
    """A process with the model, and what it says from now on: whoever asks it also waits for the end."""
    host, heard = shared
    heard.clear()
    return host, heard


def whole_pieces(heard: Heard, job: str = "job", number: int = 1, offset: int = 0) -> None:
    """Offsets have no gaps, every piece is whole text, one reason at the end."""
    deltas = heard.deltas(job, number)
    for delta in deltas:
        assert delta.text_offset == offset
        assert "�" not in delta.text
        offset += len(delta.text)
    assert [bool(delta.finish_reason) for delta in deltas] == [False] * (len(deltas) - 1) + [True]


async def test_chat_streams_and_ends_by_itself_without_special_tokens(engine: Shared) -> None:
    host, heard = engine
    assert host.loaded.numerics == "llamacpp/q4_1/b179c9523d0e"
    assert host.loaded.sampler == "native"
    assert list(host.loaded.kinds) == ["chat", "completion", "embedding"]
    assert host.loaded.decode_tokens_per_s > 0
    assert host.loaded.prefill_tokens_per_s > 0
    host.send(start(chat("Say hello.", max_tokens=200)))
    done = (await heard.ended()).done
    assert heard.reason() == "stop"
    assert "<|im_" not in heard.text()
    assert len(heard.deltas()) > 3
    whole_pieces(heard)
    assert heard.prompt().text.endswith("<|im_start|>assistant\n")
    assert done.usage.prompt_tokens > 10
    assert done.usage.output_tokens == sum(delta.tokens for delta in heard.deltas())


async def test_streams_run_side_by_side_and_choices_differ(engine: Shared) -> None:
    host, heard = engine
    for job in ("one", "two"):
        host.send(start(completion("Once upon a time", max_tokens=40, temperature=0.9, choices=2), job))
    await asyncio.gather(heard.ended("one"), heard.ended("two"))
    jobs = [event.output.attempt.job_id for event in heard.events if event.HasField("output")]
    assert jobs.index("two") < len(jobs) - 1 - jobs[::-1].index("one"), "two waited for one to end"
    texts = [heard.text("one", choice=choice) for choice in (0, 1)]
    assert texts[0] != texts[1]
    assert texts == [heard.text("two", choice=choice) for choice in (0, 1)], "the seed decides"


async def test_a_stop_string_is_never_shown_even_in_part(engine: Shared) -> None:
    host, heard = engine
    host.send(start(completion("The capital of France is", max_tokens=30), "whole"))
    await heard.ended("whole")
    whole = heard.text("whole")
    string = whole[14:22]
    host.send(start(completion("The capital of France is", max_tokens=30, stop=["absent", string]), "cut"))
    await heard.ended("cut")
    assert heard.text("cut") == whole[: whole.index(string)]
    assert heard.reason("cut") == "stop"
    whole_pieces(heard, "cut")


async def test_emoji_of_many_tokens_come_out_whole(engine: Shared) -> None:
    host, heard = engine
    host.send(start(completion(EMOJI, max_tokens=41)))
    await heard.ended()
    assert any(ord(character) > 0xFFFF for character in heard.text())
    whole_pieces(heard)
    tokens = sum(delta.tokens for delta in heard.deltas())
    assert len(heard.text()) < tokens <= 41


@pytest.mark.parametrize("cut", [1, 7, 15])
async def test_a_continuation_goes_on_from_the_delivered_text(engine: Shared, cut: int) -> None:
    """Its prompt is the first one's text with what was delivered; offsets and the limit go on."""
    host, heard = engine
    work = chat("Count from one to ten in words.", max_tokens=24)
    host.send(start(work))
    await heard.ended()
    before = delivered(heard.deltas()[:cut])
    host.send(start(work, number=2, continuation=going_on(heard.prompt(), [before])))
    done = (await heard.ended(number=2)).done
    whole_pieces(heard, number=2, offset=len(before.text))
    assert heard.reason(number=2) in ("length", "stop")
    assert before.tokens + sum(delta.tokens for delta in heard.deltas(number=2)) <= 24
    assert done.usage.output_tokens <= 24 - before.tokens
    first = heard.end()
    assert first is not None
    assert done.usage.prompt_tokens == pytest.approx(first.done.usage.prompt_tokens + cut, abs=1)


async def test_finished_and_exhausted_choices_are_not_generated_again(engine: Shared) -> None:
    host, heard = engine
    prompt = work_pb2.RenderedPrompt(text="Once upon a time")
    before = [
        work_pb2.Delivered(choice=0, text=" it ended.", tokens=3, finish_reason="stop"),
        work_pb2.Delivered(choice=1, text=" there was a", tokens=5),
    ]
    work = completion("ignored", max_tokens=5, choices=2)
    host.send(start(work, number=2, continuation=going_on(prompt, before)))
    assert (await heard.ended(number=2)).HasField("done")
    assert not heard.deltas(number=2, choice=0)
    assert heard.reason(number=2, choice=1) == "length"
    assert not heard.text(number=2, choice=1)


async def test_a_stop_string_that_began_in_the_delivered_text_ends_the_answer(engine: Shared) -> None:
    host, heard = engine
    host.send(start(completion("One two three four", max_tokens=6), "probe"))
    await heard.ended("probe")
    head = heard.deltas("probe")[:2]
    string = head[1].text[-1:] + heard.deltas("probe")[2].text[:1]
    work = completion("One two three four", max_tokens=6, stop=[string])
    host.send(start(work, number=2, continuation=going_on(heard.prompt("probe"), [delivered(head)])))
    await heard.ended(number=2)
    assert heard.reason(number=2) == "stop"
    assert not heard.text(number=2)


async def test_a_prompt_above_the_context_is_the_jobs_fault_with_both_numbers(smollm2_path: Path) -> None:
    async with hosted(load(smollm2_path, context_tokens=300)) as (host, heard):
        host.send(start(completion("word " * 300)))
        failure = (await heard.ended()).failed.failure
        assert (failure.fault, failure.code) == (work_pb2.FAULT_JOB, "context_too_long")
        assert "301" in failure.message
        assert "256" in failure.message
        host.send(start(completion("word " * 240, max_tokens=500), "full"))
        await heard.ended("full")
        assert heard.reason("full") in ("length", "stop")
        assert sum(delta.tokens for delta in heard.deltas("full")) <= 16


async def test_logprobs_come_with_their_alternatives(engine: Shared) -> None:
    host, heard = engine
    host.send(start(completion("The capital of France is", max_tokens=5, logprobs=True, top_logprobs=3)))
    await heard.ended()
    items = [item for delta in heard.deltas() for item in delta.logprobs]
    assert "".join(item.token for item in items) == heard.text()
    for item in items:
        assert len(item.top) == 3
        assert item.logprob == pytest.approx(item.top[0].logprob)
        assert item.bytes.decode() == item.token


async def test_embeddings_are_pooled_unit_vectors(engine: Shared) -> None:
    host, heard = engine
    host.send(start(embedding("A cat sits on the mat.", "A kitten sits on a rug.", "Integer overflow in C")))
    done = (await heard.ended()).done
    one, two, three = [list(item.values) for item in done.embeddings]
    assert sum(value * value for value in one) == pytest.approx(1, abs=1e-4)
    near = sum(a * b for a, b in zip(one, two, strict=True))
    assert near > sum(a * b for a, b in zip(one, three, strict=True))
    assert done.usage.prompt_tokens == sum(done.embedding_tokens) > 15
    host.send(start(embedding("word " * 2000), "long"))
    failure = (await heard.ended("long")).failed.failure
    assert (failure.fault, failure.code) == (work_pb2.FAULT_JOB, "context_too_long")


def decoded(llama: LlamaCpp) -> tuple[int, int]:
    """How often llama.cpp computed a step, and how many requests it works on."""
    lines = llama._server.handle_metrics().splitlines()
    values = dict(line.split() for line in lines if line and not line.startswith("#"))
    return int(values["llamacpp:n_decode_total"]), int(values["llamacpp:requests_processing"])


class StoppedAfter(LlamaCpp):
    """Hears a Stop when llama.cpp has called back so many times: within a prompt or an answer."""

    calls = 0

    def _hear(self, running: Any, pieces: Any, chunk: dict[str, Any]) -> bool:
        self.calls -= 1
        if self.calls == 0:
            self.stop(running.start.attempt)
        return super()._hear(running, pieces, chunk)


@pytest.mark.parametrize("prompt", ["Once upon a time", "word " * 900])
async def test_a_cancel_stops_the_work_itself(smollm2_path: Path, prompt: str) -> None:
    """Measured inside llama.cpp, while it writes and while it reads a long prompt: the slot is free again
    and no further step is computed.
    """
    heard = Heard()
    loop = asyncio.get_running_loop()

    def emit(event: engine_pb2.EngineEvent) -> None:
        loop.call_soon_threadsafe(heard, event)

    llama = StoppedAfter(emit)
    await llama.load(load(smollm2_path, slots=1))
    before, _ = decoded(llama)
    llama.calls = 5
    llama.start(start(completion(prompt, max_tokens=900)).start)
    assert (await heard.ended()).failed.failure.code == "stopped"
    llama.start(start(completion("Hi", max_tokens=2), "next").start)  # the one slot is free again
    await heard.ended("next")
    after, processing = decoded(llama)
    assert processing == 0
    assert 3 <= after - before <= 12, "all of it would have been 900 steps, or 15 for the long prompt alone"
    await llama.close()


async def test_a_broken_file_or_option_is_a_sentence(smollm2_path: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    with smollm2_path.open("rb") as file:
        broken.write_bytes(file.read(4_000_000))
    with pytest.raises(EngineStartError, match="could not load the model"):
        await EngineHost.start(load(broken), Heard())
    broken.write_bytes(b"no model")
    with pytest.raises(EngineStartError, match="cannot be read as GGUF"):
        await EngineHost.start(load(broken), Heard())
    with pytest.raises(EngineStartError, match="no option colour"):
        await EngineHost.start(load(smollm2_path, options={"colour": "red"}), Heard())


async def test_where_there_are_no_unix_sockets_a_stranger_needs_the_key(smollm2_path: Path) -> None:
    """The branch for Windows: a loopback port, chosen by the system, behind a random key."""
    params = xllamacpp.CommonParams()
    listen_privately(params, "win32")
    params.model.path, params.n_ctx, params.verbosity = str(smollm2_path), 64, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = await asyncio.to_thread(xllamacpp.Server, params)
    address = server.listening_address
    assert address.startswith("http://127.0.0.1:")

    def ask(headers: dict[str, str]) -> int:
        request = Request(f"{address}/completions", b'{"prompt": "x", "max_tokens": 1}', headers)
        try:
            with urlopen(request, timeout=30) as answer:
                return int(answer.status)
        except HTTPError as error:
            error.close()
            return error.code

    assert await asyncio.to_thread(ask, {}) == 401
    assert await asyncio.to_thread(ask, {"Authorization": f"Bearer {params.api_keys[0]}"}) == 200
    texts: list[dict[str, object]] = []
    await asyncio.to_thread(server.handle_completions, {"prompt": "x", "max_tokens": 1}, texts.append)
    assert "error" not in texts[0]


async def test_nothing_listens_on_a_port(engine: Shared) -> None:
    import psutil

    connections = psutil.Process(engine[0].pid).net_connections(kind="inet")
    assert [item for item in connections if item.type == socket.SOCK_STREAM] == []
