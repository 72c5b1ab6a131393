"""One tick of scheduling: who does what, with the reason in words.

`Planner.plan` is bounded by `assignments_max` and totally ordered: the same snapshot gives the same plan.
Hard filters first (there, willing, serves the kind, enough context, allowed on both sides, has not failed
this job already), then the expected finish time over measured reliability. Workers are ranked by kind and
model (`offers`), jobs take from the ranking in their fair order (`order`). Both are kept between ticks, so
that a tick stays cheap with many of both.
"""

import heapq
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from coordinator.core.fleet import Fleet, Served, Worker
from coordinator.core.jobs import AccountId, JobId, Kind, MemberId, WorkerId
from coordinator.core.line import Line, Room
from coordinator.core.offers import Candidate, Offers, Policy, graded, seconds, slots_of, used_of
from coordinator.core.order import Order
from coordinator.core.turns import Asked, Want
from coordinator.core.waiting import Narrow, Waiting, allowed, in_words

__all__ = ["Assign", "Planner", "Policy", "Waiting", "allowed", "impossible", "plan", "seconds"]


class Assign(NamedTuple):
    job: JobId
    worker: WorkerId
    why: str


@dataclass(slots=True)
class _Ranking:
    """The offers of one kind and model during one tick. A taken worker goes back with its new load."""

    offers: Offers
    taken: dict[WorkerId, int]  # of all kinds and models, or of training alone
    able: dict[Narrow, list[Candidate]] = field(default_factory=dict)  # for jobs that not everybody may take
    left: int = 0  # of the heap, without the stale ones

    def room(self, worker: Worker, served: Served) -> int:
        kind = self.offers.kind
        return slots_of(worker, served, kind) - used_of(worker, kind) - self.taken.get(worker.id, 0)

    def take(self, job: Waiting) -> Assign | None:
        """An own worker that is ready and not much slower than the best of all, else the best of all."""
        if (own := self.take_own(job)) is not None:
            return own
        heap = self._heap(job)
        chosen = self._best(job, heap)
        return None if chosen is None else self._assign(job, chosen, heap)

    def _heap(self, job: Waiting) -> list[Candidate]:
        """Whoever may do it, the best first and not stale."""
        heap, newest = self.offers.heap, self.offers.newest
        while heap and newest.get(heap[0][2]) is not heap[0]:
            heapq.heappop(heap)
        narrow = job.narrow
        return heap if narrow is None else self._able(job, narrow)

    def take_own(self, job: Waiting) -> Assign | None:
        heap, own = self._heap(job), self._own(job)
        if own and (not heap or own[0][0] <= heap[0][0] + self.offers.policy.own_grades):
            chosen = self._best(job, own)
            if chosen is not None and (not job.numerics or self._same(job, chosen[2])):
                return self._assign(job, chosen, own)
            if chosen is not None:
                heapq.heappush(own, chosen)
        return None

    def _able(self, job: Waiting, narrow: Narrow) -> list[Candidate]:
        """The ranking of those alone that will do, however many stand before them; kept for a tick."""
        if (found := self.able.get(narrow)) is None:
            workers, newest = self.offers.fleet.workers, self.offers.newest
            named: Iterable[WorkerId] = job.only or newest
            if job.own_only:
                named = self.offers.fleet.by_account.get(job.account, {})
            found = [
                newest[worker_id]
                for worker_id in named
                if worker_id in newest and not workers[worker_id].models[job.model].lacks(job.needs)
            ]
            heapq.heapify(found)
            self.able[narrow] = found
        return found

    def _own(self, job: Waiting) -> list[Candidate]:
        """The ranking of the asking member's own workers, the first of whom has room."""
        own, ready = self.offers.own.get(job.account, []), self.offers.ready.get(job.account, {})
        while own:
            stands = ready.get(own[0][2]) is own[0]
            worker = self.offers.fleet.workers[own[0][2]] if stands else None
            if worker is not None and self.room(worker, worker.models[job.model]) > 0:
                break
            heapq.heappop(own)
        return own

    def _same(self, job: Waiting, worker_id: WorkerId) -> bool:
        return self.offers.fleet.workers[worker_id].models[job.model].numerics == job.numerics

    def _best(self, job: Waiting, heap: list[Candidate]) -> Candidate | None:
        """The first of the heap that may have this job, taken out; one of the same numerics class before all
        others.
        """
        passed: list[Candidate] = []
        best: Candidate | None = None
        offers, shared = self.offers, heap is self.offers.heap
        own = offers.ready.get(job.account) if heap is offers.own.get(job.account) else None
        while heap and len(passed) < offers.policy.skips_max:
            candidate = heapq.heappop(heap)
            if shared:
                if offers.newest.get(candidate[2]) is not candidate:
                    continue
                self.left -= 1
            elif own is not None and own.get(candidate[2]) is not candidate:
                continue
            worker = offers.fleet.workers[candidate[2]]
            served = worker.models[job.model]
            if worker.id in self.taken and self.room(worker, served) <= 0:
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
        self.left += len(passed) if shared else 0
        return best

    def _assign(self, job: Waiting, chosen: Candidate, heap: list[Candidate]) -> Assign:
        offers = self.offers
        worker = offers.fleet.workers[chosen[2]]
        served = worker.models[job.model]
        expected_s = seconds(worker, served, offers.policy)
        taken = self.taken[worker.id] = self.taken.get(worker.id, 0) + 1
        others = self.left
        if self.room(worker, served) > 0:
            loaded_s = expected_s * (1 + taken / max(1, worker.slots))
            loaded = graded(loaded_s), worker.busy_since, worker.id
            if heap is offers.heap:
                self.left += 1
            elif heap is not offers.own.get(job.account):
                heapq.heappush(heap, loaded)
            offers.offer(worker, served, loaded)
        own = "its member's own, " if worker.account == job.account else ""
        same = ", same numerics" if job.numerics and served.numerics == job.numerics else ""
        state = f"{served.engine} {served.state}, about {expected_s:.1f} s"
        room = "1 other" if others == 1 else f"{others} others"
        return Assign(job.id, worker.id, f"{own}{state}, {room} with room{same}")


