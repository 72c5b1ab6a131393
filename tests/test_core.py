"""The engine by example: each rule of a job's life at the instant at which it holds."""

import math
from dataclasses import replace
from typing import Any

import pytest
from fixtures_core import (
    MODEL,
    Pool,
    account,
    acknowledged,
    assigned,
    cancelled,
    cold,
    demand,
    job_of,
    served,
    words,
)

from coordinator.core import ledger
from coordinator.core.engine import CLOSED, SILENT, UNREAD, Impossible
from coordinator.core.fleet import Guests, Patience
from coordinator.core.jobs import Attempt, AttemptState, JobId, JobState, Kind, Loading, MemberId, WorkerId
from coordinator.core.messages import Effects, SendCancel
from coordinator.core.output import TEXT_PER_TOKEN_MAX, Piece
from coordinator.core.pricing import output_units, payments, prompt_units, quote
from coordinator.core.rules import Rules

QUOTE = 502  # of `demand()`, by hand in test_pricing


@pytest.fixture
def pool() -> Pool:
    """One worker w1 of member b."""
    made = Pool()
    made.join("w1")
    return made


@pytest.fixture
def pair() -> Pool:
    """Workers w1 of b and w2 of c."""
    made = Pool()
    made.join("w1", "b")
    made.join("w2", "c")
    return made


def states(job: Any) -> list[tuple[str, str, int]]:
    return [(a.worker, a.state.value, a.tokens) for a in job.attempts]


# -- submit


def test_a_job_is_held_and_assigned_in_one_commit(pool: Pool) -> None:
    pool.ask()
    effects = pool.tick()
    assert [e.id for e in effects.entries] == ["job_1/hold"]
    assert effects.accounts == {account("a")}
    assert effects.jobs[JobId("job_1")].state is JobState.RUNNING
    assert effects.jobs[JobId("job_1")].started_at == pool.now
    assert assigned(effects) == [("job_1", "w1", 1)]
    assert effects.durable
    assert effects
    assert pool.main("a") == -QUOTE
    pool.check()


def test_nothing_happened_means_no_effects(pool: Pool) -> None:
    effects = pool.tick()
    assert not effects
    assert not effects.durable
    assert not pool.engine.busy()


def test_effects_without_a_commit_are_effects(pool: Pool) -> None:
    effects = Effects(sends=[SendCancel(WorkerId("w1"), JobId("x"), 1, "")])
    assert effects
    assert not effects.durable


def test_who_cannot_pay_the_quote_is_refused_and_nothing_changes(pool: Pool) -> None:
    pool.engine.book.accounts[account("a")].credit_line = QUOTE - 1
    with pytest.raises(ledger.Overdrawn) as poor:
        pool.ask()
    assert (poor.value.needed, poor.value.available) == (QUOTE, QUOTE - 1)
    assert not pool.tick()
    assert not pool.engine.lives
    pool.engine.book.accounts[account("a")].credit_line = QUOTE
    pool.ask()


def test_holds_add_up_so_that_nothing_is_spent_twice(pool: Pool) -> None:
    pool.engine.book.accounts[account("a")].credit_line = 2 * QUOTE
    pool.ask("job_1")
    pool.ask("job_2")
    with pytest.raises(ledger.Overdrawn):
        pool.ask("job_3")


def test_what_no_worker_could_ever_do_is_refused_at_once(pool: Pool) -> None:
    with pytest.raises(Impossible, match="no worker of this pool serves other"):
        pool.ask(model="other")
    pool.join("w2", "c", memory_bytes=8 * 10**9)
    with pytest.raises(Impossible, match="huge needs 40"):
        pool.ask(model="huge", memory_bytes=40 * 10**9)
    assert not pool.engine.lives
    assert not pool.engine.book.entries


def test_an_id_is_used_once(pool: Pool) -> None:
    pool.ask()
    with pytest.raises(AssertionError, match="ids are random"):
        pool.ask()


def test_members_take_turns_with_what_runs() -> None:
    pool = Pool()
    pool.join("w1", "e", slots=2)
    pool.ask("a1", "a")
    pool.ask("a2", "a")
    pool.ask("b1", "b")
    assert assigned(pool.tick()) == [("a1", "w1", 1), ("b1", "w1", 1)]
    assert pool.engine.running == {"a": 1, "b": 1}


# -- answers and money


def test_an_answer_pays_the_worker_and_the_commons_and_returns_the_rest(pool: Pool) -> None:
    """3 tokens of at most 5: 401.25 + 60.303 MFLOP are 462; a fee of 2 % is 9."""
    pool.ask()
    pool.tick()
    assert pool.write("one two ")[0].text == "one two "
    pool.write("three ", finish="stop")
    effects = pool.tick()
    job = pool.closed()
    assert (job.state, job.charge, job.output_tokens) == (JobState.SUCCEEDED, 462, 3)
    assert states(job) == [("w1", "succeeded", 3)]
    assert job.attempts[0].paid == 453
    assert [e.id for e in effects.entries] == ["job_1/close"]
    assert effects.closed == [job]
    assert [pool.main(m) for m in ("a", "b", "commons")] == [-462, 453, 9]
    assert pool.engine.fleet.workers[WorkerId("w1")].successes == 1
    assert pool.engine.running == {}
    pool.check()


def test_own_jobs_on_own_workers_are_free(pool: Pool) -> None:
    pool.ask(member="b")
    pool.tick()
    pool.write("one two ", finish="stop")
    assert pool.closed().charge == 0
    assert (pool.main("b"), pool.main("commons")) == (0, 0)


def test_the_poor_are_served_by_their_own_workers(pool: Pool) -> None:
    """A job without a hold goes to its member's workers only and leaves no entry."""
    pool.engine.book.accounts[account("c")].credit_line = 0
    with pytest.raises(Impossible, match="you have no worker of your own"):
        pool.ask(member="c", hold=0, own_only=True)
    pool.join("w2", "c")
    pool.ask(member="c", hold=0, own_only=True)
    assert assigned(pool.tick()) == [("job_1", "w2", 1)]
    pool.write("one ", finish="stop")
    assert (pool.closed().state, pool.closed().charge) == (JobState.SUCCEEDED, 0)
    assert not pool.engine.book.entries


def test_an_answer_without_tokens_costs_its_prompt(pool: Pool) -> None:
    pool.ask()
    pool.tick()
    pool.write("", finish="stop")
    assert (pool.closed().charge, pool.closed().output_tokens) == (402, 0)


def test_all_choices_must_end(pool: Pool) -> None:
    pool.ask(wanted=demand(choices=2))
    pool.tick()
    pool.write("one ", finish="stop")
    assert pool.live().job.state is JobState.RUNNING
    pool.write("two three ", choice=1, finish="length")
    assert (pool.closed().state, pool.closed().output_tokens) == (JobState.SUCCEEDED, 3)


def test_an_embedding_is_paid_when_its_vectors_are_there(pool: Pool) -> None:
    wanted = demand(Kind.EMBEDDING, prompts=(100, 50))
    pool.ask(wanted=wanted)
    pool.tick()
    assert pool.engine.completed(WorkerId("w1"), JobId("job_1"), 1, vectors=2, now=pool.now)
    assert (pool.closed().state, pool.closed().charge) == (JobState.SUCCEEDED, 2_407)
    assert not pool.engine.completed(WorkerId("w1"), JobId("job_1"), 1, vectors=2, now=pool.now), "stale now"
    pool.check()


