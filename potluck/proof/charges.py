"""A charge once more, from what the details of a close say: the prices, the division, the fee, the rounding.

`coordinator.core.details.of_work` wrote them. Details of an older pool, or of a refund, hold less.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from potluck.pricing import DPO, Demand, Segment, Shape, Tariff, Training, amounts, charge_units, fee_of
from potluck.proof.lines import INTEGER_MAX, decoded, shown

PARTS: Final = frozenset({"kind", "prompts", "shape", "tariff", "segments", "finisher", "paid"})
FINETUNE: Final = "finetune"
METHODS: Final = ("sft", DPO)
COUNTS: Final = ("adapter_parameters", "tokens", "square_tokens", "valid_tokens", "valid_square_tokens")


@dataclass(frozen=True, slots=True)
class Recomputed:
    """`postings` as the close should have them; tokens delivered and microcredits, gross, by attempt.

    `attempts`: those that are paid, each with the account that gets it.
    """

    postings: list[list[Any]]
    tokens: dict[int, int]
    amounts: dict[int, int]
    attempts: dict[int, str]


@dataclass(frozen=True, slots=True)
class _Paid:
    attempt: int
    worker: str
    account: str
    tokens: int
    amount: int
    fee: int
    held: bool


def recomputed(details: str, *, payer: str, left: int, owners: Mapping[str, str]) -> Recomputed | None:
    """What the close of a hold with `left` microcredits in it must post; None if the details do not say.

    `owners`: account by worker. Raises ValueError, the end of a sentence, if the details contradict
    themselves or the price formula.
    """
    said = decoded(details)
    if not isinstance(said, dict):
        return None
    if not said.keys() & (PARTS - {"kind"}):
        if not said.keys() & {"why", "settled"}:
            return None
        return Recomputed(
            [[payer, "reserved", -left], [payer, "main", left]], {}, {}, {}
        )  # a refund, or the rest of a whole
    if missing := PARTS - said.keys():
        raise ValueError(f"has details without {', '.join(sorted(missing))}")
    demand, tariff, segments, finisher = _arguments(said)
    _check_segments(segments)
    if demand.training is not None:
        _check_training(demand, demand.training, segments, finisher)
    tokens: dict[int, int] = {}
    for segment in segments:
        tokens[segment.attempt] = tokens.get(segment.attempt, 0) + segment.tokens
    parts = amounts(charge_units(demand, tariff, segments, finisher))
    paid = [_paid(item) for item in _list(said, "paid")]
    seen: set[int] = set()
    for item in paid:
        if item.attempt in seen:
            raise ValueError(f"pays attempt {item.attempt} twice")
        seen.add(item.attempt)
        _check_paid(item, parts, tokens, tariff, payer, owners)
    earned = {item.attempt: item.account for item in paid if item.amount - item.fee}
    return Recomputed(_postings(payer, left, paid), tokens, parts, earned)


def _arguments(said: Mapping[str, Any]) -> tuple[Demand, Tariff, list[Segment], int | None]:
    shape = Shape(*_integers(said["shape"], 3, "shape"))
    tariff = Tariff(*_integers(said["tariff"], 2, "tariff"))
    prompts = tuple(_integers(said["prompts"], None, "prompts"))
    segments = [Segment(*_integers(item, 4, "segments")) for item in _list(said, "segments")]
    finisher, kind = said["finisher"], said["kind"]
    if finisher is not None:
        (finisher,) = _integers([finisher], 1, "finisher")
    if type(kind) is not str:
        raise ValueError("has details whose `kind` is no text")
    if (kind == FINETUNE) != ("training" in said):
        raise ValueError(f"has details of a {kind} {'without' if kind == FINETUNE else 'with'} `training`")
    training = _training(said["training"]) if kind == FINETUNE else None
    return Demand(kind, shape, prompts, training=training), tariff, segments, finisher


def _training(said: Any) -> Training:
    if not isinstance(said, dict) or said.get("method") not in METHODS or set(said) != {"method", *COUNTS}:
        raise ValueError(f"has details whose `training` does not say method, {', '.join(COUNTS)}")
    return Training(said["method"], *_integers([said[name] for name in COUNTS], len(COUNTS), "training"))


def _check_segments(segments: Sequence[Segment]) -> None:
    """Each choice is one run of tokens from the first on: none is charged twice, none at a dearer place."""
    ends: dict[int, int] = {}
    for segment in segments:
        if segment.start != ends.get(segment.choice, 0):
            raise ValueError(
                f"charges token {segment.start} of choice {segment.choice} where token"
                f" {ends.get(segment.choice, 0)} is next"
            )
        ends[segment.choice] = segment.start + segment.tokens


def _check_training(
    demand: Demand, training: Training, segments: Sequence[Segment], finisher: int | None
) -> None:
    """What was trained is one piece, of who finished it; no sequence is longer than the longest."""
    whole = [Segment(finisher or 0, 0, 0, training.tokens)] if training.tokens else []
    if list(segments) != whole:
        raise ValueError(f"trains {training.tokens} tokens, of which its segments are no one piece")
    longest = max(demand.prompts, default=0)
    for what, tokens, squares in (
        ("trains", training.tokens, training.square_tokens),
        ("reads", training.valid_tokens, training.valid_square_tokens),
    ):
        if squares > tokens * longest:
            raise ValueError(f"{what} {tokens} tokens in sequences that would be longer than {longest}")


def _check_paid(
    item: _Paid,
    parts: Mapping[int, int],
    tokens: Mapping[int, int],
    tariff: Tariff,
    payer: str,
    owners: Mapping[str, str],
) -> None:
    number = item.attempt
    if (right := parts.get(number, 0)) != item.amount:
        raise ValueError(f"pays attempt {number} {item.amount} microcredits where the formula gives {right}")
    if (right := tokens.get(number, 0)) != item.tokens:
        raise ValueError(f"says that attempt {number} had {item.tokens} tokens; its segments have {right}")
    if (right := fee_of(item.amount, tariff)) != item.fee:
        raise ValueError(f"takes a fee of {item.fee} microcredits from attempt {number} where {right} is due")
    if item.account == payer:
        raise ValueError(f"pays its own payer for attempt {number}: own jobs on own workers are free")
    if owners.get(item.worker) != item.account:
        raise ValueError(f"pays {shown(item.account)} for a worker of another, {shown(item.worker)}")


def _postings(payer: str, left: int, paid: Sequence[_Paid]) -> list[list[Any]]:
    charge = sum(item.amount for item in paid)
    made = [[payer, "reserved", -left], [payer, "main", left - charge]]
    made += [
        [item.account, "held" if item.held else "main", item.amount - item.fee]
        for item in paid
        if item.amount - item.fee
    ]
    if fee := sum(item.fee for item in paid):
        made.append(["commons", "main", fee])
    return made


def _paid(item: Any) -> _Paid:
    names = ("attempt", "worker", "account", "tokens", "amount", "fee", "held")
    if not isinstance(item, dict) or any(name not in item for name in names):
        raise ValueError(f"has details in which `paid` does not say {', '.join(names)}")
    attempt, tokens, amount, fee = _integers(
        [item["attempt"], item["tokens"], item["amount"], item["fee"]], 4, "paid"
    )
    worker, account, held = item["worker"], item["account"], item["held"]
    if type(worker) is not str or type(account) is not str or type(held) is not bool:
        raise ValueError("has details in which `paid` names no worker or account")
    return _Paid(attempt, worker, account, tokens, amount, fee, held)


def _list(said: Mapping[str, Any], name: str) -> list[Any]:
    found = said[name]
    if isinstance(found, list):
        return found
    raise ValueError(f"has details whose `{name}` is no list")


def _integers(found: Any, count: int | None, name: str) -> list[int]:
    if (
        not isinstance(found, list)
        or (count is not None and len(found) != count)
        or not all(type(item) is int and 0 <= item <= INTEGER_MAX for item in found)
    ):
        raise ValueError(f"has details whose `{name}` are not the whole numbers that a charge is made of")
    return found
