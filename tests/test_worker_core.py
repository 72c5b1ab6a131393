"""The rules of an attempt on a worker, one by one, and all together under a seeded bad network."""

import random
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import pytest

from potluck.receipts import ReceiptBody, output_digest
from worker.core import Core
from worker.limits import Limits
from worker.messages import (
    FINETUNE,
    Acknowledged,
    Assigned,
    AttemptId,
    Cancelled,
    Close,
    CloseEngines,
    Completed,
    Congested,
    Connected,
    Disconnected,
    DrainAsked,
    EngineFailed,
    EngineFinished,
    EngineProduced,
    EngineStarted,
    Event,
    Failure,
    Fault,
    ForgetReceipt,
    Instruction,
    ModelOffered,
    ModelWithdrawn,
    OpenEngines,
    Paused,
    Piece,
    Prompt,
    ReceiptAcknowledged,
    ReceiptKept,
    Reconnect,
    Resumed,
    Role,
    SendAccepted,
    SendFrame,
    SendHeartbeat,
    SendReceipt,
    SendRefused,
    SendResult,
    SignReceipt,
    StartEngine,
    Step,
    StopEngine,
    Ticked,
)
from worker.policy import Guests

T = TypeVar("T")
A = AttemptId("job_a", 1)
B = AttemptId("job_b", 1)
DONE = Completed(prompt_tokens=3, size_bytes=0, payload=None)


def piece(text: str, choice: int = 0, size: int | None = None) -> Piece:
    return Piece(choice, text, 1, len(text) if size is None else size, None)


def texts(frame: SendFrame) -> list[str]:
    return [piece.text for piece in frame.pieces if isinstance(piece, Piece)]


def assigned(attempt: AttemptId = A, *, model: str = "m", goes_on: bool = False) -> Assigned:
    return Assigned(attempt, model, "ada", goes_on, None)


def connected(*resumed: tuple[AttemptId, int], frame_bytes_max: int = 1000) -> Connected:
    return Connected(resumed, frame_bytes_max, 1.0, 15.0)


def core(*, slots: int = 8, **limits: Any) -> Core:
    made = Core(worker_id="wrk_a", limits=Limits(**limits))
    made.handle(ModelOffered("m", "emulator", slots), 0.0)
    made.handle(connected(), 0.0)
    made.handle(Ticked(), 0.0)  # the heartbeat that follows a welcome
    return made


def sent(out: list[Instruction], kind: type[T]) -> list[T]:
    return [instruction for instruction in out if isinstance(instruction, kind)]


def running(**limits: Any) -> Core:
    made = core(**limits)
    made.handle(assigned(), 0.0)
    return made


def test_an_assignment_is_accepted_and_started_once() -> None:
    made = core()
    assert made.handle(assigned(), 0.0) == [SendAccepted(A), StartEngine(assigned())]
    assert made.handle(assigned(), 0.1) == [SendAccepted(A)]


def test_an_assignment_that_comes_again_after_its_end_is_not_run_twice() -> None:
    made = running()
    made.handle(Cancelled(A, "enough"), 1.0)
    assert made.handle(assigned(), 1.1) == []


def test_work_is_refused_with_its_reason() -> None:
    made = core(slots=1)
    [unknown] = sent(made.handle(assigned(B, model="other"), 0.0), SendRefused)
    made.handle(assigned(), 0.0)
    [busy] = sent(made.handle(assigned(AttemptId("job_c", 1)), 0.0), SendRefused)
    made.handle(DrainAsked("the owner stops it", 60.0), 0.0)
    [draining] = sent(made.handle(assigned(AttemptId("job_d", 1)), 0.0), SendRefused)
    codes = [refused.reason.code for refused in (unknown, busy, draining)]
    assert codes == ["model_not_served", "busy", "draining"]
    assert {refused.reason.fault for refused in (unknown, busy, draining)} == {Fault.NONE}


def training(attempt: AttemptId = A, model: str = "m", *, steps: int = 8) -> Assigned:
    return Assigned(attempt, model, "ada", goes_on=False, payload=None, kind=FINETUNE, steps=steps)


def step(number: int, tokens: int = 10) -> Step:
    return Step(number, tokens, 60, None)


def trainer(**limits: Any) -> Core:
    made = core(**limits)
    made.handle(ModelOffered("m", "trainer", 1, role=Role.TRAIN), 0.0)
    return made