@pytest.mark.parametrize("vectors", [0, 1, 3])
def test_a_wrong_number_of_vectors_is_misbehaviour(pair: Pool, vectors: int) -> None:
    pair.ask(wanted=demand(Kind.EMBEDDING, prompts=(100, 50)))
    pair.tick()
    assert not pair.engine.completed(WorkerId("w1"), JobId("job_1"), 1, vectors=vectors, now=pair.now)
    assert f"{vectors} vectors for 2 inputs" in pair.live().job.attempts[0].why
    assert pair.engine.fleet.workers[WorkerId("w1")].faults == 1


def test_text_does_not_end_by_saying_so_and_an_embedding_has_no_text(pair: Pool) -> None:
    pair.ask("text")
    pair.ask("vectors", wanted=demand(Kind.EMBEDDING))
    pair.tick()
    assert not pair.engine.completed(pair.attempt("text").worker, JobId("text"), 1, vectors=1, now=pair.now)
    assert "before every choice had ended" in pair.live("text").job.attempts[0].why
    assert pair.write("hello ", "vectors", choice=0) == ()
    assert "text for an embedding" in pair.live("vectors").job.attempts[0].why


# -- frames


def test_frames_seen_twice_reach_the_member_once(pool: Pool) -> None:
    pool.ask()
    pool.tick()
    assert pool.write("one ")
    assert pool.write("one ", sequence=1, offset=0) == ()
    assert pool.live().output.choices[0].length == 4
    assert pool.engine.fleet.workers[WorkerId("w1")].faults == 0


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"sequence": 2}, "frame 2 after frame 0"),
        ({"offset": 1}, "text at 1 where 0 is next"),
        ({"ids": tuple(range(6))}, "more than 5 tokens"),
        ({"text": "x" * (5 * TEXT_PER_TOKEN_MAX + 1)}, "more text than 5 tokens"),
    ],
)
def test_a_worker_that_breaks_the_protocol_is_blamed_and_replaced(
    pair: Pool, fields: dict[str, Any], why: str
) -> None:
    pair.ask()
    pair.tick()
    assert pair.write(fields.pop("text", "one "), **fields) == ()
    effects = pair.tick()
    assert cancelled(effects) == [("job_1", "w1", 1)]
    assert assigned(effects) == [("job_1", "w2", 2)], "not the same again"
    assert pair.live().job.attempts[0].state is AttemptState.FAILED
    assert why in pair.live().job.attempts[0].why
    assert pair.engine.fleet.workers[WorkerId("w1")].faults == 1


def test_anothers_attempt_is_nobodys_to_speak_for(pair: Pool) -> None:
    """A wrong worker, a wrong number, a job that is none: nothing changes, nobody is blamed."""
    pair.ask()
    pair.tick()
    before = replace(pair.live().job)
    for name, number in (("w2", 1), ("w1", 0), ("w1", 2)):
        assert pair.write("lie ", worker=name, number=number) == ()
        fence = (WorkerId(name), JobId("job_1"), number)
        pair.engine.accepted(*fence, pair.now)
        pair.engine.refused(*fence, "worker", "busy", "no", pair.now)
        pair.engine.failed(*fence, "worker", "engine_died", "no", pair.now)
        pair.engine.misbehaved(*fence, "no", pair.now)
        pair.engine.progress(*fence, "loading", pair.now)
        pair.engine.unsent(*fence, pair.now)
        assert not pair.engine.completed(*fence, vectors=1, now=pair.now)
    pair.engine.unsent(WorkerId("w1"), JobId("none"), 1, pair.now)
    assert pair.live().job == before
    assert not pair.live().output.begun
    assert not pair.tick()


def test_a_frame_of_a_fenced_attempt_changes_nothing(pair: Pool) -> None:
    pair.ask()
    pair.tick()
    pair.write("one ")
    pair.engine.disconnect(WorkerId("w1"), pair.now)
    assert assigned(pair.spend(0.5, "w2")) == [("job_1", "w2", 2)]
    assert pair.write("two ", worker="w1", number=1, sequence=2) == ()
    assert pair.live().output.choices[0].length == 4


def test_acknowledgements_follow_what_was_taken(pool: Pool) -> None:
    pool.ask()
    pool.tick()
    pool.write("one ")
    pool.write("two ")
    assert acknowledged(pool.tick(0.25)) == [("job_1", "w1", 1, 2)]
    assert acknowledged(pool.tick(0.25)) == [], "each once"


def test_the_first_prompt_that_was_rendered_is_kept(pair: Pool) -> None:
    """Templates may hold a date: later attempts go on from the ids of the first."""
    pair.ask()
    pair.tick()
    piece = pair.write("one ")[0]
    engine, now = pair.engine, pair.now
    engine.frame(WorkerId("w1"), JobId("job_1"), 1, 2, [piece._replace(offset=4)], (7, 8), now)
    engine.frame(WorkerId("w1"), JobId("job_1"), 1, 3, [piece._replace(offset=8)], (9,), now)
    assert pair.live().prompt == (7, 8)


def test_a_repeated_acceptance_is_no_error(pool: Pool) -> None:
    pool.ask()
    pool.tick()
    for _ in range(2):
        pool.engine.accepted(WorkerId("w1"), JobId("job_1"), 1, pool.now)
    assert pool.attempt().state is AttemptState.RUNNING


# -- failover


def test_another_goes_on_and_each_is_paid_for_its_own_tokens(pair: Pool) -> None:
    pair.ask()
    pair.tick()
    pair.write("one two ")
    pair.engine.disconnect(WorkerId("w1"), pair.now)
    effects = pair.spend(0.5, "w2")
    assert assigned(effects) == [("job_1", "w2", 2)]
    assert pair.attempt().worker == "w2"
    assert pair.live().output.sequence == 0
    pair.write("three four five ", finish="length")
    job, wanted, tariff = pair.closed(), demand(), Rules().tariff
    assert states(job) == [("w1", "lost", 2), ("w2", "succeeded", 3)]
    assert job.charge == QUOTE, "one charge, as if one worker had done it all"
    prompt = prompt_units(wanted, tariff)
    units = {
        1: output_units(wanted, 0, 2) + prompt * 2 // 5,
        2: output_units(wanted, 2, 3) + prompt - prompt * 2 // 5,
    }
    due = payments(units, job.attempts, account("a"), tariff)
    assert [a.paid for a in job.attempts] == [p.amount - p.fee for p in due]
    assert (pair.main("b"), pair.main("c")) == (due[0].amount - due[0].fee, due[1].amount - due[1].fee)
    pair.check()


def test_a_closed_stream_is_waited_for_half_a_second(pair: Pool) -> None:
    pair.ask()
    pair.tick()
    pair.engine.disconnect(WorkerId("w1"), pair.now)
    pair.spend(0.25, "w2")
    assert pair.attempt().number == 1
    pair.spend(0.25, "w2")
    assert pair.attempt().number == 2


@pytest.mark.parametrize("sweep_s", [Rules().sweep_s, 1_000_000.0], ids=["sweep", "no sweep"])
@pytest.mark.parametrize("closed", [True, False], ids=["closed", "silent"])
def test_it_is_told_whether_a_worker_fell_silent_or_its_connection_closed(
    sweep_s: float, *, closed: bool
) -> None:
    pool = Pool(Rules(sweep_s=sweep_s if closed else Rules().sweep_s))
    pool.join("w1", "b")
    pool.ask()
    pool.tick()
    pool.join("w2", "c")
    if closed:
        pool.engine.disconnect(WorkerId("w1"), pool.now)
    pool.spend(Patience().lease_s + 1.0, "w2")
    first = pool.live().job.attempts[0]
    assert (first.state, first.why) == (AttemptState.LOST, CLOSED if closed else SILENT)


