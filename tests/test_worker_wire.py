"""Between protobuf and the core's words: nothing is lost, and nonsense is stopped at the border."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.v1 import engine_pb2, session_pb2, work_pb2
from worker import wire
from worker.messages import (
    Assigned,
    AttemptId,
    EngineFinished,
    EngineProduced,
    Fault,
    Piece,
    SendFrame,
    SendResult,
)

deltas = st.lists(
    st.builds(
        work_pb2.Delta,
        choice=st.integers(0, 2),
        text=st.text(max_size=3),
        token_ids=st.lists(st.integers(0, 9), max_size=3),
        tokens=st.integers(0, 3),
        finish_reason=st.sampled_from(["", "", "", "stop"]),
    ),
    max_size=12,
)


def by_choice(items: list[work_pb2.Delta]) -> dict[int, tuple[str, list[int], int, list[str]]]:
    found: dict[int, tuple[str, list[int], int, list[str]]] = {}
    for item in items:
        text, ids, tokens, ends = found.get(item.choice, ("", [], 0, []))
        ends = [*ends, item.finish_reason] if item.finish_reason else ends
        found[item.choice] = (text + item.text, ids + list(item.token_ids), tokens + item.tokens, ends)
    return found


@given(deltas)
def test_joining_the_pieces_of_a_frame_loses_nothing(items: list[work_pb2.Delta]) -> None:
    before = [item.SerializeToString() for item in items]
    pieces = tuple(Piece(item.choice, item.text, 1, item.ByteSize(), item) for item in items)
    joined = wire.merged(pieces)
    assert by_choice(joined) == by_choice(items)
    assert [item.SerializeToString() for item in items] == before, "what is kept for resending is not changed"
    neighbours = itertools.pairwise(joined)
    assert all(one.choice != two.choice or one.finish_reason for one, two in neighbours)


@pytest.mark.parametrize("attempt", [("", 1), ("job_a", 0), ("x" * 257, 1), ("two\nlines", 1)])
def test_an_attempt_that_could_not_be_signed_for_is_refused_at_the_border(attempt: tuple[str, int]) -> None:
    at = work_pb2.Attempt(job_id=attempt[0], number=attempt[1])
    for body in (
        session_pb2.CoordinatorMessage(assign=session_pb2.Assign(attempt=at)),
        session_pb2.CoordinatorMessage(ack=session_pb2.Ack(attempt=at)),
        session_pb2.CoordinatorMessage(cancel=session_pb2.Cancel(attempt=at)),
        session_pb2.CoordinatorMessage(receipt_ack=session_pb2.ReceiptAck(attempt=at)),
    ):
        with pytest.raises(wire.WireError):
            wire.event_from(body)


def test_a_message_of_a_newer_coordinator_is_no_event() -> None:
    assert wire.event_from(session_pb2.CoordinatorMessage()) is None


def test_the_limits_of_a_welcome_are_bounded() -> None:
    welcome = session_pb2.Welcome(heartbeat_busy_ms=2**31, heartbeat_idle_ms=0, frame_bytes_max=1)
    connected = wire.connected_from(welcome)
    assert (connected.heartbeat_busy_s, connected.heartbeat_idle_s) == (60.0, 0.0)
    assert connected.frame_bytes_max == wire.FRAME_BYTES_MIN


def test_tokens_are_counted_from_ids_where_there_are_ids() -> None:
    at = work_pb2.Attempt(job_id="job_a", number=1)
    items = [work_pb2.Delta(token_ids=[1, 2], tokens=7), work_pb2.Delta(tokens=3)]
    event = engine_pb2.EngineEvent(output=engine_pb2.Output(attempt=at, deltas=items))
    heard = wire.engine_event_from(event)
    assert isinstance(heard, EngineProduced)
    assert [piece.tokens for piece in heard.pieces] == [2, 3]


def test_vectors_have_a_digest_in_the_receipt() -> None:
    at = work_pb2.Attempt(job_id="job_a", number=1)
    vectors = [work_pb2.Embedding(values=[0.5, 1.0]), work_pb2.Embedding(values=[0.25])]
    done = engine_pb2.Done(attempt=at, usage=work_pb2.Usage(prompt_tokens=4), embeddings=vectors)
    heard = wire.engine_event_from(engine_pb2.EngineEvent(done=done))
    assert isinstance(heard, EngineFinished)
    assert heard.attempt == AttemptId("job_a", 1)
    assert len(set(heard.completed.digests)) == 2


def test_training_is_a_kind_of_work_with_its_steps() -> None:
    plan = work_pb2.TrainingPlan(steps=96)
    work = work_pb2.Work(training=work_pb2.TrainingWork(plan=plan))
    assign = session_pb2.Assign(attempt=work_pb2.Attempt(job_id="job_a", number=1), work=work)
    event = wire.event_from(session_pb2.CoordinatorMessage(assign=assign))
    assert isinstance(event, Assigned)
    assert (event.kind, event.steps, event.trains) == ("finetune", 96, True)
    files = engine_pb2.TrainingFiles(examples="/e", folder="/f")
    assert wire.start_command(replace(event, files=files)).start.files == files
    adapter = engine_pb2.LoadedAdapter(name="a")
    assert wire.start_command(replace(event, files=adapter)).start.adapter == adapter


def test_steps_of_an_engine_become_steps_of_a_frame() -> None:
    at = work_pb2.Attempt(job_id="job_a", number=1)
    steps = [work_pb2.TrainingStep(step=n, train_loss=2.0 - n, tokens=9) for n in range(2)]
    output = engine_pb2.Output(attempt=at, steps=steps)
    heard = wire.engine_event_from(engine_pb2.EngineEvent(output=output))
    assert isinstance(heard, EngineProduced)
    frame = SendFrame(heard.attempt, 1, heard.pieces, None)
    said = wire.message_to(frame).frame
    assert list(said.steps) == steps
    assert not said.deltas


def test_the_end_of_training_has_the_digests_of_what_it_made() -> None:
    at = work_pb2.Attempt(job_id="job_a", number=1)
    said = work_pb2.Trained(steps=3, tokens=27)
    heard = wire.engine_event_from(engine_pb2.EngineEvent(done=engine_pb2.Done(attempt=at, trained=said)))
    assert isinstance(heard, EngineFinished)
    assert (heard.completed.tokens, heard.completed.digests) == (27, ())
    said.adapter.sha256, said.state.sha256 = "ab" * 32, "cd" * 32
    completed = wire.trained(said)
    assert completed.digests == (b"\xab" * 32, b"\xcd" * 32)
    result = wire.message_to(SendResult(heard.attempt, 4, completed)).result
    assert result.completed.trained == said


@pytest.mark.parametrize("fault", list(Fault))
def test_faults_survive_both_ways(fault: Fault) -> None:
    failure = wire.failure_from(work_pb2.Failure(code="x", message="y", fault=wire._FAULTS_OUT[fault]))
    assert wire.failure_from(wire.failure_to(failure)) == failure
    assert failure.fault is fault