def test_training_has_a_place_of_its_own_beside_the_slots() -> None:
    """One on a worker, whatever the model; it takes no slot, and finds one when all slots are taken."""
    made = trainer(slots=1)
    made.handle(ModelOffered("n", "trainer", 1, role=Role.TRAIN), 0.0)
    made.handle(assigned(), 0.0)
    assert sent(made.handle(training(B), 0.0), StartEngine)
    [busy] = sent(made.handle(training(AttemptId("job_c", 1), "n"), 0.0), SendRefused)
    assert (busy.reason.code, busy.reason.message) == ("busy", "this worker trains m already")
    [full] = sent(made.handle(assigned(AttemptId("job_d", 1)), 0.0), SendRefused)
    assert full.reason.message == "all 1 slots of m are taken"
    made.handle(EngineFinished(A, DONE), 1.0)
    assert sent(made.handle(assigned(AttemptId("job_e", 1)), 1.0), StartEngine)
    made.handle(Cancelled(B, "enough"), 2.0)
    assert sent(made.handle(training(AttemptId("job_f", 1), "n"), 2.0), StartEngine)


def test_what_is_served_is_not_for_that_reason_trained() -> None:
    made = core()
    [refused] = sent(made.handle(training(), 0.0), SendRefused)
    assert (refused.reason.code, refused.reason.message) == (
        "model_not_served",
        "this worker does not train m",
    )
    made.handle(ModelOffered("m", "trainer", 1, role=Role.TRAIN), 0.0)
    made.handle(ModelWithdrawn("m", "its trainer does not load", role=Role.TRAIN), 0.0)
    assert sent(made.handle(training(B), 0.0), SendRefused)
    assert sent(made.handle(assigned(AttemptId("job_c", 1)), 0.0), StartEngine)


def adapted(attempt: AttemptId = A) -> Assigned:
    return replace(assigned(attempt), adapts=True)


def test_adapters_have_slots_of_their_own_where_another_engine_applies_them() -> None:
    """Its name is in the receipt; where none is offered, they take the slots of what serves the model."""
    made = core(slots=1)
    made.handle(ModelOffered("m", "torch", 1, role=Role.ADAPT), 0.0)
    assert sent(made.handle(assigned(), 0.0), StartEngine)
    assert sent(made.handle(adapted(B), 0.0), StartEngine)
    assert [attempt.engine for attempt in made.attempts.running()] == ["emulator", "torch"]
    for more in (assigned(AttemptId("job_c", 1)), adapted(AttemptId("job_d", 1))):
        [full] = sent(made.handle(more, 0.0), SendRefused)
        assert full.reason.message == "all 1 slots of m are taken"
    made.handle(EngineFinished(B, DONE), 1.0)
    made.handle(ModelWithdrawn("m", "torch does not load", role=Role.ADAPT), 1.0)
    assert sent(made.handle(adapted(AttemptId("job_e", 1)), 1.0), SendRefused)
    made.handle(EngineFinished(A, DONE), 1.0)
    assert sent(made.handle(adapted(AttemptId("job_f", 1)), 1.0), StartEngine)


def test_steps_are_frames_like_text_and_the_receipt_claims_what_was_trained() -> None:
    made = trainer()
    made.handle(training(), 1.0)
    [first] = sent(made.handle(EngineProduced(A, (step(0),)), 2.0), SendFrame)
    [second] = sent(made.handle(EngineProduced(A, (step(1), step(2))), 3.0), SendFrame)
    assert [(frame.sequence, len(frame.pieces)) for frame in (first, second)] == [(1, 1), (2, 2)]
    [running] = made.attempts.running()
    assert (running.steps_done, running.assigned.steps, running.tokens) == (3, 8, 30)
    done = Completed(0, 0, None, (b"a" * 32, b"s" * 32), tokens=31)
    out = made.handle(EngineFinished(A, done), 4.0)
    assert [result.sequence for result in sent(out, SendResult)] == [3]
    [signed] = sent(out, SignReceipt)
    assert (signed.body.output_tokens, signed.body.engine) == (31, "trainer")
    assert signed.body.output_sha256 == output_digest([b"a" * 32, b"s" * 32])


def test_training_that_did_not_end_claims_nothing() -> None:
    """However many of its steps were acknowledged: it is paid by what it makes."""
    for end in (
        Cancelled(A, "enough"),
        Paused("its owner plays"),
        EngineFailed(A, Failure(Fault.JOB, "x", "")),
    ):
        made = trainer()
        made.handle(training(), 1.0)
        made.handle(EngineProduced(A, (step(0),)), 2.0)
        made.handle(Acknowledged(A, 1), 2.1)
        assert not sent(made.handle(end, 3.0), SignReceipt)