def test_the_end_of_a_closed_streams_grace_needs_no_sweep() -> None:
    """The engine says when it is due, and at that instant another worker goes on."""
    pool = Pool(Rules(sweep_s=1_000_000.0))
    pool.join("w1", "b")
    pool.join("w2", "c")
    pool.ask()
    pool.tick()
    assert pool.engine.due() == math.inf
    pool.engine.disconnect(WorkerId("w1"), pool.now)
    assert pool.engine.due() == pool.now + 0.5
    assert assigned(pool.tick(0.499)) == []
    pool.now = pool.engine.due()
    effects = pool.tick()
    assert cancelled(effects) == [("job_1", "w1", 1)]
    assert assigned(effects) == [("job_1", "w2", 2)]
    assert pool.engine.due() == math.inf
    pool.engine.fleet.blame_missing(pool.engine.fleet.workers[WorkerId("w1")], pool.now + 5.0)
    assert pool.engine.fleet.workers[WorkerId("w1")].faults == 1, "blamed from when it closed"


def test_a_grace_that_ends_under_the_brake_is_left_to_the_sweep() -> None:
    """Four of ten streams close one after the other: nothing is taken away, and nothing is due at once."""
    pool = Pool()
    names = [f"w{i}" for i in range(10)]
    for name in names:
        pool.join(name)
    for i in range(10):
        pool.ask(f"job_{i}")
    pool.tick()
    for name in names[:4]:
        pool.engine.disconnect(WorkerId(name), pool.now)
        pool.spend(0.1, *names[4:], step_s=0.1)
    for _ in range(4):
        pool.now = pool.engine.due()
        assert cancelled(pool.tick()) == []
    assert pool.engine.due() == math.inf
    assert len(cancelled(pool.spend(16.0, *names[4:]))) == 4
    pool.check()


def test_a_stream_that_closes_twice_is_not_waited_for_twice(pair: Pool) -> None:
    pair.ask()
    pair.tick()
    pair.engine.disconnect(WorkerId("w1"), pair.now)
    pair.spend(0.25, "w2")
    pair.engine.disconnect(WorkerId("w1"), pair.now)
    pair.engine.disconnect(WorkerId("unknown"), pair.now)
    pair.spend(0.25, "w2")
    assert pair.attempt().number == 2


def test_who_is_back_in_time_goes_on_from_the_last_frame_taken(pair: Pool) -> None:
    pair.ask()
    pair.tick()
    pair.write("one ")
    pair.write("two ")
    pair.engine.disconnect(WorkerId("w1"), pair.now)
    pair.spend(0.25, "w2")
    assert pair.connect("w1", running=[("job_1", 1)]) == [(("job_1", 1), 2)]
    pair.spend(3.0, "w1", "w2")
    pair.write("three ", finish="stop")
    assert states(pair.closed()) == [("w1", "succeeded", 3)]
    assert pair.engine.fleet.workers[WorkerId("w1")].faults == 0


def test_who_is_back_without_its_attempt_has_lost_it(pair: Pool) -> None:
    pair.ask()
    pair.tick()
    assert pair.connect("w1", running=[("job_1", 2), ("other", 1)]) == []
    effects = pair.tick()
    assert pair.live().job.attempts[0].state is AttemptState.LOST
    assert "came back without it" in pair.live().job.attempts[0].why
    assert assigned(effects) == [("job_1", "w2", 2)], "equals take turns: w1 had it before"


def test_an_attempt_of_a_fenced_number_is_not_resumed(pair: Pool) -> None:
    pair.ask()
    pair.tick()
    pair.engine.disconnect(WorkerId("w1"), pair.now)
    pair.spend(1.0, "w2")
    assert pair.connect("w1", running=[("job_1", 1)]) == []
    assert pair.attempt().worker == "w2"


def test_who_beats_and_says_nothing_of_what_it_was_sent_is_passed_over(pair: Pool) -> None:
    """It does not read its stream: after a lease another one has the job, though the deaf one is there and free.
    The first time it may be the line's fault; the second one is the worker's."""
    pair.ask()
    pair.tick()
    deaf = pair.engine.fleet.workers[pair.attempt().worker]
    other = "w2" if deaf.id == "w1" else "w1"

    def deaf_for_a_lease() -> None:
        for _ in range(17):
            pair.beat(deaf.name)
            pair.spend(0.25, other)

    deaf_for_a_lease()
    first, second = pair.live().job.attempts
    assert (first.state, first.why, second.worker) == (AttemptState.LOST, UNREAD, other)
    assert (deaf.faults, deaf.connected) == (0, True)
    pair.ask("job_2")
    pair.tick()
    assert pair.attempt("job_2").worker == deaf.id
    deaf_for_a_lease()
    assert deaf.faults == 1
    assert pair.live("job_2").job.state is JobState.QUEUED, "not at once to the same again, though it is free"


def test_a_silent_worker_is_waited_for_four_seconds_and_gets_nothing_until_heard(pair: Pool) -> None:
    pair.ask()
    pair.tick()
    pair.spend(3.75, "w2")
    assert pair.attempt().number == 1
    effects = pair.spend(0.25, "w2")
    assert cancelled(effects) == [("job_1", "w1", 1)]
    assert assigned(effects) == [("job_1", "w2", 2)], "w1 is still connected, and free, but silent"
    pair.ask("job_2")
    assert assigned(pair.spend(2.0, "w2")) == []
    assert assigned(pair.spend(0.25, "w1", "w2")) == [("job_2", "w1", 1)]


def test_a_beat_that_names_the_attempt_keeps_it(pair: Pool) -> None:
    pair.ask()
    pair.tick()
    pair.spend(20.0, "w1", "w2")
    assert pair.attempt().number == 1


def test_an_assignment_that_got_lost_is_made_again_though_the_worker_beats(pool: Pool) -> None:
    pool.ask()
    pool.tick()
    for _ in range(20):
        pool.beat("w1")
        pool.spend(0.25)
    assert pool.attempt().number == 2
    assert pool.engine.fleet.workers[WorkerId("w1")].faults == 0


def test_who_is_back_within_five_seconds_is_not_blamed(pair: Pool) -> None:
    pair.ask()
    pair.tick()
    pair.spend(4.75, "w2")
    pair.beat("w1")
    pair.spend(20.0, "w1", "w2")
    assert pair.engine.fleet.workers[WorkerId("w1")].faults == 0


def test_who_stays_away_is_blamed_once(pair: Pool) -> None:
    pair.ask()
    pair.tick()
    pair.spend(5.0, "w2")
    assert pair.engine.fleet.workers[WorkerId("w1")].faults == 0
    assert pair.engine.busy()
    pair.spend(30.0, "w2")
    assert pair.engine.fleet.workers[WorkerId("w1")].faults == 1


def test_silence_while_idle_is_not_held_against_a_worker(pair: Pool) -> None:
    """Idle workers beat every 15 s; what counts begins with the assignment."""
    pair.spend(12.0, "w2")
    pair.ask()
    assert assigned(pair.tick()) == [("job_1", "w1", 1)]
    pair.spend(4.25, "w2")
    assert pair.live().job.attempts[0].state is AttemptState.LOST
    pair.spend(0.5, "w1", "w2")
    pair.spend(20.0, "w1", "w2")
    assert pair.engine.fleet.workers[WorkerId("w1")].faults == 0


