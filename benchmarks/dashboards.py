#!/usr/bin/env python3
"""What open dashboards cost the coordinator of a busy pool, in CPU time.

    benchmarks/dashboards.py [--dashboards 200] [--page /] [--seconds 15] [--rounds 3]

One worker with the emulator answers chats that come at a steady pace; the same work is done without and with
so many open pages, in turns. Each page is another member's browser: it signed in, loaded the page, and keeps
its stream of what changes open, as Chromium does. Printed are the coordinator's CPU seconds per second and
the messages that the pages got.
"""

import argparse
import asyncio
import contextlib
import re
import statistics
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Final

import httpx2
import stand
from fixtures_pool import RealPool
from streams import Asker, Figures

SEE: Final = re.compile(r'hx-sse:connect="([^"]+)"')
PACE_S: Final = 0.02  # between two chats
STREAMS: Final = 64
TOKENS: Final = 50  # of an answer
SETTLE_S: Final = 2.0


@dataclass(slots=True)
class Browser:
    """One open page."""

    client: httpx2.AsyncClient
    see: str
    messages: int = 0

    async def watch(self) -> None:
        """Until cancelled; it comes again when the pool ends the stream."""
        while True:
            async with self.client.stream("GET", self.see) as answer:
                answer.raise_for_status()
                async for line in answer.aiter_lines():
                    self.messages += line == ""


@dataclass(slots=True)
class Crowd:
    url: str
    page: str
    browsers: list[Browser] = field(default_factory=list)

    async def come(self, keys: list[str]) -> None:
        for key in keys:
            client = httpx2.AsyncClient(base_url=self.url, timeout=60, verify=False, follow_redirects=True)
            (await client.post("/sign-in", data={"key": key})).raise_for_status()
            found = SEE.search((await client.get(self.page)).raise_for_status().text)
            assert found is not None, f"{self.page} keeps nothing fresh"
            self.browsers.append(Browser(client, found[1].replace("&amp;", "&")))

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(browser.watch()) for browser in self.browsers]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            for ended in await asyncio.gather(*tasks, return_exceptions=True):
                if not isinstance(ended, asyncio.CancelledError):
                    raise SystemExit(f"a page lost its stream: {ended!r}")

    async def go(self) -> None:
        for browser in self.browsers:
            await browser.client.aclose()


async def work(asker: Asker, seconds: float) -> Figures:
    """Chats at a steady pace, whatever they take."""
    figures, ends = Figures(), time.perf_counter() + seconds
    busy: set[asyncio.Task[None]] = set()
    due = time.perf_counter()
    while due < ends:
        if len(busy) < STREAMS:
            task = asyncio.create_task(asker.answer(figures))
            busy.add(task)
            task.add_done_callback(busy.discard)
        due += PACE_S
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
    await asyncio.gather(*busy)
    return figures


async def measured(pool: RealPool, asker: Asker, seconds: float) -> tuple[float, Figures]:
    """CPU seconds per second, and what was answered."""
    assert pool.coordinator is not None
    await asyncio.sleep(SETTLE_S)
    pid, began = pool.coordinator.popen.pid, time.perf_counter()
    before = stand.cpu_seconds(pid)
    figures = await work(asker, seconds)
    return (stand.cpu_seconds(pid) - before) / (time.perf_counter() - began), figures


async def compare(pool: RealPool, wanted: argparse.Namespace) -> float:
    """The median of what the pages add, as a part of the coordinator's CPU time without them."""
    members = [pool.member(f"m{number}") for number in range(wanted.dashboards)]
    asker = Asker(pool.http_port, members[0].key, stand.EMULATOR, tokens=TOKENS)
    crowd = Crowd(pool.url, wanted.page)
    await crowd.come([member.key for member in members])
    await work(asker, SETTLE_S)
    added = []
    for number in range(1, wanted.rounds + 1):
        alone, answered = await measured(pool, asker, wanted.seconds)
        async with crowd.watching():
            before = sum(browser.messages for browser in crowd.browsers)
            watched, also = await measured(pool, asker, wanted.seconds)
            messages = sum(browser.messages for browser in crowd.browsers) - before
        added.append(watched / alone - 1)
        print(
            f"{number}: {alone * 100:.1f} % of a core for {len(answered.first)} answers, with"
            f" {wanted.dashboards} pages {watched * 100:.1f} % for {len(also.first)}: {added[-1]:+.1%}"
            f" ({messages / wanted.seconds:.0f} messages/s to the pages)",
            flush=True,
        )
    asker.close()
    await crowd.go()
    return statistics.median(added)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dashboards", type=int, default=200)
    parser.add_argument("--page", default="/")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--rounds", type=int, default=3)
    wanted = parser.parse_args()
    print(stand.machine("uvicorn", "jinja2"), flush=True)
    with stand.running_pool() as pool:
        pool.add_emulator("rig", "owner", ttft_ms=20, tpot_ms=5, slots=64)
        median = asyncio.run(compare(pool, wanted))
    print(
        f"{wanted.dashboards} open pages of {wanted.page} add {median * 100:+.1f} % to the coordinator's CPU"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
