"""Log probabilities of tokens, in the two shapes that the OpenAI API has for them."""

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
    """{"tokens", "token_logprobs", "top_logprobs", "text_offset"}; offsets in characters of the output."""
    tokens, values, tops, offsets = [], [], [], []
    for entry in entries:
        tokens.append(entry.token)
        values.append(_value(entry.logprob))
        tops.append({top.token: _value(top.logprob) for top in entry.top})
        offsets.append(offset)
        offset += len(entry.token)
    return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}
