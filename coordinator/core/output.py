"""What a job has delivered so far: each choice's text, who produced which tokens, which frame is next.

The rule that makes failover seamless stands here: only pieces that continue exactly where the delivered
text ends are taken; what was seen already is dropped; anything else is the worker's fault.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from coordinator.core.pricing import Segment

TEXT_PER_TOKEN_MAX = 512  # code points; bounds what an engine without ids can send


class Piece(NamedTuple):
    """A piece of one choice's output as a worker sent it. `logprobs` is opaque to the core.

    One is made for each token: a tuple costs half of what a frozen dataclass does.
    """

    choice: int
    offset: int  # code points from the start of the choice's output
    text: str
    token_ids: tuple[int, ...] = ()
    finish_reason: str = ""
    logprobs: Any = ()


@dataclass(slots=True)
class Choice:
    parts: list[str] = field(default_factory=list)
    length: int = 0  # code points
    token_ids: list[int] = field(default_factory=list)
    exact_ids: bool = True  # every part came with ids: a continuation may start from them
    tokens: int = 0  # closed segments only
    finish_reason: str = ""
    open_text: list[str] = field(default_factory=list)  # of the running attempt, where it sends no ids
    open_ids: int = 0  # of the running attempt


class Misbehaviour(Exception):  # noqa: N818 -- named for what happened
    """The worker broke the protocol: its attempt ends and it is blamed."""


@dataclass(slots=True)
class Output:
    """Delivered output of one job. `count` gives the tokens of a text, for engines that send no ids."""

    choices: list[Choice]
    max_tokens: int
    count: Callable[[str], int]
    segments: list[Segment] = field(default_factory=list)
    sequence: int = 0  # of the running attempt: the last frame taken

    def take(self, sequence: int, pieces: Sequence[Piece]) -> bool:
        """Take the next frame. False: it was seen. Raises Misbehaviour, and changes nothing then."""
        if sequence <= self.sequence:
            return False
        if sequence != self.sequence + 1:
            raise Misbehaviour(f"frame {sequence} after frame {self.sequence}")
        self._check(pieces)
        for piece in pieces:
            choice = self.choices[piece.choice]
            if piece.text:
                choice.parts.append(piece.text)
                choice.length += len(piece.text)
            if piece.token_ids:
                choice.token_ids.extend(piece.token_ids)
                choice.open_ids += len(piece.token_ids)
            elif piece.text:
                choice.exact_ids = False
                choice.open_text.append(piece.text)
            choice.finish_reason = piece.finish_reason
        self.sequence = sequence
        return True

    def _check(self, pieces: Sequence[Piece]) -> None:
        """Several pieces of one frame may belong to one choice, so lengths are followed along."""
        lengths: dict[int, int] = {}
        ids: dict[int, int] = {}
        ended: set[int] = set()
        for piece in pieces:
            if not 0 <= piece.choice < len(self.choices):
                raise Misbehaviour(f"choice {piece.choice} of {len(self.choices)}")
            choice = self.choices[piece.choice]
            if choice.finish_reason or piece.choice in ended:
                raise Misbehaviour(f"choice {piece.choice} goes on after its end")
            length = lengths.get(piece.choice, choice.length)
            if piece.offset != length:
                raise Misbehaviour(f"text at {piece.offset} where {length} is next")
            lengths[piece.choice] = length + len(piece.text)
            if lengths[piece.choice] > self.max_tokens * TEXT_PER_TOKEN_MAX:
                raise Misbehaviour(f"more text than {self.max_tokens} tokens can hold")
            used = ids.get(piece.choice, choice.tokens + choice.open_ids) + len(piece.token_ids)
            if used > self.max_tokens:
                raise Misbehaviour(f"more than {self.max_tokens} tokens")
            ids[piece.choice] = used
            if piece.finish_reason:
                ended.add(piece.choice)

    def trained(self, attempt: int, tokens: int) -> None:
        """Of a training, which has no text: what it came to counts as one piece."""
        if tokens:
            self.segments.append(Segment(attempt, 0, 0, tokens))

    def settle(self, attempt: int) -> int:
        """Close the running attempt's segments; how many tokens it delivered, never above the limit."""
        for index, choice in enumerate(self.choices):
            tokens = choice.open_ids + (self.count("".join(choice.open_text)) if choice.open_text else 0)
            tokens = min(tokens, self.max_tokens - choice.tokens)
            if tokens:
                self.segments.append(Segment(attempt, index, choice.tokens, tokens))
            choice.tokens += tokens
            choice.open_ids, choice.open_text = 0, []
        self.sequence = 0
        return sum(segment.tokens for segment in self.segments if segment.attempt == attempt)

    @property
    def finished(self) -> bool:
        return all(choice.finish_reason for choice in self.choices)

    @property
    def begun(self) -> bool:
        return any(choice.parts or choice.token_ids or choice.finish_reason for choice in self.choices)

    @property
    def tokens(self) -> int:
        return sum(segment.tokens for segment in self.segments)

    @property
    def so_far(self) -> int:
        """`tokens` with those of the running attempt, where a piece that came without ids counts as one."""
        return sum(choice.tokens + choice.open_ids + len(choice.open_text) for choice in self.choices)
