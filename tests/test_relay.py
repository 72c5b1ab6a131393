"""Delivery of a job's events to those who follow it."""

from coordinator.core.jobs import AccountId, Job, JobId, JobState, Kind, MemberId
from coordinator.core.output import Piece
from coordinator.relay import Closed, Embedded, Output, Relay

JOB = JobId("job_1")


def job() -> Job:
    return Job(
        id=JOB,
        kind=Kind.CHAT,
        model="tiny",
        member=MemberId("m"),
        account=AccountId("a"),
        created_at=0,
        quote=9,
        hold=9,
        prompt_tokens=1,
        max_tokens=9,
        state=JobState.SUCCEEDED,
        charge=5,
        output_tokens=3,
    )


async def test_pieces_that_wait_together_come_as_one_and_choices_stay_apart() -> None:
    """A slow reader gets fewer, larger pieces; order, text, ids and the end are unchanged."""
    relay = Relay()
    events = relay.follow(JOB)
    relay.pieces(JOB, [Piece(0, 0, "a", (1,)), Piece(0, 1, "b", (2,)), Piece(1, 0, "x", (7,))])
    relay.pieces(JOB, [Piece(1, 1, "", (), "length"), Piece(0, 2, "c", (3,), "stop")])
    relay.closed(job())
    got = [event async for event in events]
    assert got[:-1] == [
        Output(0, "ab", (1, 2), [], None),
        Output(1, "x", (7,), [], "length"),
        Output(0, "c", (3,), (), "stop"),
    ]
    assert isinstance(got[-1], Closed)
    assert (got[-1].charge, got[-1].output_tokens) == (5, 3)


async def test_every_follower_sees_all_from_when_it_came_and_one_end() -> None:
    """Two follow, one of them later; nobody's queue outlives the job."""
    relay = Relay()
    first = relay.follow(JOB)
    relay.pieces(JOB, [Piece(0, 0, "a")])
    second = relay.follow(JOB)
    relay.vectors(JOB, [[1.0]])
    relay.closed(job())
    assert [type(e) for e in [e async for e in first]] == [Output, Embedded, Closed]
    assert [type(e) for e in [e async for e in second]] == [Embedded, Closed]
    assert relay.queues == {}


async def test_who_leaves_early_is_forgotten() -> None:
    relay = Relay()
    events = relay.follow(JOB)
    relay.pieces(JOB, [Piece(0, 0, "a")])
    assert isinstance(await anext(events), Output)
    await events.aclose()  # type: ignore[attr-defined]  # it is an async generator
    assert relay.queues.get(JOB, []) == []
