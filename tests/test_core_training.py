"""Parts of fine-tunes in the core: who gets one, what counts as a sign of life, what it is charged."""

import json

import pytest
from fixtures_core import SHAPE, Pool, assigned, cancelled, demand, job_of, served

from coordinator.core.jobs import AttemptState, Job, JobId, JobState, Kind, WorkerId, part_id
from coordinator.core.ledger import Code
from coordinator.core.pricing import Demand, Training, microcredits
from potluck.pricing import training_units

WHOLE = JobId("job_w")
LONGEST = 64
BOUND = Training("sft", 1_000, 500, 20_000, 100, 3_000)
TRAINING = Demand(Kind.FINETUNE, SHAPE, (LONGEST,), training=BOUND)
DONE = Training("", 0, 400, 15_000, 90, 2_500)  # what a worker says: its counts, and nothing about the price
HOLD = job_of(TRAINING).hold


def open_whole(pool: Pool, parts: int = 3, name: str = WHOLE) -> None:
    hold = parts * HOLD
    pool.engine.open_whole(job_of(TRAINING, name, stored=True, quote=hold, hold=hold))


def ask_part(pool: Pool, number: int = 1, whole: str = WHOLE) -> Job:
    name = part_id(JobId(whole), number)
    return pool.ask(name, wanted=TRAINING, whole=JobId(whole), part=number, stored=True)


def running(*workers: str) -> tuple[Pool, JobId]:
    """A pool in which the first worker has a part of a fine-tune."""
    pool = Pool()
    for name in workers or ("w1",):
        pool.join(name, "b")
    open_whole(pool)
    part = ask_part(pool)
    assert assigned(pool.tick())[0][0] == part.id
    return pool, part.id


def step(pool: Pool, part: JobId, sequence: int, worker: str = "w1", number: int = 1) -> bool:
    return pool.engine.steps(WorkerId(worker), part, number, sequence, pool.now)


def finish(pool: Pool, part: JobId, done: Training = DONE, worker: str = "w1", number: int = 1) -> bool:
    return pool.engine.trained(WorkerId(worker), part, number, done, pool.now)


def settlements(pool: Pool) -> list[str]:
    return [e.id for e in pool.engine.book.entries.values() if e.code is Code.SETTLE]


def cost(done: Training) -> int:
    priced = Training(
        BOUND.method, BOUND.adapter_parameters, done.tokens, done.square_tokens, done.valid_tokens,
        done.valid_square_tokens,
    )  # fmt: skip
    return microcredits(training_units(SHAPE, priced))


def test_a_part_is_charged_for_what_its_worker_counted() -> None:
    pool, part = running()
    assert step(pool, part, 1)
    assert finish(pool, part)
    closed = pool.closed(part)
    assert (closed.state, closed.charge, closed.output_tokens) == (JobState.SUCCEEDED, cost(DONE), 400)
    assert [(a.state, a.tokens) for a in closed.attempts] == [(AttemptState.SUCCEEDED, 400)]
    assert settlements(pool) == ["job_w/settle/1"]
    fee = cost(DONE) * 20 // 1_000
    assert (pool.main("b"), pool.main("commons")) == (cost(DONE) - fee, fee)
    assert pool.engine.wholes[WHOLE].left == 3 * HOLD - cost(DONE)
    assert pool.engine.book.total() == 0


def test_its_details_say_what_the_charge_is_made_of() -> None:
    pool, part = running()
    finish(pool, part)
    (entry,) = (e for e in pool.engine.book.entries.values() if e.code is Code.SETTLE)
    said = json.loads(entry.details)
    assert (said["kind"], said["finisher"], said["segments"]) == ("finetune", 1, [[1, 0, 0, 400]])
    assert said["training"] == {
        "method": "sft", "adapter_parameters": 1_000, "tokens": 400, "square_tokens": 15_000,
        "valid_tokens": 90, "valid_square_tokens": 2_500,
    }  # fmt: skip


def test_details_of_other_work_speak_of_no_training() -> None:
    pool = Pool()
    pool.join("w1")
    pool.ask()
    pool.tick()
    pool.write("one two three four five ", finish="length")
    (close,) = (e for e in pool.tick().entries if e.code is Code.CLOSE)
    assert "training" not in json.loads(close.details)


def test_a_claim_of_more_than_was_quoted_is_paid_as_quoted() -> None:
    """Each count is clamped by itself, so that none makes up for another."""
    pool, part = running()
    much = 10**15
    assert finish(pool, part, Training("dpo", much, much, much, much, much))
    assert pool.closed(part).charge == HOLD == cost(BOUND)
    assert pool.closed(part).output_tokens == BOUND.tokens