def test_a_beat_with_an_attempt_that_is_not_the_workers_is_told_to_stop(pair: Pool) -> None:
    pair.ask()
    pair.tick()
    pair.beat("w2", ("job_1", 1), ("gone", 3))
    assert cancelled(pair.tick()) == [("job_1", "w2", 1), ("gone", "w2", 3)]


def test_a_beat_tells_what_is_served_and_whether(pair: Pool) -> None:
    pair.beat("w1", state="paused", why="the owner plays")
    pair.beat("w2", served=[served("other")], draining=True)
    one, two = (pair.engine.fleet.workers[WorkerId(n)] for n in ("w1", "w2"))
    assert (one.state, one.why, list(one.models)) == ("paused", "the owner plays", [MODEL])
    assert (two.draining, list(two.models)) == (True, ["other"])
    pair.beat("w1", state="")
    assert one.state == "sharing"
    pair.connect("w2")
    assert not two.draining


def test_no_progress_for_five_minutes_is_a_fault(pair: Pool) -> None:
    pair.ask()
    pair.tick()
    pair.write("one ")
    pair.spend(299.75, "w1", "w2")
    assert pair.attempt().number == 1
    pair.spend(0.25, "w1", "w2")
    assert pair.attempt().worker == "w2"
    assert "no progress for 300 s" in pair.live().job.attempts[0].why
    assert pair.engine.fleet.workers[WorkerId("w1")].faults == 1


def test_the_brake_holds_when_many_fall_silent_and_lets_go() -> None:
    """Twelve workers, five silent at once: the coordinator suspects itself for 15 s, then acts."""
    pool = Pool()
    names = [f"w{i:02}" for i in range(12)]
    for name in names:
        pool.join(name)
    for i in range(12):
        pool.ask(f"job_{i:02}")
    pool.tick()
    effects = pool.spend(18.75, *names[5:])
    assert not [s for s in effects.sends if isinstance(s, SendCancel)]
    effects = pool.spend(0.25, *names[5:])
    assert len(cancelled(effects)) == 5
    pool.check()


def test_who_comes_back_under_the_brake_has_lost_nothing() -> None:
    pool = Pool()
    names = [f"w{i:02}" for i in range(12)]
    for name in names:
        pool.join(name)
    for i in range(12):
        pool.ask(f"job_{i:02}")
    pool.tick()
    pool.spend(10.0, *names[5:])
    effects = pool.spend(30.0, *names)
    assert not [s for s in effects.sends if isinstance(s, SendCancel)]
    assert all(w.faults == 0 for w in pool.engine.fleet.workers.values())


def test_the_brake_forgets_when_all_are_back() -> None:
    pool = Pool()
    names = [f"w{i:02}" for i in range(12)]
    for name in names:
        pool.join(name)
    for i in range(12):
        pool.ask(f"job_{i:02}")
    pool.tick()
    pool.spend(10.0, *names[5:])
    assert pool.engine.fleet.braking_since is not None
    pool.spend(0.5, *names)
    assert pool.engine.fleet.braking_since is None


def test_few_workers_have_no_brake(pair: Pool) -> None:
    pair.ask("job_1")
    pair.ask("job_2")
    pair.tick()
    assert len(cancelled(pair.spend(4.0))) == 2


# -- refusals and failures


def test_a_busy_worker_is_asked_again_after_a_pause(pool: Pool) -> None:
    pool.ask()
    pool.tick()
    pool.engine.refused(WorkerId("w1"), JobId("job_1"), 1, "none", "busy", "no free slot", pool.now)
    assert assigned(pool.spend(0.75, "w1")) == []
    assert pool.live().job.attempts[0].state is AttemptState.REFUSED
    assert assigned(pool.spend(0.25, "w1")) == [("job_1", "w1", 2)]
    assert pool.engine.fleet.workers[WorkerId("w1")].faults == 0


def test_who_failed_a_job_is_not_asked_again(pair: Pool) -> None:
    pair.ask()
    pair.tick()
    pair.engine.failed(
        WorkerId("w1"), JobId("job_1"), 1, "worker", "engine_died", "the engine died", pair.now
    )
    assert assigned(pair.tick()) == [("job_1", "w2", 2)]
    assert pair.engine.fleet.workers[WorkerId("w1")].faults == 1
    pair.engine.failed(
        WorkerId("w2"), JobId("job_1"), 2, "worker", "engine_died", "the engine died", pair.now
    )
    job = pair.closed()
    assert (job.state, job.code, job.charge) == (JobState.FAILED, "engine_died", 0)
    assert job.why == "the engine died; no worker that serves tiny is left to try"
    assert pair.main("a") == 0
    pair.check()


def test_a_failure_after_output_is_free_for_the_member(pair: Pool) -> None:
    pair.ask()
    pair.tick()
    pair.write("one two ")
    for number, name in enumerate(("w1", "w2"), 1):
        pair.engine.failed(WorkerId(name), JobId("job_1"), number, "worker", "engine_died", "died", pair.now)
        pair.tick()
    assert (pair.closed().state, pair.closed().charge, pair.closed().output_tokens) == (JobState.FAILED, 0, 2)
    assert [pair.main(m) for m in ("a", "b", "c", "commons")] == [0, 0, 0, 0]


def test_a_fault_of_the_job_needs_two_workers_to_be_believed(pair: Pool) -> None:
    pair.join("w3", "d")
    pair.ask()
    pair.tick()
    pair.engine.failed(WorkerId("w1"), JobId("job_1"), 1, "job", "bad_template", "no template", pair.now)
    assert assigned(pair.tick()) == [("job_1", "w2", 2)]
    pair.engine.refused(WorkerId("w2"), JobId("job_1"), 2, "job", "bad_template", "no template", pair.now)
    assert (pair.closed().state, pair.closed().code) == (JobState.FAILED, "bad_template")
    assert pair.closed().why == "no template"
    assert all(w.faults == 0 for w in pair.engine.fleet.workers.values()), "nobody is blamed for it"


def test_a_fault_of_the_job_is_believed_if_nobody_else_could_say(pool: Pool) -> None:
    pool.ask()
    pool.tick()
    pool.engine.failed(WorkerId("w1"), JobId("job_1"), 1, "job", "bad_template", "no template", pool.now)
    assert pool.closed().state is JobState.FAILED


def test_a_refusal_after_the_acceptance_is_a_failure(pool: Pool) -> None:
    pool.ask()
    pool.tick()
    pool.engine.accepted(WorkerId("w1"), JobId("job_1"), 1, pool.now)
    pool.engine.refused(WorkerId("w1"), JobId("job_1"), 1, "none", "busy", "changed its mind", pool.now)
    assert pool.live().job.attempts[0].state is AttemptState.FAILED


def refuse(pool: Pool, fault: str = "none", name: str = "job_1") -> None:
    """The holder will not take it."""
    attempt = pool.attempt(name)
    pool.engine.refused(attempt.worker, JobId(name), attempt.number, fault, "busy", "no free slot", pool.now)


