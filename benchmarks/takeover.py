#!/usr/bin/env python3
"""How long a pool is without a coordinator when the one that leads is killed with -9 and another one waits.

    benchmarks/takeover.py [--runs 10] [--busy 4] [--calm 5]

Two coordinators on a PostgreSQL of the benchmark's own, a worker with the emulator, four answers at once all
the while, and so many processes (niced) that compute for nothing beside them. In each run the leader is left
alone for some seconds, in which the other one must not take over; then it is killed, and printed is how long
it takes until the other one serves. The one that was killed waits for the next run. Exit code 1 if a leader
that lived was deposed, or a takeover took more than ten seconds.
"""

import argparse
import contextlib
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import openai
import stand
from fixtures_pair import Pair, paired
from fixtures_postgres import serving

from potluck.processes import raise_on_signals

TAKEOVER_S_MAX = 10.0
ASKERS = 4
TOKENS = 200
REFUSED_S = 0.5  # until who was refused asks again
NICE = 10


def burn(over: "multiprocessing.synchronize.Event") -> None:
    """Computes until told to stop, or until nobody is left who could."""
    os.nice(NICE)
    parent = multiprocessing.parent_process()
    while not over.is_set() and parent is not None and parent.is_alive():
        sum(number * number for number in range(100_000))


@contextmanager
def busy(count: int) -> Iterator[None]:
    context = multiprocessing.get_context("spawn")
    over = context.Event()
    burning = [context.Process(target=burn, args=(over,), daemon=True) for _ in range(count)]
    for process in burning:
        process.start()
    try:
        yield
    finally:
        over.set()
        for process in burning:
            process.join()


@contextmanager
def asked(pair: Pair) -> Iterator[None]:
    """Members who ask again and again, whoever leads; an answer that breaks off is none of this benchmark."""
    over, member = threading.Event(), pair.pool.member("asker", credit_line=10**12)

    def ask() -> None:
        clients: dict[str, openai.OpenAI] = {}
        while not over.is_set():
            client = clients.get(pair.pool.url) or clients.setdefault(pair.pool.url, member.openai())
            with contextlib.suppress(openai.APIError, httpx2.HTTPError):
                for _ in client.chat.completions.create(
                    model=stand.EMULATOR,
                    messages=[{"role": "user", "content": "go on"}],
                    max_tokens=TOKENS,
                    stream=True,
                ):
                    if over.is_set():
                        break
            over.wait(REFUSED_S)

    asking = [threading.Thread(target=ask) for _ in range(ASKERS)]
    for thread in asking:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in asking:
            thread.join()


def one_run(pair: Pair, leader: str, other: str, calm_s: float) -> tuple[float, bool]:
    """Seconds until the other one serves; whether the leader had been deposed before it was killed."""
    pause = threading.Event()
    pause.wait(calm_s)
    process = pair.processes[leader]
    deposed = process.popen.poll() is not None or pair.serves(other)
    process.kill()
    took_s = pair.taken_over(other)
    pair.start(leader, "Standing by")
    return took_s, deposed


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--busy", type=int, default=4, help="niced processes that compute for nothing (4)")
    parser.add_argument("--calm", type=float, default=5.0, help="seconds in which a leader is left alone (5)")
    wanted = parser.parse_args()
    raise_on_signals()
    print(stand.machine("asyncpg", "grpcio"))
    times, deposed = list[float](), 0
    with (
        tempfile.TemporaryDirectory(prefix="potluck-takeover-") as folder,
        serving() as postgres,
        paired(postgres, Path(folder)) as pair,
        asked(pair),
        busy(wanted.busy),
    ):
        names = ("a", "b")
        for number in range(wanted.runs):
            leader, other = names[number % 2], names[(number + 1) % 2]
            took_s, was_deposed = one_run(pair, leader, other, wanted.calm)
            times.append(took_s)
            deposed += was_deposed
            note = "  it had been deposed before" if was_deposed else ""
            print(
                f"{number + 1:3}  {other} serves {took_s:5.2f} s after {leader} was killed{note}", flush=True
            )
            if was_deposed:
                break  # who leads now is another question
    stand.figure("takeover after kill -9, p50", statistics.median(times), "s")
    stand.figure("takeover after kill -9, maximum", max(times), "s")
    stand.figure("leaders deposed alive", deposed, digits=0)
    return 1 if deposed or max(times) > TAKEOVER_S_MAX else 0


if __name__ == "__main__":
    sys.exit(main())