def test_a_frame_holds_no_more_steps_than_the_coordinator_takes() -> None:
    made = trainer(buffer_frames_max=10)
    made.handle(training(), 0.0)
    made.handle(Disconnected(), 0.0)
    made.handle(EngineProduced(A, tuple(step(n) for n in range(300))), 0.1)
    frames = sent(made.handle(connected((A, 0), frame_bytes_max=10**6), 0.2), SendFrame)
    assert [len(frame.pieces) for frame in frames] == [128, 128, 44]


def test_the_end_of_training_is_kept_while_it_is_looked_at() -> None:
    """Longer than a lease, and named in heartbeats; not for ever."""
    made = trainer(lease_s=4.0)
    made.handle(training(), 0.0)
    made.handle(EngineFinished(A, Completed(0, 0, None, tokens=5)), 1.0)
    for now in range(2, 20):
        made.handle(Ticked(), float(now))
    assert made.running() == [(A, 1)]
    made.handle(Ticked(), 200.0)
    made.handle(Ticked(), 201.5)
    assert made.running() == []


def test_a_pause_says_so_first_then_hands_over_all_that_was_produced_and_closes_the_engines() -> None:
    """In this order: the coordinator must not send back what it just gets, and misses no token."""
    made = running(coalesce_from_attempts=1)
    made.handle(assigned(B), 0.0)
    made.handle(EngineProduced(A, (piece("one "),)), 1.0)
    made.handle(EngineProduced(A, (piece("two "),)), 1.001)
    out = made.handle(Paused("its owner plays"), 1.002)
    assert [type(instruction) for instruction in out] == [
        SendHeartbeat, StopEngine, SendFrame, SendResult, StopEngine, SendResult, CloseEngines,
    ]  # fmt: skip
    assert [texts(frame) for frame in sent(out, SendFrame)] == [["two "]]
    outcomes = [result.outcome for result in sent(out, SendResult)]
    yielded = Failure(Fault.NONE, "yielded", "its owner needs it: its owner plays")
    assert outcomes == [yielded, yielded]
    assert (made.busy(), made.paused) == (0, "its owner plays")


def test_while_paused_work_is_refused_without_blame_and_a_second_reason_stops_nothing_twice() -> None:
    made = running()
    made.handle(Paused("its owner plays"), 1.0)
    [refused] = sent(made.handle(assigned(B), 1.1), SendRefused)
    assert (refused.reason.code, refused.reason.fault) == ("paused", Fault.NONE)
    assert made.handle(Paused("it is hot"), 1.2) == []
    assert sent(made.handle(Ticked(), 1.2), SendHeartbeat), "the new reason is told"
    assert made.paused == "it is hot"


def test_after_a_pause_models_are_served_again_and_the_coordinator_hears_it_at_once() -> None:
    made = running()
    made.handle(Paused("its owner plays"), 1.0)
    assert made.handle(Resumed(), 2.0) == [OpenEngines()]
    assert sent(made.handle(Ticked(), 2.0), SendHeartbeat)
    assert made.handle(Resumed(), 2.1) == []
    other = AttemptId("job_c", 1)
    assert made.handle(assigned(other), 2.2) == [SendAccepted(other), StartEngine(assigned(other))]


def test_what_an_engine_says_after_a_pause_changes_nothing() -> None:
    made = running()
    made.handle(Paused("its owner plays"), 1.0)
    assert made.handle(EngineProduced(A, (piece("late "),)), 1.1) == []
    assert made.handle(EngineFailed(A, Failure(Fault.NONE, "engine_closed", "closed")), 1.2) == []


def test_a_pause_out_of_reach_of_the_coordinator_is_told_when_it_is_back() -> None:
    made = running()
    made.handle(EngineProduced(A, (piece("one "),)), 0.5)
    made.handle(Disconnected(), 1.0)
    assert [type(i) for i in made.handle(Paused("its owner plays"), 1.1)] == [StopEngine, CloseEngines]
    out = made.handle(connected((A, 0)), 1.3)
    assert [type(i) for i in out] == [SendAccepted, SendFrame, SendResult]


def test_a_drain_while_paused_ends_at_once() -> None:
    made = core()
    made.handle(Paused("its owner plays"), 1.0)
    assert Close("stopped") in made.handle(DrainAsked("stopped", 60.0), 2.0)


