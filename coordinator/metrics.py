"""What the coordinator says of itself to Prometheus.

Counters and histograms are counted where things happen; gauges are read from memory at each scrape. Names and
units follow Prometheus' own advice (prometheus.io/docs/practices/naming): base units, `_total` for counters.
Nothing is labelled with members, keys or jobs: their number has no bound.
"""

import asyncio
from collections import Counter as Count
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from coordinator.core.jobs import Job
from coordinator.core.ledger import COMMONS
from coordinator.lateness import Lateness
from coordinator.pool import Pool
from coordinator.pulse import Pulse
from potluck.credits import MICRO
from potluck.version import version

REQUEST_BUCKETS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
TICK_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
WAIT_BUCKETS_S: Final = (0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 1_800)
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
UNKNOWN_ROUTE: Final = "unknown"


@dataclass(slots=True)
class Metrics:
    """One registry for each application: nothing is counted across two of them."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    requests: Counter = field(init=False)
    request_s: Histogram = field(init=False)
    jobs: Counter = field(init=False)
    tokens: Counter = field(init=False)
    wait_s: Histogram = field(init=False)
    tick_s: Histogram = field(init=False)
    refusals: Counter = field(init=False)

    def __post_init__(self) -> None:
        kept = self.registry
        self.requests = Counter(
            "potluck_http_requests", "Requests answered.", ("method", "route", "status"), registry=kept
        )
        self.request_s = Histogram(
            "potluck_http_request_seconds",
            "From a request to the first byte of its answer.",
            ("route",),
            buckets=REQUEST_BUCKETS_S,
            registry=kept,
        )
        self.jobs = Counter("potluck_jobs", "Jobs that ended.", ("kind", "state"), registry=kept)
        self.tokens = Counter(
            "potluck_tokens",
            "Tokens of jobs that ended, by the pool's count.",
            ("model", "way"),
            registry=kept,
        )
        self.wait_s = Histogram(
            "potluck_job_wait_seconds",
            "From a job's arrival to its first attempt.",
            ("kind",),
            buckets=WAIT_BUCKETS_S,
            registry=kept,
        )
        self.tick_s = Histogram(
            "potluck_tick_seconds",
            "One turn of the scheduler: what it decided, and the commit of that.",
            ("part",),
            buckets=TICK_BUCKETS_S,
            registry=kept,
        )
        self.refusals = Counter(
            "potluck_refusals",
            "Whom the coordinator did not let in, or cut off, and why.",
            ("reason",),
            registry=kept,
        )
        ProcessCollector(registry=kept)
        PlatformCollector(registry=kept)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """`route`: its pattern, not the path that was asked for."""
        self.requests.labels(method if method in METHODS else "other", route, str(status)).inc()
        self.request_s.labels(route).observe(seconds)

    def turned(self, part: str, seconds: float) -> None:
        self.tick_s.labels(part).observe(seconds)

    def refused(self, reason: str) -> None:
        """A fixed word: the code of an error, or what a connection did."""
        self.refusals.labels(reason).inc()

    def ended(self, job: Job) -> None:
        """For the pool's followers."""
        self.jobs.labels(job.kind.value, job.state.value).inc()
        if not job.has_parts:
            self.tokens.labels(job.model, "in").inc(job.prompt_tokens)
            self.tokens.labels(job.model, "out").inc(job.output_tokens)
        if job.started_at is not None:
            self.wait_s.labels(job.kind.value).observe(max(0.0, job.started_at - job.created_at))

    def watch(self, pool: Pool, pulse: Pulse, lateness: Lateness) -> None:
        """Read this pool at each scrape, and count its jobs from now on."""
        self.registry.register(PoolCollector(pool, pulse, lateness))
        pool.followers.append(self.ended)


@dataclass(slots=True, eq=False)  # the registry keeps it by its identity
class PoolCollector(Collector):
    """Gauges of a pool, as they are at the moment of the scrape."""

    pool: Pool
    pulse: Pulse
    lateness: Lateness

    def describe(self) -> Iterator[Metric]:
        """Nothing is known before the first scrape."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        for family in (self._pool, self._workers, self._jobs, self._credits):
            yield from family()

    def _pool(self) -> Iterator[Metric]:
        info = GaugeMetricFamily("potluck_info", "Which pool, which version.", labels=("pool", "version"))
        info.add_metric((self.pool.settings.pool_name, version()), 1)
        yield info
        trouble = bool(self.pool.ticker.trouble)
        yield gauge("potluck_books_writable", "0 while the books cannot be written.", int(not trouble))
        yield gauge("potluck_tokens_per_second", "Delivered, over the last 15 s.", self.pulse.tokens_per_s())
        words = "How late the event loop was at the worst, within the last 10 s."
        yield gauge("potluck_loop_late_seconds", words, self.lateness.worst_s)
        yield gauge("potluck_tasks", "Tasks of the event loop.", len(asyncio.all_tasks()))

    def _workers(self) -> Iterator[Metric]:
        workers = list(self.pool.engine.fleet.workers.values())
        states = Count(
            "away" if not w.connected else "draining" if w.draining else w.state or "unknown" for w in workers
        )
        yield by("potluck_workers", "Enrolled workers.", "state", states)
        here = [w for w in workers if w.connected]
        yield gauge("potluck_sessions", "Workers that are connected.", len(here))
        slots, running = sum(w.slots for w in here), sum(len(w.running) for w in workers)
        yield gauge("potluck_slots", "Attempts that these could run at once.", slots)
        yield gauge("potluck_attempts_running", "Attempts under way.", running)
        ready = Count(m for w in here if w.sharing for m, s in w.models.items() if s.state == "ready")
        yield by("potluck_model_workers", "Workers that share this model, loaded.", "model", ready)

    def _jobs(self) -> Iterator[Metric]:
        engine = self.pool.engine
        waiting = Count(engine.lives[job].job.kind.value for job in engine.queue if job in engine.lives)
        yield by("potluck_jobs_queued", "Jobs that wait for a worker.", "kind", waiting)
        yield gauge("potluck_jobs_open", "Jobs that have not ended.", len(engine.lives))

    def _credits(self) -> Iterator[Metric]:
        """In credits. Sums over all accounts, so that nobody's balance stands in it but the commons'."""
        book = self.pool.engine.book
        reserved = sum(account.reserved for account in book.accounts.values())
        held = sum(account.held for account in book.accounts.values())
        commons = self.pool.accounts.balance(COMMONS)["balance"]
        number = self.pool.ticker.chain.number
        words = "All money of all accounts: 0, or the books are wrong."
        yield gauge("potluck_ledger_sum_microcredits", words, book.total())
        yield gauge("potluck_ledger_entries", "The number of the last entry.", number)
        yield gauge("potluck_reserved_credits", "Set aside for open jobs.", reserved / MICRO)
        yield gauge("potluck_held_credits", "Earned by workers that are not proven.", held / MICRO)
        yield gauge("potluck_commons_credits", "The balance of the commons.", commons / MICRO)


def gauge(name: str, words: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, words, value=value)


def by(name: str, words: str, label: str, counts: "Count[str]") -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, words, labels=(label,))
    for word, count in sorted(counts.items()):
        family.add_metric((word,), count)
    return family
