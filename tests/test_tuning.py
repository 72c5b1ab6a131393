"""The state machine of a fine-tune, event by event, and in seeded storms.

A storm plays the shell: it opens what it is told to, lets parts end well, badly, late or not at all, pauses and
restarts. What each adapter was trained on is known here and to nobody else.
"""

import json
import math
import random
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from coordinator.core.course import (
    Action,
    Aggregate,
    Aggregated,
    Began,
    CancelPart,
    Checkpointed,
    Course,
    Event,
    Fail,
    Finish,
    OpenEvaluate,
    OpenTrain,
    PartDone,
    PartFailed,
    Paused,
    Resumed,
    Stopped,
    Ticked,
    steps_of,
)
from coordinator.core.retries import FAILURES_MAX
from coordinator.core.tunings import begin, restored
from potluck.shuffle import examples_of

NOW = 1_000.0
LOST = "worker_lost"


def course(
    examples: int = 40,
    epochs: int = 1,
    batch_size: int = 4,
    workers: int = 1,
    local_steps: int = 5,
    validation: int = 0,
) -> Course:
    return Course(
        examples=examples,
        epochs=epochs,
        batch_size=batch_size,
        steps=steps_of(examples, epochs, batch_size, workers),
        seed=7,
        workers=workers,
        local_steps=local_steps,
        validation=validation,
        segment_s=90.0,
        round_s=600.0,
    )


def started(asked: Course) -> tuple[Any, list[Any]]:
    """Which action comes at which place is what these tests are about: none is typed."""
    tuning = begin(asked, "a0")
    return tuning, list(tuning.handle(Began(), NOW))


def again(asked: Course, kept: dict[str, Any]) -> Any:
    return restored(asked, kept)


def only(kind: type[Any], actions: list[Action]) -> list[Any]:
    return [action for action in actions if isinstance(action, kind)]


def done(part: OpenTrain, steps: int | None = None, *artifact: str, tokens: int = 100) -> PartDone:
    made = artifact or ((f"d{part.part}",) if part.delta else (f"a{part.part}", f"s{part.part}"))
    whole = part.last_step - part.first_step
    return PartDone(
        part=part.part, first_step=part.first_step, steps=whole if steps is None else steps, tokens=tokens,
        artifact=made,
    )  # fmt: skip


def read(part: OpenEvaluate, loss: float, tokens: int = 10) -> PartDone:
    return PartDone(part=part.part, valid_loss=loss, valid_tokens=tokens)


def failed(part: int, code: str = LOST, why: str = "it fell silent", **more: Any) -> PartFailed:
    return PartFailed(part=part, code=code, why=why, **more)


# -- one worker after the other


def test_a_segment_goes_on_from_the_checkpoint_of_the_one_before() -> None:
    tuning, opened = started(course())
    (first,) = opened
    assert first == OpenTrain(
        part=1, first_step=0, last_step=10, leased=(), adapter="a0", state=None, seconds_max=90, delta=False
    )
    checkpoint, second = tuning.handle(done(first, 4), NOW)
    assert checkpoint == Checkpointed(step=4, adapter="a1")
    assert second == replace(first, part=2, first_step=4, adapter="a1", state="s1")
    assert tuning.artifacts == {"a0", "a1", "s1"}
    assert tuning.handle(done(second), NOW) == [Checkpointed(step=10, adapter="a2"), Finish("a2")]
    assert tuning.handle(Ticked(), NOW) == []
    assert tuning.handle(Began(resumed=True), NOW) == [Finish("a2")], "the shell may not have heard of it"


def test_a_segment_that_fails_is_tried_again_from_the_same_checkpoint_after_a_while() -> None:
    tuning, (first,) = started(course())
    _, second = tuning.handle(done(first, 4), NOW)
    assert tuning.handle(failed(second.part), NOW) == []
    assert tuning.due(NOW) == NOW + 5
    assert tuning.handle(Ticked(), NOW + 4) == []
    assert tuning.handle(Ticked(), NOW + 5) == [replace(second, part=3)]


def test_failures_without_progress_end_it_with_the_last_good_adapter_and_the_reason() -> None:
    tuning, actions = started(course())
    actions = tuning.handle(done(actions[0], 1), NOW)
    now = NOW
    for n in range(FAILURES_MAX):
        (opened,) = only(OpenTrain, actions)
        now += 1_000
        actions = tuning.handle(failed(opened.part, "out_of_memory", "it is too big"), now)
        if n < FAILURES_MAX - 1:
            actions = tuning.handle(Ticked(), now + 1_000)
    why = "5 tries in succession came to nothing, the last: it is too big"
    assert actions == [Fail(code="out_of_memory", why=why, adapter="a1")]


