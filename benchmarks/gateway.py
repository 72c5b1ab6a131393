#!/usr/bin/env python3
"""What the pool adds to an engine, and what LiteLLM's proxy adds to the same one.

    benchmarks/gateway.py [--streams 1,8,32,128] [--rounds 3] [--seconds 5] [--no-litellm]

An emulator (20 ms to the first token, 5 ms a token, 50 tokens) is asked in turns: directly, over the thinnest
HTTP there is (front.py); through the pool, with keys, ledger and receipts; through LiteLLM's proxy with one
process and with two, which know one key and keep no books. Then all four answer whole, 16 tokens by an
emulator that takes no time. The client, the gateway and the engine share the machine's cores. Behind the
proxies the engine runs inside the front's own process, which is less work than the pool's worker with its
engine is: what comes of that counts against the pool. LiteLLM gets an environment of its own at the first
run.

Printed are medians over the rounds; what is added is the difference to the direct way of the same round.
Requests/s are compared at their most, be it at 8 or at 32 at a time. CPU time is told by whose it is;
`client` is this program.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import httpx2
import peer_litellm
import stand
import uvloop
from elsewhere import NotThere
from fixtures_pool import Member, Process, RealPool, free_port
from streams import Asker, Figures, drive

TTFT_MS: Final = 20
TPOT_MS: Final = 5
TOKENS: Final = 50
SHORT_TOKENS: Final = 16
SLOTS: Final = 256
INSTANT: Final = "emulator-instant"  # what the proxies call it; the pool knows one emulator
WARM_STREAMS: Final = 16
WARM_S: Final = 2.0
REQUESTS_AT: Final = (8, 32)
COMMITS: Final = "potluck_tick_seconds"
COMMIT: Final = '{part="commit"}'
FRONT: Final = Path(__file__).with_name("front.py")
FRONT_S_MAX: Final = 30.0


@dataclass(frozen=True, slots=True)
class Way:
    """How the engine is reached, and the processes on the way by what they are; those may come and go."""

    name: str
    asker: Asker
    parts: dict[str, Callable[[], list[int]]]
    commits: Callable[[], tuple[float, float]] = lambda: (0.0, 0.0)  # so far: their seconds, and how many

    def cpu_s(self) -> dict[str, float]:
        spent = {part: stand.cpu_seconds(*pids()) for part, pids in self.parts.items()}
        return spent | {"client": time.process_time()}

    def memory(self) -> str:
        """MB resident."""
        sizes = {part: stand.resident_bytes(*pids()) for part, pids in self.parts.items()}
        return ", ".join(f"{part} {size / 1e6:,.0f}" for part, size in sizes.items())


@dataclass(frozen=True, slots=True)
class Turns:
    """What one way came to at one number of streams, round by round."""

    figures: list[Figures] = field(default_factory=list)
    cpu_s: list[dict[str, float]] = field(default_factory=list)
    commits: list[tuple[float, float]] = field(default_factory=list)

    def median(self, of: Callable[[Figures], float]) -> float:
        return statistics.median(map(of, self.figures))

    @property
    def tokens_s(self) -> float:
        return self.median(lambda one: one.tokens / one.seconds)

    @property
    def requests_s(self) -> float:
        return self.median(lambda one: one.answers / one.seconds)

    def first_ms(self, *quantiles: float) -> str:
        return self._ms(Figures.first_ms, quantiles)

    def whole_ms(self, *quantiles: float) -> str:
        return self._ms(Figures.whole_ms, quantiles)

    def _ms(self, of: Callable[[Figures, float], float], quantiles: tuple[float, ...]) -> str:
        medians = (statistics.median(of(one, q) for one in self.figures) for q in quantiles)
        return "/".join(f"{ms:.1f}" for ms in medians)

    def added_ms(self, direct: "Turns", of: Callable[[Figures, float], float], q: float) -> float:
        """Beside what the direct way took in the same round."""
        pairs = zip(self.figures, direct.figures, strict=True)
        return statistics.median(of(through, q) - of(alone, q) for through, alone in pairs)

    def cpu_ms(self, count: Callable[[Figures], float]) -> str:
        """For each of what is counted, by whose it is."""
        counted = sum(map(count, self.figures)) or 1
        spent = {part: sum(one[part] for one in self.cpu_s) / counted * 1e3 for part in self.cpu_s[0]}
        return ", ".join(f"{part} {ms:.3g}" for part, ms in spent.items())

    @property
    def own(self) -> str:
        """Where the coordinator's time goes; "" of a way that says nothing of it."""
        own_ms = [ms for one in self.figures for ms in one.own_ms]
        seconds, count = map(sum, zip(*self.commits, strict=True))
        if not own_ms or not count:
            return ""
        own = stand.quantile(own_ms, 0.5)
        return (
            f"of it in the coordinator: to take the request and to begin its answer {own:.1f} ms (p50, by the"
            f" answer's header), and {seconds / count * 1e3:.1f} ms a commit (mean), which its work waits for"
        )

    @property
    def wrong(self) -> str:
        errors = [error for one in self.figures for error in one.errors]
        return f"; {len(errors)} ERRORS, such as: {errors[0]}" if errors else ""


