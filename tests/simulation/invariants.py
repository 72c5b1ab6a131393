"""What must hold of the simulated pool, by name. ARCHITECTURE.md says each in a sentence, under the same name.

Safety is checked after every step, liveness at the end, both with knowledge that the pool itself does not have:
`truth`, what the workers really produced, and `expected`, the one right text of every job.
"""

from enum import StrEnum
from typing import TYPE_CHECKING

from coordinator.core.admission import RETRY_S_MAX, RETRY_S_MIN, Crowded
from coordinator.core.jobs import (
    ATTEMPT_ENDED,
    REFUSALS_KEPT,
    AttemptState,
    Job,
    JobState,
    Kind,
    part_id,
)
from coordinator.core.offers import Offers, used_of
from coordinator.core.pricing import Segment, charge_units, microcredits
from simulation.world import TARIFF

if TYPE_CHECKING:
    from simulation.world import World


class Invariant(StrEnum):
    ZERO_SUM = "zero sum"
    FLOOR = "floor"
    HOLDS = "holds mirrored"
    HOLD_FIRST = "hold first"
    CLOSED_ONCE = "closed once"
    WITHIN_HOLD = "within the hold"
    ONE_CHARGE = "one charge"
    WORK_DONE = "work done"
    FREE_FAILURE = "free failure"
    ONE_HOLDER = "one holder"
    FENCE = "fence"
    ROOM = "room"
    ONE_TEXT = "one text"
    PROMISES = "promises"
    PARTS_FIRST = "parts first"
    EXAMPLES_ONCE = "examples once"
    BOUNDED = "bounded"
    AS_FOUND = "as found"
    LET_IN = "let in"
    ALL_END = "all end"


class BrokenError(AssertionError):
    """An invariant does not hold."""

    def __init__(self, invariant: Invariant, what: str) -> None:
        super().__init__(f"{invariant}: {what}")
        self.invariant = invariant


def must(holds: bool, invariant: Invariant, what: str) -> None:
    if not holds:
        raise BrokenError(invariant, what)


def check_safety(world: "World") -> None:
    check_money(world)
    check_holds(world)
    for job in world.engine.recent.values():
        check_closed(world, job)
    check_live(world)
    check_fleet(world)
    check_kept(world)


def check_money(world: "World") -> None:
    book = world.engine.book
    must(book.total() == 0, Invariant.ZERO_SUM, "in memory")
    by_disk = sum(p.amount for e in world.disk_entries.values() for p in e.postings)
    must(by_disk == 0, Invariant.ZERO_SUM, "on disk, after every commit")
    for account in book.accounts.values():
        must(account.main >= -account.credit_line, Invariant.FLOOR, account.id)


def check_holds(world: "World") -> None:
    engine = world.engine
    for account in engine.book.accounts.values():
        mine = [v.job for v in engine.lives.values() if v.job.account == account.id and not v.job.whole]
        wholes = [w.job for w in engine.wholes.values() if w.job.account == account.id]
        open_holds = sum(job.hold - job.settled for job in (*mine, *wholes))
        must(account.reserved == open_holds, Invariant.HOLDS, f"{account.id} has {account.reserved} reserved")
    for whole in engine.wholes.values():
        open_parts = {v.job.id: v.job.hold for v in engine.lives.values() if v.job.whole == whole.job.id}
        must(whole.parts == open_parts, Invariant.PROMISES, "a promise for each open part")
        must(whole.left >= 0, Invariant.PROMISES, "what is settled and promised is never more than the hold")


def check_live(world: "World") -> None:
    for live in world.engine.lives.values():
        numbers = [a.number for a in live.job.attempts]
        must(
            numbers == sorted(set(numbers)), Invariant.FENCE, "a number is given once, and later ones higher"
        )
        refused = sum(a.state is AttemptState.REFUSED for a in live.job.attempts)
        must(refused <= REFUSALS_KEPT + 1, Invariant.BOUNDED, "what a job keeps of refusals")
        text = world.client[live.job.id]
        must(expected(live.job).startswith(text), Invariant.ONE_TEXT, "what was delivered is a prefix of it")
        recorded = sum(c.length for c in live.output.choices)
        must(recorded == len(text), Invariant.ONE_TEXT, "the record is what the member saw")


