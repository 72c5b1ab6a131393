"""The bridge against real servers that are not ours (llama-server, `transformers serve`), and against a hostile one."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
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
    stop,
)
from fixtures_templates import QWEN_PLAIN

from potluck.processes import free_ports
from potluck.v1 import engine_pb2, work_pb2
from worker.bridges import Bridge
from worker.engines.engine import EngineError, JobError
from worker.engines.openai import OpenAI
from worker.engines.upstream import Upstream
from worker.hosts.host import EngineStartError

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 10}, "age": {"type": "integer", "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
FIND = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
CALL = '<tool_call>\n{"name": "look_up", "arguments": {"name": "Bob"}}\n</tool_call>'


def load(**options: str) -> engine_pb2.Load:
    return engine_pb2.Load(engine="openai", model="m", options=options)


# -- llama-server


@pytest.fixture(scope="module")
def llama(smollm2_path: Path) -> Any:
    """llama.cpp's own HTTP server, as an owner runs it: with a key and a template that knows tools."""
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.verbosity = str(smollm2_path), 2048, 2, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.hostnames, params.port, params.api_keys = ["127.0.0.1"], 0, ["secret"]
    params.model_alias = {"smollm2"}
    params.endpoint_metrics, params.warmup, params.ui = True, False, False
    params.use_jinja, params.chat_template = True, QWEN_PLAIN
    return xllamacpp.Server(params)


@asynccontextmanager
async def bridged(llama: Any, folder: Path) -> AsyncIterator[tuple[OpenAI, Heard, engine_pb2.Loaded]]:
    (folder / "key").write_text("secret\n")
    heard = Heard()
    bridge = OpenAI(heard, lambda: pytest.fail("the server is there"))
    loaded = await bridge.load(load(url=llama.listening_address, key_file=str(folder / "key")))
    try:
        yield bridge, heard, loaded
    finally:
        await bridge.close()


def processing(llama: Any) -> int:
    lines = llama.handle_metrics().splitlines()
    values = dict(line.split() for line in lines if line and not line.startswith("#"))
    return int(values["llamacpp:requests_processing"])


@pytest.mark.engine
async def test_llama_server_chats_streams_calls_and_holds_to_schemas(llama: Any, tmp_path: Path) -> None:
    async with bridged(llama, tmp_path) as (bridge, heard, loaded):
        assert loaded.numerics.startswith("openai/llamacpp/")
        assert list(loaded.features) == ["json_schema"], "and no tools: a model of this size calls none"
        assert loaded.decode_tokens_per_s > 0
        assert loaded.context_tokens >= 1024

        work = chat("Say hello.", max_tokens=8)
        bridge.start(start(work).start)
        done = (await heard.ended()).done
        assert len(heard.deltas()) > 2, "it streams"
        assert done.usage.prompt_tokens > 5
        assert 0 < done.usage.output_tokens <= 8
        assert heard.prompt().format.reasoning == "think"

        before = delivered(heard.deltas()[:3])
        bridge.start(start(work, number=2, continuation=going_on(heard.prompt(), [before])).start)
        await heard.ended(number=2)
        assert before.text + heard.text(number=2) == heard.text(), "greedy, and from where it stood"

        work = chat("Bob is 31. Answer as JSON.", max_tokens=40)
        work.chat.structure.kind, work.chat.structure.schema = "json_schema", json.dumps(SCHEMA)
        bridge.start(start(work, "json").start)
        await heard.ended("json")
        assert set(json.loads(heard.text("json"))) == {"name", "age"}
        assert heard.reason("json") == "stop"

        work = chat(f"Repeat exactly this and nothing else: {CALL}", max_tokens=60)
        work.chat.tools.add(name="look_up", description="Finds.", parameters=json.dumps(FIND))
        work.chat.tool_choice = "auto"
        bridge.start(start(work, "call").start)
        await heard.ended("call")
        assert heard.text("call").strip() == CALL, "which the server had split"
        assert heard.prompt("call").format.tools == "hermes"


@pytest.mark.engine
async def test_llama_server_hears_of_a_cancel_and_of_a_stop_string(llama: Any, tmp_path: Path) -> None:
    async with bridged(llama, tmp_path) as (bridge, heard, _):
        bridge.start(start(completion("Once upon a time", max_tokens=1500, choices=2)).start)
        await heard.until(lambda: heard.deltas(choice=0) and heard.deltas(choice=1))
        bridge.stop(stop().stop.attempt)
        assert (await heard.ended()).failed.failure.code == "stopped"
        bridge.start(start(completion("One, two,", max_tokens=1500, stop=[" "]), "cut").start)
        await heard.ended("cut")
        assert " " not in heard.text("cut")
        assert heard.reason("cut") == "stop"
        async with asyncio.timeout(60):
            while processing(llama):  # its own thread notices that nobody listens
                await bridge._upstream.ask("/v1/models")


