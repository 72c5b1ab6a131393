"""A worker that is a whole site: real Ray clusters on this machine, a real coordinator, real daemons."""

import asyncio
import hashlib
import json
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from fixtures_engine import completion
from fixtures_models import smollm2_file
from fixtures_pool import Process, RealPool
from fixtures_ray import RayCluster, open_head
from fixtures_tiny import tiny_tokenizer, write_tiny
from fixtures_training import examples, plan, shapes_of
from fixtures_worker import EMULATOR as ENTRY
from fixtures_worker import FakeCoordinator, attempt, coordinating, join_by_hand, places_in
from test_torch_lora import PLAIN, plain_of, write_adapter

from potluck import lora
from potluck.catalogue import DEFAULT_MODEL, Artifact, Catalogue, File, Variant
from potluck.errors import ExitCode
from potluck.v1 import session_pb2, work_pb2
from worker.observe import load
from worker.ray.cluster import tidy
from worker.ray.ports import Door, ask, open_ports

pytestmark = pytest.mark.processes

MODEL = "emulator-small"
TOKENS = 80
EMULATOR = ["--engine", "emulator", "--models", MODEL, "--threads", "1"]
EMULATOR += ["--engine-option", "ttft_ms=1", "--engine-option", "tpot_ms=30"]
HELLO: Any = [{"role": "user", "content": "Say something long."}]
PROMPT = "a think about the stop"
START_S = 150.0  # on a busy machine


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealPool]:
    """A pool in which bob has one worker, `rig`, that each test starts in its own way."""
    pool = RealPool(tmp_path_factory.mktemp("pool"))
    pool.variables |= {"POTLUCK_WAIT_FOR_WORKER_S": "8", "POTLUCK_MACHINE_DIR": str(pool.folder / "machine")}
    pool.start_coordinator()
    try:
        pool.join("rig", "bob")
        yield pool
    finally:
        pool.close()


def slots(pool: RealPool) -> int:
    return sum(model["slots"] for model in pool.view("rig")["models"])


def ready(pool: RealPool) -> bool:
    return all(model["state"] == "ready" for model in pool.view("rig")["models"])


def stream(pool: RealPool, seed: int, under_way: threading.Barrier | None = None) -> tuple[str, Any]:
    """The answer's text and usage; at the tenth piece it waits for the others."""
    text, usage = "", None
    with (
        pool.member("carol")
        .openai()
        .chat.completions.create(
            model=MODEL,
            messages=HELLO,
            max_tokens=TOKENS,
            seed=seed,
            stream=True,
            stream_options={"include_usage": True},
        ) as chunks
    ):
        for number, chunk in enumerate(chunks):
            text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
            usage = chunk.usage or usage
            if number == 10 and under_way is not None:
                under_way.wait(60)
    return text, usage


def test_a_cluster_without_a_token_is_refused(site: RealPool) -> None:
    """Somebody without a token gets in there, so nothing is served there."""
    with open_head() as (address, token):
        assert ask(address) is Door.OPEN
        arguments = ["worker", "start", "--ray-address", address, *EMULATOR]
        worker = Process.start("rig", arguments, site.folder / "rig", POTLUCK_RAY_TOKEN_FILE=str(token))
        worker.wait_for("lets in everybody who can reach it: nothing is served there")
        assert worker.popen.wait(30) == ExitCode.INVALID


def artifact(coordinator: FakeCoordinator, path: Path) -> File:
    """The coordinator has it from now on."""
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    coordinator.store.artifacts[digest] = data
    return File(name=path.name, sha256=digest, size_bytes=len(data), source=Artifact())


def greedy(model: Any, count: int) -> str:
    """What the model says after PROMPT, computed here and by transformers alone."""
    ids = list(tiny_tokenizer().encode(PROMPT).ids)
    start = len(ids)
    for _ in range(count):
        with torch.inference_mode():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return tiny_tokenizer().decode(ids[start:])


def memory_bytes(home: Path) -> list[int]:
    """Of each model, as `potluck worker status` shows it to the owner."""
    state = json.loads((home / "worker" / "state.json").read_text(encoding="utf-8"))
    return [int(model["memory_bytes"]) for model in state["models"]]


