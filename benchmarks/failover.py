#!/usr/bin/env python3
"""The serving worker dies or falls silent in mid-answer, again and again; whole answers, charged once.

    benchmarks/failover.py [--runs 20] [--way closed,silent] [--engine emulator|torch|llamacpp] [--seed 1]

Two workers of two members serve; a third asks through the official openai client for an answer of 100
tokens, as a stream. The answer to each of a few seeds is first given undisturbed, then again in every run,
and at a random moment of it the worker that serves is lost, in each of the ways in turn:

  closed    its process is killed with -9, so that its connection closes; it is started anew for the next run
  silent    nothing passes its connection any more, in neither direction: a proxy between it and the
            coordinator keeps all to itself and closes nothing, as when a cable is pulled (a process that is
            stopped has a kernel that goes on acknowledging). For the next run it is there again

Checked in every run:

  whole     the client saw one stream that ended at its length, and 100 tokens were counted (llamacpp gives no
            ids: the pool counts its text, which may be a few more or less)
  same      the text is the undisturbed one (emulator and torch; llamacpp samples by itself). With torch in
            fp32 a difference counts as the same where the first differing token was chosen by less than 1e-3
  charged   once: the balance falls by the undisturbed answer's charge (if that had another count: by its
            charge and what the difference is worth), nothing stays reserved
  paid      each worker's owner has earned what its own tokens are worth by the published formula
  zero      the ledger adds up to nothing

Printed are the time from the loss to the next token at the client, and the survivor's part of it: from the
start of its attempt, as its signed receipt has it, to its first token at the client. Exit code 1 if any check
fails.
"""

import argparse
import asyncio
import random
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import stand
from chaos_harness.proxy import DOWN, UP, Proxy, between
from fixtures_engine import chat
from fixtures_margin import MARGIN_MAX, Judge
from fixtures_pool import Member, RealPool
from worth import expected_charge, expected_pay

from potluck.catalogue import Catalogue
from potluck.home import model_cache
from potluck.receipts import ReceiptBody

TOKENS = 100
WAYS = ("closed", "silent")
SEEDS = 8  # each of them is answered once without a loss
QUESTION = "Write a very long and detailed story about a village whose people share everything they own."
OWNERS = {"rig1": "bob", "rig2": "dave"}
ROUNDING = 4  # microcredits
TOKENS_OFF_MAX = {"emulator": 0, "torch": 0, "llamacpp": 6}  # llamacpp's are counted from the text
POLL_S = 0.01
TRIES_MAX = 4
MINUTES_MAX = 20.0


@dataclass(slots=True)
class Answer:
    began: float
    text: str = ""
    reason: str = ""
    usage: Any = None
    arrivals: list[tuple[float, int]] = field(default_factory=list)  # when, and characters so far

    @property
    def seconds(self) -> float:
        return self.arrivals[-1][0] - self.began

    def next_after(self, moment: float) -> tuple[float, int]:
        """The end of the longest silence since then, and the characters before it: the survivor's first
        token. What the dead worker had sent already comes at once, before the silence.
        """
        silences, since, seen = [], moment, 0
        for at, characters in self.arrivals:
            if at > moment:
                silences.append((at - since, at, seen))
                since = at
            seen = characters
        _, at, seen = max(silences)
        return at, seen


@dataclass(frozen=True, slots=True)
class Loss:
    worker: str
    at: float


@dataclass(slots=True)
class Times:
    """Of one way, in seconds."""

    gaps: list[float] = field(default_factory=list)
    survivors: list[float] = field(default_factory=list)

    def figures(self, way: str) -> None:
        for whose, values in (("", self.gaps), ("survivor ", self.survivors)):
            stand.figure(f"{way}, {whose}p50", statistics.median(values), "s", 3)
            stand.figure(f"{way}, {whose}p99", stand.quantile(values, 0.99), "s", 3)
            stand.figure(f"{way}, {whose}maximum", max(values), "s", 3)