@dataclass(slots=True)
class Planner:
    """What is kept of a fleet between ticks: its offers, brought up to date by its news."""

    fleet: Fleet
    policy: Policy
    offers: dict[Want, Offers] = field(default_factory=dict)

    def catch_up(self) -> None:
        """Look again at whoever changed."""
        if not self.offers:  # whoever is there is looked at when the first are made
            self.fleet.news.clear()
            return
        for model, workers in self.fleet.news.items():
            for kind in Kind:
                if (offers := self.offers.get((kind, model))) is not None:
                    offers.look(workers)
                    if model not in self.fleet.by_model:
                        del self.offers[kind, model]
        self.fleet.news.clear()

    def plan(
        self,
        line: Line,
        running: Mapping[MemberId, int],
        now: float,
        waiting: Callable[[JobId], Waiting],
    ) -> list[Assign]:
        """Assignments for this tick. Workers' rooms are respected across models.

        What is given away leaves the line, and its flow's turn moves on. `running`: jobs of each member.
        """
        line.tidy()
        self.catch_up()
        taken: dict[WorkerId, int] = {}
        trains: dict[WorkerId, int] = {}
        turns, shares = dict(running), line.shares()
        rankings: dict[Want, _Ranking] = {}
        orders: dict[Want, Order] = {}
        for want in sorted(line.wants):
            if want[1] in self.fleet.by_model and (offers := self._offers(want)).newest:
                by = trains if want[0] is Kind.FINETUNE else taken
                rankings[want] = _Ranking(offers, by, left=len(offers.newest))
                room = Room(offers.slots, list(offers.used))
                orders[want] = Order(line, want, room, shares, turns, now)
        decisions = _deal(line, rankings, orders, self.policy.assignments_max, waiting)
        for worker_id in taken | trains:
            self.fleet.changed(self.fleet.workers[worker_id])
        return decisions

    def offered(self, want: Want) -> Offers | None:
        """What the fleet has for it now; None: nobody serves it."""
        self.catch_up()
        return self._offers(want) if want[1] in self.fleet.by_model else None

    def _offers(self, want: Want) -> Offers:
        if (offers := self.offers.get(want)) is None:
            offers = self.offers[want] = Offers(*want, self.fleet, self.policy)
            offers.look(self.fleet.by_model[want[1]])
        return offers


