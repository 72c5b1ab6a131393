"""One tick of scheduling: who does what, with the reason in words.

`plan` is pure, bounded by `assignments_max` and totally ordered: the same snapshot gives the same plan. Hard
filters first (there, willing, serves the kind, enough context, allowed on both sides, has not failed this job
already), then the expected finish time over measured reliability. Workers are ranked once for each model and
tick, jobs take from the ranking in their fair order (`line`); so a tick stays cheap with many of both.
"""

import heapq
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from coordinator.core.fleet import Fleet, Served, Worker
from coordinator.core.jobs import AccountId, JobId, Kind, MemberId, WorkerId
from coordinator.core.line import Asked, Line, Order, Room, Want

PREFILL_GUESS = 200.0  # tokens/s of a worker that has not measured itself yet
DECODE_GUESS = 20.0
GRADE = 1.1  # of expected times, in which workers are equals
COLD_S = {"ready": 0.0, "loading": 10.0, "present": 15.0, "downloading": 60.0, "absent": 90.0}


@dataclass(frozen=True, slots=True)
class Policy:
    assignments_max: int = 512
    typical_prompt_tokens: int = 256
    typical_output_tokens: int = 256
    skips_max: int = 64  # workers passed over for one job before it waits for the next tick
    own_grades: int = 12  # an own worker costs nothing, and may be so much slower (1.1^12: thrice)
    passed_max: int = 256  # jobs of one kind and model passed over in a tick because nobody may take them now


@dataclass(frozen=True, slots=True)
class Waiting:
    """A queued job as the planner sees it."""

    id: JobId
    kind: Kind
    model: str
    account: AccountId
    context_tokens: int  # prompt and output together
    own_only: bool = False
    only: frozenset[WorkerId] = frozenset()
    refused_by: frozenset[WorkerId] = frozenset()
    numerics: str = ""  # of what was delivered already: an equal class goes on identically


@dataclass(frozen=True, slots=True)
class Assign:
    job: JobId
    worker: WorkerId
    why: str


def allowed(job: Waiting, worker: Worker, served: Served) -> str:
    """Empty, or why this worker may not take this job."""
    if job.only and worker.id not in job.only:
        return "the job names other workers"
    if job.own_only and worker.account != job.account:
        return "the job may run on its member's own workers only"
    if worker.id in job.refused_by:
        return "it could not do this job before"
    if served.context_tokens and job.context_tokens > served.context_tokens:
        return f"needs a context of {job.context_tokens} tokens, it has {served.context_tokens}"
    return ""


def seconds(worker: Worker, served: Served, policy: Policy) -> float:
    """Expected time to finish a typical job, from now, over reliability."""
    load_s, work_s = _alone(worker, served, policy)
    load = len(worker.running) / max(1, worker.slots)
    return (load_s + work_s * (1.0 + load)) / worker.reliability


def _alone(worker: Worker, served: Served, policy: Policy) -> tuple[float, float]:
    """Seconds to load the model and to do a typical job on an idle worker; kept while what it says stands."""
    kept = worker.alone.get(served.name)
    if kept is not None and kept[0] is served:
        return kept[1]
    prefill = policy.typical_prompt_tokens / (served.prefill or PREFILL_GUESS)
    decode = policy.typical_output_tokens / (served.decode or DECODE_GUESS)
    took = COLD_S.get(served.state, 90.0), prefill + decode
    worker.alone[served.name] = served, took, _graded(sum(took))
    return took


def _graded(expected_s: float) -> int:
    """Who is a little faster must not get everything, since others live by it, too: within one grade the
    worker comes first that has been without new work for longest.
    """
    return round(math.log(expected_s, GRADE))


Candidate = tuple[float, float, WorkerId]  # grade of the expected time, since when it was idle, who


