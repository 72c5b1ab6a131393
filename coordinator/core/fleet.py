"""The workers as the coordinator knows them: what they serve, whether they are there, how reliable they are.

Silence has three steps. A stream that closed is waited for `closed_grace_s`, one that is silent `lease_s`:
then the attempts are taken away. Who is back within `forgiven_s` is not blamed for it. And where many
fall silent together, the coordinator suspects itself first (`brake`), because a rescheduling of everything
is worse than waiting a little.

Whatever changes what a worker could take goes through the fleet, which notes it in `news`: the planner keeps
its rankings between ticks and looks again only at those.
"""

import math
from dataclasses import dataclass, field

from coordinator.core.jobs import AccountId, JobId, Kind, Loading, MemberId, WorkerId
from coordinator.core.standing import Standing

LOADING = ("downloading", "loading")


@dataclass(frozen=True, slots=True)
class Patience:
    """Limits of silence, in seconds."""

    lease_s: float = 4.0
    closed_grace_s: float = 0.5
    forgiven_s: float = 5.0
    stall_s: float = 300.0  # an attempt that beats but shows no progress
    step_s_max: float = 1_800.0  # as above, of a training, in which one step may take minutes
    brake_workers_min: int = 10
    brake_share: float = 0.3
    brake_s: float = 15.0

    def stalled(self, kind: Kind) -> float:
        """How long an attempt at such a job may show no progress."""
        return self.step_s_max if kind is Kind.FINETUNE else self.stall_s


@dataclass(frozen=True, slots=True)
class Served:
    """One model as one worker serves it. Speeds are tokens per second, 0 while unknown."""

    name: str
    engine: str
    kinds: frozenset[Kind]
    state: str = "ready"  # absent | downloading | present | loading | ready | failed
    slots: int = 1
    context_tokens: int = 0
    prefill: float = 0.0
    decode: float = 0.0
    numerics: str = ""
    sampler: str = "native"
    bytes_done: int = 0
    bytes_total: int = 0
    why: str = ""
    features: frozenset[str] = frozenset()  # tools | json_schema | reasoning | lora

    def lacks(self, needs: frozenset[str]) -> list[str]:
        """Which of these it cannot do. Before it was loaded once nobody knows, and it may be tried."""
        known = self.features or self.state == "ready"
        return sorted(needs - self.features) if known else []


@dataclass(frozen=True, slots=True)
class LoadMark:
    """Where a model that loads was first seen in this state; its speed is measured from here."""

    state: str
    at: float
    bytes_done: int


def load_of(state: str, served: Served, mark: LoadMark, now: float) -> Loading:
    """As its worker says; the time left follows from what came since the mark, and is None without."""
    done, total = served.bytes_done, served.bytes_total
    came, eta_s = done - mark.bytes_done, None
    if came > 0 and now > mark.at and total > done:
        eta_s = (total - done) * (now - mark.at) / came
    return Loading(state, min(done, total) if total else done, total, eta_s)


@dataclass(frozen=True, slots=True)
class Guests:
    """Whom a worker's owner lets use it, by name; empty: everybody. The owner always may."""

    members: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()

    def welcome(self, member: str) -> bool:
        return member not in self.refused and (not self.members or member in self.members)


Fence = tuple[JobId, int]


