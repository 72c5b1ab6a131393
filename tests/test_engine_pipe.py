"""Length-prefixed messages survive any split and nothing larger than the limit gets through."""

import asyncio
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.v1 import engine_pb2, work_pb2
from worker.engines import pipe


def progress(done: int) -> engine_pb2.EngineEvent:
    return engine_pb2.EngineEvent(load_progress=engine_pb2.LoadProgress(bytes_done=done))


@given(st.lists(st.integers(0, 2**40), max_size=20), st.lists(st.integers(1, 9), max_size=60))
def test_messages_come_out_whole_however_the_bytes_are_split(values: list[int], sizes: list[int]) -> None:
    data = b"".join(pipe.frame(progress(value)) for value in values)
    unframer = pipe.Unframer(engine_pb2.EngineEvent)
    seen: list[engine_pb2.EngineEvent] = []
    at = 0
    for size in [*sizes, len(data)]:
        seen += unframer.feed(data[at : at + size])
        at += size
    unframer.finish()
    assert [event.load_progress.bytes_done for event in seen] == values


def test_an_empty_message_is_a_message() -> None:
    assert pipe.Unframer(engine_pb2.EngineEvent).feed(b"\0\0\0\0") == [engine_pb2.EngineEvent()]


def test_a_message_above_the_limit_is_refused_on_both_sides() -> None:
    failure = work_pb2.Failure(message="x" * 100)
    event = engine_pb2.EngineEvent(load_failed=engine_pb2.LoadFailed(failure=failure))
    with pytest.raises(pipe.PipeError, match="above the limit of 50"):
        pipe.frame(event, bytes_max=50)
    unframer = pipe.Unframer(engine_pb2.EngineEvent, bytes_max=50)
    with pytest.raises(pipe.PipeError, match="above the limit of 50"):
        unframer.feed(pipe.frame(event)[:4])


def test_malformed_bytes_and_a_cut_message_are_named() -> None:
    unframer = pipe.Unframer(engine_pb2.EngineEvent)
    with pytest.raises(pipe.PipeError, match="no message"):
        unframer.feed(b"\0\0\0\2\xff\xff")
    unframer = pipe.Unframer(engine_pb2.EngineEvent)
    unframer.feed(pipe.frame(progress(7))[:-1])
    with pytest.raises(pipe.PipeError, match="closed inside a message"):
        unframer.finish()


async def test_blocking_and_asyncio_readers_agree_over_a_real_pipe() -> None:
    data = b"".join(pipe.frame(progress(value)) for value in range(100))
    read, write = os.pipe()
    pipe.write_all(write, data)
    os.close(write)
    blocking = list(pipe.read_messages(read, engine_pb2.EngineEvent))
    os.close(read)
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    awaited = [event async for event in pipe.receive_messages(reader, engine_pb2.EngineEvent)]
    assert blocking == awaited
    assert len(awaited) == 100
