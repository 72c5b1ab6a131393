"""Log probabilities of tokens, in the two shapes that the OpenAI API has for them."""

import codecs
from collections.abc import Iterable
from typing import Any

from potluck.v1.work_pb2 import TokenLogprob

FLOOR = -9999.0  # what the OpenAI API says for "impossible": JSON has no infinity


def _value(logprob: float) -> float:
    return max(logprob, FLOOR) if logprob <= 0 else 0.0 if logprob > 0 else FLOOR  # not a number: FLOOR


def _token(entry: TokenLogprob) -> dict[str, Any]:
    return {"token": entry.token, "logprob": _value(entry.logprob), "bytes": list(entry.bytes)}


def chat(entries: Iterable[TokenLogprob]) -> dict[str, Any]:
    """{"content": [{token, logprob, bytes, top_logprobs: [...]}], "refusal": null}."""
    content = [{**_token(entry), "top_logprobs": [_token(top) for top in entry.top]} for entry in entries]
    return {"content": content, "refusal": None}


def legacy(entries: Iterable[TokenLogprob], offset: int) -> dict[str, Any]:
    """{"tokens", "token_logprobs", "top_logprobs", "text_offset"}; offsets in code points of the output.

    A token that begins inside a character, as where two tokens are one emoji, has that character's offset.
    """
    tokens, values, tops, offsets = [], [], [], []
    place = _Place(offset)
    for entry in entries:
        tokens.append(entry.token)
        values.append(_value(entry.logprob))
        tops.append({top.token: _value(top.logprob) for top in entry.top})
        offsets.append(place.of(entry.bytes or entry.token.encode()))
    return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}


class _Place:
    """Where each token begins, by its bytes: a text of half a character says nothing about the whole."""

    def __init__(self, offset: int) -> None:
        self._offset = offset  # code points that are complete
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")  # as the engines put text together

    def of(self, data: bytes) -> int:
        """The code point in which these bytes begin; they come next."""
        half, _ = self._utf8.getstate()
        text = self._utf8.decode(data[:1])
        start = self._offset + (1 if half and text and not _is_utf8(half + data[:1]) else 0)
        self._offset += len(text) + len(self._utf8.decode(data[1:]))
        return start


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