def test_no_sequence_is_paid_as_longer_than_the_longest() -> None:
    """10 tokens have a square sum of 640 at most where sequences have 64 tokens at most."""
    pool, part = running()
    finish(pool, part, Training("", 0, 10, 20_000, 1, 3_000))
    assert pool.closed(part).charge == cost(Training("", 0, 10, 640, 1, 64))


def test_an_evaluation_trains_nothing_and_is_paid() -> None:
    pool, part = running()
    assert finish(pool, part, Training("", 0, 0, 0, 90, 2_500))
    closed = pool.closed(part)
    assert (closed.charge, closed.output_tokens) == (cost(Training("", 0, 0, 0, 90, 2_500)), 0)
    assert closed.attempts[-1].paid > 0


def test_steps_are_taken_once_and_in_order() -> None:
    pool, part = running()
    assert [step(pool, part, n) for n in (1, 2, 2, 1, 3)] == [True, True, False, False, True]
    assert not step(pool, part, 5), "a gap"
    assert cancelled(pool.tick()) == [(part, "w1", 1)]
    assert pool.engine.fleet.workers[WorkerId("w1")].faults == 1


def test_what_a_fenced_attempt_says_changes_nothing() -> None:
    pool, part = running("w1", "w2")
    step(pool, part, 1)
    pool.engine.disconnect(WorkerId("w1"), pool.now)
    assert assigned(pool.spend(5.0, "w2")) == [(part, "w2", 2)]
    assert not step(pool, part, 2)
    assert not finish(pool, part)
    assert not settlements(pool)
    assert step(pool, part, 1, "w2", 2), "another begins anew"
    assert finish(pool, part, DONE, "w2", 2)
    closed = pool.closed(part)
    assert [(a.state, a.tokens, a.paid > 0) for a in closed.attempts] == [
        (AttemptState.LOST, 0, False),
        (AttemptState.SUCCEEDED, 400, True),
    ]
    assert closed.charge == cost(DONE)


def test_another_worker_begins_with_nothing_delivered() -> None:
    """There is no prefix of a training: what was not uploaded does not exist."""
    pool, part = running("w1", "w2")
    step(pool, part, 1)
    pool.engine.failed(WorkerId("w1"), part, 1, "worker", "engine_died", "it died", pool.now)
    pool.tick()
    live = pool.live(part)
    assert (live.output.begun, live.output.tokens, live.output.sequence) == (False, 0, 0)
    assert live.prompt is None


def test_a_cancelled_part_costs_nothing_however_far_it_was() -> None:
    pool, part = running()
    step(pool, part, 1)
    pool.engine.cancel(part, pool.now, "paused")
    assert pool.closed(part).charge == 0
    assert not settlements(pool)
    assert pool.engine.wholes[WHOLE].left == 3 * HOLD
    assert cancelled(pool.tick()) == [(part, "w1", 1)]


def test_a_loss_that_is_no_number_is_believed_of_two_workers() -> None:
    """One worker's word for it is not enough: its own machine may be the reason."""
    pool, part = running("w1", "w2")
    why = "the loss of step 3 is not finite"
    pool.engine.failed(WorkerId("w1"), part, 1, "job", "loss_not_finite", why, pool.now)
    assert assigned(pool.tick()) == [(part, "w2", 2)]
    pool.engine.failed(WorkerId("w2"), part, 2, "job", "loss_not_finite", why, pool.now)
    closed = pool.closed(part)
    assert (closed.state, closed.code, closed.why) == (JobState.FAILED, "loss_not_finite", why)
    assert closed.charge == 0


@pytest.mark.parametrize("kind", [Kind.CHAT, Kind.EMBEDDING])
def test_whoever_trains_what_is_no_training_misbehaves(kind: Kind) -> None:
    for said in (0, 1):
        pool = Pool()
        pool.join("w1", "b")
        pool.join("w2", "a")
        pool.ask(wanted=demand(kind), only=frozenset({WorkerId("w1")}))
        pool.tick()
        job = JobId("job_1")
        assert not (finish(pool, job) if said else step(pool, job, 1))
        assert f"for a job of kind {kind}" in pool.closed().attempts[0].why
        assert pool.engine.fleet.workers[WorkerId("w1")].faults == 1


def test_whoever_answers_a_training_with_text_or_vectors_misbehaves() -> None:
    pool, part = running("w1", "w2")
    assert not pool.write("one ", part, worker="w1")
    assert pool.live(part).job.attempts[0].why == "text for a fine-tune"
    pool.tick()
    assert not pool.engine.completed(WorkerId("w2"), part, 2, vectors=1, now=pool.now)
    assert pool.closed(part).attempts[1].why == "vectors for a fine-tune"


def test_a_slow_step_is_no_stall_but_silence_without_end_is() -> None:
    pool, part = running("w1", "w2")
    step(pool, part, 1)
    pool.spend(1_700, "w1", "w2", step_s=3.0)
    assert step(pool, part, 2)
    pool.spend(1_790, "w1", "w2", step_s=3.0)
    assert pool.attempt(part).number == 1
    pool.spend(20, "w1", "w2", step_s=3.0)
    assert pool.live(part).job.attempts[0].why == "no progress for 1800 s"
    assert pool.attempt(part).worker == "w2"