def test_attempts_that_fail_are_limited() -> None:
    """By others' death or a worker's fault, at whichever worker; what is given back does not count."""
    pool = Pool(Rules(attempts_max=3))
    for name in ("w1", "w2", "w3", "w4"):
        pool.join(name)
    pool.ask()
    pool.tick()
    refuse(pool)
    pool.tick()
    refuse(pool, "worker")
    pool.tick()
    pool.engine.remove(pool.attempt().worker, pool.now)
    pool.tick()
    holder = pool.attempt().worker
    pool.engine.failed(holder, JobId("job_1"), 4, "none", "yielded", "its owner plays", pool.now)
    pool.spend(1.0, "w1", "w2", "w4")
    holder = pool.attempt().worker
    pool.engine.failed(holder, JobId("job_1"), 5, "worker", "engine_died", "it died", pool.now)
    assert (pool.closed().state, pool.closed().why) == (JobState.FAILED, "3 attempts failed: it died")
    assert len(pool.closed().attempts) == 5


def test_no_number_of_pauses_ends_a_job_and_everybody_is_paid_for_what_they_did(pair: Pool) -> None:
    """Two owners take their machines back in turns, twenty times, each after one token."""
    pair.ask(wanted=demand(tokens=21), stored=True)
    for number in range(1, 21):
        pair.spend(0.25, "w1", "w2")
        holder = pair.attempt().worker
        assert pair.attempt().number == number
        assert pair.write(f"{number} ")
        pair.engine.heartbeat(
            holder,
            served=(),
            attempts=(),
            draining=False,
            state="paused",
            why="its owner plays",
            now=pair.now,
        )
        pair.engine.failed(holder, JobId("job_1"), number, "none", "yielded", "its owner plays", pair.now)
        other = WorkerId("w2" if holder == "w1" else "w1")
        assert assigned(pair.tick()) == [("job_1", other, number + 1)], "at once, and to who is there"
        pair.beat(holder)
        pair.spend(60.0, "w1", "w2", step_s=0.5)
    pair.write("21 ", finish="stop")
    job = pair.closed()
    assert (job.state, job.output_tokens, len(job.attempts)) == (JobState.SUCCEEDED, 21, 21)
    assert all(attempt.tokens == 1 and attempt.paid > 0 for attempt in job.attempts)
    assert job.charge == quote(demand(tokens=21), pair.rules.tariff)
    assert sum(attempt.paid for attempt in job.attempts) + pair.main("commons") == job.charge
    assert all(worker.faults == 0 for worker in pair.engine.fleet.workers.values())
    pair.check()


def test_a_full_worker_turns_to_its_owners_queue_first(pool: Pool) -> None:
    """Whoever has waited for longer, and whatever class: the owner's own jobs go first on the own worker."""
    pool.ask("job_a1")
    pool.tick()
    pool.ask("job_a2")
    pool.ask("job_c1", "c")
    pool.ask("job_b1", "b", stored=True)
    pool.ask("job_b2", "b")
    pool.spend(20.0, "w1")
    order, name = [], "job_a1"  # what runs is not interrupted
    for _ in range(4):
        pool.write("one ", name, finish="stop")
        [(name, _, _)] = assigned(pool.tick())
        order.append(name)
    assert order[:2] == ["job_b2", "job_b1"], "its owner's, interactive before stored"
    assert sorted(order[2:]) == ["job_a2", "job_c1"]


def test_own_jobs_on_the_own_worker_use_up_no_turn_elsewhere(pair: Pool) -> None:
    """b's ten own jobs on w1 leave b's place in the line for w2 as it was, also while they run."""
    for number in range(10):
        pair.ask(f"job_own{number}", "b")
        pair.tick()
        tags = [tag for lane in pair.engine.line.clock.lanes.values() for tag in lane.tags.values()]
        assert not any(tags)
        pair.write("one ", f"job_own{number}", finish="stop")


def test_a_job_waits_for_the_worker_that_welcomes_its_member_though_another_is_free(pair: Pool) -> None:
    pair.engine.names[MemberId("a")] = "ann"
    pair.beat("w1", guests=Guests(refused=frozenset({"ann"})))
    pair.ask("job_1")
    assert assigned(pair.tick()) == [("job_1", "w2", 1)]
    pair.ask("job_2")
    assert assigned(pair.tick()) == []
    pair.write("one ", "job_1", finish="stop")
    assert assigned(pair.tick()) == [("job_2", "w2", 1)]


def test_whom_an_owner_does_not_want_is_not_placed_there_and_is_told(pool: Pool) -> None:
    pool.engine.names.update({MemberId(m): name for m, name in (("a", "ann"), ("b", "bob"), ("c", "carl"))})
    pool.beat("w1", guests=Guests(members=frozenset({"carl"})))
    with pytest.raises(Impossible, match="do not share them with you"):
        pool.ask("job_a")
    pool.ask("job_c", "c")
    assert assigned(pool.tick()) == [("job_c", "w1", 1)]
    pool.write("one ", "job_c", finish="stop")
    pool.ask("job_b", "b")
    assert assigned(pool.tick()) == [("job_b", "w1", 1)], "the owner is always welcome"
    pool.write("one ", "job_b", finish="stop")
    pool.beat("w1")
    with pytest.raises(Impossible):
        pool.ask("job_a2")
    pool.beat("w1", guests=Guests())
    pool.ask("job_a3")
    assert assigned(pool.tick()) == [("job_a3", "w1", 1)]


def test_a_paused_worker_gets_nothing_until_it_shares_again(pool: Pool) -> None:
    pool.beat("w1", state="paused", why="outside its owner's hours", next_change=pool.now + 3600)
    pool.ask()
    assert assigned(pool.tick()) == []
    assert pool.live().job.state is JobState.QUEUED, "not impossible: it may be back in time"
    pool.beat("w1")
    assert assigned(pool.tick()) == [("job_1", "w1", 1)]


def test_a_refusal_that_is_nobodys_fault_pauses_twice_as_long_each_time(pool: Pool) -> None:
    """1, 2, 4, ... 60 s between the worker and this job; another job and another worker are not held up."""
    pool.ask(stored=True)
    pool.tick()
    for number, pause_s in enumerate((1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0), 1):
        refuse(pool)
        assert assigned(pool.spend(pause_s - 0.25, "w1")) == []
        assert assigned(pool.spend(0.25, "w1")) == [("job_1", "w1", number + 1)]
    refuse(pool)
    pool.ask("job_2")
    assert assigned(pool.tick()) == [("job_2", "w1", 1)]
    pool.join("w2", "c")
    assert assigned(pool.tick()) == [("job_1", "w2", 10)]
    assert pool.live().failures == 0


def test_an_interactive_job_that_is_only_refused_ends_by_its_own_limit(pair: Pool) -> None:
    """Busy and draining workers end no job, however often they are asked: its minute does."""
    pair.ask()
    began = pair.now
    while pair.engine.lives:
        pair.spend(0.25, "w1", "w2")
        if pair.engine.lives and pair.live().job.state is JobState.RUNNING:
            refuse(pair)
    assert pair.now == began + 60.0
    job = pair.closed()
    assert (job.state, job.code, job.charge) == (JobState.EXPIRED, "no_worker_available", 0)
    assert pair.engine.effects.durable is False
    assert all(w.faults == 0 for w in pair.engine.fleet.workers.values())
    pair.check()


