"""The workers with room for one kind and model, best first, kept between ticks.

Who is looked at again is who changed (`Fleet.news`), so that a tick costs what happened, not what is there.
"""

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from coordinator.core.fairness import JobClass
from coordinator.core.fleet import Fleet, Served, Worker
from coordinator.core.jobs import AccountId, Kind, WorkerId

PREFILL_GUESS = 200.0  # tokens/s of a worker that has not measured itself yet
DECODE_GUESS = 20.0
GRADE = 1.1  # of expected times, in which workers are equals
COLD_S = {"ready": 0.0, "loading": 10.0, "present": 15.0, "downloading": 60.0, "absent": 90.0}
STALE_MAX = 64  # entries of the heap, beside as many as there are workers with room


@dataclass(frozen=True, slots=True)
class Policy:
    assignments_max: int = 512
    typical_prompt_tokens: int = 256
    typical_output_tokens: int = 256
    skips_max: int = 64  # workers passed over for one job before it waits for the next tick
    own_first: bool = True  # an owner goes before all others on the own worker; else by turns there, too
    own_grades: int = 12  # an own worker costs nothing, and may be so much slower (1.1^12: thrice)
    passed_max: int = 256  # jobs of one kind and model passed over in a tick because nobody may take them now


def seconds(worker: Worker, served: Served, policy: Policy) -> float:
    """Expected time to finish a typical job, from now, over reliability."""
    load_s = COLD_S.get(served.state, 90.0)
    prefill_s = policy.typical_prompt_tokens / (served.prefill or PREFILL_GUESS)
    decode_s = policy.typical_output_tokens / (served.decode or DECODE_GUESS)
    load = len(worker.running) / max(1, worker.slots)
    return (load_s + (prefill_s + decode_s) * (1.0 + load)) / worker.reliability


def graded(expected_s: float) -> int:
    """Who is a little faster must not get everything, since others live by it, too: within one grade the
    worker comes first that has been without new work for longest.
    """
    return round(math.log(expected_s, GRADE))


def slots_of(worker: Worker, served: Served, kind: Kind) -> int:
    """Training takes no slot: it has one place of its own on a worker, whatever the models, beside them."""
    return 1 if kind is Kind.FINETUNE else min(worker.slots, max(1, served.slots))


def used_of(worker: Worker, kind: Kind) -> int:
    """How many of them are taken."""
    training = worker.classes[JobClass.FINETUNE]
    return training if kind is Kind.FINETUNE else len(worker.running) - training


Candidate = tuple[int, float, WorkerId]  # grade of the expected time, since when it was idle, who


@dataclass(slots=True)
class Offers:
    """What the fleet has for one kind and model. `slots` and `used` (by JobClass) count all that serve it
    now, `newest` and `ready` only those with room; `ready` the ones that have it loaded, by their owner, who
    has a heap of them in `own`.
    """

    kind: Kind
    model: str
    fleet: Fleet
    policy: Policy
    heap: list[Candidate] = field(default_factory=list)  # what is not its worker's newest is stale
    newest: dict[WorkerId, Candidate] = field(default_factory=dict)
    ready: dict[AccountId, dict[WorkerId, Candidate]] = field(default_factory=dict)
    own: dict[AccountId, list[Candidate]] = field(default_factory=dict)  # what is not in `ready` is stale
    slots: int = 0
    used: list[int] = field(default_factory=lambda: [0, 0, 0])
    _counted: dict[WorkerId, tuple[AccountId, int, tuple[int, ...]]] = field(default_factory=dict)

    def look(self, workers: Iterable[WorkerId]) -> None:
        """Take them as they are now, whatever they were before."""
        for worker_id in workers:
            self._forget(worker_id)
            worker = self.fleet.workers.get(worker_id)
            if worker is not None and (served := worker.takes(self.kind, self.model)) is not None:
                self._count(worker, served)
        if len(self.heap) > STALE_MAX + 2 * len(self.newest):
            self.heap = list(self.newest.values())
            heapq.heapify(self.heap)

    def _forget(self, worker_id: WorkerId) -> None:
        if (counted := self._counted.pop(worker_id, None)) is None:
            return
        account, slots, used = counted
        self.slots -= slots
        for class_, n in enumerate(used):
            self.used[class_] -= n
        self.newest.pop(worker_id, None)
        own = self.ready.get(account)
        if own is not None and own.pop(worker_id, None) is not None and not own:
            del self.ready[account]
            del self.own[account]

    def _count(self, worker: Worker, served: Served) -> None:
        slots = slots_of(worker, served, self.kind)
        self.slots += slots
        used = self._by_class(worker) if worker.running else ()
        for class_, n in enumerate(used):
            self.used[class_] += n
        self._counted[worker.id] = worker.account, slots, used
        if used_of(worker, self.kind) >= slots:
            return
        candidate = graded(seconds(worker, served, self.policy)), worker.busy_since, worker.id
        self.offer(worker, served, candidate)

    def offer(self, worker: Worker, served: Served, candidate: Candidate) -> None:
        """This is how it stands now."""
        self.newest[worker.id] = candidate
        heapq.heappush(self.heap, candidate)
        if served.state == "ready":
            ready = self.ready.setdefault(worker.account, {})
            ready[worker.id] = candidate
            own = self.own.setdefault(worker.account, [])
            heapq.heappush(own, candidate)
            if len(own) > STALE_MAX + 2 * len(ready):
                own[:] = ready.values()
                heapq.heapify(own)

    def _by_class(self, worker: Worker) -> tuple[int, ...]:
        interactive, batch, training = worker.classes
        return (0, 0, training) if self.kind is Kind.FINETUNE else (interactive, batch, 0)
