"""Text leaves an engine whole: no half characters, no part of a stop string, the same however it was cut."""

from hypothesis import example, given
from hypothesis import strategies as st

from potluck.v1 import work_pb2
from worker.engines.pieces import Pieces, merge, open_choices
from worker.engines.stops import Stops

TEXTS = st.text(alphabet='ab<>/thinké🎉{}" ', max_size=40)
STOPS = st.lists(st.text(alphabet='ab<>/thinké🎉{}" ', min_size=1, max_size=6), max_size=4).map(tuple)


def cut_by_definition(text: str, stops: tuple[str, ...]) -> tuple[str, str]:
    """The slow way: the first prefix that ends with a stop string, without the longest such string."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))], "stop"
    return text, "length"


def tokens_of(data: bytes, sizes: list[int]) -> list[bytes]:
    """The bytes cut into tokens of the given sizes: often in the middle of a character."""
    tokens = []
    for size in [*sizes, *[1] * len(data)]:
        if data:
            tokens.append(data[:size])
            data = data[size:]
    return tokens


def run(tokens: list[bytes], stops: tuple[str, ...], pieces: Pieces | None = None) -> list[work_pb2.Delta]:
    pieces = pieces or Pieces(choice=0, stops=Stops(stops), tokens_max=len(tokens))
    deltas: list[work_pb2.Delta] = []
    for index, data in enumerate(tokens[pieces.tokens :], start=pieces.tokens):
        deltas += filter(None, [pieces.push(index, data)])
        if pieces.finish_reason:
            break
    return deltas


@given(TEXTS.filter(bool), STOPS, st.lists(st.integers(1, 7), max_size=30))
def test_any_chunking_gives_the_text_cut_at_the_first_stop(
    text: str, stops: tuple[str, ...], sizes: list[int]
) -> None:
    deltas = run(tokens_of(text.encode(), sizes), stops)
    said = "".join(delta.text for delta in deltas)
    assert (said, deltas[-1].finish_reason) == cut_by_definition(text, stops)
    at = 0
    for delta in deltas:
        assert delta.text_offset == at
        at += len(delta.text)
        assert delta.tokens == len(delta.token_ids)


@example(text=">>>><<<é", stops=("<",), sizes=[1, 1, 1, 1, 4])
@given(TEXTS.filter(bool), STOPS, st.lists(st.integers(1, 7), max_size=30))
def test_ids_that_were_delivered_decode_to_the_text_that_was_delivered(
    text: str, stops: tuple[str, ...], sizes: list[int]
) -> None:
    tokens = tokens_of(text.encode(), sizes)
    for delta in run(tokens, stops):
        stopped = delta.finish_reason == "stop"  # its last token may end inside a character that is not said
        spelled = b"".join(tokens[token] for token in delta.token_ids)
        said = spelled.decode(errors="ignore" if stopped else "strict")
        assert delta.text == said or (stopped and said.startswith(delta.text))


@given(TEXTS.filter(bool), STOPS, st.lists(st.integers(1, 7), max_size=30))
def test_every_cut_goes_on_to_the_same_text(text: str, stops: tuple[str, ...], sizes: list[int]) -> None:
    """Inside an emoji, a stop string, a tag or JSON: the seam after a failover does not show."""
    tokens = tokens_of(text.encode(), sizes)
    whole = run(tokens, stops)
    for cut in range(len(whole)):
        before = work_pb2.Delivered(
            text="".join(delta.text for delta in whole[:cut]),
            token_ids=[token for delta in whole[:cut] for token in delta.token_ids],
        )
        sampling = work_pb2.Sampling(stop=stops, choices=1)
        (pieces,) = open_choices(sampling, work_pb2.Continuation(delivered=[before]), len(tokens))
        rest = run(tokens, stops, pieces)
        assert before.text + "".join(d.text for d in rest) == "".join(d.text for d in whole)
        assert rest[-1].finish_reason == whole[-1].finish_reason
        assert [*before.token_ids, *(t for d in rest for t in d.token_ids)] == [
            token for delta in whole for token in delta.token_ids
        ]


def test_a_stop_string_that_began_in_delivered_text_still_ends_the_answer() -> None:
    """Only a sender that breaks the piece rule brings this about; what was said cannot be unsaid."""
    stops = Stops(("</think>",), before="so </thi")
    assert not stops.certain
    assert stops.feed("nk> more") == ""
    stops = Stops(("</think>",), before="so </thi")
    assert stops.feed("nly") is None
    assert stops.certain
    assert stops.take() == "nly"


def test_what_is_withheld_comes_out_at_the_end() -> None:
    pieces = Pieces(choice=0, stops=Stops(("###",)), tokens_max=10)
    assert pieces.push(1, b"a#") is None
    assert pieces.end("stop").text == "a#"
    pieces = Pieces(choice=0, stops=Stops(()), tokens_max=2)
    assert pieces.push(1, "🎉".encode()[:2]) is None
    last = pieces.push(2, "🎉".encode()[2:3])
    assert last is not None
    assert (last.text, last.finish_reason, list(last.token_ids)) == ("�", "length", [1, 2])


def test_a_finished_choice_is_not_opened_again() -> None:
    done = work_pb2.Delivered(choice=0, text="x", finish_reason="stop")
    sampling = work_pb2.Sampling(choices=2)
    (left,) = open_choices(sampling, work_pb2.Continuation(delivered=[done]), 5)
    assert (left.choice, left.offset, left.tokens) == (1, 0, 0)


def test_pieces_of_one_moment_become_one_for_each_choice() -> None:
    deltas = [
        work_pb2.Delta(choice=0, text="a", token_ids=[1], tokens=1),
        work_pb2.Delta(choice=1, text="x", token_ids=[9], tokens=1),
        work_pb2.Delta(choice=0, text_offset=1, text="b", token_ids=[2], tokens=1, finish_reason="stop"),
    ]
    first, second = merge(deltas)
    assert (first.text_offset, first.text, list(first.token_ids), first.tokens) == (0, "ab", [1, 2], 2)
    assert (first.finish_reason, second.text) == ("stop", "x")