@dataclass(slots=True)
class Bench:
    pool: RealPool
    asker: Member
    engine: str
    model: str
    flags: list[str]
    judge: Judge | None
    tokens: int = TOKENS  # of each answer
    proxies: dict[str, Proxy] = field(default_factory=dict)  # by worker, where one may fall silent
    undisturbed: dict[int, Answer] = field(default_factory=dict)  # by seed
    times: dict[str, Times] = field(default_factory=dict)  # by way
    narrow: int = 0

    def ask(self, seed: int) -> Answer:
        answer = Answer(time.perf_counter())
        with self.asker.openai().chat.completions.create(
            model=self.model,
            messages=[{"role": "user", "content": QUESTION}],
            max_tokens=self.tokens,
            seed=seed,
            stream=True,
            stream_options={"include_usage": True},
        ) as stream:
            for chunk in stream:
                if chunk.choices and chunk.choices[0].delta.content:
                    answer.text += chunk.choices[0].delta.content
                    answer.arrivals.append((time.perf_counter(), len(answer.text)))
                if chunk.choices and chunk.choices[0].finish_reason:
                    answer.reason = chunk.choices[0].finish_reason
                answer.usage = chunk.usage or answer.usage
        return answer

    def running(self) -> dict[str, Any] | None:
        """The asker's job that has an attempt now."""
        body = self.asker.api("GET", "/pool/v1/jobs", params={"state": "running", "limit": 1}).json()
        return next((job for job in body["data"] if job["attempts"]), None)

    def lose(self, way: str, moment: float, over: threading.Event) -> Loss | None:
        """Lose the worker that serves; None if the answer was over before."""
        while (job := self.running()) is None:
            if over.wait(POLL_S):
                return None
        workers = {row["id"]: row["name"] for row in self.pool.admin.api("GET", "/pool/v1/workers").json()}
        name = workers[job["attempts"][-1]["worker"]]
        if over.wait(max(0.0, moment - time.perf_counter())):
            return None
        at = time.perf_counter()
        if way == "closed":
            self.pool.workers[name].kill()
        else:
            self.proxies[name].cut(UP, DOWN)
        return Loss(name, at)

    def disturbed(self, way: str, seed: int, delay_s: float) -> tuple[Answer, Loss | None]:
        over = threading.Event()
        with ThreadPoolExecutor(1) as threads:
            losing = threads.submit(self.lose, way, time.perf_counter() + delay_s, over)
            try:
                answer = self.ask(seed)
            finally:
                over.set()
            return answer, losing.result()

    def balances(self) -> dict[str, int]:
        names = [self.asker.name, *OWNERS.values()]
        return {name: self.pool.members[name].balance()["balance"] for name in names}

    def margin(self, seed: int, text: str) -> float | None:
        """Of the first token in which this is not the answer that an engine alone gives; torch only."""
        work = chat(QUESTION, seed=seed, temperature=1.0, max_tokens=self.tokens)
        return asyncio.run(self.judge.difference(work, text)) if self.judge else None

    def whole(self, rng: random.Random) -> tuple[int, Answer] | None:
        """A seed and its undisturbed answer; None where the model had less to say."""
        if len(self.undisturbed) < SEEDS:
            seed = rng.getrandbits(31)
            answer = self.ask(seed)
            if answer.reason != "length":
                return None
            self.undisturbed[seed] = answer
            return seed, answer
        seed = rng.choice(sorted(self.undisturbed))
        return seed, self.undisturbed[seed]

    def revive(self, way: str, name: str) -> None:
        """It is there again, and its pool knows."""
        if way == "closed":
            self.pool.start_worker(name, *self.flags)
            return
        self.proxies[name].reset()
        self.pool.until(lambda: not self.pool.ready(name), f"{name} to be missed")
        self.proxies[name].heal()
        self.pool.until(lambda: self.pool.ready(name), f"{name} to be back", self.pool.workers[name])


def started_at(pool: RealPool, job: dict[str, Any]) -> float:
    """When the last attempt began at its worker, on the clock of perf_counter; its receipt comes later."""
    found: list[ReceiptBody] = []

    def there() -> bool:
        receipts = pool.job(job["id"])["receipts"]
        last = [receipt for receipt in receipts if receipt["attempt"] == len(job["attempts"])]
        found.extend(ReceiptBody.decode(receipt["body"].encode()) for receipt in last)
        return bool(found)

    pool.until(there, "the survivor's receipt")
    return found[0].started_at / 1e3 - time.time() + time.perf_counter()