def test_members_and_kinds_that_the_owner_does_not_want_are_refused_without_blame() -> None:
    guests = Guests(owner="ada", members=frozenset({"bob"}), kinds=frozenset({"chat"}))
    made = Core(worker_id="wrk_a", limits=Limits(), guests=guests)
    made.handle(ModelOffered("m", "emulator", 8), 0.0)
    made.handle(connected(), 0.0)
    asked = [("ada", "chat"), ("bob", "chat"), ("carl", "chat"), ("ada", "embedding")]
    answers = []
    for number, (member, kind) in enumerate(asked):
        attempt = AttemptId(f"job_{number}", 1)
        out = made.handle(Assigned(attempt, "m", member, False, None, kind), 0.0)
        answers += [refused.reason for refused in sent(out, SendRefused)]
    assert [(a.code, a.fault) for a in answers] == [("not_shared", Fault.NONE)] * 2
    assert "with carl" in answers[0].message
    assert "for embedding" in answers[1].message


def test_a_withdrawn_model_takes_no_more_work_but_finishes_what_runs() -> None:
    made = running()
    made.handle(ModelWithdrawn("m", "unloaded"), 0.0)
    assert sent(made.handle(assigned(B), 0.0), SendRefused)
    assert sent(made.handle(EngineProduced(A, (piece("x"),)), 0.0), SendFrame)


def test_a_newer_attempt_of_a_job_stops_the_older_and_an_older_one_is_ignored() -> None:
    made = running()
    newer = AttemptId("job_a", 2)
    out = made.handle(assigned(newer), 0.0)
    assert [stop.attempt for stop in sent(out, StopEngine)] == [A]
    assert SendAccepted(newer) in out
    assert made.handle(assigned(A), 0.0) == []


def test_the_first_frame_carries_the_prompt_of_a_first_attempt_only() -> None:
    prompt = Prompt(3, 10, "rendered")
    made = running()
    made.handle(assigned(B, goes_on=True), 0.0)
    for attempt in (A, B):
        made.handle(EngineStarted(attempt, prompt), 0.0)
    [first] = sent(made.handle(EngineProduced(A, (piece("x"),)), 0.0), SendFrame)
    [second] = sent(made.handle(EngineProduced(A, (piece("y"),)), 0.0), SendFrame)
    [continued] = sent(made.handle(EngineProduced(B, (piece("x"),)), 0.0), SendFrame)
    assert (first.prompt, second.prompt, continued.prompt) == (prompt, None, None)
    assert (first.sequence, second.sequence, continued.sequence) == (1, 2, 1)


def test_a_prompt_larger_than_a_frame_is_left_out() -> None:
    made = running()
    made.handle(EngineStarted(A, Prompt(3, 1001, "rendered")), 0.0)
    [frame] = sent(made.handle(EngineProduced(A, (piece("x"),)), 0.0), SendFrame)
    assert frame.prompt is None


def test_under_load_pieces_are_gathered_but_the_first_leaves_at_once() -> None:
    made = core(coalesce_from_attempts=2)
    made.handle(assigned(A), 0.0)
    made.handle(assigned(B), 0.0)
    assert sent(made.handle(EngineProduced(A, (piece("1"),)), 0.0), SendFrame)
    assert not sent(made.handle(EngineProduced(A, (piece("2"),)), 0.001), SendFrame)
    assert not sent(made.handle(EngineProduced(A, (piece("3"),)), 0.002), SendFrame)
    assert made.wake_at() == pytest.approx(0.011)
    [frame] = sent(made.handle(Ticked(), 0.011), SendFrame)
    assert texts(frame) == ["2", "3"]


def test_a_congested_outbox_gathers_more_into_each_frame() -> None:
    made = running()
    made.handle(Congested(on=True), 0.0)
    for at in (0.0, 0.01, 0.02):
        assert not sent(made.handle(EngineProduced(A, (piece("x"),)), at), SendFrame)
        assert not sent(made.handle(Ticked(), at + 0.01), SendFrame)
    made.handle(Congested(on=False), 0.03)
    [frame] = sent(made.handle(Ticked(), 0.1), SendFrame)
    assert len(frame.pieces) == 3


def test_frames_keep_the_size_that_the_coordinator_takes() -> None:
    made = running()
    made.handle(Congested(on=True), 0.0)
    made.handle(EngineProduced(A, tuple(piece("x", size=400) for _ in range(5))), 0.0)
    frames = sent(made.handle(EngineFinished(A, DONE), 0.0), SendFrame)
    assert [len(frame.pieces) for frame in frames] == [2, 2, 1]
    assert [frame.sequence for frame in frames] == [1, 2, 3]


def test_a_connection_that_blinks_goes_on_from_the_acknowledged_sequence() -> None:
    made = running()
    for text in "abc":
        made.handle(EngineProduced(A, (piece(text),)), 0.0)
    made.handle(Acknowledged(A, 1), 0.1)
    made.handle(Disconnected(), 0.2)
    assert made.handle(EngineProduced(A, (piece("d"), piece("e"))), 0.3) == []
    assert made.running() == [(A, 3)]
    frames = sent(made.handle(connected((A, 2)), 0.5), SendFrame)
    assert [(frame.sequence, "".join(texts(frame))) for frame in frames] == [
        (3, "c"),
        (4, "de"),
    ]