@pytest.mark.engine
async def test_what_llama_server_refuses_is_the_jobs_fault(llama: Any, tmp_path: Path) -> None:
    async with bridged(llama, tmp_path) as (bridge, heard, _):
        bridge.start(start(chat("word " * 3000), "long").start)
        failure = (await heard.ended("long")).failed.failure
        assert (failure.fault, failure.code) == (work_pb2.FAULT_JOB, "context_too_long")
        bridge.start(start(embedding("a"), "vector").start)
        failure = (await heard.ended("vector")).failed.failure
        assert failure.code in ("bridge_failed", "invalid_request"), "this server was started without"


# -- transformers serve, started by the worker


def served_by_transformers(folder: Path, port: int) -> engine_pb2.Load:
    command = [
        str(Path(sys.executable).with_name("transformers")),
        *("serve", str(folder), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"),
    ]
    return load(url=f"http://127.0.0.1:{port}", model=str(folder), command=json.dumps(command))


@pytest.mark.engine
async def test_a_server_that_the_worker_starts_answers_and_ends_with_it(tiny_paths: list[Path]) -> None:
    """`transformers serve` on the tiny model, an OpenAI-compatible server from PyPI; the engine is killed at last."""
    folder, port = tiny_paths[0].parent, free_ports(1)[0]
    async with hosted(served_by_transformers(folder, port)) as (host, heard):
        assert "json_schema" not in host.loaded.features, "it takes a response_format and ignores it"
        host.send(start(chat("hi", max_tokens=12, temperature=1.0, seed=1)))
        assert (await heard.ended()).HasField("done")
        assert heard.reason() in ("stop", "length")
        host.send(start(chat("hi", max_tokens=400, temperature=1.5, seed=2), "long"))
        await heard.until(lambda: heard.deltas("long") or heard.end("long"))
        host.send(stop("long"))
        await heard.ended("long")
        host.send(start(chat("hi", max_tokens=3), "next"))
        assert (await heard.ended("next")).HasField("done")
        family = psutil.Process(host.pid).children(recursive=True)
        assert len(family) >= 2, "the guard and the server"
        psutil.Process(host.pid).kill()
        gone, alive = await asyncio.to_thread(psutil.wait_procs, family, 60)
        assert not alive
        assert len(gone) == len(family)


def test_a_started_server_gets_its_owners_environment_without_what_is_potlucks() -> None:
    """A real server process, through the guard that starts it."""
    ours = {"POTLUCK_KEY": "secret", "potluck_join_token": "secret", "POTLUCK_HOME": "/home"}
    theirs = {"HF_TOKEN": "for its models", "CUDA_VISIBLE_DEVICES": "1"}
    server = "import json, os, sys; sys.stdout.write(json.dumps(dict(os.environ)))"
    command = [sys.executable, "-P", "-m", "worker.engines.guard", sys.executable, "-c", server]
    with subprocess.Popen(
        command, env=os.environ | ours | theirs, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as guard:
        assert guard.stdout is not None
        seen = json.load(guard.stdout)
    assert seen.items() >= theirs.items()
    assert "PATH" in seen
    assert not [name for name in seen if name.upper().startswith("POTLUCK_")]


async def test_a_command_that_ends_is_told_with_its_code() -> None:
    command = json.dumps([sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(EngineStartError, match="ended with code 3 at its start"):
        async with hosted(load(url=f"http://127.0.0.1:{free_ports(1)[0]}", command=command)):
            pass


async def test_a_server_that_is_not_there_is_a_sentence() -> None:
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    heard = Heard()
    with pytest.raises(EngineError, match=f"the server at {url} does not answer") as raised:
        await OpenAI(heard, lambda: None).load(load(url=url, start_timeout_s="0.1"))
    assert raised.value.fault == work_pb2.FAULT_WORKER
    with pytest.raises(EngineError, match=r"\[bridge.m\]"):
        await OpenAI(heard, lambda: None).load(load(url="http://10.0.0.1"))


# -- a server that means no good

Answer = Callable[[asyncio.StreamWriter, str], Awaitable[None]]


@asynccontextmanager
async def hostile(answer: Answer) -> AsyncIterator[tuple[Upstream, list[str]]]:
    """Whatever is asked, `answer` writes the reply; the paths that were asked for are noted."""
    paths: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        paths.append(head.split()[1].decode())
        try:
            await answer(writer, paths[-1])
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    upstream = Upstream(Bridge(url=f"http://127.0.0.1:{port}", answer_timeout_s=20), "")
    try:
        yield upstream, paths
    finally:
        await upstream.close()
        server.close()


def reply(status: str, body: bytes, *headers: str) -> Answer:
    async def answer(writer: asyncio.StreamWriter, _path: str) -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
        writer.write("\r\n".join(lines).encode() + body)
        await writer.drain()

    return answer


async def flood(writer: asyncio.StreamWriter, _path: str) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\ndata: ")
    while True:
        writer.write(b"x" * 65536)
        await writer.drain()


@pytest.mark.parametrize(
    ("answer", "code", "fault", "words"),
    [
        (reply("302 Found", b"", "Location: http://127.0.0.1/secret"), "bridge_failed", "WORKER", "302"),
        (
            reply("400 Bad", b'{"error": {"message": "no such thing"}}'),
            "invalid_request",
            "JOB",
            "no such thing",
        ),
        (
            reply("400 Bad", b'{"detail": [{"input": "my prompt"}]}'),
            "invalid_request",
            "JOB",
            "without a reason",
        ),
        (
            reply("400 Bad", b'{"error": {"message": "exceeds the context"}}'),
            "context_too_long",
            "JOB",
            "context",
        ),
        (reply("503 Busy", b"loading"), "bridge_busy", "NONE", "503"),
        (reply("200 OK", b"data: {\n\n"), "bridge_answer", "WORKER", "no JSON"),
        (reply("200 OK", b'data: {"error": {"message": "CUDA"}}\n\n'), "bridge_failed", "WORKER", "CUDA"),
        (reply("200 OK", b"data: " + b"[" * 100_000 + b"\n"), "bridge_answer", "WORKER", "no JSON"),
        (flood, "bridge_answer", "WORKER", "more than an answer can be"),
    ],
    ids=["redirect", "refused", "quoting", "context", "busy", "broken", "error", "deep", "flood"],
)
async def test_a_bad_server_is_bounded_and_named(answer: Answer, code: str, fault: str, words: str) -> None:
    async with hostile(answer) as (upstream, paths):
        with pytest.raises(EngineError, match=words) as raised:
            async for _ in upstream.stream("/v1/chat/completions", {"messages": []}):
                pass
        assert raised.value.code == code
        assert raised.value.fault == work_pb2.Fault.Value(f"FAULT_{fault}")
        assert "my prompt" not in str(raised.value)
        assert paths == ["/v1/chat/completions"], "no redirect is followed"
        with pytest.raises(JobError if fault == "JOB" else EngineError):
            await upstream.ask("/v1/models")


async def test_no_other_path_is_ever_asked_for() -> None:
    async with hostile(reply("200 OK", b"{}")) as (upstream, paths):
        for path in ("/", "/v1/files", "/v1/models/../../admin", "/health?x"):
            with pytest.raises(AssertionError):
                await upstream.ask(path)
        assert paths == []


async def test_an_answer_that_breaks_off_fails_and_a_server_that_is_gone_ends_the_engine() -> None:
    """Then the daemon loads it anew, ever more slowly, and says so meanwhile."""
    heard, ended = Heard(), asyncio.Event()
    bridge = OpenAI(heard, ended.set)

    async def answer(writer: asyncio.StreamWriter, path: str) -> None:
        if path == "/v1/models":
            await reply("200 OK", b'{"data": [{"id": "m", "owned_by": "vllm"}]}')(writer, path)
        else:
            await reply("200 OK", b'data: {"choices": [{"delta": {"content": "One"}}]}\n\n')(writer, path)

    async with hostile(answer) as (upstream, _):
        await bridge.load(load(url=upstream._url))
        bridge.start(start(chat("hi")).start)
        failure = (await heard.ended()).failed.failure
        assert (failure.fault, failure.code) == (work_pb2.FAULT_WORKER, "bridge_answer")
        assert heard.text() == "One"
    bridge.start(start(chat("hi"), "gone").start)
    assert (await heard.ended("gone")).failed.failure.code == "bridge_down"
    async with asyncio.timeout(30):
        await ended.wait()
    await bridge.close()