@dataclass(slots=True)
class _Ranking:
    """Workers of one model and kind with room, best first. A taken one goes back with its new load."""

    fleet: Fleet
    policy: Policy
    heap: list[Candidate] = field(default_factory=list)
    own: dict[AccountId, list[Candidate]] = field(default_factory=dict)  # of those who asked, when needed
    taken: dict[WorkerId, int] = field(default_factory=dict)

    def fill(self, kind: Kind, model: str) -> Room:
        """Rank the workers with room; the room of all that serve this now, and what it is used for."""
        room, free = Room(), 0
        workers, heap, policy = self.fleet.workers, self.heap, self.policy
        for worker_id in self.fleet.by_model.get(model, ()):
            worker = workers[worker_id]
            if (served := worker.takes(kind, model)) is None:
                continue
            slots = worker.slots if worker.slots < served.slots else served.slots or 1
            free += slots
            if worker.running:
                for class_, used in enumerate(worker.classes):
                    room.used[class_] += used
                if slots <= len(worker.running):
                    continue
            elif not worker.faults and (kept := worker.alone.get(model)) and kept[0] is served:
                heap.append((kept[2], worker.busy_since, worker_id))  # as below, of most workers, quickly
                continue
            heap.append((_graded(seconds(worker, served, policy)), worker.busy_since, worker_id))
        room.slots = free
        heapq.heapify(heap)
        return room

    def room(self, worker: Worker, served: Served) -> int:
        used = len(worker.running) + self.taken.get(worker.id, 0)
        return min(worker.slots, max(1, served.slots)) - used

    def take(self, job: Waiting) -> Assign | None:
        """An own worker that is ready and not much slower than the best of all, else the best of all."""
        own = self._own(job)
        if own and (not self.heap or own[0][0] <= self.heap[0][0] + self.policy.own_grades):
            chosen = self._best(job, own)
            if chosen is not None and (not job.numerics or self._same(job, chosen[2])):
                return self._assign(job, chosen, own)
            if chosen is not None:
                heapq.heappush(own, chosen)
        chosen = self._best(job, self.heap)
        return None if chosen is None else self._assign(job, chosen, self.heap)

    def _own(self, job: Waiting) -> list[Candidate]:
        """The ranking of the asking member's own workers; made when first needed in a tick."""
        if (found := self.own.get(job.account)) is None:
            found = self.own[job.account] = []
            for worker_id in self.fleet.by_account.get(job.account, ()):
                worker = self.fleet.workers[worker_id]
                served = worker.takes(job.kind, job.model)
                if served is not None and served.state == "ready" and self.room(worker, served) > 0:
                    grade = _graded(seconds(worker, served, self.policy))
                    found.append((grade, worker.busy_since, worker_id))
            heapq.heapify(found)
        return found

    def _same(self, job: Waiting, worker_id: WorkerId) -> bool:
        return self.fleet.workers[worker_id].models[job.model].numerics == job.numerics

    def _best(self, job: Waiting, heap: list[Candidate]) -> Candidate | None:
        """The first of the heap that may have this job, taken out; one of the same numerics class before all
        others.
        """
        passed: list[Candidate] = []
        best: Candidate | None = None
        while heap and len(passed) < self.policy.skips_max:
            candidate = heapq.heappop(heap)
            worker = self.fleet.workers[candidate[2]]
            served = worker.models[job.model]
            if self.room(worker, served) <= 0:
                continue
            if allowed(job, worker, served):
                passed.append(candidate)
                continue
            if not job.numerics or served.numerics == job.numerics:
                passed += [best] if best else []
                best = candidate
                break
            if best is None:
                best = candidate
            else:
                passed.append(candidate)
        for other in passed:
            heapq.heappush(heap, other)
        return best

    def _assign(self, job: Waiting, chosen: Candidate, heap: list[Candidate]) -> Assign:
        worker = self.fleet.workers[chosen[2]]
        served = worker.models[job.model]
        expected_s = seconds(worker, served, self.policy)
        taken = self.taken[worker.id] = self.taken.get(worker.id, 0) + 1
        others = len(self.heap)
        if self.room(worker, served) > 0:
            loaded_s = expected_s * (1 + taken / max(1, worker.slots))
            heapq.heappush(heap, (_graded(loaded_s), worker.busy_since, worker.id))
        own = "its member's own, " if worker.account == job.account else ""
        same = ", same numerics" if job.numerics and served.numerics == job.numerics else ""
        state = f"{served.engine} {served.state}, about {expected_s:.1f} s"
        return Assign(job.id, worker.id, f"{own}{state}, {others} others with room{same}")


