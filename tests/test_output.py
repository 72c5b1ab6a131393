"""What is taken of a worker's frames: only what continues exactly where the delivered text ends."""

from typing import Any

import pytest
from fixtures_core import words
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.core.output import TEXT_PER_TOKEN_MAX, Choice, Misbehaviour, Output, Piece
from coordinator.core.pricing import Segment


def output(choices: int = 1, max_tokens: int = 10) -> Output:
    return Output([Choice() for _ in range(choices)], max_tokens, words)


def text_of(out: Output, choice: int = 0) -> str:
    return "".join(out.choices[choice].parts)


def test_frames_are_taken_in_order_once() -> None:
    out = output()
    assert not out.begun
    assert out.take(1, [Piece(0, 0, "one ", (1,))])
    assert out.take(2, [Piece(0, 4, "two ", (2,), "stop")])
    assert not out.take(2, [Piece(0, 4, "two ", (2,), "stop")]), "seen"
    assert not out.take(1, [Piece(0, 0, "other ", (9,))]), "seen, whatever it says now"
    assert text_of(out) == "one two "
    assert out.choices[0].token_ids == [1, 2]
    assert out.choices[0].exact_ids
    assert out.finished
    assert out.begun


def test_a_gap_in_the_sequence_is_misbehaviour() -> None:
    out = output()
    with pytest.raises(Misbehaviour, match="frame 2 after frame 0"):
        out.take(2, [Piece(0, 0, "one ", (1,))])
    assert out.sequence == 0
    assert not out.begun


@pytest.mark.parametrize(
    ("pieces", "why"),
    [
        ([Piece(-1, 0, "x ")], "choice -1 of 2"),
        ([Piece(2, 0, "x ")], "choice 2 of 2"),
        ([Piece(0, 3, "x ")], "text at 3 where 4 is next"),
        ([Piece(0, 4, "x "), Piece(0, 4, "y ")], "text at 4 where 6 is next"),
        ([Piece(1, 0, "x ")], "choice 1 goes on after its end"),
        ([Piece(0, 4, "x ", (1,), "stop"), Piece(0, 6, "y ")], "choice 0 goes on after its end"),
        ([Piece(0, 4, "", tuple(range(10)))], "more than 10 tokens"),
        ([Piece(0, 4, "", tuple(range(5))), Piece(0, 4, "", tuple(range(5)))], "more than 10 tokens"),
        ([Piece(0, 4, "x" * (10 * TEXT_PER_TOKEN_MAX - 3))], "more text than 10 tokens can hold"),
    ],
)
def test_a_wrong_piece_is_misbehaviour_and_changes_nothing(pieces: list[Piece], why: str) -> None:
    """Also where an earlier piece of the same frame was right."""
    out = output(choices=2)
    out.take(1, [Piece(0, 0, "one ", (1,)), Piece(1, 0, "two ", (2,), "stop")])
    right = Piece(0, 4, "", ())
    with pytest.raises(Misbehaviour, match=why):
        out.take(2, [right, *pieces])
    assert (text_of(out), out.sequence, out.choices[0].open_ids) == ("one ", 1, 1)


def test_the_limits_themselves_are_allowed() -> None:
    out = output()
    assert out.take(1, [Piece(0, 0, "x" * (10 * TEXT_PER_TOKEN_MAX), tuple(range(10)))])
    assert out.settle(1) == 10


def test_offsets_count_code_points() -> None:
    out = output()
    out.take(1, [Piece(0, 0, "🍲é ", (1,))])
    assert out.take(2, [Piece(0, 3, "x ", (2,))])


def test_tokens_settled_are_those_of_the_attempt_that_delivered_them() -> None:
    out = output(choices=2)
    out.take(1, [Piece(0, 0, "a b ", (1, 2)), Piece(1, 0, "c ", (3,))])
    assert out.settle(1) == 3
    assert out.sequence == 0, "the next attempt counts its own frames"
    assert out.take(1, [Piece(0, 4, "d ", (4,), "stop")])
    assert out.settle(2) == 1
    assert out.settle(3) == 0
    assert out.segments == [Segment(1, 0, 0, 2), Segment(1, 1, 0, 1), Segment(2, 0, 2, 1)]
    assert out.tokens == 4
    assert not out.finished, "choice 1 has not ended"


def test_what_came_so_far_counts_before_it_is_settled() -> None:
    """Ids as they are, and each piece without ids as one, until its text is counted."""
    out = output(choices=2)
    out.take(1, [Piece(0, 0, "one two ", (1, 2)), Piece(1, 0, "three four ")])
    assert (out.tokens, out.so_far) == (0, 3)
    out.settle(1)
    assert (out.tokens, out.so_far) == (4, 4)
    out.take(1, [Piece(0, 8, "five ", (3,))])
    assert (out.tokens, out.so_far) == (4, 5)


def test_text_without_ids_is_counted_and_makes_the_ids_inexact() -> None:
    out = output()
    out.take(1, [Piece(0, 0, "a b ", (1, 2))])
    out.take(2, [Piece(0, 4, "c d e ")])
    assert not out.choices[0].exact_ids
    assert out.settle(1) == 5


def test_text_is_counted_as_a_whole_not_in_pieces() -> None:
    """A token may be cut by a frame; the count of the joined text is right."""
    out = Output([Choice()], 10, lambda text: -(-len(text) // 4))
    out.take(1, [Piece(0, 0, "ab")])
    out.take(2, [Piece(0, 2, "cd")])
    assert out.settle(1) == 1


def test_counted_text_is_never_more_than_the_limit() -> None:
    out = output(max_tokens=3)
    out.take(1, [Piece(0, 0, "a b ")])
    out.settle(1)
    out.take(1, [Piece(0, 4, "c d e f ")])
    assert out.settle(2) == 1
    assert out.tokens == 3


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_whatever_the_cuts_and_repeats_the_text_arrives_once(data: Any) -> None:
    """Two attempts, frames doubled at random, a failover anywhere: the text is whole, each token is counted once."""
    text = "".join(data.draw(st.lists(st.sampled_from(["a ", "🍲 ", "word "]), min_size=1, max_size=10)))
    out = output()
    position, attempt, total = 0, 1, 0
    while position < len(text):
        length = data.draw(st.integers(1, len(text) - position))
        piece = Piece(
            0,
            position,
            text[position : position + length],
            (),
            "" if position + length < len(text) else "stop",
        )
        sequence = out.sequence + 1
        for _ in range(data.draw(st.integers(1, 3))):
            out.take(sequence, [piece])
        position += length
        if data.draw(st.booleans()):
            total += out.settle(attempt)
            attempt += 1
    total += out.settle(attempt)
    assert text_of(out) == text
    assert out.finished
    assert total == out.tokens <= words(text)