def test_a_stored_job_that_is_refused_for_hours_keeps_little_and_goes_on(pool: Pool) -> None:
    """Numbers grow without gaps and stay the fence; of the refusals the last twelve are kept, and what
    delivered something before is."""
    pool.ask(stored=True)
    pool.tick()
    pool.write("one ")
    pool.engine.failed(WorkerId("w1"), JobId("job_1"), 1, "none", "engine_closed", "it drains", pool.now)
    for number in range(2, 302):
        pool.spend(60.0, "w1", step_s=1.0)
        assert pool.attempt().number == number
        refuse(pool)
    pool.spend(60.0, "w1", step_s=1.0)
    assert [a.number for a in pool.live().job.attempts] == [1, *range(290, 303)]
    assert not pool.write("old ", number=301)
    pool.write("two ", finish="stop")
    job = pool.closed()
    assert (job.state, job.output_tokens, job.attempts[0].tokens) == (JobState.SUCCEEDED, 2, 1)
    assert job.attempts[0].paid > 0
    pool.check()


def test_a_stored_job_is_not_refused_for_ever() -> None:
    pool = Pool(Rules(number_max=5))
    pool.join("w1")
    pool.ask(stored=True)
    pool.tick()
    for _ in range(5):
        refuse(pool)
        pool.spend(60.0, "w1", step_s=1.0)
    assert (pool.closed().state, pool.closed().code) == (JobState.FAILED, "busy")
    assert pool.closed().why == "5 attempts were refused or failed: no free slot"


def test_refusals_before_a_restart_do_not_count_either(pool: Pool) -> None:
    pool.ask(stored=True)
    pool.tick()
    for _ in range(3):
        refuse(pool)
        pool.spend(4.0, "w1")
    again = restarted(pool)
    again.engine.restore(pool.live().job, demand(), count=words, memory_bytes=0, now=again.now)
    assert again.live().failures == 1, "the one that the restart cut off"
    again.connect("w1")
    assert assigned(again.tick()) == [("job_1", "w1", 5)]


def test_pauses_before_a_restart_are_not_held_against_a_stored_job(pool: Pool) -> None:
    pool.ask(stored=True)
    for number in range(1, 4):
        pool.spend(4.0, "w1")
        pool.engine.failed(WorkerId("w1"), JobId("job_1"), number, "none", "yielded", "it plays", pool.now)
    again = restarted(pool)
    again.engine.restore(pool.live().job, demand(), count=words, memory_bytes=0, now=again.now)
    assert again.live().failures == 0


def test_what_could_not_be_sent_is_tried_elsewhere_or_after_a_pause(pool: Pool) -> None:
    pool.ask()
    pool.tick()
    pool.engine.unsent(WorkerId("w1"), JobId("job_1"), 1, pool.now)
    assert assigned(pool.spend(0.75, "w1")) == [], "the same stream would fail again"
    assert pool.live().job.attempts[0].state is AttemptState.LOST
    assert assigned(pool.spend(0.25, "w1")) == [("job_1", "w1", 2)]
    assert pool.engine.fleet.workers[WorkerId("w1")].faults == 0
    pool.join("w2", "c")
    pool.engine.unsent(WorkerId("w1"), JobId("job_1"), 2, pool.now)
    assert assigned(pool.tick()) == [("job_1", "w2", 3)]


def test_a_removed_worker_is_fenced_at_once(pair: Pool) -> None:
    pair.ask()
    pair.tick()
    pair.write("one ")
    pair.engine.remove(WorkerId("w1"), pair.now)
    effects = pair.tick()
    assert cancelled(effects) == [("job_1", "w1", 1)]
    assert assigned(effects) == [("job_1", "w2", 2)]
    assert pair.write("two ", worker="w1", number=1, sequence=2) == ()
    pair.beat("w1", ("job_1", 1))
    pair.engine.disconnect(WorkerId("w1"), pair.now)
    pair.engine.remove(WorkerId("w1"), pair.now)
    assert not pair.tick(), "its last words change nothing"


def test_a_job_whose_only_worker_is_removed_ends_at_once(pool: Pool) -> None:
    pool.ask()
    pool.tick()
    pool.engine.remove(WorkerId("w1"), pool.now)
    job = pool.closed()
    assert (job.state, job.code, job.charge) == (JobState.FAILED, "worker_lost", 0)
    assert pool.main("a") == 0


# -- waiting


def test_a_job_that_waits_longer_than_a_minute_expires_and_costs_nothing(pair: Pool) -> None:
    for name in ("w1", "w2"):
        pair.engine.disconnect(WorkerId(name), pair.now)
    pair.ask()
    pair.spend(59.75)
    assert pair.live().job.state is JobState.QUEUED
    effects = pair.spend(0.25)
    job = pair.closed()
    assert (job.state, job.code, job.charge) == (JobState.EXPIRED, "no_worker_available", 0)
    assert job.why == "no worker that serves tiny is connected; it waited 60 s"
    assert [e.id for e in effects.entries] == ["job_1/close"]
    assert pair.main("a") == 0
    pair.check()


def test_a_broken_answer_waits_a_minute_from_the_break(pair: Pool) -> None:
    pair.ask()
    pair.tick()
    pair.write("one ")
    pair.spend(100.0, "w1", "w2")
    for name in ("w1", "w2"):
        pair.engine.disconnect(WorkerId(name), pair.now)
    pair.spend(60.25)
    assert pair.live().job.state is JobState.QUEUED
    pair.spend(0.25)
    assert (pair.closed().state, pair.closed().charge) == (JobState.EXPIRED, 0)


@pytest.mark.parametrize("stage", ["downloading", "loading"])
def test_a_model_that_still_loads_after_a_minute_is_named(pool: Pool, stage: str) -> None:
    pool.ask()
    pool.tick()
    pool.engine.progress(WorkerId("w1"), JobId("job_1"), 1, stage, pool.now)
    pool.spend(59.75, "w1")
    assert pool.live().job.state is JobState.RUNNING
    effects = pool.spend(0.25, "w1")
    assert cancelled(effects) == [("job_1", "w1", 1)]
    job = pool.closed()
    assert (job.state, job.code, job.why) == (
        JobState.EXPIRED,
        "model_loading",
        f"tiny is still {stage} on a worker",
    )
    assert states(job) == [("w1", "cancelled", 0)]
    assert pool.main("a") == 0


def test_a_job_whose_worker_is_lost_after_long_work_waits_anew(pair: Pool) -> None:
    """A prefill of two minutes, then silence: the next worker is asked, although nothing was delivered yet."""
    pair.ask()
    pair.tick()
    holder = pair.attempt().worker
    pair.engine.accepted(holder, JobId("job_1"), 1, pair.now)
    pair.engine.progress(holder, JobId("job_1"), 1, "prefill", pair.now)
    pair.spend(120.0, "w1", "w2")
    pair.spend(5.0, "w1" if holder == "w2" else "w2")
    assert pair.live().job.state is JobState.RUNNING
    assert pair.attempt().worker != holder


def test_loading_on_one_worker_after_the_other_does_not_wait_twice(pair: Pool) -> None:
    pair.ask()
    pair.tick()
    holder = pair.attempt().worker
    pair.engine.progress(holder, JobId("job_1"), 1, "loading", pair.now)
    pair.spend(50.0, "w1", "w2")
    pair.engine.failed(holder, JobId("job_1"), 1, "worker", "out_of_memory", "no", pair.now)
    pair.tick()
    other = pair.attempt().worker
    assert other != holder
    pair.engine.progress(other, JobId("job_1"), 2, "loading", pair.now)
    pair.spend(10.25, "w1", "w2")
    assert pair.closed().code == "model_loading"