async def said(
    coordinator: FakeCoordinator, job: str, model: str, prompt: str, tokens: int, adapter: Any = None
) -> str:
    """What the worker answers to a prompt, greedily."""
    assign = session_pb2.Assign(attempt=attempt(job, 1), model=model, member="ada", adapter=adapter)
    assign.work.CopyFrom(completion(prompt, max_tokens=tokens))
    assert coordinator.live is not None
    coordinator.live.send(assign=assign)
    told = coordinator._told(assign.attempt)
    await coordinator.until(lambda: told.result is not None, START_S)
    return told.text


async def trained_on_a_node(coordinator: FakeCoordinator, model: Path) -> work_pb2.Trained:
    """A part of a fine-tune of two steps."""

    def put(data: bytes) -> work_pb2.Artifact:
        digest = hashlib.sha256(data).hexdigest()
        coordinator.store.artifacts[digest] = data
        return work_pb2.Artifact(sha256=digest, bytes=len(data))

    lines = "".join(json.dumps(line) + "\n" for line in examples(24)).encode()
    adapter = lora.encode(lora.initial(shapes_of(model), 5))
    work = work_pb2.TrainingWork(plan=plan(), last_step=2, examples=put(lines), adapter=put(adapter))
    told = coordinator.assign_training(work, model="tiny")
    await coordinator.until(lambda: told.result is not None, START_S)
    assert told.result is not None
    assert told.result.HasField("completed"), told.result.failed
    return told.result.completed.trained


async def test_real_models_and_adapters_answer_from_a_node(
    two_nodes: RayCluster, smollm2_path: Path, tmp_path: Path
) -> None:
    """llama.cpp in an actor gives the same greedy answer twice. torch in another reads a model and an adapter that
    the worker fetched from the pool's store, and says what transformers and peft say. A third trains the same model
    on files that the worker fetched, in a folder that it sees. Their processes are known as ours, though they are
    no children of the worker, and are gone when it is stopped.
    """
    model, cache = tmp_path / "model", tmp_path / "cache" / "models"
    model.mkdir()
    cache.mkdir(parents=True)
    (cache / smollm2_file().sha256).hardlink_to(smollm2_path)
    paths = write_tiny(model)
    tuned = write_adapter(model, tmp_path / "adapter", 1, PLAIN)
    async with coordinating() as coordinator:
        files = tuple(artifact(coordinator, path) for path in paths)
        tiny = Variant(format="safetensors", engines=("torch",), files=files, memory_bytes=1 << 28)
        entry = ENTRY.model_copy(update={"name": "tiny", "context_tokens": 512, "variants": (tiny,)})
        smollm2 = Catalogue.builtin().get(DEFAULT_MODEL)
        assert smollm2 is not None
        coordinator.catalogue = Catalogue((smollm2, entry)).to_wire()
        weights, config = (
            artifact(coordinator, tmp_path / "adapter" / name)
            for name in ("adapter_model.safetensors", "adapter_config.json")
        )
        adapter = work_pb2.Adapter(
            name="tiny:ft-1", weights_sha256=weights.sha256, weights_bytes=weights.size_bytes,
            config_sha256=config.sha256, config_bytes=config.size_bytes,
        )  # fmt: skip
        coordinator.receipt_key = join_by_hand(places_in(tmp_path), coordinator.ca, port=coordinator.port)
        arguments = ["worker", "start", "--ray-address", two_nodes.address]
        arguments += ["--models", f"{DEFAULT_MODEL},tiny", "--threads", "1", "--slots", "2"]
        variables = {"RAY_TOKEN_FILE": two_nodes.token, "REPLICAS": 1, "MACHINE_DIR": tmp_path / "machine"}
        named = {f"POTLUCK_{name}": str(value) for name, value in variables.items()}
        worker = Process.start("rack", arguments, tmp_path, **named)
        try:
            await coordinator.ready(START_S)
            engines = [process for number in (0, 1) for process in two_nodes.engines(number)]
            assert len(engines) == 2
            assert {engine.pid for engine in engines} <= {process.pid for process in load.engines()}
            first, second = [
                await said(coordinator, job, DEFAULT_MODEL, "The capital of France is", 8) for job in "12"
            ]
            assert "Paris" in first
            assert first == second
            assert await said(coordinator, "base", "tiny", PROMPT, 12) == greedy(plain_of(model), 12)
            assert await said(coordinator, "tuned", "tiny", PROMPT, 12, adapter) == greedy(tuned, 12)
            await coordinator.until(lambda: min(memory_bytes(tmp_path)) > 100e6, START_S)
            trained = await trained_on_a_node(coordinator, model)
            assert lora.decode(coordinator.store.artifacts[trained.adapter.sha256], shapes_of(model))
            assert trained.steps == 2
        finally:
            code = await asyncio.to_thread(worker.stop)
    assert code == 0
    assert not any(engine.is_running() for engine in engines)