def test_what_is_uploaded_after_the_last_step_is_progress() -> None:
    """An adapter over a slow line: signs of life count there, too, though not for ever."""
    pool, part = running("w1", "w2")
    step(pool, part, 1)
    for _ in range(14):
        pool.spend(1_500, "w1", "w2", step_s=3.0)
        assert pool.engine.progress(WorkerId("w1"), part, 1, "uploading", pool.now)
    assert pool.attempt(part).number == 1
    pool.spend(900, "w1", "w2", step_s=3.0)
    pool.engine.progress(WorkerId("w1"), part, 1, "uploading", pool.now)  # six hours after the last step
    pool.spend(1_000, "w1", "w2", step_s=3.0)
    assert pool.attempt(part).number == 2


def test_a_chat_that_stands_still_is_still_taken_away_after_minutes() -> None:
    pool = Pool()
    pool.join("w1")
    pool.ask()
    pool.tick()
    pool.write("one ")
    pool.spend(301, "w1")
    assert pool.closed().attempts[0].why == "no progress for 300 s"


def test_a_worker_trains_one_thing_at_a_time_whatever_its_slots() -> None:
    pool = Pool()
    pool.join("w1", "b", served(slots=4), served("other", slots=4), slots=8)
    open_whole(pool)
    ask_part(pool, 1)
    ask_part(pool, 2)
    pool.engine.open_whole(job_of(TRAINING, "job_o", stored=True, model="other"))
    pool.ask("job_o.1", wanted=TRAINING, whole=JobId("job_o"), part=1, stored=True, model="other")
    first = assigned(pool.tick())
    assert len(first) == 1, "also within one tick, and over all of its models"
    assert not assigned(pool.tick(1.0))
    finish(pool, JobId(first[0][0]))
    assert len(assigned(pool.tick())) == 1


def test_as_many_parts_train_at_once_as_there_are_workers() -> None:
    pool = Pool()
    for name in ("w1", "w2"):
        pool.join(name, "b")
    open_whole(pool)
    for number in (1, 2, 3):
        ask_part(pool, number)
    assert {worker for _, worker, _ in assigned(pool.tick())} == {"w1", "w2"}


def test_training_takes_no_slot_from_those_who_wait_for_answers() -> None:
    """A worker with one slot answers beside a training, and trains beside an answer."""
    pool, part = running()
    pool.ask("job_1")
    assert assigned(pool.tick()) == [("job_1", "w1", 1)]
    pool.ask("job_2")
    assert not assigned(pool.tick()), "the one slot is taken now"
    finish(pool, part)
    ask_part(pool, 2)
    assert assigned(pool.tick()) == [("job_w.2", "w1", 1)]
    busy = pool.engine.fleet.workers[WorkerId("w1")]
    assert sorted(busy.running) == [("job_1", 1), ("job_w.2", 1)]


def test_who_trains_is_asked_after_those_who_are_idle() -> None:
    pool, _ = running("w1", "w2")
    pool.ask("job_1")
    pool.ask("job_2")
    assert [worker for _, worker, _ in assigned(pool.tick())] == ["w2", "w1"]


def test_a_worker_that_does_not_train_is_not_asked() -> None:
    pool = Pool()
    pool.join("w1", "b", served(kinds=frozenset({Kind.CHAT})))
    pool.join("w2", "b", served(kinds=frozenset({Kind.FINETUNE})))
    open_whole(pool)
    ask_part(pool)
    assert assigned(pool.tick()) == [("job_w.1", "w2", 1)]


def test_a_part_that_a_restart_cut_off_holds_nothing() -> None:
    before, part = running()
    after = Pool()
    after.engine.book.accounts = before.engine.book.accounts
    after.engine.restore_whole(before.engine.wholes[WHOLE].job)
    after.engine.abandon(before.live(part).job, after.now)
    (closed,) = after.tick().closed
    assert (closed.id, closed.code, closed.charge) == (part, "coordinator_restarted", 0)
    assert after.engine.wholes[WHOLE].left == 3 * HOLD
    assert not after.engine.book.entries


def test_own_workers_train_for_nothing() -> None:
    pool = Pool()
    pool.join("w1", "a")
    open_whole(pool)
    part = ask_part(pool)
    pool.tick()
    assert finish(pool, part.id)
    assert pool.closed(part.id).charge == 0
    assert not settlements(pool)


def test_the_bound_of_these_tests_can_be_reached() -> None:
    assert BOUND.square_tokens <= BOUND.tokens * LONGEST
    assert BOUND.valid_square_tokens <= BOUND.valid_tokens * LONGEST