async def in_turns(ways: list[Way], streams: int, wanted: argparse.Namespace) -> list[Turns]:
    turns = [Turns() for _ in ways]
    for number in range(1, wanted.rounds + 1):
        for way, turn in zip(ways, turns, strict=True):
            before, written = way.cpu_s(), way.commits()
            turn.figures.append(await drive(way.asker, streams, wanted.seconds))
            after, then = way.cpu_s(), way.commits()
            turn.commits.append((then[0] - written[0], then[1] - written[1]))
            turn.cpu_s.append({part: after[part] - before[part] for part in after})
        rates = (f"{way.name} {turn.figures[-1].rate:,.0f}" for way, turn in zip(ways, turns, strict=True))
        print(f"{streams} streams, round {number}, tokens/s: {', '.join(rates)}", flush=True)
    return turns


async def streamed(ways: list[Way], streams: int, wanted: argparse.Namespace) -> list[Turns]:
    """Prints what each way came to, and gives it back."""
    turns = await in_turns(ways, streams, wanted)
    for way, turn in zip(ways, turns, strict=True):
        print(
            f"  {way.name:10} {turn.tokens_s:6,.0f} tokens/s, TTFT p50/p95/p99"
            f" {turn.first_ms(0.5, 0.95, 0.99)} ms, whole p50/p99 {turn.whole_ms(0.5, 0.99)} ms;"
            f" CPU ms per 1,000 tokens: {turn.cpu_ms(lambda one: one.all_tokens / 1e3)}{turn.wrong}"
        )
    for way, turn in zip(ways[1:], turns[1:], strict=True):
        p50 = turn.added_ms(turns[0], Figures.first_ms, 0.5)
        p99 = turn.added_ms(turns[0], Figures.first_ms, 0.99)
        whole = turn.added_ms(turns[0], Figures.whole_ms, 0.5)
        print(
            f"  {way.name} adds to TTFT p50 {p50:.1f} ms, p99 {p99:.1f} ms; to the whole p50 {whole:.1f} ms"
        )
        if turn.own:
            print(f"    {turn.own}")
    return turns


async def short(ways: list[Way], streams: int, wanted: argparse.Namespace) -> list[Turns]:
    """As `streamed`, of answers that come whole."""
    turns = await in_turns(ways, streams, wanted)
    for way, turn in zip(ways, turns, strict=True):
        print(
            f"  {way.name:10} {turn.requests_s:6,.0f} requests/s, p50/p99 {turn.whole_ms(0.5, 0.99)} ms;"
            f" CPU ms per request: {turn.cpu_ms(lambda one: len(one.whole))}{turn.wrong}"
        )
    return turns


@contextmanager
def front(folder: Path, ttft_ms: int, tpot_ms: int) -> Iterator[tuple[int, int]]:
    """Its pid and its port."""
    port = free_port()
    command = [sys.executable, str(FRONT), str(port), f"--ttft-ms={ttft_ms}", f"--tpot-ms={tpot_ms}"]
    with stand.apart(command, os.environ, folder / f"front-{ttft_ms}.log") as popen:
        ends = time.monotonic() + FRONT_S_MAX
        while True:
            try:
                httpx2.get(f"http://127.0.0.1:{port}/").raise_for_status()
                break
            except httpx2.HTTPError:
                if time.monotonic() > ends or popen.poll() is not None:
                    raise SystemExit("the front does not start") from None
                time.sleep(0.1)
        yield popen.pid, port


@dataclass(frozen=True, slots=True)
class Peers:
    """What stands beside the pool: the two fronts, one of which takes no time, and LiteLLM where it runs."""

    front: tuple[int, int]
    instant: tuple[int, int]
    litellm: list[tuple[str, int, int]]  # name, pid, port

    @classmethod
    def start(cls, stack: ExitStack, folder: Path, *, litellm: bool) -> "Peers":
        before = stack.enter_context(front(folder, TTFT_MS, TPOT_MS))
        instant = stack.enter_context(front(folder, 0, 0))
        peers = cls(before, instant, [])
        models = {stand.EMULATOR: before[1], INSTANT: instant[1]}
        try:
            for processes in (1, 2) if litellm else ():
                pid, port = stack.enter_context(peer_litellm.running(folder, processes, models))
                peers.litellm.append((f"LiteLLM x{processes}", pid, port))
        except NotThere as error:
            print(f"without LiteLLM: {error}")
            peers.litellm.clear()
        return peers

    def ways(self, through: Way, model: str, *, tokens: int, stream: bool) -> list[Way]:
        """Directly, through the pool, and through each proxy."""
        pid, port = self.front if model == stand.EMULATOR else self.instant
        parts: dict[str, Callable[[], list[int]]] = {"front": lambda: [pid]}
        direct = Way("direct", Asker(port, "none", model, tokens=tokens, stream=stream), parts)
        proxies = [
            Way(
                name,
                Asker(entry, peer_litellm.KEY, model, tokens=tokens, stream=stream),
                {"proxy": partial(stand.family, proxy), **parts},
            )
            for name, proxy, entry in self.litellm
        ]
        return [direct, through, *proxies]


