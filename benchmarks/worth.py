"""What an answer and its attempts are worth, by the published formula, computed apart from the pool."""

from typing import Any

from potluck.catalogue import Catalogue

FEE = 0.02


def worth(model: str, first: int, last: int) -> float:
    """Microcredits of output tokens at the positions first..last-1, by the published formula."""
    entry = Catalogue.builtin(emulator=True).get(model)
    assert entry is not None
    twice, attention = 2 * entry.shape.active_parameters, entry.shape.attention
    return sum(twice + attention * position for position in range(first, last)) / 1e6


def expected_pay(model: str, job: dict[str, Any]) -> dict[int, float]:
    """Microcredits for each attempt: its own output tokens, the prompt in proportion, less the fee."""
    position, own = job["prompt_tokens"], {}
    for attempt in job["attempts"]:
        own[attempt["number"]] = worth(model, position, position + attempt["tokens"])
        position += attempt["tokens"]
    total = (position - job["prompt_tokens"]) or 1
    prompt = job["charge"] - sum(own.values())
    return {
        attempt["number"]: (own[attempt["number"]] + prompt * attempt["tokens"] / total) * (1 - FEE)
        for attempt in job["attempts"]
    }


def expected_charge(model: str, job: dict[str, Any], usage: Any) -> int:
    """The undisturbed answer's charge, and what more tokens are worth, if its count was another."""
    charge: int = usage.potluck["charge"]
    first, last = usage.completion_tokens, job["output_tokens"]
    sign = 1 if last >= first else -1
    begin, end = sorted((job["prompt_tokens"] + first, job["prompt_tokens"] + last))
    return charge + sign * round(worth(model, begin, end))