def test_an_attempt_that_the_welcome_does_not_name_is_fenced() -> None:
    made = running()
    made.handle(EngineProduced(A, (piece("x"),)), 0.0)
    made.handle(Disconnected(), 0.1)
    out = made.handle(connected(), 0.2)
    assert [stop.attempt for stop in sent(out, StopEngine)] == [A]
    assert not sent(out, SignReceipt), "nothing was acknowledged, so nothing is claimed"
    assert made.handle(EngineProduced(A, (piece("y"),)), 0.3) == []
    assert made.running() == []


def test_a_finished_attempt_is_kept_until_its_result_is_acknowledged() -> None:
    made = running()
    made.handle(EngineProduced(A, (piece("x"),)), 0.0)
    made.handle(Disconnected(), 0.1)
    made.handle(EngineFinished(A, DONE), 0.2)
    out = made.handle(connected((A, 1)), 0.3)
    assert [result.sequence for result in sent(out, SendResult)] == [2]
    made.handle(Acknowledged(A, 2), 0.4)
    assert made.running() == []


def test_a_resume_of_what_is_not_here_is_answered_in_the_same_numbering() -> None:
    made = core()
    made.handle(Disconnected(), 0.0)
    [result] = sent(made.handle(connected((A, 7)), 0.1), SendResult)
    assert result.sequence == 8
    assert isinstance(result.outcome, Failure)
    assert (result.outcome.fault, result.outcome.code) == (Fault.NONE, "unknown_attempt")


@pytest.mark.parametrize("acknowledged", [1, 9])
def test_a_resume_outside_of_what_is_kept_ends_the_attempt(acknowledged: int) -> None:
    made = running()
    for text in "abc":
        made.handle(EngineProduced(A, (piece(text),)), 0.0)
    made.handle(Acknowledged(A, 2), 0.0)
    made.handle(Disconnected(), 0.0)
    out = made.handle(connected((A, acknowledged)), 0.1)
    assert sent(out, StopEngine)
    assert [result.sequence for result in sent(out, SendResult)] == [acknowledged + 1]


def test_a_lease_that_is_certainly_over_stops_the_attempt() -> None:
    made = running()
    made.handle(EngineProduced(A, (piece("xy"),)), 0.0)
    made.handle(Acknowledged(A, 1), 0.0)
    made.handle(Disconnected(), 1.0)
    made.handle(Disconnected(), 3.0)
    assert made.wake_at() == 6.0
    assert made.handle(Ticked(), 5.9) == []
    out = made.handle(Ticked(), 6.0)
    assert [stop.attempt for stop in sent(out, StopEngine)] == [A]
    assert [receipt.body.output_tokens for receipt in sent(out, SignReceipt)] == [1]
    assert made.wake_at() is None


def test_output_that_finds_no_taker_ends_the_attempt_within_its_bounds() -> None:
    made = running(buffer_bytes_max=1000)
    made.handle(Disconnected(), 0.0)
    for _ in range(10):
        assert not made.handle(EngineProduced(A, (piece("x", size=100),)), 0.0)
    out = made.handle(EngineProduced(A, (piece("x", size=100),)), 0.0)
    assert [stop.attempt for stop in sent(out, StopEngine)] == [A]
    [result] = sent(made.handle(connected((A, 0)), 0.1), SendResult)
    assert isinstance(result.outcome, Failure)
    assert result.outcome.code == "not_acknowledged"


def test_frames_that_stay_unanswered_mean_a_dead_connection() -> None:
    made = running()
    made.handle(EngineProduced(A, (piece("x"),)), 1.0)
    assert not sent(made.handle(Ticked(), 4.0), Reconnect)
    assert sent(made.handle(Ticked(), 5.0), Reconnect)
    made.handle(Disconnected(), 5.1)
    assert made.wake_at() == 6.0, "the lease counts from the first unanswered frame"


def test_an_end_is_kept_until_its_receipt_is_acknowledged_or_its_lease_is_over() -> None:
    """A coordinator that acknowledges no results costs no slots and no connection."""
    made = running()
    made.handle(assigned(B), 0.0)
    for attempt in (A, B):
        made.handle(EngineProduced(attempt, (piece("x"),)), 0.0)
        made.handle(EngineFinished(attempt, DONE), 0.0)
        made.handle(ReceiptKept(attempt), 0.0)
    made.handle(ReceiptAcknowledged(A, "matched"), 0.1)
    assert made.running() == [(B, 2)]
    assert made.attempts.tokens_delivered == 1
    assert not sent(made.handle(Ticked(), 4.9), Reconnect), "only a running attempt waits for answers"
    assert made.running() == [(B, 2)]
    made.handle(Ticked(), 6.0)
    assert made.running() == []