def book_problems(bench: Bench, job: dict[str, Any], whole: Answer, moved: dict[str, int]) -> list[str]:
    """What is wrong with the money, in words."""
    problems = []
    attempts = job["attempts"]
    paid_to = dict.fromkeys(OWNERS.values(), 0)
    names = {row["id"]: row["name"] for row in bench.pool.admin.api("GET", "/pool/v1/workers").json()}
    expected = expected_pay(bench.model, job)
    for attempt in attempts:
        paid = attempt["paid"] or 0
        paid_to[OWNERS[names[attempt["worker"]]]] += paid
        due = expected[attempt["number"]]
        if abs(paid - due) > ROUNDING:
            problems.append(f"attempt {attempt['number']} was paid {paid}, its tokens are worth {due:.0f}")
    charge = expected_charge(bench.model, job, whole.usage)
    same_count = whole.usage.completion_tokens == job["output_tokens"]
    if abs(job["charge"] - charge) > (0 if same_count else 1):
        problems.append(f"charged {job['charge']}, expected {charge} from the undisturbed answer")
    if moved != {bench.asker.name: -job["charge"], **paid_to}:
        problems.append(f"balances moved by {moved}, job says {job['charge']} and {paid_to}")
    if reserved := bench.asker.balance()["reserved"]:
        problems.append(f"{reserved} are still reserved")
    if total := bench.pool.ledger_sum():
        problems.append(f"the ledger's sum is {total}")
    return problems


def text_problems(bench: Bench, seed: int, whole: Answer, answer: Answer, job: dict[str, Any]) -> list[str]:
    problems = []
    tokens = sum(attempt["tokens"] for attempt in job["attempts"])
    states = [attempt["state"] for attempt in job["attempts"]]
    if job["state"] != "succeeded" or states != ["lost", "succeeded"]:
        problems.append(f"the job is {job['state']}, its attempts {states}")
    if answer.reason != "length" or abs(tokens - TOKENS) > TOKENS_OFF_MAX[bench.engine]:
        problems.append(f"the answer ended with {answer.reason!r} after {tokens} tokens")
    if tokens != answer.usage.completion_tokens:
        problems.append(f"the attempts have {tokens} tokens, the answer {answer.usage.completion_tokens}")
    if bench.engine == "emulator" and len(answer.text.split()) != TOKENS:
        problems.append(f"the answer has {len(answer.text.split())} words")
    if bench.engine != "llamacpp" and answer.text != whole.text:
        margin = bench.margin(seed, answer.text)
        if margin is not None and margin < MARGIN_MAX:
            bench.narrow += 1
            print(f"     the text differs where the margin is {margin:.1e}")
        else:
            problems.append(f"the text is another (margin {margin})")
    return problems


def one_run(bench: Bench, rng: random.Random, number: int, way: str) -> bool:
    """Prints a line; whether all checks hold."""
    for _ in range(TRIES_MAX):
        if (drawn := bench.whole(rng)) is None:
            continue
        seed, whole = drawn
        before = bench.balances()
        answer, loss = bench.disturbed(way, seed, rng.random() * whole.seconds)
        job = bench.pool.job(answer.usage.potluck["job_id"])
        if loss is not None and len(job["attempts"]) > 1:
            break
        print(f"     seed {seed}: the answer was over before the loss; once more")
        if loss is not None:
            bench.revive(way, loss.worker)
    else:
        print(f"{number:3}  no answer could be disturbed in {TRIES_MAX} tries")
        return False
    moved = {name: balance - before[name] for name, balance in bench.balances().items()}
    problems = text_problems(bench, seed, whole, answer, job)
    problems += book_problems(bench, job, whole, moved)
    came_at, seen = answer.next_after(loss.at)
    counts = [attempt["tokens"] for attempt in job["attempts"]]
    if bench.engine == "emulator" and len(answer.text[:seen].split()) != counts[0]:
        problems.append("the next token is not the survivor's first")
    gap = came_at - loss.at
    survivor = came_at - started_at(bench.pool, job)
    times = bench.times.setdefault(way, Times())
    times.gaps.append(gap)
    times.survivors.append(survivor)
    print(
        f"{number:3}  seed {seed:>10}  {loss.worker} {way} after {loss.at - answer.began:6.3f} s"
        f"  tokens {counts[0]:>3} + {sum(counts[1:]):>3}  charge {job['charge']} paid"
        f" {'+'.join(str(a['paid'] or 0) for a in job['attempts'])}  next token {gap * 1e3:5.0f} ms"
        f" (survivor {survivor * 1e3:4.0f} ms)  {'; '.join(problems) or 'ok'}",
        flush=True,
    )
    bench.revive(way, loss.worker)
    return not problems