@dataclass(slots=True)
class Worker:
    id: WorkerId
    name: str
    member: MemberId
    account: AccountId
    models: dict[str, Served] = field(default_factory=dict)
    slots: int = 1
    memory_bytes: int = 0
    connected: bool = False
    greeted: bool = False  # said what it serves since this coordinator started
    heard_at: float = 0.0
    closed_at: float | None = None
    draining: bool = False
    state: str = "sharing"
    why: str = ""
    next_change: float | None = None  # when its state changes by itself
    guests: Guests = field(default_factory=Guests)
    running: set[Fence] = field(default_factory=set)
    classes: list[int] = field(default_factory=lambda: [0, 0, 0])  # how many of these, by JobClass
    successes: int = 0
    faults: int = 0
    busy_since: float = 0.0  # was idle before: silence counts from here, since idle workers rarely beat
    missed_at: float | None = None  # lost attempts that are not yet blamed
    standing: Standing = field(default_factory=Standing)
    unheard: int = 0  # assignments of which it said nothing, one after another
    suspect: bool = False  # an attempt was taken from it for silence, and nothing was heard since

    @property
    def reliability(self) -> float:
        """Share of attempts without own fault; a newcomer starts as if four had gone well."""
        return (self.successes + 4) / (self.successes + self.faults + 4)

    @property
    def sharing(self) -> bool:
        """There and willing."""
        return self.connected and not self.draining and self.state == "sharing"

    def takes(self, kind: Kind, model: str) -> Served | None:
        """How it would serve this, if it is there and willing."""
        served = self.models.get(model)
        if not self.sharing or self.suspect or served is None:
            return None
        return served if kind in served.kinds and served.state != "failed" else None


