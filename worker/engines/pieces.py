"""Tokens of one choice in, pieces that may be delivered out: the piece rule of engine.py. Pure."""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, field

from potluck.v1 import work_pb2
from worker.engines.stops import Stops


@dataclass(slots=True)
class Pieces:
    """The output of one choice on its way out.

    `offset` counts delivered code points, `tokens` generated tokens, those of earlier attempts included.
    """

    choice: int
    stops: Stops
    tokens_max: int  # of the whole choice, earlier attempts included
    offset: int = 0
    tokens: int = 0  # generated, earlier attempts included
    inherited: int = 0  # of these tokens, those of earlier attempts
    finish_reason: str = ""
    _utf8: codecs.IncrementalDecoder = field(init=False)
    _ids: list[int] = field(default_factory=list)
    _count: int = 0  # tokens that are not delivered yet
    _logprobs: list[work_pb2.TokenLogprob] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(
        self, token_id: int, data: bytes, logprob: work_pb2.TokenLogprob | None = None
    ) -> work_pb2.Delta | None:
        """Add one generated token. Returns the piece that became certain with it, if any."""
        assert not self.finish_reason, "a choice goes on after its end"
        self._ids.append(token_id)
        self._count += 1
        self.tokens += 1
        if logprob is not None:
            self._logprobs.append(logprob)
        last = self.stops.feed(self._utf8.decode(data))
        if last is not None:
            return self._end("stop", last)
        if self.exhausted:
            return self.end("length")
        if self.stops.certain and not self._utf8.getstate()[0]:
            return self._piece(self.stops.take())
        return None

    def add(
        self, text: str, tokens: int, logprobs: Sequence[work_pb2.TokenLogprob] = ()
    ) -> work_pb2.Delta | None:
        """As push, for an engine that gives whole characters without ids and minds the limit itself."""
        assert not self.finish_reason, "a choice goes on after its end"
        self._count += tokens
        self.tokens += tokens
        self._logprobs.extend(logprobs)
        last = self.stops.feed(text)
        if last is not None:
            return self._end("stop", last)
        return self._piece(self.stops.take()) if text and self.stops.certain else None

    @property
    def exhausted(self) -> bool:
        """As many tokens as were allowed."""
        return self.tokens >= self.tokens_max

    def end(self, finish_reason: str) -> work_pb2.Delta:
        """Nothing more will come: deliver what was withheld."""
        last = self.stops.feed(self._utf8.decode(b"", final=True))
        return self._end(finish_reason, self.stops.take()) if last is None else self._end("stop", last)

    def _end(self, finish_reason: str, text: str) -> work_pb2.Delta:
        self.finish_reason = finish_reason
        return self._piece(text)

    def _piece(self, text: str) -> work_pb2.Delta:
        delta = work_pb2.Delta(
            choice=self.choice,
            text_offset=self.offset,
            text=text,
            token_ids=self._ids,
            tokens=self._count,
            logprobs=self._logprobs,
            finish_reason=self.finish_reason,
        )
        self.offset += len(text)
        self._ids, self._logprobs, self._count = [], [], 0
        return delta


def open_choices(
    sampling: work_pb2.Sampling, continuation: work_pb2.Continuation, tokens_max: int
) -> list[Pieces]:
    """Every choice that is not finished, from where it stands. Offsets and counts go on from there."""
    before = {delivered.choice: delivered for delivered in continuation.delivered}
    strings = tuple(sampling.stop)
    choices: list[Pieces] = []
    for index in range(max(1, sampling.choices)):
        delivered = before.get(index, work_pb2.Delivered())
        if delivered.finish_reason:
            continue
        tokens = len(delivered.token_ids) or delivered.tokens
        choices.append(
            Pieces(
                choice=index,
                stops=Stops(strings, delivered.text),
                tokens_max=tokens_max,
                offset=len(delivered.text),
                tokens=tokens,
                inherited=tokens,
            )
        )
    return choices


def merge(deltas: Sequence[work_pb2.Delta]) -> list[work_pb2.Delta]:
    """Pieces of one moment, one for each choice that has any: fewer, larger messages say the same."""
    merged: dict[int, work_pb2.Delta] = {}
    for delta in deltas:
        first = merged.setdefault(delta.choice, delta)
        if first is delta:
            continue
        first.text += delta.text
        first.token_ids.extend(delta.token_ids)
        first.tokens += delta.tokens
        first.logprobs.extend(delta.logprobs)
        first.finish_reason = delta.finish_reason
    return list(merged.values())