@contextmanager
def standing(engine: str, *, proxied: bool = False) -> Iterator[Bench]:
    """Coordinator, two workers with the engine loaded, and an asker; `proxied`: they may fall silent."""
    model = stand.EMULATOR if engine == "emulator" else stand.SMALL
    flags = ["--engine", engine, "--models", model, "--threads", "1"]
    if engine == "emulator":
        flags += ["--engine-option", "ttft_ms=20", "--engine-option", "tpot_ms=10"]
    with stand.running_pool() as pool:
        proxies: dict[str, Proxy] = {}
        for name, owner in OWNERS.items():
            pool.join(name, owner)
            if proxied:
                proxies[name] = between(pool, name)
            pool.start_worker(name, *flags)
        judge = None
        if engine == "torch":
            entry = Catalogue.builtin().get(model)
            assert entry is not None
            cache = model_cache()
            judge = Judge(cache / entry.variants[0].files[0].sha256, cache.parent / "converted")
        asker = pool.member("carol", credit_line=10**12)
        try:
            yield Bench(pool, asker, engine, model, flags, judge, proxies=proxies)
        finally:
            for proxy in proxies.values():
                proxy.heal()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=20, help="in each of the ways")
    parser.add_argument("--way", default=",".join(WAYS), help="in which the worker is lost (closed,silent)")
    parser.add_argument("--engine", choices=["emulator", "torch", "llamacpp"], default="emulator")
    parser.add_argument("--seed", type=int, default=1, help="of all that is random here")
    parser.add_argument("--minutes", type=float, default=MINUTES_MAX, help="no run begins after that")
    wanted = parser.parse_args()
    ways = wanted.way.split(",")
    if not set(ways) <= set(WAYS):
        parser.error(f"--way: {wanted.way}; there are {', '.join(WAYS)}")
    rng = random.Random(wanted.seed)
    used = {"emulator": (), "torch": ("torch", "transformers"), "llamacpp": ("xllamacpp",)}[wanted.engine]
    print(stand.machine("openai", "grpcio", *used))
    print(
        f"{wanted.engine}: {TOKENS} tokens an answer, {wanted.runs} runs each {' and '.join(ways)},"
        f" seed {wanted.seed}",
        flush=True,
    )
    began, good = time.monotonic(), list[bool]()
    runs = [(number, way) for number in range(1, wanted.runs + 1) for way in ways]
    with standing(wanted.engine, proxied="silent" in ways) as bench:
        for number, way in runs:
            if time.monotonic() > began + wanted.minutes * 60:
                print(f"time is over after {len(good)} runs")
                break
            good.append(one_run(bench, rng, number, way))
        ledger_sum = bench.pool.ledger_sum()
    took_s = time.monotonic() - began
    print(f"{sum(good)} of {len(runs)} runs: a whole answer, charged once, each worker paid for its tokens")
    if wanted.engine == "torch":
        print(f"{bench.narrow} texts differ where the margin is below {MARGIN_MAX}")
    for way, times in bench.times.items():
        times.figures(way)
    print(f"ledger sum {ledger_sum}, all in {took_s / 60:.1f} minutes")
    return 0 if sum(good) == len(runs) else 1


if __name__ == "__main__":
    sys.exit(main())
