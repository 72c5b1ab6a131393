"""Where a job stands in line, when it will start by all that is known, and why it waits, in words."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from coordinator.core.fairness import Shares
from coordinator.core.fleet import Fleet, Served, Worker
from coordinator.core.jobs import AccountId, JobId, Kind, MemberId
from coordinator.core.line import Line
from coordinator.core.offers import Policy, seconds, slots_of, used_of
from coordinator.core.schedule import Waiting, allowed
from coordinator.core.turns import Asked, Group

MICRO = 1_000_000  # microcredits in a credit
SHOWN = MICRO // 20  # less is as good as nothing


@dataclass(frozen=True, slots=True)
class Place:
    """`place` of `of` jobs that wait for the same kind and model; 1 is the next. None: not to be known."""

    place: int
    of: int
    expected_start_s: float | None
    why: str


def place_of(
    line: Line, fleet: Fleet, running: Mapping[MemberId, int], policy: Policy, waiting: Waiting
) -> Place:
    """Of a job that is in the line, by the order in which jobs are given away. Moves nothing.

    Reserved room and long waits may let others pass; the seconds are a guess from what workers measured.
    """
    asked = line.jobs[waiting.id]
    groups, shares = line.wants[asked.want], line.shares()
    group = groups[asked.flow, asked.class_]
    own, start = _own_before(line, group, asked, running, shares.of(asked.flow))
    others = sum(_ahead(line, other, asked, start, shares) for other in groups.values())
    place, of = own + others + 1, sum(other.count for other in groups.values())
    serving = [
        (worker, served)
        for worker_id in sorted(fleet.by_model.get(asked.want[1], ()))
        if (served := (worker := fleet.workers[worker_id]).takes(*asked.want)) is not None
    ]
    if not serving:
        return Place(place, of, None, absence(fleet, asked.want[1]))
    refusals = [allowed(waiting, worker, served) for worker, served in serving]
    if all(refusals):
        why = max(sorted(set(refusals)), key=refusals.count)
        return Place(place, of, None, f"no worker that is here may take it: {why}")
    may = [pair for pair, refusal in zip(serving, refusals, strict=True) if not refusal]
    kind = asked.want[0]
    slots = sum(slots_of(worker, served, kind) for worker, served in may)
    start_s = _start_s(place, may, policy, kind)
    if place == 1:
        taken = f"all {slots} slots that could serve it are taken" if slots > 1 else "the only slot is taken"
        return Place(place, of, start_s, f"it is the next: {taken}" if start_s else "it is the next")
    return Place(place, of, start_s, _why(line, asked, waiting.account, own, others))


def absence(fleet: Fleet, model: str) -> str:
    """Why nobody takes a job for this model now, by what its workers say."""
    there = [
        worker for name in sorted(fleet.by_model.get(model, ())) if (worker := fleet.workers[name]).connected
    ]
    if not there:
        return f"no worker that serves {model} is connected"
    states = Counter(_unwilling(worker, model) for worker in there)
    free = states.pop("", 0)
    said = [f"{count} {state}" for state, count in sorted(states.items())]
    if free:
        said.append(f"{free} without room for it")
    return f"no worker is free for {model}: of {len(there)} connected, {', '.join(said)}"


def _unwilling(worker: Worker, model: str) -> str:
    if worker.draining:
        return "about to stop"
    if worker.suspect:
        return "silent"
    if worker.state != "sharing":
        return f"{worker.state} by the owner"
    return "failed to load it" if worker.models[model].state == "failed" else ""


def _own_before(
    line: Line, group: Group, asked: Asked, running: Mapping[MemberId, int], weight: float
) -> tuple[int, float]:
    """How many jobs of its own flow go before it, and the tag at which it starts."""
    start = line.clock.lane((asked.want[1], asked.class_)).start(asked.flow, line.rule)
    turns: list[tuple[int, int, float, JobId]] = []
    for member, jobs in group.members.items():
        mine = sorted({entry for entry in jobs if entry[1] in line.jobs})
        first, last = running.get(member, 0), group.last.get(member, 0)
        turns += [(first + n, last, since, job) for n, (since, job) in enumerate(mine)]
    turns.sort()
    order = [turn[-1] for turn in turns]
    before = order.index(asked.id)
    return before, start + sum(line.jobs[job].cost for job in order[:before]) / weight


def _ahead(line: Line, group: Group, asked: Asked, start: float, shares: Shares) -> int:
    """How many jobs of another group go before one that starts at this tag."""
    if group.flow == asked.flow and group.class_ is asked.class_:
        return 0
    if group.class_ is not asked.class_:
        return group.count if group.class_ < asked.class_ else 0
    tag = line.clock.lane((group.want[1], group.class_)).start(group.flow, line.rule)
    weight, ahead = shares.of(group.flow), 0
    for since, job in sorted({e for jobs in group.members.values() for e in jobs if e[1] in line.jobs}):
        if (tag, since, job) >= (start, asked.since, asked.id):
            break
        ahead += 1
        tag += line.jobs[job].cost / weight
    return ahead


def _start_s(place: int, may: list[tuple[Worker, Served]], policy: Policy, kind: Kind) -> float:
    """Seconds until so many jobs were taken, if each takes as long as a typical one."""
    free, rate = 0, 0.0
    for worker, served in may:
        slots = slots_of(worker, served, kind)
        free += max(0, slots - used_of(worker, kind))
        rate += slots / seconds(worker, served, policy)
    return round(max(0, place - free) / rate, 1)


def _why(line: Line, asked: Asked, account: AccountId, own: int, others: int) -> str:
    count = own + others
    said = "1 job is ahead" if count == 1 else f"{count} jobs are ahead"
    if own:
        said += f", {own} of them your own" if others else ", your own"
    if asked.class_ and others:
        said += "; interactive jobs go first"
    return f"{said}: {_standing(line, asked, account)}" if others else said


def _standing(line: Line, asked: Asked, account: AccountId) -> str:
    net = line.given.of_flow(asked.flow)
    who = "you"
    if asked.flow != account:
        proven = _credits(line.given.proven)
        who = (
            f"you stand in the line of the member who lent you your credit line until you gave {proven} more"
            " than you took; together you"
        )
    if net <= -SHOWN:
        return f"{who} took {_credits(-net)} more than you gave recently; contributors go first"
    if net >= SHOWN:
        return f"{who} gave {_credits(net)} more than you took recently; others gave more, or asked before"
    return f"{who} gave as much as you took recently; contributors go first, a part is kept for everybody"


def _credits(micro: float) -> str:
    return f"{micro / MICRO:,.1f} credits"