@dataclass(slots=True)
class Fleet:
    patience: Patience = field(default_factory=Patience)
    workers: dict[WorkerId, Worker] = field(default_factory=dict)
    by_account: dict[AccountId, dict[WorkerId, None]] = field(default_factory=dict)
    by_model: dict[str, dict[WorkerId, None]] = field(default_factory=dict)
    leaving: dict[WorkerId, None] = field(default_factory=dict)  # closed while busy, grace not yet over
    missed: dict[WorkerId, None] = field(default_factory=dict)  # whose `missed_at` is set
    departed: dict[WorkerId, Worker] = field(default_factory=dict)  # with earnings that are still held
    braking_since: float | None = None
    news: dict[str, dict[WorkerId, None]] = field(default_factory=dict)  # by model, whom to look at again

    def enrol(self, worker: Worker) -> None:
        if worker.id not in self.workers:
            self.workers[worker.id] = worker
            self.by_account.setdefault(worker.account, {})[worker.id] = None

    def remove(self, worker_id: WorkerId) -> None:
        worker = self.workers.pop(worker_id, None)
        if worker is not None and worker.standing.held:
            self.departed[worker_id] = worker
        self.leaving.pop(worker_id, None)
        self.missed.pop(worker_id, None)
        if worker is None:
            return
        del self.by_account[worker.account][worker_id]
        self.changed(worker)
        for name in worker.models:
            self._withdraw(worker_id, name)

    def changed(self, worker: Worker) -> None:
        """What it could take may be another than before."""
        for name in worker.models:
            self.news.setdefault(name, {})[worker.id] = None

    def serve(self, worker: Worker, models: dict[str, Served]) -> None:
        """Replace what the worker serves."""
        if models == worker.models:
            return
        self.changed(worker)
        for name in worker.models.keys() - models.keys():
            self._withdraw(worker.id, name)
        for name in models:
            self.by_model.setdefault(name, {})[worker.id] = None
        worker.models = models
        self.changed(worker)

    def says(
        self, worker: Worker, *, draining: bool, state: str, why: str, next_change: float | None = None
    ) -> None:
        """Whether it is willing, in its own words, and when that changes by itself."""
        if (draining, state) != (worker.draining, worker.state):
            self.changed(worker)
        worker.draining, worker.state, worker.why = draining, state, why
        worker.next_change = next_change

    def began(self, worker: Worker, fence: Fence, class_: int, now: float) -> None:
        """It holds an attempt at a job of this JobClass."""
        if not worker.running:
            worker.busy_since = now
        worker.running.add(fence)
        worker.classes[class_] += 1
        self.changed(worker)

    def ended(self, worker: Worker, fence: Fence, class_: int) -> None:
        worker.running.discard(fence)
        worker.classes[class_] -= 1
        self.changed(worker)

    def praise(self, worker: Worker) -> None:
        worker.successes += 1
        self.changed(worker)

    def deaf(self, worker: Worker) -> None:
        """It is there, and silent on what it was sent. Once may be the line's fault, again is its own."""
        worker.unheard += 1
        if worker.unheard > 1:
            self.blame(worker)

    def blame(self, worker: Worker) -> None:
        worker.faults += 1
        self.changed(worker)

    def _withdraw(self, worker_id: WorkerId, name: str) -> None:
        self.by_model[name].pop(worker_id, None)
        if not self.by_model[name]:
            del self.by_model[name]

    def heard(self, worker: Worker, now: float) -> None:
        """A sign of life. Who comes back in time is forgiven."""
        worker.heard_at = now
        if worker.suspect:
            worker.suspect = False
            self.changed(worker)
        if worker.missed_at is not None and now - worker.missed_at <= self.patience.forgiven_s:
            self._settle(worker)

    def closed(self, worker: Worker, now: float) -> None:
        """Its stream closed. Said twice, the first time counts."""
        if worker.connected:
            worker.connected, worker.closed_at = False, now
            self.changed(worker)
            if worker.running:
                self.leaving[worker.id] = None

    def opened(self, worker: Worker) -> None:
        worker.connected, worker.greeted, worker.closed_at = True, True, None
        self.changed(worker)
        self.leaving.pop(worker.id, None)

    def due(self) -> float:
        """When the first grace of those that are leaving ends; infinity if nobody is."""
        ends = (self.workers[w].closed_at for w in self.leaving)
        return min((at + self.patience.closed_grace_s for at in ends if at is not None), default=math.inf)

    def left(self, now: float) -> list[Worker]:
        """Whose grace is over since this was asked last."""
        gone = [w for w in map(self.workers.__getitem__, self.leaving) if self.gone(w, now)]
        for worker in gone:
            del self.leaving[worker.id]
        return gone

    def gone(self, worker: Worker, now: float) -> bool:
        """Whether what it runs is to be taken away: its stream closed and did not come back in time."""
        return worker.closed_at is not None and now >= worker.closed_at + self.patience.closed_grace_s

    def silent(self, worker: Worker, now: float) -> bool:
        """Whether more than its patience went by since it closed or, while busy, since it was heard."""
        busy_silence = bool(worker.running) and now >= self._since(worker) + self.patience.lease_s
        return self.gone(worker, now) or busy_silence

    def _since(self, worker: Worker) -> float:
        """When the silence began that is held against it."""
        if worker.closed_at is not None:
            return worker.closed_at
        return max(worker.heard_at, worker.busy_since)

    def brake(self, now: float) -> bool:
        """Whether so many fell silent together that nothing is to be taken away for now."""
        window = self.patience.brake_s + self.patience.lease_s  # who left long ago proves nothing today
        known = [
            w
            for w in self.workers.values()
            if w.connected or (w.closed_at is not None and now - w.closed_at <= window)
        ]
        if len(known) < self.patience.brake_workers_min:
            self.braking_since = None
            return False
        # A closed stream counts at once, though it is waited for: graces end one by one, and the first ones
        # would be over before enough others are.
        missing = [w for w in known if w.closed_at is not None or self.silent(w, now)]
        silent = sum(now - self._since(w) <= window for w in missing)
        if silent <= len(known) * self.patience.brake_share:
            self.braking_since = None
            return False
        if self.braking_since is None:
            self.braking_since = now
        return now < self.braking_since + self.patience.brake_s

    def miss(self, worker: Worker, now: float) -> None:
        """An attempt was taken from it for silence; blame waits until it could have come back."""
        since = self._since(worker)
        worker.suspect = True
        self.changed(worker)
        worker.missed_at = since if worker.missed_at is None else min(worker.missed_at, since)
        self.missed[worker.id] = None
        if now - worker.missed_at > self.patience.forgiven_s:
            self.blame_missing(worker, now)

    def blame_missing(self, worker: Worker, now: float) -> None:
        if worker.missed_at is not None and now - worker.missed_at > self.patience.forgiven_s:
            self._settle(worker)
            self.blame(worker)

    def _settle(self, worker: Worker) -> None:
        """Nothing is open any more of what it missed."""
        worker.missed_at = None
        self.missed.pop(worker.id, None)