def plan(
    line: Line,
    fleet: Fleet,
    running: Mapping[MemberId, int],
    policy: Policy,
    now: float,
    waiting: Callable[[JobId], Waiting],
) -> list[Assign]:
    """As `Planner.plan`, by one that has seen nothing before."""
    return Planner(fleet, policy).plan(line, running, now, waiting)


def _deal(
    line: Line,
    rankings: Mapping[Want, _Ranking],
    orders: Mapping[Want, Order],
    most: int,
    waiting: Callable[[JobId], Waiting],
) -> list[Assign]:
    """Give the next job to the best worker for it, until jobs or workers run out, or `most` are given."""
    decisions = _own_first(line, rankings, orders, most, waiting)
    passed: dict[Want, list[Asked]] = {want: [] for want in orders}
    heads = [head for want, order in orders.items() if (head := _head(want, order)) is not None]
    heapq.heapify(heads)
    while heads and len(decisions) < most:
        want, (asked, in_turn) = heads[0][4:]
        order, ranking = orders[want], rankings[want]
        if (decision := ranking.take(waiting(asked.id))) is not None:
            decisions.append(decision)
            models = ranking.offers.fleet.workers[decision.worker].models
            order.gave(asked, models, in_turn=in_turn)
        else:
            passed[want].append(asked)
            line.skip(asked)
        more = ranking.left and len(passed[want]) < ranking.offers.policy.passed_max
        if more and (head := _head(want, order)) is not None:
            heapq.heapreplace(heads, head)
        else:
            heapq.heappop(heads)
    for jobs in passed.values():
        line.restore(jobs)
    return decisions


def _own_first(
    line: Line,
    rankings: Mapping[Want, _Ranking],
    orders: Mapping[Want, Order],
    most: int,
    waiting: Callable[[JobId], Waiting],
) -> list[Assign]:
    """A worker's owner goes before all others on it, whoever's turn it is, and uses up no turn elsewhere."""
    decisions: list[Assign] = []
    owners: set[AccountId] = set()
    for ranking in rankings.values():
        if not ranking.offers.policy.own_first:
            continue
        owners |= ranking.offers.ready.keys() & line.by_account.keys()
    for account in sorted(owners):
        full: set[Want] = set()
        mine = [
            line.jobs[job]
            for want, jobs in line.by_account[account].items()
            if want in rankings and account in rankings[want].offers.ready
            for job in jobs
        ]
        for asked in heapq.nsmallest(most, mine, key=lambda asked: (asked.class_, asked.since, asked.id)):
            if asked.want in full:
                continue
            if len(decisions) >= most:
                return decisions
            ranking = rankings[asked.want]
            if (decision := ranking.take_own(waiting(asked.id))) is None:
                if not ranking.offers.own.get(account):
                    full.add(asked.want)  # else it is only not for this job
                continue
            decisions.append(decision)
            orders[asked.want].gave_own(asked)
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
        elif worker.account != job.account and not worker.guests.welcome(job.asker):
            reason = f"the owners of the workers that serve {job.model} do not share them with you"
        elif job.kind not in served.kinds:
            what = "fine-tuning" if job.kind is Kind.FINETUNE else job.kind
            reason = f"the workers that serve {job.model} do no {what}"
        elif served.context_tokens and job.context_tokens > served.context_tokens:
            context = served.context_tokens
            reason = f"the job needs a context of {job.context_tokens} tokens, the workers have {context}"
        elif job.needs and (lacking := served.lacks(job.needs)):
            reason = f"the workers that serve {job.model} have no {in_words(lacking)}"
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