def test_a_receipt_of_a_completed_attempt_claims_all_of_it() -> None:
    made = running()
    made.handle(EngineProduced(A, (piece("a"), piece("b", choice=1))), 1.0)
    made.handle(Acknowledged(A, 1), 1.5)
    made.handle(EngineProduced(A, (piece("c"),)), 1.7)
    [signing] = sent(made.handle(EngineFinished(A, DONE), 2.0), SignReceipt)
    body = signing.body
    assert (body.prompt_tokens, body.output_tokens, body.started_at, body.ended_at) == (3, 3, 0, 2000)
    again = running()
    again.handle(EngineProduced(A, (piece("ac"), piece("b", choice=1))), 1.0)
    [same] = sent(again.handle(EngineFinished(A, DONE), 2.0), SignReceipt)
    assert same.body.output_sha256 == body.output_sha256, "the digest is of the text, not of its pieces"


def test_a_receipt_of_a_cancelled_attempt_claims_what_was_acknowledged() -> None:
    made = running()
    made.handle(EngineProduced(A, (piece("a"),)), 0.0)
    made.handle(EngineProduced(A, (piece("b"),)), 0.0)
    made.handle(Acknowledged(A, 1), 0.0)
    out = made.handle(Cancelled(A, "the member left"), 0.1)
    assert [signing.body.output_tokens for signing in sent(out, SignReceipt)] == [1]
    assert [stop.why for stop in sent(out, StopEngine)] == ["the member left"]


def test_receipts_are_sent_when_safe_again_after_a_welcome_and_forgotten_when_acknowledged() -> None:
    made = core()
    assert sent(made.handle(ReceiptKept(A), 0.0), SendReceipt)
    assert not sent(made.handle(ReceiptKept(B), 0.0), ForgetReceipt)
    made.handle(Disconnected(), 0.1)
    assert [r.attempt for r in sent(made.handle(connected(), 0.2), SendReceipt)] == [A, B]
    assert made.handle(ReceiptAcknowledged(A, "void"), 0.3) == [ForgetReceipt(A)]
    made.handle(Disconnected(), 0.4)
    assert [r.attempt for r in sent(made.handle(connected(), 0.5), SendReceipt)] == [B]


def test_many_old_receipts_leave_in_turns_and_the_oldest_makes_room() -> None:
    made = core(receipts_in_flight_max=2, receipts_max=4)
    made.handle(Disconnected(), 0.0)
    ids = [AttemptId(f"job_{number}", 1) for number in range(5)]
    forgotten = [sent(made.handle(ReceiptKept(attempt), 0.0), ForgetReceipt) for attempt in ids]
    assert forgotten[-1] == [ForgetReceipt(ids[0])]
    assert [r.attempt for r in sent(made.handle(connected(), 0.1), SendReceipt)] == ids[1:3]
    assert [r.attempt for r in sent(made.handle(ReceiptAcknowledged(ids[1], ""), 0.2), SendReceipt)] == [
        ids[3]
    ]


def test_a_drained_worker_finishes_tells_and_closes() -> None:
    made = running()
    assert not sent(made.handle(DrainAsked("stopped", 60.0), 0.0), Close)
    made.handle(EngineFinished(A, DONE), 1.0)
    assert not sent(made.handle(ReceiptKept(A), 1.0), Close)
    assert not sent(made.handle(Acknowledged(A, 1), 1.0), Close)
    assert made.handle(ReceiptAcknowledged(A, "matched"), 1.0)[-1] == Close("stopped")


def test_a_drain_that_takes_too_long_hands_the_rest_over() -> None:
    made = running()
    made.handle(DrainAsked("stopped", 10.0), 0.0)
    assert not sent(made.handle(Ticked(), 9.0), StopEngine)
    out = made.handle(Ticked(), 10.0)
    [result] = sent(out, SendResult)
    assert isinstance(result.outcome, Failure)
    assert (result.outcome.fault, result.outcome.code) == (Fault.NONE, "draining")
    assert made.wake_at() is not None
    assert sent(made.handle(Ticked(), 15.0), Close), "nobody answers: it closes all the same"


