"""A worker that is a whole site: real Ray clusters on this machine, a real coordinator, real daemons."""

import json
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from fixtures_pool import Process, RealPool
from fixtures_ray import RayCluster, ray_cluster

from potluck.catalogue import DEFAULT_MODEL
from potluck.errors import ExitCode
from worker.ray.cluster import tidy
from worker.ray.ports import Door, ask, open_ports

pytestmark = pytest.mark.processes

MODEL = "emulator-small"
TOKENS = 120
EMULATOR = ["--engine", "emulator", "--models", MODEL, "--threads", "1"]
EMULATOR += ["--engine-option", "ttft_ms=1", "--engine-option", "tpot_ms=40"]
HELLO: Any = [{"role": "user", "content": "Say something long."}]


def joined(pool: RealPool, name: str, cluster: RayCluster, *flags: str) -> Process:
    """A worker on the owner's own cluster, ready."""
    home = pool.join(name, "bob")
    (home / "worker" / "worker.toml").write_text(f'ray_token_file = "{cluster.token}"\n', encoding="utf-8")
    return pool.start_worker(name, "--ray-address", cluster.address, *flags)


def slots(pool: RealPool, name: str) -> int:
    return sum(model["slots"] for model in pool.view(name)["models"])


def ready(pool: RealPool, name: str) -> bool:
    return all(model["state"] == "ready" for model in pool.view(name)["models"])


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


def memory_bytes(pool: RealPool, name: str) -> int:
    """Of the first model, as `potluck worker status` shows it."""
    state = json.loads((pool.folder / name / "worker" / "state.json").read_text(encoding="utf-8"))
    return int(state["models"][0]["memory_bytes"])


@pytest.fixture
def site(real_pool: RealPool) -> RealPool:
    real_pool.variables["POTLUCK_MACHINE_DIR"] = str(real_pool.folder / "machine")
    return real_pool


def test_a_real_model_answers_from_a_node_and_gives_its_memory_back(
    site: RealPool, two_nodes: RayCluster, smollm2_path: Path
) -> None:
    """llama.cpp in an actor: the same greedy answer twice; when the worker is stopped, its process is gone."""
    site.variables["POTLUCK_MODEL_CACHE"] = str(smollm2_path.parent)
    site.variables["POTLUCK_REPLICAS"] = "1"
    flags = ["--engine", "llamacpp", "--models", DEFAULT_MODEL, "--threads", "1", "--slots", "2"]
    worker = joined(site, "rig", two_nodes, *flags)
    [engine] = [process for number in (0, 1) for process in two_nodes.engines(number)]
    site.until(lambda: memory_bytes(site, "rig") > 100e6, "the owner to see its memory", worker)
    ask_it: Any = {
        "model": DEFAULT_MODEL,
        "prompt": "The capital of France is",
        "max_tokens": 8,
        "temperature": 0,
    }
    client = site.member("carol").openai()
    first, second = (client.completions.create(**ask_it).choices[0].text for _ in range(2))
    assert "Paris" in first
    assert first == second
    assert worker.stop() == 0
    assert not engine.is_running()


def test_a_node_that_dies_does_not_show_in_the_answers(site: RealPool, two_nodes: RayCluster) -> None:
    """Four streams at once over two nodes, one node killed in mid-stream: four whole answers, each charged once,
    nobody blamed. An engine that dies is started again. SIGTERM drains the daemon although Ray puts a handler of its
    own there.
    """
    worker = joined(site, "rig", two_nodes, *EMULATOR, "--slots", "4")
    site.until(lambda: slots(site, "rig") == 8, "both nodes to serve", worker)
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
    site.until(lambda: slots(site, "rig") == 4, "the lost slots to be taken back", worker)
    engines[0][0].kill()
    site.until(
        lambda: any(engine != engines[0][0] for engine in two_nodes.engines(0)), "another engine", worker
    )
    site.until(lambda: ready(site, "rig"), "the engine to be ready again", worker)
    assert stream(site, 1)[0] == undisturbed[1]
    [again] = two_nodes.engines(0)
    assert worker.stop() == 0
    assert not again.is_running()


def test_a_private_cluster_lives_and_dies_with_its_daemon(site: RealPool) -> None:
    """`--ray`: the token is closed to others, every server port asks for it; after kill -9 all processes are
    gone, and the next start removes the files.
    """
    site.join("rig", "bob")
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


def test_a_cluster_without_a_token_is_refused(site: RealPool) -> None:
    """Somebody without a token gets in there, so nothing is served there."""
    with ray_cluster(nodes=1, mode="disabled") as cluster:
        assert ask(cluster.address) is Door.OPEN
        home = site.join("rig", "bob")
        variables = {"POTLUCK_RAY_TOKEN_FILE": str(cluster.token)}
        arguments = ["worker", "start", "--ray-address", cluster.address, *EMULATOR]
        worker = Process.start("rig", arguments, home, **variables)
        worker.wait_for("lets in everybody who can reach it: nothing is served there")
        assert worker.popen.wait(30) == ExitCode.INVALID