def check_fleet(world: "World") -> None:
    holding = {
        (v.job.id, v.job.attempt.number): v.job.attempt.worker
        for v in world.engine.lives.values()
        if v.job.state is JobState.RUNNING and v.job.attempt is not None
    }
    for worker in world.engine.fleet.workers.values():
        mine = {f for f, w in holding.items() if w == worker.id}
        must(worker.running == mine, Invariant.ONE_HOLDER, f"{worker.id} runs {worker.running}")
        training = sum(world.demands[job].training is not None for job, _ in worker.running)
        must(training <= 1, Invariant.ROOM, "no worker trains two things at once")
        must(len(worker.running) - training <= worker.slots, Invariant.ROOM, "nor has more than its slots")


def check_crowded(world: "World", job: Job, crowded: Crowded) -> None:
    """Who is refused could not have begun at once, and is told when to come back."""
    fleet = world.engine.fleet
    taking = [w for w in fleet.workers.values() if w.takes(job.kind, job.model) is not None]
    free = sum(w.slots - used_of(w, job.kind) for w in taking)
    waiting = sum(asked.want == (job.kind, job.model) for asked in world.engine.line.jobs.values())
    must(free <= waiting, Invariant.LET_IN, f"{job.id} is refused, and {free} slots are free for {waiting}")
    must(RETRY_S_MIN <= crowded.retry_after_s <= RETRY_S_MAX, Invariant.LET_IN, "it is told when")


def check_sent(world: "World", job: Job) -> None:
    """Of a job that is about to leave for a worker."""
    held = f"{job.whole or job.id}/hold"
    must(not job.hold or held in world.disk_entries, Invariant.HOLD_FIRST, f"{job.id} left without a hold")


def check_kept(world: "World") -> None:
    """What the planner keeps between ticks is what it would find by looking at everything anew."""
    engine = world.engine
    planner, line = engine.planner, engine.line
    planner.catch_up()
    for want, kept in planner.offers.items():
        anew = Offers(*want, engine.fleet, planner.policy)
        anew.look(engine.fleet.by_model[want[1]])
        same = (kept.newest, kept.ready) == (anew.newest, anew.ready)
        must(same, Invariant.AS_FOUND, "who has room, and how good it is")
        must(
            (kept.slots, kept.used) == (anew.slots, anew.used), Invariant.AS_FOUND, "slots in all, and taken"
        )
    for want, turns in line.turns.items():
        must(turns.groups is line.wants[want], Invariant.AS_FOUND, "the turns are those of who waits")
        for key, group in turns.groups.items():
            head = line.head(group, engine.running)
            if turns.anew or key in turns.changed or head is None:
                continue
            start = line.clock.lane((want[1], group.class_)).start(group.flow, line.rule)
            turn, due = group.entry, (start, head.since, head.id, group.flow)
            waits = turn is not None and turn in turns.fair[group.class_]
            must(waits, Invariant.AS_FOUND, "whoever waits has a turn")
            must(turn is not None and turn <= due, Invariant.AS_FOUND, "and no later than is due")


def check_closed(world: "World", job: Job) -> None:
    must(job.ended and job.charge is not None, Invariant.CLOSED_ONCE, f"{job.id} is over")
    assert job.charge is not None  # so that types know
    paid = f"{job.whole}/settle/{job.part}" if job.whole else f"{job.id}/close"
    close = world.engine.book.entries.get(paid)
    if job.whole:
        own = f"{job.id}/close" in world.engine.book.entries
        must(not own, Invariant.CLOSED_ONCE, "a part has no hold of its own")
        must((close is not None) == (job.charge > 0), Invariant.CLOSED_ONCE, "a part is settled once")
    else:
        must(close is not None, Invariant.CLOSED_ONCE, "every ended job is closed")
    if job.id in world.plans:
        return check_whole(world, job, len(world.plans[job.id]))
    if job.id in world.tunes:
        return check_tune(world, job)
    must(0 <= job.charge <= job.hold, Invariant.WITHIN_HOLD, f"{job.id} costs {job.charge} of {job.hold}")
    done = job.attempt is None or job.attempt.state in ATTEMPT_ENDED
    must(done, Invariant.CLOSED_ONCE, "no attempt outlives its job")
    if job.kind is Kind.FINETUNE:
        return check_trained(world, job)
    return check_answer(world, job)


