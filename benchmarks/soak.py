#!/usr/bin/env python3
"""Whether memory stays flat: a real pool under mixed traffic at about half of what it can do.

    benchmarks/soak.py [--minutes 30]

A coordinator and two workers that run the emulator, one of which is stopped and started again all the time.
Members stream and do not stream, leave in the middle of an answer, embed, store jobs and fetch what became of
them, submit batches, look at pages of the dashboard and keep one open. Each half minute the memory of the
coordinator and of the workers (with their engines), open files and tasks of the coordinator are printed. At
the end: the slope of the coordinator's memory by least squares over the second half, and the median of the
last quarter against that of the second. What the pool remembers of jobs that ended is bounded (20,000 of
them), and fills within the first half of half an hour.
"""

import argparse
import asyncio
import contextlib
import json
import random
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

import httpx2
import psutil
import stand
from fixtures_pool import Member, RealPool
from prometheus_client.parser import text_string_to_metric_families

SLOTS: Final = 16
TTFT_MS: Final = 20
TPOT_MS: Final = 20
TOKENS_MAX: Final = 40
MEMBERS: Final = 6
LOOK_S: Final = 30.0
COMES_AND_GOES_S: Final = 40.0
LEAVE_AFTER: Final = 3  # lines of a stream
BATCH_LINES: Final = 30
UNDER_WAY_MAX: Final = 400
END_S_MAX: Final = 90.0
MB: Final = 1e6
PER_SECOND: Final = {  # of each kind of request, by all members together
    "stream": 10.0,
    "whole": 9.0,
    "leave": 2.0,
    "embed": 4.0,
    "stored": 2.0,
    "looks": 2.0,
    "page": 0.5,
    "open_page": 0.05,
    "batch": 1 / 45,
}
LOOKS: Final = ("/pool/v1/balance", "/pool/v1/statement", "/pool/v1/jobs", "/v1/models", "/pool/v1/workers")
PAGES: Final = ("/", "/jobs", "/credits", "/workers", "/community", "/models")
SEE: Final = re.compile(r'"(/live\?[^"]*)"')


@dataclass(slots=True)
class Look:
    """What was seen at one moment; memory in MB."""

    at: float
    coordinator: float
    steady: float
    changing: float
    files: int
    tasks: int