def pooled(pool: RealPool, worker: Process, member: Member, *, tokens: int, stream: bool) -> Way:
    assert pool.coordinator is not None
    coordinator = pool.coordinator.popen.pid
    daemon, *engines = stand.family(worker.popen.pid)
    parts = {"coordinator": lambda: [coordinator], "worker": lambda: [daemon], "engine": lambda: engines}
    asker = Asker(pool.http_port, member.key, stand.EMULATOR, tokens=tokens, stream=stream)
    return Way("pool", asker, parts, partial(commits_of, pool))


def commits_of(pool: RealPool) -> tuple[float, float]:
    """Seconds and number of the coordinator's commits so far, by its own metrics."""
    text = pool.admin.api("GET", "/metrics").raise_for_status().text
    found = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith(COMMITS))
    return float(found.get(f"{COMMITS}_sum{COMMIT}", 0)), float(found.get(f"{COMMITS}_count{COMMIT}", 0))


async def warmed(ways: list[Way]) -> list[Way]:
    for way in ways:
        await drive(way.asker, WARM_STREAMS, WARM_S)
    return ways


async def measure(pool: RealPool, peers: Peers, wanted: argparse.Namespace) -> None:
    member = pool.member("carol", credit_line=10**12)
    worker = pool.add_emulator("rig", "bob", ttft_ms=TTFT_MS, tpot_ms=TPOT_MS, slots=SLOTS)
    through = pooled(pool, worker, member, tokens=TOKENS, stream=True)
    ways = await warmed(peers.ways(through, stand.EMULATOR, tokens=TOKENS, stream=True))
    print(f"streamed, {TOKENS} tokens, {TTFT_MS} ms to the first and {TPOT_MS} ms between two")
    came = {streams: await streamed(ways, streams, wanted) for streams in map(int, wanted.streams.split(","))}

    worker.stop()
    worker = pool.add_emulator("flash", "bob", ttft_ms=0, tpot_ms=0, slots=SLOTS)
    through = pooled(pool, worker, member, tokens=SHORT_TOKENS, stream=False)
    ways = await warmed(peers.ways(through, INSTANT, tokens=SHORT_TOKENS, stream=False))
    print(f"whole, {SHORT_TOKENS} tokens, no time to generate them")
    asked = {streams: await short(ways, streams, wanted) for streams in REQUESTS_AT}

    for way in ways:
        print(f"MB resident in the end, {way.name}: {way.memory()}")
    print(f"the ledger's sum: {pool.ledger_sum()}")
    tell(came, asked, [name for name, _, _ in peers.litellm])


def tell(came: dict[int, list[Turns]], asked: dict[int, list[Turns]], proxies: list[str]) -> None:
    """The figures that are to reach something."""
    for streams, quantiles in ((1, (0.5,)), (8, (0.5, 0.99))):
        for q in quantiles if streams in came else ():
            direct, through, *_ = came[streams]
            added = through.added_ms(direct, Figures.first_ms, q)
            stand.figure(f"added TTFT p{q * 100:.0f}, {streams} stream{'s' * (streams > 1)}", added, "ms", 1)
    if 32 in came:
        stand.figure("tokens/s, 32 streams", came[32][1].tokens_s, digits=0)
    for streams, turns in asked.items():
        stand.figure(f"requests/s, {streams} at a time", turns[1].requests_s, digits=0)
    for number, name in enumerate(proxies, 2):
        for streams, turns in asked.items():
            ratio = turns[1].requests_s / turns[number].requests_s
            stand.figure(f"requests/s against {name}, {streams} at a time", ratio, "x", 1)
        pool, proxy = (max(turns[way].requests_s for turns in asked.values()) for way in (1, number))
        stand.figure(f"requests/s against {name}", pool / proxy, "x", 1)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", default="1,8,32,128")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each way, in each round")
    parser.add_argument("--no-litellm", action="store_true")
    wanted = parser.parse_args()
    print(
        stand.machine("uvicorn", "uvloop", "grpcio", "protobuf"),
        f"LiteLLM {peer_litellm.VERSION}",
        flush=True,
    )
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="potluck-benchmark-")))
        pool = stack.enter_context(stand.running_pool(POTLUCK_CONCURRENT_JOBS="512"))
        peers = Peers.start(stack, folder, litellm=not wanted.no_litellm)
        stand.run(measure(pool, peers, wanted), uvloop.new_event_loop)
    return 0


if __name__ == "__main__":
    sys.exit(main())
