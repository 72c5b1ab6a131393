"""Real workers with a real model die by kill -9 in the middle of an answer, and the seams do not show."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures_engine import completion
from fixtures_margin import MARGIN_MAX, Judge, first_difference, margin, scores
from fixtures_models import model_cache
from fixtures_pool import Member, RealPool

from potluck.catalogue import DEFAULT_MODEL
from worker.engines.sampling import Sampler

pytestmark = [pytest.mark.engine, pytest.mark.processes]

PROMPT = '<think>ok</think>{"name": "Zoë 🎉", "n": [1, 2]}\n' * 3 + "<think>ok"
ANSWER = '</think>{"name": "Zoë 🎉'  # with this seed
STOP = '", "n": [1'  # the answer ends before it
# Each cut: what the client has when the worker is killed, and what the seam must still be inside of.
CUTS = {
    "in the tag": ("</", "</think"),
    "in the JSON": ('</think>{"name', '</think>{"name": "Z'),
    "in the emoji": ('</think>{"name": "Zoë', '</think>{"name": "Zoë'),
    "in the stop string": ('</think>{"name": "Zoë 🎉', '</think>{"name": "Zoë 🎉'),
}
WORKERS = [f"rig{number}" for number in range(len(CUTS) + 1)]
FLAGS = ["--engine", "torch", "--models", DEFAULT_MODEL, "--threads", "1", "--slots", "2"]
ASKED: Any = {
    "model": DEFAULT_MODEL,
    "prompt": PROMPT,
    "max_tokens": 40,
    "temperature": 0.7,
    "seed": 6,
    "stop": [STOP],
}
TRIES = 6  # on a busy machine a kill may come a token late
START_S = 180.0  # for five at a time, on a busy machine
POLL_S = 0.03


@pytest.fixture
def judge(smollm2_path: Path) -> Judge:
    return Judge(smollm2_path, model_cache().parent / "converted")


@pytest.fixture
def torch_pool(tmp_path: Path, smollm2_path: Path, judge: Judge) -> Iterator[RealPool]:
    """As many workers as can die, and one more; they start at the same time."""
    assert judge.loaded.vocabulary.tokens  # converts the model, once, rather than each worker for itself
    pool = RealPool(tmp_path, start_s=START_S)
    pool.variables |= {
        "POTLUCK_REQUESTS_PER_MINUTE": "100000",
        "POTLUCK_MODEL_CACHE": str(smollm2_path.parent),
        "POTLUCK_MACHINE_DIR": str(tmp_path / "machine"),
    }
    pool.start_coordinator()
    try:
        pool.member("bob")
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(lambda name: pool.join(name, "bob"), WORKERS))
        start_all(pool, WORKERS)
        yield pool
    finally:
        pool.close()


def start_all(pool: RealPool, names: list[str]) -> None:
    for name in names:
        pool.start_worker(name, *FLAGS, ready=False)
    for name in names:
        pool.until(lambda name=name: pool.ready(name), f"{name} to be ready", pool.workers[name])  # type: ignore[misc]  # mypy cannot infer a lambda with a default


@dataclass
class Reaper:
    """Kills whoever serves when the client's text reaches the next cut."""

    pool: RealPool
    killed: list[str] = field(default_factory=list)
    serving: str = ""
    _over: threading.Event = field(default_factory=threading.Event)

    def watch(self, asker: Member) -> None:
        """Thread: know at any time who serves the one running job."""
        names = {row["id"]: row["name"] for row in self.pool.admin.api("GET", "/pool/v1/workers").json()}
        while not self._over.wait(POLL_S):
            for job in asker.api("GET", "/pool/v1/jobs", params={"state": "running"}).json()["data"]:
                self.serving = names[job["attempts"][-1]["worker"]] if job["attempts"] else ""

    def heard(self, text: str) -> None:
        if len(self.killed) == len(CUTS) or self.serving in {"", *self.killed}:
            return
        cut, _ = list(CUTS.values())[len(self.killed)]
        if text.startswith(cut):
            self.pool.workers[self.serving].kill()
            self.killed.append(self.serving)

    def over(self) -> None:
        self._over.set()