@dataclass
class Soak:
    pool: RealPool
    http: httpx2.AsyncClient
    members: list[Member]
    browsers: list[httpx2.AsyncClient]
    rng: random.Random = field(default_factory=lambda: random.Random(7))
    counts: Counter[str] = field(default_factory=Counter)
    looks: list[Look] = field(default_factory=list)
    under_way: set["asyncio.Task[None]"] = field(default_factory=set)

    # -- what members do ------------------------------------------------------------------------------------

    async def asked(self, method: str, path: str, **more: Any) -> httpx2.Response:
        """By one of the members; what is refused is counted."""
        key = self.rng.choice(self.members).key
        answer = await self.http.request(
            method, self.pool.url + path, headers={"authorization": f"Bearer {key}"}, **more
        )
        if answer.status_code >= 400:
            self.counts[f"{path.split('?', maxsplit=1)[0]}: {answer.status_code}"] += 1
        return answer

    def chat(self, **more: Any) -> dict[str, Any]:
        tokens = self.rng.randint(5, TOKENS_MAX)
        messages = [{"role": "user", "content": "word " * self.rng.randint(1, 300)}]
        return {"model": stand.EMULATOR, "messages": messages, "max_tokens": tokens, **more}

    async def whole(self) -> None:
        await self.asked("POST", "/v1/chat/completions", json=self.chat())

    async def stream(self, leave_after: int = 1 << 30) -> None:
        headers = {"authorization": f"Bearer {self.rng.choice(self.members).key}"}
        url = f"{self.pool.url}/v1/chat/completions"
        async with self.http.stream("POST", url, headers=headers, json=self.chat(stream=True)) as answer:
            seen, done = 0, False
            async for line in answer.aiter_lines():
                seen, done = seen + line.startswith("data: "), done or "[DONE]" in line
                if seen > leave_after:
                    return
            if not done:
                self.counts["a stream without an end"] += 1

    async def leave(self) -> None:
        await self.stream(LEAVE_AFTER)

    async def embed(self) -> None:
        body = {"model": stand.EMULATOR, "input": ["a b c"] * self.rng.randint(1, 16)}
        await self.asked("POST", "/v1/embeddings", json=body)

    async def stored(self) -> None:
        """Its answer is fetched by who asked, a while later."""
        member = self.rng.choice(self.members)
        headers = {"authorization": f"Bearer {member.key}"}
        made = await self.http.post(
            f"{self.pool.url}/pool/v1/jobs", headers=headers, json={"kind": "chat", "request": self.chat()}
        )
        if made.status_code != 202:
            self.counts[f"stored: {made.status_code}"] += 1
            return
        path = f"{self.pool.url}/pool/v1/jobs/{made.json()['id']}/result"
        for _ in range(30):
            await asyncio.sleep(2)
            if (await self.http.get(path, headers=headers)).status_code == 200:
                return
        self.counts["a stored job without an end"] += 1

    async def looks_at(self) -> None:
        await self.asked("GET", self.rng.choice(LOOKS))

    async def page(self) -> None:
        answer = await self.rng.choice(self.browsers).get(self.rng.choice(PAGES))
        self.counts[f"page: {answer.status_code}"] += answer.status_code >= 400

    async def open_page(self) -> None:
        """Kept open for a while, as it changes."""
        browser = self.rng.choice(self.browsers)
        found = SEE.search((await browser.get("/")).text)
        if found is None:
            self.counts["a page that keeps nothing fresh"] += 1
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(20), browser.stream("GET", found[1].replace("&amp;", "&")) as answer:
                async for _ in answer.aiter_lines():
                    pass

    async def batch(self) -> None:
        member = self.rng.choice(self.members)
        headers = {"authorization": f"Bearer {member.key}"}
        wanted = {"method": "POST", "url": "/v1/chat/completions"}
        lines = [{"custom_id": f"n{n}", **wanted, "body": self.chat()} for n in range(BATCH_LINES)]
        data = "".join(json.dumps(line) + "\n" for line in lines).encode()
        url = self.pool.url
        file = await self.http.post(
            f"{url}/v1/files", headers=headers, data={"purpose": "batch"}, files={"file": ("in.jsonl", data)}
        )
        body = {
            "input_file_id": file.raise_for_status().json()["id"],
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
        }
        made = await self.http.post(f"{url}/v1/batches", headers=headers, json=body)
        batch_id = made.raise_for_status().json()["id"]
        for _ in range(60):
            await asyncio.sleep(2)
            now = (await self.http.get(f"{url}/v1/batches/{batch_id}", headers=headers)).json()
            if now["status"] in ("completed", "failed", "expired", "cancelled"):
                self.counts[f"batch: {now['status']}"] += now["status"] != "completed"
                return
        self.counts["a batch without an end"] += 1

    # -- the soak -------------------------------------------------------------------------------------------

    async def keep_asking(self, what: str, per_s: float, ends: float) -> None:
        """By a Poisson process, whatever became of those before."""
        do: Callable[[], Awaitable[None]] = {"looks": self.looks_at}.get(what) or getattr(self, what)
        at = time.monotonic()
        while (at := at + self.rng.expovariate(per_s)) < ends:
            await asyncio.sleep(max(0.0, at - time.monotonic()))
            if len(self.under_way) >= UNDER_WAY_MAX:
                self.counts["not asked: too much is under way"] += 1
                continue
            task = asyncio.create_task(self.one(what, do))
            self.under_way.add(task)
            task.add_done_callback(self.under_way.discard)

    async def one(self, what: str, do: Callable[[], Awaitable[None]]) -> None:
        self.counts[what] += 1
        try:
            await do()
        except httpx2.HTTPError as error:
            self.counts[f"{what}: {type(error).__name__}"] += 1

    async def come_and_go(self, ends: float) -> None:
        """The second worker is stopped as its owner would, and started again."""
        while time.monotonic() + COMES_AND_GOES_S < ends:
            await asyncio.sleep(COMES_AND_GOES_S / 2)
            await asyncio.to_thread(self.pool.workers["changing"].stop)
            await asyncio.sleep(COMES_AND_GOES_S / 8)
            await asyncio.to_thread(self.pool.start_worker, "changing")
            self.counts["a worker came back"] += 1

    async def watch(self, ends: float) -> None:
        began = time.monotonic()
        print("  minutes   coordinator   steady worker   changing worker   open files   tasks    asked")
        while time.monotonic() < ends:
            await asyncio.sleep(min(LOOK_S, max(0.0, ends - time.monotonic())))
            look = await asyncio.to_thread(self.look, time.monotonic() - began)
            self.looks.append(look)
            asked = sum(self.counts[what] for what in PER_SECOND)
            print(
                f"  {look.at / 60:7.1f} {look.coordinator:10.1f} MB {look.steady:12.1f} MB "
                f"{look.changing:14.1f} MB {look.files:12} {look.tasks:7} {asked:8,}",
                flush=True,
            )

    def look(self, at: float) -> Look:
        assert self.pool.coordinator is not None
        process = psutil.Process(self.pool.coordinator.popen.pid)
        text = self.pool.admin.api("GET", "/metrics").raise_for_status().text
        families = {family.name: family for family in text_string_to_metric_families(text)}
        tasks = families["potluck_tasks"].samples[0].value
        return Look(
            at,
            process.memory_info().rss / MB,
            resident_mb(self.pool.workers["steady"].popen.pid),
            resident_mb(self.pool.workers["changing"].popen.pid),
            process.num_fds() if hasattr(process, "num_fds") else 0,
            int(tasks),
        )