def test_an_idle_worker_drains_at_once_even_while_out_of_reach() -> None:
    made = core()
    made.handle(Disconnected(), 0.0)
    made.handle(ReceiptKept(A), 0.0)
    assert made.handle(DrainAsked("stopped", 60.0), 0.0) == [Close("stopped")]


def test_a_busy_worker_beats_every_second_and_an_idle_one_every_fifteen() -> None:
    made = core()
    assert made.wake_at() == 15.0
    made.handle(assigned(), 3.0)
    assert made.wake_at() == 4.0
    assert sent(made.handle(Ticked(), 4.0), SendHeartbeat)
    assert made.wake_at() == 5.0


def test_too_large_a_result_is_the_jobs_fault() -> None:
    made = running(result_bytes_max=10)
    [result] = sent(made.handle(EngineFinished(A, Completed(1, 11, None)), 0.0), SendResult)
    assert isinstance(result.outcome, Failure)
    assert (result.outcome.fault, result.outcome.code) == (Fault.JOB, "result_too_large")


@pytest.mark.parametrize("acknowledged", [0, 1])
def test_late_words_of_an_engine_change_nothing(acknowledged: int) -> None:
    """Neither while the end waits to be acknowledged nor after."""
    made = running()
    made.handle(EngineFailed(A, Failure(Fault.WORKER, "engine_died", "it died")), 0.0)
    made.handle(Acknowledged(A, acknowledged), 0.0)
    for event in (EngineProduced(A, (piece("x"),)), EngineFinished(A, DONE), EngineStarted(A, None)):
        assert made.handle(event, 0.1) == []


# --- all together: a coordinator behind a line that loses what is under way --------------------------------


@dataclass
class Attempted:
    """What the fake coordinator knows of one attempt."""

    fenced: bool = False
    accepted: bool = False
    sequence: int = 0
    text: str = ""
    ended: bool = False