def test_a_node_that_dies_does_not_show_in_the_answers(site: RealPool, two_nodes: RayCluster) -> None:
    """Four streams at once over two nodes, one node killed in mid-stream: four whole answers, each charged once,
    nobody blamed. An engine that dies is started again. SIGTERM drains the daemon although Ray puts a handler of its
    own there.
    """
    site.variables["POTLUCK_RAY_TOKEN_FILE"] = str(two_nodes.token)
    worker = site.start_worker("rig", "--ray-address", two_nodes.address, *EMULATOR, "--slots", "4")
    site.until(lambda: slots(site) == 8, "both nodes to serve", worker)
    engines = [two_nodes.engines(number) for number in (0, 1)]
    assert [len(each) for each in engines] == [1, 1]
    undisturbed = {seed: stream(site, seed)[0] for seed in (1,)}
    before = site.member("carol").balance()["balance"]
    under_way = threading.Barrier(5)
    with ThreadPoolExecutor(4) as threads:
        answers = [threads.submit(stream, site, seed, under_way) for seed in range(1, 5)]
        under_way.wait(60)
        killed = two_nodes.kill_node(1)
        texts = [answer.result(120) for answer in answers]
    assert engines[1][0] in killed
    assert texts[0][0] == undisturbed[1]
    assert all(len(text.split()) == usage.completion_tokens == TOKENS for text, usage in texts)
    jobs = [site.job(usage.potluck["job_id"]) for _, usage in texts]
    states = sorted([attempt["state"] for attempt in job["attempts"]] for job in jobs)
    assert states == [["failed", "succeeded"]] * 2 + [["succeeded"]] * 2, "the streams were spread over both"
    assert all(sum(attempt["tokens"] for attempt in job["attempts"]) == TOKENS for job in jobs)
    assert before - site.member("carol").balance()["balance"] == sum(job["charge"] for job in jobs)
    assert site.ledger_sum() == 0
    assert any("is lost" in attempt["why"] for job in jobs for attempt in job["attempts"])
    site.until(lambda: slots(site) == 4, "the lost slots to be taken back", worker)
    engines[0][0].kill()
    site.until(
        lambda: any(engine != engines[0][0] for engine in two_nodes.engines(0)), "another engine", worker
    )
    site.until(lambda: ready(site), "the engine to be ready again", worker)
    assert stream(site, 1)[0] == undisturbed[1]
    [again] = two_nodes.engines(0)
    assert worker.stop() == 0
    assert not again.is_running()


def test_a_private_cluster_lives_and_dies_with_its_daemon(site: RealPool) -> None:
    """`--ray`: the token is closed to others, every server port asks for it; after kill -9 all processes are
    gone, and the next start removes the files.
    """
    site.until(lambda: not site.ready("rig"), "the worker of the last test to be gone")
    worker = site.start_worker("rig", "--ray", *EMULATOR)
    assert stream(site, 1)[1].completion_tokens == TOKENS
    family = psutil.Process(worker.popen.pid).children(recursive=True)
    own = {process.pid for process in family} | {worker.popen.pid}
    ports = [port for port in open_ports([worker.popen.pid]) if port.pid in own]
    guarded = {port.process.partition(".")[0] for port in ports if port.door is Door.GUARDED}
    assert guarded >= {"gcs_server", "raylet", "driver", "ray::EngineActor"}
    assert Door.OPEN not in {port.door for port in ports}
    token = Path(family[0].environ()["RAY_AUTH_TOKEN_PATH"])
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700
    tidy(token.parent.parent)
    assert token.exists(), "of a cluster that lives nothing is taken away"
    worker.kill()
    servers = [
        process
        for process in family
        if process.pid in {port.pid for port in ports if port.door is Door.GUARDED}
    ]
    assert len(servers) >= 3
    assert not psutil.wait_procs(servers, 30)[1], "the head, the raylet and the engine end with the daemon"
    tidy(token.parent.parent)
    assert not psutil.wait_procs(family, 30)[1]
    assert not token.parent.exists()