def resident_mb(pid: int) -> float:
    """Of a worker with its engines; 0 while it is away."""
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
        return float(sum(one.memory_info().rss for one in family)) / MB
    except psutil.Error:
        return 0.0


def slope_per_hour(looks: list[Look]) -> float:
    """MB per hour by least squares."""
    fit = statistics.linear_regression([look.at for look in looks], [look.coordinator for look in looks])
    return fit.slope * 3_600


def conclude(soak: Soak) -> None:
    looks = soak.looks
    quarter = max(1, len(looks) // 4)
    second, last = looks[quarter : 2 * quarter], looks[-quarter:]
    median_second, median_last = (
        statistics.median(look.coordinator for look in part) for part in (second or last, last)
    )
    troubles = {word: n for word, n in soak.counts.items() if n and word not in PER_SECOND}
    done = {word: soak.counts[word] for word in PER_SECOND}
    print("asked: " + ", ".join(f"{n:,} {word}" for word, n in done.items()))
    print("beside it: " + (", ".join(f"{word} ({n:,})" for word, n in sorted(troubles.items())) or "nothing"))
    print(f"the ledger's sum: {soak.pool.ledger_sum()}")
    half = looks[len(looks) // 2 :]
    if len(half) > 1:
        stand.figure("coordinator memory slope", slope_per_hour(half), "MB/h")
    stand.figure("coordinator memory, last quarter against second quarter", median_last / median_second)
    stand.figure("coordinator memory at the end", looks[-1].coordinator, "MB", 0)
    steady = [statistics.median(look.steady for look in part) for part in (second or last, last)]
    stand.figure("worker memory, last quarter against second quarter", steady[1] / steady[0])
    stand.figure("open files at the end", looks[-1].files, "", 0)
    stand.figure("tasks at the end", looks[-1].tasks, "", 0)
    jobs = sum(done[what] for what in ("stream", "whole", "leave", "embed", "stored"))
    stand.figure("jobs", jobs + BATCH_LINES * done["batch"], "", 0)


async def run(pool: RealPool, minutes: float) -> None:
    members = [pool.member(f"m{n}", credit_line=10**12) for n in range(MEMBERS)]
    async with contextlib.AsyncExitStack() as stack:
        limits = httpx2.Limits(max_connections=None)
        http = await stack.enter_async_context(httpx2.AsyncClient(timeout=120, verify=False, limits=limits))
        browsers = []
        for member in members:
            browser = httpx2.AsyncClient(base_url=pool.url, timeout=60, verify=False, follow_redirects=True)
            browsers.append(await stack.enter_async_context(browser))
            (await browser.post("/sign-in", data={"key": member.key})).raise_for_status()
        soak = Soak(pool, http, members, browsers)
        ends = time.monotonic() + minutes * 60
        asking = [soak.keep_asking(what, per_s, ends) for what, per_s in PER_SECOND.items()]
        await asyncio.gather(*asking, soak.come_and_go(ends), soak.watch(ends))
        if soak.under_way:
            _, late = await asyncio.wait(soak.under_way, timeout=END_S_MAX)
            soak.counts["never ended"] += len(late)
            for task in late:
                task.cancel()
        await asyncio.to_thread(conclude, soak)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    wanted = parser.parse_args()
    print(stand.machine("uvicorn", "grpcio"), flush=True)
    with stand.running_pool(POTLUCK_CONCURRENT_JOBS="1000") as pool:
        for name in ("steady", "changing"):
            pool.add_emulator(name, "bob", slots=SLOTS, ttft_ms=TTFT_MS, tpot_ms=TPOT_MS)
        asyncio.run(run(pool, wanted.minutes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