def plan(
    line: Line,
    fleet: Fleet,
    running: Mapping[MemberId, int],
    policy: Policy,
    now: float,
    waiting: Callable[[JobId], Waiting],
) -> list[Assign]:
    """Assignments for this tick. Workers' rooms are respected across models.

    What is given away leaves the line, and its flow's turn moves on. `running`: jobs of each member.
    """
    line.tidy()
    taken: dict[WorkerId, int] = {}
    rankings: dict[Want, _Ranking] = {}
    orders: dict[Want, Order] = {}
    turns, weights = dict(running), line.weights()
    for want in sorted(line.wants):
        rankings[want] = ranking = _Ranking(fleet, policy, taken=taken)
        room = ranking.fill(*want)
        if ranking.heap:
            orders[want] = order = Order(line, want, room, weights, turns, now)
            order.fill()
    decisions: list[Assign] = []
    passed: dict[Want, list[Asked]] = {want: [] for want in orders}
    heads = [head for want, order in orders.items() if (head := _head(want, order)) is not None]
    heapq.heapify(heads)
    while heads and len(decisions) < policy.assignments_max:
        want, (asked, in_turn) = heads[0][4:]
        order, ranking = orders[want], rankings[want]
        if (decision := ranking.take(waiting(asked.id))) is not None:
            decisions.append(decision)
            order.gave(asked, fleet.workers[decision.worker].models, in_turn=in_turn)
        else:
            passed[want].append(asked)
            line.skip(asked)
        more = ranking.heap and len(passed[want]) < policy.passed_max
        if more and (head := _head(want, order)) is not None:
            heapq.heapreplace(heads, head)
        else:
            heapq.heappop(heads)
    for jobs in passed.values():
        line.restore(jobs)
    return decisions


def _head(want: Want, order: Order) -> tuple[int, float, float, JobId, Want, tuple[Asked, bool]] | None:
    """Where the next job of this kind and model stands among those of the others."""
    if (found := order.peek()) is None:
        return None
    asked, in_turn = found
    return (int(asked.class_) if in_turn else -1), order.lag(asked), asked.since, asked.id, want, found


def impossible(job: Waiting, fleet: Fleet, memory_bytes: int) -> str:
    """Why no worker could ever run this job, in words; empty if one could, now or when it is back.

    A worker that has not been heard since the coordinator started is given the benefit of the doubt.
    """
    reasons: dict[str, int] = {}
    if not fleet.workers:
        return "no worker has joined this pool yet: `potluck worker join` brings one in"
    for worker in fleet.workers.values():
        if job.only and worker.id not in job.only:
            continue
        if job.own_only and worker.account != job.account:
            continue
        if worker.id in job.refused_by:
            reason = f"no worker that serves {job.model} is left to try"
            reasons[reason] = reasons.get(reason, 0) + 1
            continue
        if not worker.greeted:
            return ""
        served = worker.models.get(job.model)
        if served is None and memory_bytes > worker.memory_bytes > 0:
            largest = max(w.memory_bytes for w in fleet.workers.values()) / 1e9
            reason = f"{job.model} needs {memory_bytes / 1e9:.1f} GB, the largest worker has {largest:.1f} GB"
        elif served is None:
            reason = f"no worker of this pool serves {job.model}"
        elif job.kind not in served.kinds:
            reason = f"the workers that serve {job.model} do no {job.kind}"
        elif served.context_tokens and job.context_tokens > served.context_tokens:
            context = served.context_tokens
            reason = f"the job needs a context of {job.context_tokens} tokens, the workers have {context}"
        else:
            return ""
        reasons[reason] = reasons.get(reason, 0) + 1
    if not reasons:
        return (
            "you have no worker of your own"
            if job.own_only
            else "none of the workers you named is in this pool"
        )
    return max(sorted(reasons), key=lambda r: reasons[r])