def disturbed(pool: RealPool, asker: Member) -> tuple[str, str, Any, list[str]]:
    """Text, finish reason, usage, and who was killed."""
    reaper, text, reason, usage = Reaper(pool), "", "", None
    with ThreadPoolExecutor(1) as threads:
        watching = threads.submit(reaper.watch, asker)
        try:
            with asker.openai().completions.create(
                **ASKED, stream=True, stream_options={"include_usage": True}
            ) as stream:
                for chunk in stream:
                    for choice in chunk.choices:
                        text += choice.text
                        reason = choice.finish_reason or reason
                    usage = chunk.usage or usage
                    reaper.heard(text)
        finally:
            reaper.over()
        watching.result()
    return text, reason, usage, reaper.killed


def undisturbed(asker: Member) -> tuple[str, dict[int, int], int]:
    """Text, characters by tokens at each piece's end, and the charge."""
    text, tokens, places, charge = "", 0, {0: 0}, 0
    with asker.openai().completions.create(
        **ASKED, logprobs=1, stream=True, stream_options={"include_usage": True}
    ) as stream:
        for chunk in stream:
            for choice in chunk.choices:
                text += choice.text
                tokens += len(choice.logprobs.tokens or []) if choice.logprobs else 0
                places[tokens] = len(text)
            if chunk.usage is not None:
                extra: Any = chunk.usage.model_extra
                charge = extra["potluck"]["charge"]
    return text, places, charge


def seams(job: dict[str, Any], places: dict[int, int]) -> list[int]:
    """Where each next attempt went on, in characters; -1 where the undisturbed answer had no piece's end."""
    counts = accumulate(attempt["tokens"] for attempt in job["attempts"][:-1])
    return [places.get(count, -1) for count in counts]


async def test_four_workers_die_in_one_answer(torch_pool: RealPool, judge: Judge) -> None:
    """Killed inside `</think>`, inside JSON, before the bytes of an emoji and inside a stop string: the sampled
    text is the undisturbed one, which is charged once.
    """
    carol = torch_pool.member("carol")
    whole, places, charge = undisturbed(carol)
    assert whole == ANSWER
    wanted = [(len(first), len(last)) for first, last in CUTS.values()]
    for _ in range(TRIES):
        before = carol.balance()["balance"]
        text, reason, usage, killed = disturbed(torch_pool, carol)
        job = torch_pool.job(usage.potluck["job_id"])
        if text != whole:
            work = completion(PROMPT, **{key: ASKED[key] for key in ("max_tokens", "temperature", "seed")})
            work.completion.sampling.stop.append(STOP)
            narrow = await judge.difference(work, text)
            assert narrow is not None
            assert narrow < MARGIN_MAX
        assert reason == "stop"
        assert [attempt["state"] for attempt in job["attempts"]] == ["lost"] * len(killed) + ["succeeded"]
        assert sum(attempt["tokens"] for attempt in job["attempts"]) == usage.completion_tokens
        assert job["charge"] == before - carol.balance()["balance"]
        assert text != whole or job["charge"] == charge
        assert torch_pool.ledger_sum() == 0
        found = seams(job, places)
        if len(found) == len(wanted) and all(
            low <= seam <= high for (low, high), seam in zip(wanted, found, strict=True)
        ):
            break
        start_all(torch_pool, killed)
        places |= undisturbed(carol)[1]  # two tokens may have come as one piece
    else:
        pytest.fail(f"no try cut where it should: {found}, not {wanted}")


def test_the_margin_is_that_of_the_sampler(judge: Judge) -> None:
    """The rule by which a difference is judged looks at what the sampler chose by."""
    vocabulary = judge.loaded.vocabulary
    prompt = list(judge.loaded.text.tokenizer.encode(PROMPT).ids)
    for temperature in (0.0, 0.7):
        sampling = completion(PROMPT, seed=3, temperature=temperature).completion.sampling
        values = judge.scores(prompt, [], sampling)
        assert margin(values) > 0
        logits = np.linspace(-1, 1, 1000, dtype=np.float32)
        assert int(scores(logits, sampling, 0, 7).argmax()) == Sampler.of(sampling, 0).pick(logits, 7)
    ids = list(judge.loaded.text.tokenizer.encode("Zoë 🎉 and").ids)
    assert first_difference(vocabulary, ids, "Zoë 🎉 and") is None
    assert first_difference(vocabulary, ids, "Zoë 😀 and") is not None
    assert first_difference(vocabulary, ids, "Zoë 🎉 and more") == len(ids)
    assert first_difference(vocabulary, ids, "Zoë 🎉") == len(ids) - 1