def test_a_job_that_runs_does_not_expire(pool: Pool) -> None:
    pool.ask()
    pool.tick()
    pool.engine.progress(WorkerId("w1"), JobId("job_1"), 1, "loading", pool.now)
    pool.write("one ")
    pool.spend(200.0, "w1")
    assert pool.live().job.state is JobState.RUNNING


def test_a_stored_job_waits_until_its_own_time(pool: Pool) -> None:
    pool.engine.disconnect(WorkerId("w1"), pool.now)
    pool.ask("patient", stored=True)
    pool.ask("dated", stored=True, expires_at=pool.now + 120.0)
    pool.spend(119.75)
    assert not pool.engine.recent
    pool.spend(0.25)
    assert (pool.closed("dated").state, pool.closed("dated").why) == (
        JobState.EXPIRED,
        "no worker that serves tiny is connected; it waited 120 s",
    )
    pool.spend(3_600.0, step_s=60.0)
    assert pool.live("patient").job.state is JobState.QUEUED


# -- cancel


def test_a_cancelled_job_pays_for_what_was_delivered(pool: Pool) -> None:
    """2 tokens: 401.25 + 40.201 MFLOP."""
    pool.ask()
    pool.tick()
    pool.write("one two ")
    assert pool.engine.cancel(JobId("job_1"), pool.now, "the client went away")
    effects = pool.tick()
    job = pool.closed()
    assert cancelled(effects) == [("job_1", "w1", 1)]
    assert (job.state, job.charge, job.why, job.code) == (
        JobState.CANCELLED,
        442,
        "the client went away",
        "cancelled",
    )
    assert states(job) == [("w1", "cancelled", 2)]
    assert pool.main("b") == 442 - 8
    assert not pool.engine.cancel(JobId("job_1"), pool.now, "again")
    pool.check()


def test_a_job_cancelled_before_it_began_is_free(pool: Pool) -> None:
    pool.ask("running")
    pool.ask("queued")
    pool.tick()
    for name in ("running", "queued"):
        assert pool.engine.cancel(JobId(name), pool.now, "")
        assert pool.closed(name).charge == 0
    assert pool.main("a") == 0
    assert assigned(pool.tick()) == []


def test_a_job_that_the_pool_itself_cannot_go_on_with_is_free(pool: Pool) -> None:
    pool.ask()
    pool.tick()
    pool.write("one two ")
    pool.engine.give_up(JobId("job_1"), pool.now, "the disk is full", "storage")
    assert cancelled(pool.tick()) == [("job_1", "w1", 1)]
    job = pool.closed()
    assert (job.state, job.code, job.why, job.charge) == (JobState.FAILED, "storage", "the disk is full", 0)
    assert (pool.main("a"), pool.main("b")) == (0, 0)
    pool.engine.give_up(JobId("job_1"), pool.now, "again", "storage")
    assert not pool.tick()
    pool.check()


def test_a_cancelled_member_has_room_again(pool: Pool) -> None:
    pool.ask("one")
    pool.ask("two")
    pool.tick()
    pool.engine.cancel(JobId("one"), pool.now, "")
    assert assigned(pool.tick()) == [("two", "w1", 1)]


# -- restart


def restarted(pool: Pool) -> Pool:
    """A new coordinator over what a database would hold of the old one."""
    again = Pool(now=pool.now)
    again.engine.book.accounts = pool.engine.book.accounts
    again.engine.book.entries = dict(pool.engine.book.entries)
    again.enrol("w1", "b")
    return again


@pytest.mark.parametrize("began", [False, True])
def test_an_interactive_job_that_a_crash_cut_off_is_returned(pool: Pool, *, began: bool) -> None:
    pool.ask()
    if began:
        pool.tick()
    job = pool.live().job
    again = restarted(pool)
    again.engine.abandon(job, again.now)
    effects = again.tick()
    ended = effects.jobs[JobId("job_1")]
    assert (ended.state, ended.code, ended.charge) == (JobState.FAILED, "coordinator_restarted", 0)
    assert [a.state for a in ended.attempts] == [AttemptState.LOST] * began
    assert [e.id for e in effects.entries] == ["job_1/close"]
    assert again.main("a") == 0
    again.check()


def test_a_free_job_that_a_crash_cut_off_leaves_no_entry(pool: Pool) -> None:
    job = job_of(demand(), hold=0, own_only=True)
    pool.engine.abandon(job, pool.now)
    assert pool.tick().entries == []
    assert pool.closed().state is JobState.FAILED


def test_an_attempt_that_had_ended_before_the_crash_is_left_as_it_was(pair: Pool) -> None:
    pair.ask()
    pair.tick()
    pair.engine.refused(WorkerId("w1"), JobId("job_1"), 1, "none", "busy", "no", pair.now)
    job = pair.live().job
    again = restarted(pair)
    again.engine.abandon(job, again.now)
    assert again.closed().attempts == job.attempts


def test_a_stored_job_goes_on_after_a_restart_with_the_next_number(pool: Pool) -> None:
    pool.ask(stored=True)
    pool.tick()
    pool.write("one ")
    job = pool.live().job
    again = restarted(pool)
    again.engine.restore(job, demand(), count=words, memory_bytes=0, now=again.now)
    again.connect("w1", running=[("job_1", 1)])
    effects = again.tick()
    assert assigned(effects) == [("job_1", "w1", 2)]
    assert effects.entries == [], "its hold stands"
    assert again.write("old ", number=1, sequence=2) == (), "what ran before the crash is fenced"
    again.write("one two ", finish="stop")
    assert states(again.closed()) == [("w1", "lost", 0), ("w1", "succeeded", 2)]
    assert again.closed().charge == 442
    again.check()


def test_a_stored_job_that_waited_waits_on(pool: Pool) -> None:
    pool.ask(stored=True)
    job = pool.live().job
    again = restarted(pool)
    again.engine.restore(job, demand(), count=words, memory_bytes=0, now=again.now)
    again.connect("w1")
    assert assigned(again.tick()) == [("job_1", "w1", 1)]


def test_a_paused_job_stays_paused_over_a_restart(pool: Pool) -> None:
    pool.ask(stored=True)
    paused = replace(pool.live().job, state=JobState.PAUSED)
    again = restarted(pool)
    again.engine.restore(paused, demand(), count=words, memory_bytes=0, now=again.now)
    again.connect("w1")
    assert assigned(again.spend(100.0, "w1")) == []
    again.check()
    assert again.engine.cancel(JobId("job_1"), again.now, "enough")
    assert again.main("a") == 0


# -- memory


def test_closed_jobs_are_remembered_up_to_a_limit() -> None:
    pool = Pool(Rules(recent_max=2))
    pool.join("w1")
    for i in range(4):
        pool.ask(f"job_{i}")
        pool.tick()
        pool.write("one ", f"job_{i}", finish="stop")
    assert list(pool.engine.recent) == ["job_2", "job_3"]
    assert {e.split("/")[0] for e in pool.engine.book.entries} == {"job_2", "job_3"}
    assert pool.engine.book.total() == 0


def test_the_numerics_of_what_was_delivered_are_remembered() -> None:
    pool = Pool()
    pool.join("w1", "b", served(numerics="fp32"))
    pool.ask()
    pool.tick()
    assert pool.live().waiting(pool.now).numerics == "", "nothing was delivered: any class will do"
    pool.write("one ")
    assert pool.live().waiting(pool.now).numerics == "fp32"


