"""Two coordinators on one PostgreSQL: the one that waits says where the pool is, takes over from a leader that was
killed, stopped or ended, and one that wakes up too late writes nothing. A database that restarts is waited for."""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from fixtures_pair import Pair, paired
from fixtures_pool import COMMAND, Member, Process, RealPool
from fixtures_postgres import Postgres

from worker.membership import Membership

pytestmark = pytest.mark.processes

MODEL = "emulator-small"


@pytest.fixture
def pair(postgres: Postgres, tmp_path: Path) -> Iterator[Pair]:
    with paired(postgres, tmp_path) as made:
        yield made


def stored(member: Member, tokens: int) -> str:
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "a b"}], "max_tokens": tokens}
    body = {"kind": "chat", "request": asked}
    job: str = member.api("POST", "/pool/v1/jobs", json=body).raise_for_status().json()["id"]
    return job


def streaming(member: Member) -> tuple[threading.Event, threading.Thread]:
    """A long answer that somebody reads until it ends or breaks; the event: it has begun."""
    begun = threading.Event()

    def read() -> None:
        with contextlib.suppress(openai.APIError, httpx2.HTTPError):
            messages: Any = [{"role": "user", "content": "a b"}]
            for _ in member.openai().chat.completions.create(
                model=MODEL, messages=messages, max_tokens=2_000, stream=True
            ):
                begun.set()

    thread = threading.Thread(target=read)
    thread.start()
    return begun, thread


def checked(pool: RealPool) -> None:
    done = subprocess.run(
        [*COMMAND, "coordinator", "check"],
        env={**os.environ, **pool.variables, "POTLUCK_HOME": str(pool.folder)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def ended_once(pool: RealPool, jobs: list[str]) -> None:
    """Each job succeeded and was charged by one entry."""
    pool.until(lambda: all(pool.job(job)["state"] == "succeeded" for job in jobs), "all jobs to end")
    entries = pool.admin.api("GET", "/pool/v1/ledger/export").raise_for_status().text
    for job in jobs:
        assert entries.count(f'"{job}/close"') == 1, job
    assert pool.ledger_sum() == 0


def test_who_waits_takes_over_and_nothing_is_lost_or_paid_twice(pair: Pair) -> None:
    pool = pair.pool
    asker = pool.member("asker", credit_line=10**9)
    waiting = pair.get("b", "/readyz")
    assert (waiting.status_code, waiting.headers["x-potluck-leader"]) == (503, pair.url("a"))
    assert pair.get("b", "/healthz").status_code == 200
    moved = pair.get("b", "/docs?a=1")
    assert (moved.status_code, moved.headers["location"]) == (307, f"{pair.url('a')}/docs?a=1")
    refused = pair.get("b", "/v1/models")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
    assert refused.json()["error"]["code"] == "standby"
    pool.workers["rig"].wait_for("the pool can be found at")

    begun, reader = streaming(asker)
    jobs = [stored(asker, 60) for _ in range(3)]
    begun.wait(60)
    pair.processes["a"].kill()
    print(f"kill -9: serves after {pair.taken_over('b'):.1f} s")
    reader.join()
    pool.until(lambda: pool.ready("rig"), "the worker to find the new leader", pool.workers["rig"])
    home, both = pool.folder / "rig" / "worker", {pair.url("a"), pair.url("b")}
    pool.until(lambda: set(Membership.load(home).at("")) >= both, "it to know where else to renew")
    ended_once(pool, jobs)
    checked(pool)

    pair.start("a", "Standing by")
    jobs.append(stored(asker, 60))
    frozen = pair.processes["b"].popen
    frozen.send_signal(signal.SIGSTOP)
    ghost = threading.Thread(target=lambda: _add_ghost(pair.url("b"), pool.admin.key))
    ghost.start()  # lies in its socket until it wakes up
    print(f"SIGSTOP: serves after {pair.taken_over('a'):.1f} s")
    before = pool.admin.api("GET", "/pool/v1/ledger/entries").raise_for_status().json()
    frozen.send_signal(signal.SIGCONT)
    assert frozen.wait(60) == 5, "".join(pair.processes["b"].lines[-20:])
    pair.processes["b"].wait_for("has taken over this pool")
    ghost.join()
    names = [m["name"] for m in pool.admin.api("GET", "/pool/v1/members").raise_for_status().json()["data"]]
    assert "ghost" not in names
    assert before
    ended_once(pool, jobs)
    checked(pool)

    pair.start("b", "Standing by")
    assert pair.processes["a"].stop() == 0
    print(f"SIGTERM: serves after {pair.taken_over('b'):.1f} s")
    assert pool.ledger_sum() == 0
    pair.start("a", "Standing by")
    assert pair.processes["a"].stop() == 0  # who waits ends as well when told to


def _add_ghost(url: str, key: str) -> None:
    with contextlib.suppress(httpx2.HTTPError):
        headers = {"Authorization": f"Bearer {key}"}
        httpx2.post(
            f"{url}/pool/v1/members", json={"name": "ghost"}, headers=headers, timeout=60, verify=False
        )


def test_a_home_without_the_pools_authority_cannot_wait(pair: Pair, tmp_path: Path) -> None:
    """It would make another one when its turn came, and no worker would know it."""
    home = tmp_path / "elsewhere"
    home.mkdir()
    arguments = ["coordinator", "start", "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"]
    process = Process.start("stranger", arguments, home, **pair.pool.variables)
    assert process.popen.wait(60) == 1
    process.wait_for("Copy the folder `coordinator`")


def test_a_database_that_restarts_is_waited_for(pair: Pair, postgres: Postgres) -> None:
    """Requests are refused meanwhile, both coordinators stay what they are, and stored jobs end, once each."""
    pool = pair.pool
    asker = pool.member("asker", credit_line=10**9)
    jobs = [stored(asker, 60) for _ in range(2)]
    data = f"--pgdata={postgres.folder / 'data'}"
    postgres.run("pg_ctl", data, "--mode=immediate", "--wait", "stop", as_owner=True)
    refused = asker.api("POST", "/pool/v1/keys", json={"name": "more"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage_unavailable")
    assert pair.get("a", "/readyz").status_code == 503
    postgres.start()
    pool.until(lambda: pair.serves("a"), "the leader to go on", pair.processes["a"])
    assert pair.get("b", "/readyz").headers["x-potluck-leader"] == pair.url("a")
    ended_once(pool, jobs)
    asker.api("POST", "/pool/v1/keys", json={"name": "more"}).raise_for_status()
    checked(pool)