@dataclass
class World:
    rng: random.Random
    core: Core
    blink: float  # the chance that the connection breaks in a step
    jobs: dict[str, str]  # job -> the text that its engine makes
    up: deque[Instruction] = field(default_factory=deque)
    down: deque[Event] = field(default_factory=deque)
    attempts: dict[AttemptId, Attempted] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    engines: dict[AttemptId, int] = field(default_factory=dict)  # attempt -> characters made so far
    started: set[AttemptId] = field(default_factory=set)
    disk: dict[AttemptId, ReceiptBody] = field(default_factory=dict)
    acknowledged: set[AttemptId] = field(default_factory=set)
    online: bool = False
    lost_at: float = 0.0

    def tell(self, event: Event, now: float) -> None:
        for instruction in self.core.handle(event, now):
            match instruction:
                case StartEngine(start):
                    assert start.attempt not in self.started, "an attempt is started once"
                    self.started.add(start.attempt)
                    self.engines[start.attempt] = 0
                case StopEngine(attempt):
                    self.engines.pop(attempt, None)
                case SignReceipt(attempt, body):
                    assert attempt not in self.disk or attempt in self.acknowledged, "one receipt for each"
                    self.disk[attempt] = body
                    self.tell(ReceiptKept(attempt), now)
                case ForgetReceipt(attempt):
                    assert attempt in self.acknowledged
                case Reconnect():
                    self.drop(now)
                case Close():
                    raise AssertionError("nobody asked it to drain")
                case _:
                    assert self.online, "nothing is sent into a dead connection"
                    self.up.append(instruction)

    def drop(self, now: float) -> None:
        self.up.clear()
        self.down.clear()
        if self.online:
            self.online, self.lost_at = False, now
            self.tell(Disconnected(), now)

    def connect(self, now: float) -> None:
        """Hello and Welcome in one step; the coordinator fences what is unknown or gone for too long."""
        said = dict(self.core.running())
        resumed = []
        for attempt, known in self.attempts.items():
            if known.fenced or known.ended:
                continue
            if attempt in said and now - self.lost_at < 4.0:
                resumed.append((attempt, known.sequence))
            else:
                known.fenced = True
        # An attempt whose result came but whose acknowledgement was lost goes on to be acknowledged again.
        ended = [(a, k.sequence) for a, k in self.attempts.items() if k.ended and a in said and not k.fenced]
        self.online = True
        self.tell(connected(*resumed, *ended), now)

    def coordinate(self) -> None:
        for job in sorted(self.jobs):
            open_ones = [
                a for a, k in self.attempts.items() if a.job_id == job and not k.fenced and not k.ended
            ]
            if job in self.done or open_ones or not self.online or self.rng.random() < 0.5:
                continue
            attempt = AttemptId(job, 1 + sum(a.job_id == job for a in self.attempts))
            self.attempts[attempt] = Attempted()
            for _ in range(self.rng.choice((1, 1, 2))):
                self.down.append(assigned(attempt))
        for attempt, known in self.attempts.items():
            if (
                self.online
                and known.accepted
                and not known.ended
                and not known.fenced
                and self.rng.random() < 0.01
            ):
                known.fenced = True
                self.down.append(Cancelled(attempt, "changed its mind"))

    def receive(self, message: Instruction) -> None:
        match message:
            case SendAccepted(attempt):
                self.attempts[attempt].accepted = True
            case SendRefused(attempt):
                self.attempts[attempt].fenced = True
            case SendFrame(attempt, sequence) if self.fresh(attempt, sequence):
                self.attempts[attempt].text += "".join(texts(message))
            case SendResult(attempt, sequence, outcome) if self.fresh(attempt, sequence):
                self.attempts[attempt].ended = True
                if isinstance(outcome, Completed):
                    assert self.attempts[attempt].text == self.jobs[attempt.job_id]
                    assert attempt.job_id not in self.done
                    self.done.add(attempt.job_id)
            case SendReceipt(attempt):
                body, known = self.disk[attempt], self.attempts[attempt]
                assert known.fenced or body.output_tokens <= len(known.text), (
                    "an honest worker never overclaims"
                )
                self.acknowledged.add(attempt)
                self.down.append(ReceiptAcknowledged(attempt, "matched"))
            case SendFrame(attempt) | SendResult(attempt):
                known = self.attempts[attempt]
                if not known.fenced:
                    self.down.append(Acknowledged(attempt, known.sequence))
            case _:
                assert isinstance(message, SendHeartbeat)

    def fresh(self, attempt: AttemptId, sequence: int) -> bool:
        known = self.attempts[attempt]
        if known.fenced or sequence <= known.sequence:
            return False
        assert sequence == known.sequence + 1, "sequences have no gaps"
        known.sequence = sequence
        self.down.append(Acknowledged(attempt, sequence))
        return True

    def step(self, now: float) -> None:
        if self.online and self.rng.random() < self.blink:
            self.drop(now)
        if not self.online and self.rng.random() < 0.4:
            self.connect(now)
        self.coordinate()
        for attempt in list(self.engines):
            text, made = self.jobs[attempt.job_id], self.engines[attempt]
            more = self.rng.randint(0, 3)
            if made + more >= len(text):
                self.produce(attempt, text[made:], now)
                self.tell(EngineFinished(attempt, DONE), now)
                self.engines.pop(attempt, None)
            elif more:
                self.produce(attempt, text[made : made + more], now)
        for _ in range(self.rng.randint(0, 12)):
            if self.up:
                self.receive(self.up.popleft())
        for _ in range(self.rng.randint(0, 12)):
            if self.down:
                self.tell(self.down.popleft(), now)
        self.tell(Ticked(), now)

    def produce(self, attempt: AttemptId, text: str, now: float) -> None:
        if attempt in self.engines:
            self.engines[attempt] += len(text)
            self.tell(EngineProduced(attempt, tuple(piece(c) for c in text)), now)

    def check(self, now: float) -> None:
        made = self.core
        assert set(self.engines) == {known.id for known in made.attempts.running()}
        for known in made.attempts:
            assert known.unacknowledged_bytes == sum(kept.size_bytes for kept in known.unacknowledged)
            assert known.pending_bytes + known.unacknowledged_bytes <= made.limits.buffer_bytes_max
        if not self.online and now - self.lost_at > 5.5:
            assert not self.engines, "no attempt outlives its lease"


@pytest.mark.parametrize("seed", range(200))
def test_under_any_blinking_of_the_line_every_job_ends_whole_and_every_receipt_arrives(seed: int) -> None:
    rng = random.Random(seed)
    made = Core(
        worker_id="wrk_a", limits=Limits(coalesce_from_attempts=rng.choice((1, 4)), buffer_bytes_max=500)
    )
    made.handle(ModelOffered("m", "emulator", rng.randint(1, 4)), 0.0)
    texts = {f"job_{n}": "".join(rng.choices("abcd", k=rng.randint(0, 60))) for n in range(rng.randint(1, 6))}
    world = World(rng, made, blink=rng.choice((0.02, 0.1, 0.3)), jobs=texts)
    now = 0.0
    for step in range(500):
        if step == 250:
            world.blink = 0.0
        now += rng.choice((0.005, 0.1, 1.5)) if step < 250 else 0.05
        world.step(now)
        world.check(now)
    assert world.done == set(texts)
    assert not made.attempts
    assert set(world.disk) == world.acknowledged
    assert {a.job_id for a in world.disk} >= world.done