def test_the_limits_are_those_of_the_design() -> None:
    rules = Rules()
    assert (rules.wait_s, rules.job_faults_max) == (60.0, 2)
    assert (rules.tariff.prompt_weight_permille, rules.tariff.fee_permille) == (250, 20)
    assert Patience().lease_s == 4.0
    assert Attempt(number=1, worker=WorkerId("w"), owner=account("b"), assigned_at=0.0).paid == 0


# -- counts that are only bounds ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "tokens"), [(0, 100), (1, 1), (99, 99), (100, 100), (101, 100), (10**9, 100)]
)
def test_where_our_count_is_a_bound_the_workers_lowers_it(pool: Pool, said: int, tokens: int) -> None:
    """Never above the bound, never to nothing; the hold stands, the charge follows."""
    job = pool.ask(wanted=replace(demand(tokens=1), exact=False))
    pool.tick()
    piece = Piece(0, 0, "one ", (1,), "stop")
    fence = (WorkerId("w1"), JobId("job_1"), 1)
    assert pool.engine.frame(*fence, 1, [piece], "a prompt", pool.now, prompt_tokens=said)
    closed = pool.closed()
    exact = replace(demand(tokens=1), prompts=(tokens,))
    assert (closed.prompt_tokens, closed.hold) == (tokens, job.hold)
    assert closed.charge == quote(exact, pool.rules.tariff) <= job.hold
    pool.check()


def test_an_exact_count_is_nobodys_to_change(pool: Pool) -> None:
    pool.ask(wanted=demand(tokens=1))
    pool.tick()
    fence = (WorkerId("w1"), JobId("job_1"), 1)
    pool.engine.frame(*fence, 1, [Piece(0, 0, "one ", (1,), "stop")], "a prompt", pool.now, prompt_tokens=1)
    assert pool.closed().prompt_tokens == 100


def test_only_the_first_rendered_prompt_is_counted(pair: Pool) -> None:
    """A later attempt goes on from it; what a stale or wrong frame says of prompts is not heard."""
    pair.ask(wanted=replace(demand(), exact=False))
    pair.tick()
    first = (pair.attempt().worker, JobId("job_1"), 1)
    other = WorkerId("w1" if first[0] == "w2" else "w2")
    piece = Piece(0, 0, "one ", (1,))
    assert not pair.engine.frame(other, JobId("job_1"), 1, 1, [piece], "x", pair.now, prompt_tokens=2)
    assert pair.live().demand.prompts == (100,)
    assert pair.engine.frame(*first, 1, [piece], "x", pair.now, prompt_tokens=50)
    pair.engine.frame(*first, 2, [Piece(0, 99, "y ", (1,))], "x", pair.now, prompt_tokens=3)
    assert pair.live().demand.prompts == (50,)
    pair.tick()
    second = (pair.attempt().worker, JobId("job_1"), 2)
    pair.engine.frame(*second, 1, [piece._replace(offset=4)], "x", pair.now, prompt_tokens=4)
    assert (pair.live().demand.prompts, pair.live().job.prompt_tokens) == ((50,), 50)


def test_counts_of_inputs_are_believed_one_by_one(pool: Pool) -> None:
    wanted = replace(demand(Kind.EMBEDDING, (10, 20)), exact=False)
    for name, said, prompts in (
        ("job_1", (5, 99), (5, 20)),
        ("job_2", (5,), (10, 20)),
        ("job_3", (), (10, 20)),
        ("job_4", (0, 7), (10, 7)),
    ):
        pool.ask(name, wanted=wanted)
        pool.tick()
        fence = (WorkerId("w1"), JobId(name), 1)
        assert pool.engine.completed(*fence, vectors=2, now=pool.now, prompt_tokens=said)
        assert pool.closed(name).prompt_tokens == sum(prompts)
        exact = demand(Kind.EMBEDDING, prompts)
        assert pool.closed(name).charge == quote(exact, pool.rules.tariff)
    pool.check()


# -- signs of life ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stored", "most_s"), [(False, 1_800.0), (True, 21_600.0)])
def test_signs_of_life_without_output_are_heard_for_a_while(pool: Pool, stored: bool, most_s: float) -> None:
    """Then the attempt counts as stalled, however lively its worker."""
    pool.ask(stored=stored)
    pool.tick()
    fence = (WorkerId("w1"), JobId("job_1"), 1)
    begun = pool.now
    while not pool.engine.fleet.workers[WorkerId("w1")].faults:
        pool.beat("w1", ("job_1", 1))
        assert pool.engine.progress(*fence, "prefill", pool.now)
        pool.tick(2.0)
    assert most_s < pool.now - begun <= most_s + pool.patience.stall_s + 4


def test_progress_after_output_is_only_a_sign_of_life(pool: Pool) -> None:
    """A worker cannot make a running answer look as if its model were loading, and expire."""
    pool.ask()
    pool.tick()
    pool.write("one ")
    pool.engine.progress(WorkerId("w1"), JobId("job_1"), 1, "loading", pool.now)
    pool.spend(100.0, "w1")
    assert pool.live().job.state is JobState.RUNNING


def test_reports_say_whether_they_were_news(pool: Pool) -> None:
    pool.ask()
    pool.tick()
    fence = (WorkerId("w1"), JobId("job_1"), 1)
    assert pool.engine.holds(*fence)
    assert not pool.engine.holds(WorkerId("w2"), *fence[1:])
    assert [pool.engine.accepted(*fence, pool.now) for _ in range(2)] == [True, False]
    assert pool.engine.failed(*fence, "worker", "engine_died", "no", pool.now)
    assert not pool.engine.failed(*fence, "worker", "engine_died", "no", pool.now)
    assert not pool.engine.refused(*fence, "none", "busy", "no", pool.now)
    assert not pool.engine.progress(*fence, "loading", pool.now)
    assert not pool.engine.holds(*fence)


def test_the_time_a_model_needs_follows_from_what_came(pool: Pool) -> None:
    """30 of 100 came in a minute from 10 to 40: 60 are left, two minutes. No bytes, no time."""
    pool.ask()
    pool.tick()
    fence = (WorkerId("w1"), JobId("job_1"), 1)
    pool.beat("w1", ("job_1", 1), served=[cold("downloading", bytes_done=10, bytes_total=100)])
    pool.engine.progress(*fence, "downloading", pool.now)
    pool.spend(30.0, "w1")
    pool.beat("w1", ("job_1", 1), served=[cold("downloading", bytes_done=40, bytes_total=100)])
    pool.spend(30.0, "w1")
    loading = pool.closed().loading
    assert loading is not None
    assert (loading.state, loading.bytes_done, loading.bytes_total) == ("downloading", 40, 100)
    assert loading.eta_s == pytest.approx(120.0, rel=0.02)


def test_a_stage_begins_its_own_measure(pool: Pool) -> None:
    """Loading counts other bytes than downloading did; nothing came since, so the time left is not known."""
    pool.ask()
    pool.tick()
    fence = (WorkerId("w1"), JobId("job_1"), 1)
    pool.beat("w1", ("job_1", 1), served=[cold("downloading", bytes_done=10, bytes_total=100)])
    pool.engine.progress(*fence, "downloading", pool.now)
    pool.spend(30.0, "w1")
    pool.beat("w1", ("job_1", 1), served=[cold("loading", bytes_done=100, bytes_total=100)])
    pool.engine.progress(*fence, "loading", pool.now)
    pool.spend(30.0, "w1")
    assert pool.closed().loading == Loading("loading", 100, 100, None)
