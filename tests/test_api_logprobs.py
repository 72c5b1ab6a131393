"""Where each token stands in the text of a legacy completion, also where characters are made of several tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.api.logprobs import legacy
from potluck.v1.work_pb2 import TokenLogprob

EMOJI = "🎉".encode()
REPLACED = "\N{REPLACEMENT CHARACTER}".encode()


def offsets(pieces: list[bytes], begin: int = 0) -> list[int]:
    """As the engines tell them: half a character's text is the replacement character."""
    entries = [TokenLogprob(token=p.decode(errors="replace"), logprob=-1.0, bytes=p) for p in pieces]
    found: list[int] = legacy(entries, begin)["text_offset"]
    return found


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([b"a", EMOJI, b"b"], [0, 1, 2]),
        ([b"a", EMOJI[:2], EMOJI[2:], b"b"], [0, 1, 1, 2]),
        ([EMOJI[:1], EMOJI[1:2], EMOJI[2:3], EMOJI[3:], b"b"], [0, 0, 0, 0, 1]),
        ([EMOJI[:3], EMOJI[3:] + EMOJI[:1], EMOJI[1:], b"b"], [0, 0, 1, 2]),
        ([EMOJI[:2], b" b", b"c"], [0, 1, 3]),  # half an emoji that never becomes whole is one character
        ([EMOJI[:2], EMOJI, b"c"], [0, 1, 2]),
        ([REPLACED[:2], REPLACED[2:], b"c"], [0, 0, 1]),
        ([b"", b"a", b"", b"b"], [0, 0, 1, 1]),  # special tokens have no text
    ],
)
def test_a_token_has_the_offset_of_the_character_in_which_it_begins(
    pieces: list[bytes], expected: list[int]
) -> None:
    assert offsets(pieces) == expected
    assert offsets(pieces, 7) == [7 + offset for offset in expected]


def test_an_engine_that_gives_no_bytes_is_taken_at_its_words() -> None:
    entries = [TokenLogprob(token=token, logprob=-1.0) for token in ("né", "🎉", "!")]
    assert legacy(entries, 0)["text_offset"] == [0, 2, 3]


@given(st.text(max_size=12), st.data())
def test_offsets_are_those_of_the_text_however_it_is_cut(text: str, data: st.DataObject) -> None:
    whole = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(0, len(whole)), max_size=8)) - {0, len(whole)})
    places = [0, *cuts]
    pieces = [whole[a:b] for a, b in zip(places, [*cuts, len(whole)], strict=True)]
    at = [index for index, character in enumerate(text) for _ in character.encode()] or [0]
    assert offsets(pieces) == [at[place] for place in places]
