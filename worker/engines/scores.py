"""Log probabilities in the shape of OpenAI's chat completions, as the pool's own messages."""

from collections.abc import Sequence
from typing import Any

from potluck.v1 import work_pb2


def logprobs_of(choice: dict[str, Any]) -> list[work_pb2.TokenLogprob]:
    """For a character of several tokens llama.cpp gives the last one's."""
    content = (choice.get("logprobs") or {}).get("content") or []
    return [_logprob(item, item.get("top_logprobs") or ()) for item in content]


def _logprob(item: dict[str, Any], top: Sequence[dict[str, Any]]) -> work_pb2.TokenLogprob:
    given = item.get("bytes")
    return work_pb2.TokenLogprob(
        token=item["token"],
        logprob=item["logprob"],
        bytes=item["token"].encode() if given is None else bytes(given),
        top=[_logprob(other, ()) for other in top],
    )