def test_progress_forgives_failures_before_it() -> None:
    tuning, actions = started(course(examples=400))
    now = NOW
    for _ in range(3 * FAILURES_MAX):
        (opened,) = only(OpenTrain, actions)
        now += 1_000
        assert tuning.handle(failed(opened.part), now) == []
        (opened,) = only(OpenTrain, tuning.handle(Ticked(), now + 5))
        actions = tuning.handle(done(opened, 1), now)
    assert tuning.step == 3 * FAILURES_MAX


@pytest.mark.parametrize(
    "event",
    [
        failed(2, "loss_not_finite", "the loss of step 5 is nan"),
        failed(2, "not_quoted", "the loss of step 5 is nan", retryable=False),
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_what_would_go_wrong_again_ends_it_at_once(event: PartFailed, workers: int) -> None:
    """With the last good adapter, and whatever else is open is cancelled."""
    tuning, opened = started(course(workers=workers))
    if workers == 1:
        tuning.handle(done(opened[0], 4), NOW)
    good = "a1" if workers == 1 else None
    ended = tuning.handle(event, NOW)
    assert ended[-1] == Fail(code=event.code, why=event.why, adapter=good)
    assert only(CancelPart, ended) == [CancelPart(1, "the fine-tune ended")] * (workers - 1)


def test_a_segment_without_a_step_is_no_progress() -> None:
    tuning, (first,) = started(course())
    assert tuning.handle(done(first, 0), NOW) == []
    assert tuning.step == 0


def test_more_steps_than_were_asked_for_are_not_believed() -> None:
    tuning, (first,) = started(course())
    assert tuning.handle(done(first, 11), NOW)[0] == Checkpointed(step=10, adapter="a1")


def test_held_out_loss_of_a_chain_at_the_begin_at_quarters_and_over_all_lines_at_the_end() -> None:
    """Training waits for none of them; the sample is the same each time."""
    asked = course(examples=80, validation=100)
    tuning, (before, first) = started(asked)
    assert before == OpenEvaluate(part=1, adapter="a0", validated=asked.sample)
    assert len(asked.sample) == 32
    assert tuning.handle(read(before, 2.0), NOW) == [Checkpointed(step=0, adapter="a0", valid_loss=2.0)]
    _, second = tuning.handle(done(first, 4), NOW)
    assert isinstance(second, OpenTrain), "not yet a quarter"
    _, evaluated, third = tuning.handle(done(second, 2), NOW)
    assert evaluated == OpenEvaluate(part=4, adapter="a3", validated=asked.sample)
    assert tuning.artifacts == {"a0", "a3", "s3"}
    _, fourth = tuning.handle(done(third, 4), NOW)
    assert isinstance(fourth, OpenTrain), "one is under way"
    assert "a3" in tuning.artifacts
    assert tuning.handle(read(evaluated, 1.5), NOW) == [Checkpointed(step=6, adapter="a3", valid_loss=1.5)]
    _, full = tuning.handle(done(fourth), NOW)
    assert full == OpenEvaluate(part=7, adapter="a6", validated=tuple(range(100)))
    assert tuning.handle(read(full, 1.0), NOW) == [
        Checkpointed(step=20, adapter="a6", valid_loss=1.0, full=True),
        Finish("a6"),
    ]


def test_an_evaluation_that_nobody_can_do_does_not_fail_the_training() -> None:
    tuning, (before, first) = started(course(validation=8))
    now = NOW
    for _ in range(FAILURES_MAX):
        now += 1_000
        assert not only(Fail, tuning.handle(failed(before.part), now))
        (*_, before) = tuning.handle(Ticked(), now + 999) or [before]
    assert tuning.evaluation is None
    _, full = tuning.handle(done(first), now)
    assert tuning.handle(failed(full.part, retryable=False), now) == [Finish("a2")]


def test_paused_is_cancelled_and_resumed_is_done_again() -> None:
    tuning, (first,) = started(course())
    _, second = tuning.handle(done(first, 4), NOW)
    assert tuning.handle(Paused(), NOW) == [CancelPart(second.part, "paused by its member")]
    assert tuning.handle(Paused(), NOW) == [], "once"
    assert tuning.handle(failed(second.part, "cancelled", "paused"), NOW) == []
    assert tuning.handle(Ticked(), NOW + 10_000) == []
    assert tuning.handle(Resumed(), NOW) == [replace(second, part=3)]
    assert tuning.retries.failures == 0


def test_a_part_that_was_quicker_than_its_cancellation_counts() -> None:
    """It is paid already. Its end waits for the member: who paused can be asked nothing."""
    tuning, (first,) = started(course())
    tuning.handle(Paused(), NOW)
    assert tuning.handle(done(first), NOW) == [Checkpointed(step=10, adapter="a1")]
    assert tuning.handle(Resumed(), NOW) == [Finish("a1")]


def test_stopped_cancels_what_is_open_and_opens_nothing_more() -> None:
    for workers in (1, 3):
        tuning, opened = started(course(workers=workers, validation=9))
        stopped = tuning.handle(Stopped(), NOW)
        assert [action.part for action in only(CancelPart, stopped)] == [n + 1 for n in range(len(opened))]
        assert len(stopped) == len(opened)
        assert tuning.ended
        assert tuning.handle(Resumed(), NOW) == []
        assert tuning.handle(failed(1), NOW) == []
        assert tuning.handle(Began(resumed=True), NOW) == []


def test_after_a_restart_what_was_open_is_opened_anew_and_what_is_paid_counts() -> None:
    tuning, (first,) = started(course())
    _, second = tuning.handle(done(first, 4), NOW)
    kept = json.loads(json.dumps(tuning.snapshot()))
    lost = again(course(), kept)
    assert lost.handle(Began(resumed=True), NOW) == [replace(second, part=3)]
    paid = again(course(), kept)
    (checkpoint, third) = paid.handle(Began(resumed=True, ended=(done(second, 3),)), NOW)
    assert checkpoint == Checkpointed(step=7, adapter="a2")
    assert (third.first_step, third.part) == (7, 3)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_clock_that_was_set_back_keeps_nothing_waiting(workers: int) -> None:
    """After a failure it pauses for seconds; an hour's step of the host's clock while it is down changes nothing."""
    tuning, opened = started(course(workers=workers))
    for part in opened:
        tuning.handle(failed(part.part), NOW)
    assert tuning.retries.ready_at > NOW
    earlier = NOW - 3_600
    restarted = again(course(workers=workers), json.loads(json.dumps(tuning.snapshot())))
    assert not restarted.handle(Began(resumed=True), earlier)
    assert restarted.handle(Ticked(), earlier + restarted.retries.pause_s), "no longer than its pause"


# -- rounds


def test_a_round_gives_each_worker_a_share_and_each_example_once() -> None:
    tuning, opened = started(course(examples=40, workers=3, local_steps=2))
    assert [len(part.leased) for part in only(OpenTrain, opened)] == [8, 8, 8]
    leased = [line for part in opened for line in part.leased]
    assert leased == [line for step in range(6) for line in examples_of(7, 40, 4, step)]
    assert all(part.delta and part.state is None and part.adapter == "a0" for part in opened)
    assert {(part.first_step, part.last_step) for part in opened} == {(0, 2)}
    for part in opened[:2]:
        assert tuning.handle(done(part), NOW + 60) == []
    (aggregate,) = tuning.handle(done(opened[2], tokens=70), NOW + 61)
    parts = ((1, "d1", 100), (2, "d2", 100), (3, "d3", 70))
    assert aggregate == Aggregate(round=1, adapter="a0", momentum="", parts=parts)
    assert tuning.artifacts == {"a0", "d1", "d2", "d3"}
    checkpoint, *second = tuning.handle(Aggregated(round=1, adapter="b1", momentum="m1"), NOW + 62)
    assert checkpoint == Checkpointed(step=2, adapter="b1")
    assert [(part.part, len(part.leased), part.adapter) for part in only(OpenTrain, second)] == [
        (4, 8, "b1"),
        (5, 8, "b1"),
    ]
    assert {(part.first_step, part.last_step) for part in only(OpenTrain, second)} == {(2, 4)}
    for part in only(OpenTrain, second):
        (*_, last) = tuning.handle(done(part), NOW) or [None]
    assert isinstance(last, Aggregate)
    assert last.momentum == "m1"
    assert tuning.handle(Aggregated(round=2, adapter="b2"), NOW)[-1] == Finish("b2")


def test_a_share_that_fails_gives_its_examples_to_the_next_round_and_the_others_go_on() -> None:
    tuning, opened = started(course(examples=40, workers=2, local_steps=2))
    one, other = only(OpenTrain, opened)
    assert tuning.handle(failed(one.part), NOW) == []
    (aggregate,) = tuning.handle(done(other), NOW)
    assert [part for part, _, _ in aggregate.parts] == [other.part]
    _, third, _ = tuning.handle(Aggregated(round=1, adapter="b1"), NOW)
    assert third.leased == one.leased
    assert (third.first_step, third.last_step) == (1, 3), "the rate follows what was trained"


def test_a_share_that_ends_early_gives_back_what_it_did_not_train() -> None:
    tuning, opened = started(course(examples=40, workers=2, local_steps=4))
    one, other = only(OpenTrain, opened)
    tuning.handle(done(one, 1), NOW)
    tuning.handle(done(other), NOW)
    _, third, _ = tuning.handle(Aggregated(round=1, adapter="b1"), NOW)
    assert third.leased[: len(one.leased) - 4] == one.leased[4:]


def test_who_is_much_later_than_the_others_is_closed_out() -> None:
    """Seven tenths are in, and three median deviations went by, ten seconds at least."""
    tuning, opened = started(course(examples=400, workers=4, local_steps=5))
    parts = only(OpenTrain, opened)
    for part, at in zip(parts[:2], (60, 80), strict=True):
        tuning.handle(done(part), NOW + at)
    assert tuning.handle(Ticked(), NOW + 95) == [], "only half of it is in"
    assert tuning.due(NOW + 95) == NOW + 600
    tuning.handle(done(parts[2]), NOW + 100)
    assert tuning.due(NOW + 100) == NOW + 80 + 60, "the median and three times the median deviation of 20"
    assert tuning.handle(Ticked(), NOW + 140) == []
    (cancel,) = tuning.handle(Ticked(), NOW + 141)
    assert cancel == CancelPart(parts[3].part, "the others of the round are done since long")
    (aggregate,) = tuning.handle(failed(parts[3].part, "cancelled"), NOW + 502)
    assert [part for part, _, _ in aggregate.parts] == [1, 2, 3]
    _, anew, *_ = tuning.handle(Aggregated(round=1, adapter="b1"), NOW + 503)
    assert anew.leased == parts[3].leased, "they come first"


def test_equally_quick_workers_get_ten_seconds_more() -> None:
    tuning, opened = started(course(examples=400, workers=4, local_steps=5))
    for part in only(OpenTrain, opened)[:3]:
        tuning.handle(done(part), NOW + 60)
    assert tuning.handle(Ticked(), NOW + 70) == []
    assert only(CancelPart, tuning.handle(Ticked(), NOW + 70.1))


def test_who_was_closed_out_and_came_back_all_the_same_counts() -> None:
    """Its update is paid, so it is used: nothing is aggregated before all of a round have ended."""
    tuning, opened = started(course(examples=400, workers=4, local_steps=5))
    *quick, slow = only(OpenTrain, opened)
    for part in quick:
        tuning.handle(done(part), NOW + 60)
    tuning.handle(Ticked(), NOW + 71)
    (aggregate,) = tuning.handle(done(slow), NOW + 72)
    assert len(aggregate.parts) == 4


def test_a_round_ends_at_its_deadline_if_anything_is_in_and_else_waits() -> None:
    """All workers gone for an hour: nothing fails, and nothing is lost."""
    tuning, opened = started(course(workers=2))
    assert tuning.handle(Ticked(), NOW + 3_600) == []
    one, other = only(OpenTrain, opened)
    (cancel,) = tuning.handle(done(one), NOW + 3_601)
    assert cancel == CancelPart(other.part, "the round is closed after 600 s")


def test_a_round_of_which_nothing_came_is_begun_again_with_the_same_examples() -> None:
    tuning, opened = started(course(workers=2))
    one, other = only(OpenTrain, opened)
    tuning.handle(failed(one.part), NOW)
    assert tuning.handle(failed(other.part), NOW) == []
    anew = only(OpenTrain, tuning.handle(Ticked(), NOW + 5))
    assert {line for part in anew for line in part.leased} == {*one.leased, *other.leased}
    assert [part.part for part in anew] == [3, 4]


def test_updates_of_which_none_can_be_used_change_nothing_and_end_it_if_it_goes_on() -> None:
    tuning, actions = started(course(examples=4_000, workers=2))
    now = NOW
    for number in range(1, FAILURES_MAX + 1):
        for part in only(OpenTrain, actions):
            tuning.handle(done(part), now)
        now += 10_000
        all_of_them = tuple(part.part for part in only(OpenTrain, actions))
        actions = tuning.handle(Aggregated(round=number, adapter="a0", rejected=all_of_them), now)
        actions = actions or tuning.handle(Ticked(), now + 5_000)
    (ended,) = actions
    assert ended == Fail(
        code="no_usable_update", adapter=None,
        why="5 tries in succession came to nothing, the last: no update of round 5 could be used",
    )  # fmt: skip


def evaluated_round(tuning: Any, actions: list[Any], name: str, loss: float) -> list[Any]:
    """All shares come back, are put together, and the result is read with this loss."""
    for part in only(OpenTrain, actions):
        (*_, asked) = tuning.handle(done(part), NOW) or [None]
    assert isinstance(asked, Aggregate)
    actions = tuning.handle(Aggregated(round=asked.round, adapter=name, momentum=f"m-{name}"), NOW)
    return read_all(tuning, actions, loss)


def read_all(tuning: Any, actions: list[Any], loss: float) -> list[Any]:
    for part in only(OpenEvaluate, actions):
        actions = tuning.handle(read(part, loss), NOW)
    return actions


def test_a_round_that_worsens_the_held_out_loss_is_rolled_back() -> None:
    """Adapter and momentum are those of the round before; its examples count as used."""
    asked = course(examples=400, workers=2, validation=10)
    tuning, actions = started(asked)
    assert [part.validated for part in only(OpenEvaluate, actions)] == [asked.sample[::2], asked.sample[1::2]]
    actions = read_all(tuning, actions, 2.0)
    first = [line for part in only(OpenTrain, actions) for line in part.leased]
    actions = evaluated_round(tuning, actions, "b1", 1.0)
    assert actions[0] == Checkpointed(step=5, adapter="b1", valid_loss=1.0, full=True)
    actions = evaluated_round(tuning, actions, "b2", 1.021)
    third = only(OpenTrain, actions)
    assert not only(Checkpointed, actions)
    assert {part.adapter for part in third} == {"b1"}
    assert third[0].first_step == 10
    assert not {line for part in third for line in part.leased} & set(first)
    for part in third:
        (*_, aggregate) = tuning.handle(done(part), NOW) or [None]
    assert isinstance(aggregate, Aggregate)
    assert (aggregate.adapter, aggregate.momentum) == ("b1", "m-b1")


def test_two_worse_rounds_in_succession_end_it_with_the_last_good_adapter() -> None:
    tuning, actions = started(course(examples=400, workers=2, validation=10))
    actions = read_all(tuning, actions, 2.0)
    actions = evaluated_round(tuning, actions, "b1", 1.0)
    actions = evaluated_round(tuning, actions, "b2", 1.1)
    actions = evaluated_round(tuning, actions, "b3", 1.02)
    assert actions[0] == Checkpointed(step=15, adapter="b3", valid_loss=1.02, full=True), "within two percent"
    actions = evaluated_round(tuning, actions, "b4", math.nan)
    (ended,) = evaluated_round(tuning, actions, "b5", 9.0)
    assert isinstance(ended, Fail)
    assert (ended.code, ended.adapter) == ("diverged", "b3")
    assert ended.why == "the held-out loss rose to 9.0000 in 2 rounds in succession; the best was 1.0000"


def test_the_loss_of_several_readers_is_weighted_by_what_each_read() -> None:
    tuning, actions = started(course(workers=2, validation=3))
    one, other = only(OpenEvaluate, actions)
    tuning.handle(read(one, 1.0, tokens=30), NOW)
    (checkpoint, *_) = tuning.handle(read(other, 2.0, tokens=10), NOW)
    assert checkpoint == Checkpointed(step=0, adapter="a0", valid_loss=1.25, full=True)


def test_lines_of_a_reader_that_failed_are_read_by_another() -> None:
    tuning, actions = started(course(workers=2, validation=3))
    one, other = only(OpenEvaluate, actions)
    tuning.handle(failed(one.part), NOW)
    assert tuning.handle(read(other, 1.0), NOW) == []
    assert tuning.due(NOW) == NOW + 5
    anew = only(OpenEvaluate, tuning.handle(Ticked(), NOW + 5))
    assert sorted(line for part in anew for line in part.validated) == list(one.validated)


def test_a_paused_round_keeps_what_came_back_and_evaluates_when_it_goes_on() -> None:
    tuning, actions = started(course(examples=400, workers=2, validation=4))
    actions = read_all(tuning, actions, 2.0)
    one, other = only(OpenTrain, actions)
    tuning.handle(done(one), NOW)
    assert only(CancelPart, tuning.handle(Paused(), NOW)) == [CancelPart(other.part, "paused by its member")]
    (aggregate,) = tuning.handle(failed(other.part, "cancelled"), NOW)
    assert isinstance(aggregate, Aggregate)
    assert tuning.handle(Aggregated(round=1, adapter="b1"), NOW) == []
    resumed = tuning.handle(Resumed(), NOW)
    assert {part.adapter for part in only(OpenEvaluate, resumed)} == {"b1"}


def test_after_a_restart_a_round_is_put_together_from_what_came_back() -> None:
    asked = course(workers=2)
    tuning, actions = started(asked)
    one, other = only(OpenTrain, actions)
    tuning.handle(done(one), NOW)
    kept = json.loads(json.dumps(tuning.snapshot()))
    (aggregate,) = again(asked, kept).handle(Began(resumed=True), NOW)
    assert aggregate.parts == ((1, "d1", 100),)
    both = again(asked, kept)
    (aggregate,) = both.handle(Began(resumed=True, ended=(done(other),)), NOW)
    assert [part for part, _, _ in aggregate.parts] == [1, 2]
    third = again(asked, json.loads(json.dumps(both.snapshot())))
    assert third.handle(Ticked(), NOW) == []
    assert third.handle(Began(resumed=True), NOW) == [aggregate], "it is asked for again, and only then"


# -- storms


@dataclass
class Storm:
    """One fine-tune under one seed. `made`: which examples each adapter and delta was trained on, how often."""

    seed: int
    calm_after: int = 150  # events; from then on all goes well
    made: dict[str, Counter[int]] = field(default_factory=lambda: {"a0": Counter()})
    paid: Counter[int] = field(default_factory=Counter)  # how often each example's training was
    read: Counter[int] = field(default_factory=Counter)  # how often each line was
    open: dict[int, OpenTrain | OpenEvaluate] = field(default_factory=dict)
    asked: list[Aggregate] = field(default_factory=list)
    numbers: set[int] = field(default_factory=set)
    checkpoints: list[str] = field(default_factory=list)
    verdict: Finish | Fail | None = None
    rolled_back: bool = False
    now: float = NOW
    events: int = 0

    def __post_init__(self) -> None:
        self.rng = rng = random.Random(self.seed)
        self.course = course(
            examples=rng.randint(1, 90),
            epochs=rng.randint(1, 3),
            batch_size=rng.randint(1, 9),
            workers=rng.choice([1, 1, 2, 3, 4]),
            local_steps=rng.randint(1, 6),
            validation=rng.choice([0, 1, 7, 50]),
        )
        self.tuning = begin(self.course, "a0")
        self.kept: dict[str, Any] = {}
        self.losses = rng.choice(["falling", "wild"])

    def run(self) -> "Storm":
        self.say(Began())
        while self.verdict is None and not self.tuning.ended:
            self.events += 1
            assert self.events < 3_000, "it ends"
            self.step()
        return self

    def step(self) -> None:
        rng, rough = self.rng, self.events < self.calm_after
        self.now += rng.uniform(0, 40)
        choice = rng.random() if rough else 1.0
        if choice < 0.04:
            return self.say(Paused())
        if choice < 0.08 or (self.tuning.paused and not rough):
            return self.say(Resumed())
        if choice < 0.12:
            return self.restart()
        if self.asked and rng.random() < 0.7:
            return self.aggregate()
        if self.open and rng.random() < 0.7:
            part = rng.choice(list(self.open))
            if rough and rng.random() < 0.3:
                del self.open[part]
                return self.say(failed(part))
            return self.say(self.come_back(part, partly=rough and rng.random() < 0.3))
        return self.say(Ticked())

    def say(self, event: Event) -> None:
        """The machine, and one made from its snapshot, do the same."""
        twin = restored(self.course, json.loads(json.dumps(self.tuning.snapshot())))
        actions = self.tuning.handle(event, self.now)
        assert twin.handle(event, self.now) == actions
        assert twin.snapshot() == self.tuning.snapshot()
        self.kept = json.loads(json.dumps(self.tuning.snapshot()))  # before anything is carried out
        assert self.tuning.artifacts <= self.made.keys() | {f"s{n}" for n in self.numbers} | self.momenta()
        for action in actions:
            self.carry_out(action)

    def momenta(self) -> set[str]:
        return {f"m-{name}" for name in self.made}

    def carry_out(self, action: Action) -> None:
        match action:
            case OpenTrain() | OpenEvaluate():
                assert action.part not in self.numbers, "part numbers never repeat"
                assert action.adapter in self.made
                self.numbers.add(action.part)
                self.open[action.part] = action
                assert not self.tuning.paused
                assert len(self.open) <= self.course.workers + (self.course.workers == 1)
            case CancelPart(part, _):
                if part in self.open and self.rng.random() < 0.7:  # else its end is under way
                    del self.open[part]
                    self.late.append(failed(part, "cancelled"))
            case Aggregate():
                self.asked.append(action)
            case Checkpointed():
                self.checkpoints.append(action.adapter)
            case Finish() | Fail():
                self.verdict = action
        while self.late:
            self.say(self.late.pop(0))

    late: list[PartFailed] = field(default_factory=list)

    def come_back(self, part: int, *, partly: bool) -> PartDone:
        opened = self.open.pop(part)
        if isinstance(opened, OpenEvaluate):
            self.read.update(opened.validated)
            loss = 3.0 / (1 + sum(self.made[opened.adapter].values())) if self.losses == "falling" else 0.0
            return read(opened, loss or self.rng.uniform(1, 1.1), tokens=len(opened.validated))
        most = opened.last_step - opened.first_step
        steps = self.rng.randint(1, most) if partly else most
        event = done(opened, steps)
        if opened.delta:
            assert len(opened.leased) <= most * self.course.batch_size
            lines = Counter(opened.leased[: steps * self.course.batch_size])
            self.made[event.artifact[0]] = lines
        else:
            lines = Counter()
            for step in range(opened.first_step, opened.first_step + steps):
                lines.update(examples_of(7, self.course.examples, self.course.batch_size, step))
            self.made[event.artifact[0]] = self.made[opened.adapter] + lines
        self.paid.update(lines)
        return event

    def aggregate(self) -> None:
        asked = self.asked.pop(0)
        name = f"b{asked.round}"
        self.made[name] = sum((self.made[delta] for _, delta, _ in asked.parts), self.made[asked.adapter])
        self.say(Aggregated(round=asked.round, adapter=name, momentum=f"m-{name}"))

    def restart(self) -> None:
        """Memory is gone; some of the open parts had come back and were paid, unheard."""
        heard = [part for part in list(self.open) if self.rng.random() < 0.3]
        ended = tuple(self.come_back(part, partly=False) for part in heard)
        self.open.clear()
        self.asked.clear()
        self.tuning = restored(self.course, self.kept)
        self.say(Began(resumed=True, ended=ended))

    def check(self) -> None:
        every = Counter(dict.fromkeys(range(self.course.examples), self.course.epochs))
        assert self.paid <= every, "nothing is paid more often than it was quoted"
        sample = Counter(dict.fromkeys(self.course.sample, self.course.samples_max))
        whole = Counter(range(self.course.validation))
        assert self.read <= sample + whole, "nor read"
        if isinstance(self.verdict, Finish):
            trained = self.made[self.verdict.adapter]
            assert trained <= every
            if self.losses == "falling":
                assert trained == every, "every example is trained exactly as often as there are epochs"
                assert self.checkpoints[-1] == self.verdict.adapter


@pytest.mark.parametrize("seed", range(150))
def test_in_every_storm_it_ends_and_every_example_is_trained_and_paid_as_often_as_it_should_be(
    seed: int,
) -> None:
    storm = Storm(seed).run()
    storm.check()
    if storm.losses == "falling":
        assert isinstance(storm.verdict, Finish), storm.verdict


def test_storms_are_storms() -> None:
    """What they are for happens in them: rollbacks to the end of all, and rounds that none came back of."""
    verdicts = Counter(type(Storm(seed).run().verdict).__name__ for seed in range(150))
    assert verdicts["Finish"] > 100
    assert verdicts["Fail"] > 5