def check_answer(world: "World", job: Job) -> None:
    for attempt in job.attempts:
        done = world.truth.get((job.id, attempt.number, attempt.worker), 0)
        must(attempt.tokens <= done, Invariant.WORK_DONE, "nobody is credited with work that was not done")
        must(not attempt.paid or bool(attempt.tokens), Invariant.WORK_DONE, "nobody is paid for nothing")
    if job.state in (JobState.FAILED, JobState.EXPIRED):
        must(job.charge == 0, Invariant.FREE_FAILURE, "a failure of the pool costs the member nothing")
    if job.state is not JobState.SUCCEEDED:
        return
    must(world.client[job.id] == expected(job), Invariant.ONE_TEXT, "the answer is whole and right")
    must(job.output_tokens == job.max_tokens, Invariant.ONE_CHARGE, "all of it is counted")
    if not any(a.owner == job.account for a in job.attempts):
        demand = world.demands[job.id]
        whole = charge_units(demand, TARIFF, [Segment(1, 0, 0, job.max_tokens)], finisher=1)
        as_one = microcredits(whole[1])
        must(job.charge == as_one, Invariant.ONE_CHARGE, "charged as if one worker had done it all")


def check_trained(world: "World", part: Job) -> None:
    """Who is paid for a part did all of it, and whoever claims more is paid no more."""
    for attempt in part.attempts:
        done = world.tuned.get((part.id, attempt.number, attempt.worker))
        must(
            not attempt.paid or done is not None, Invariant.WORK_DONE, "a training that did not end is unpaid"
        )
        must(attempt.tokens <= (done or 0), Invariant.WORK_DONE, "as are tokens that were not trained")
    if part.state is not JobState.SUCCEEDED:
        free = part.charge == part.output_tokens == 0
        must(free, Invariant.FREE_FAILURE, "what came to no checkpoint costs nothing")


def check_tune(world: "World", whole: Job) -> None:
    tune = world.tunes[whole.id]
    check_whole(world, whole, max((order.part for order in tune.orders.values()), default=0))
    must(tune.trained_once(), Invariant.EXAMPLES_ONCE, "nothing is trained and paid twice, whatever was lost")


def check_whole(world: "World", whole: Job, count: int) -> None:
    parts = [world.part_now(part_id(whole.id, n)) for n in range(1, count + 1)]
    made = [part for part in parts if part is not None]
    must(all(part.ended for part in made), Invariant.PARTS_FIRST, "a whole ends after its parts")
    cost = sum(part.charge or 0 for part in made)
    must(whole.charge == whole.settled == cost, Invariant.PARTS_FIRST, "and costs what they did")
    if whole.state is JobState.SUCCEEDED and whole.kind is Kind.BATCH:
        must(len(made) == len(parts), Invariant.PARTS_FIRST, "and succeeds with all of them")


def check_liveness(world: "World") -> None:
    """Once faults have stopped."""
    must(not world.engine.lives, Invariant.ALL_END, f"open: {sorted(world.engine.lives)}")
    must(not world.engine.wholes, Invariant.ALL_END, f"open: {sorted(world.engine.wholes)}")
    must(all(job.ended for job in world.disk_jobs.values()), Invariant.ALL_END, "on disk, too")
    for account in world.engine.book.accounts.values():
        must(
            account.reserved == 0,
            Invariant.HOLDS,
            f"{account.id} has {account.reserved} reserved for nothing",
        )
    for job in world.disk_jobs.values():
        if not job.whole:
            must(f"{job.id}/close" in world.disk_entries, Invariant.CLOSED_ONCE, f"{job.id} on disk")
        elif job.charge:
            settled = f"{job.whole}/settle/{job.part}" in world.disk_entries
            must(settled, Invariant.CLOSED_ONCE, f"{job.id} was paid on disk")


def word(job: str, index: int) -> str:
    """The one right token of a job at an index; lengths differ so that a wrong offset shows."""
    return f"{job[-2:]}{'é' * (index % 3)}{index} "


def expected(job: Job) -> str:
    return "".join(word(job.id, i) for i in range(job.max_tokens))
