"""What work costs: canonical FLOPs from a model's shape and the tokens that the coordinator saw.

Never wall time, never a self-report. 1 microcredit is 1 MFLOP. All sums are exact integers in units of
1/2,000 FLOP, because the prompt's weight is a permille and its attention term is halved; a charge is rounded
up once, at the end. The quote is the same formula at its largest arguments, so a charge never exceeds it.

The coordinator charges by this module and `potluck ledger verify` recomputes by it, so it is pure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

UNITS_PER_FLOP = 2_000
UNITS_PER_MICROCREDIT = UNITS_PER_FLOP * 1_000_000
EMBEDDING = "embedding"
EMBEDDING_WEIGHT_PERMILLE = 1_000
DPO = "dpo"


@dataclass(frozen=True, slots=True)
class Shape:
    """N, H and a of one model (design, section 6), read off its own configuration."""

    active_parameters: int  # N: those that multiply, with the LM head, without the embedding table
    head_parameters: int  # H
    attention: int  # a = 2*L*h*(d_qk + d_v): FLOPs per pair of positions


@dataclass(frozen=True, slots=True)
class Tariff:
    """The pool's settings that enter a price."""

    prompt_weight_permille: int = 250
    fee_permille: int = 20


@dataclass(frozen=True, slots=True)
class Training:
    """Part of a fine-tune: real tokens, no padding, nothing computed twice.

    `square_tokens`: the sum of the squares of the sequences' lengths, which attention costs. Those of the
    validation are read forward only. A preference pair is two sequences.
    """

    method: str  # sft | dpo
    adapter_parameters: int  # P
    tokens: int
    square_tokens: int
    valid_tokens: int = 0
    valid_square_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Demand:
    """What a job asks for. `prompts`: the token counts of its prompts (several only for an embedding).

    `exact`: they are counted; otherwise they are upper bounds, since the model's tokenizer is not known.
    `training`: at its most, until a worker has said what it came to.
    """

    kind: str  # of the job: chat, completion, embedding
    shape: Shape
    prompts: tuple[int, ...]
    max_tokens: int = 0
    choices: int = 1
    exact: bool = True
    training: Training | None = None  # of a part of a fine-tune, and of nothing else

    @property
    def prompt_tokens(self) -> int:
        return sum(self.prompts)


@dataclass(frozen=True, slots=True)
class Segment:
    """Output tokens of one choice that one attempt delivered; `start` counts from the output's begin."""

    attempt: int
    choice: int
    start: int
    tokens: int


def prompt_units(demand: Demand, tariff: Tariff) -> int:
    weight = tariff.prompt_weight_permille
    if demand.kind == EMBEDDING:
        weight = EMBEDDING_WEIGHT_PERMILLE
    shape = demand.shape
    body = 4 * (shape.active_parameters - shape.head_parameters)
    return weight * sum(body * tokens + shape.attention * tokens * tokens for tokens in demand.prompts)


def output_units(demand: Demand, start: int, tokens: int) -> int:
    """Output tokens `start`..`start + tokens - 1`; the i-th stands at position prompt + i."""
    first = demand.prompt_tokens + start
    positions = tokens * first + tokens * (tokens - 1) // 2
    return UNITS_PER_FLOP * (2 * demand.shape.active_parameters * tokens + demand.shape.attention * positions)


def training_units(shape: Shape, training: Training) -> int:
    """LoRA: forward, backward through frozen weights, forward and backward of the adapter, attention."""
    each = 4 * shape.active_parameters + 6 * training.adapter_parameters
    units = UNITS_PER_FLOP * each * training.tokens
    units += UNITS_PER_FLOP * 3 * shape.attention * training.square_tokens // 2
    valid = forward_units(shape, training.valid_tokens, training.valid_square_tokens)
    if training.method != DPO:
        return units + valid
    return units + forward_units(shape, training.tokens, training.square_tokens) + 2 * valid


def forward_units(shape: Shape, tokens: int, square_tokens: int) -> int:
    """Of sequences that are read and nothing more, by the frozen reference of DPO as well."""
    body = UNITS_PER_FLOP * 2 * shape.active_parameters * tokens
    return body + UNITS_PER_FLOP * shape.attention * square_tokens // 2


def microcredits(units: int) -> int:
    """Rounded up."""
    return -(-units // UNITS_PER_MICROCREDIT)


def quote(demand: Demand, tariff: Tariff) -> int:
    """The most the job can cost, in microcredits."""
    if demand.training is not None:
        return microcredits(training_units(demand.shape, demand.training))
    output = demand.choices * output_units(demand, 0, demand.max_tokens)
    return microcredits(prompt_units(demand, tariff) + output)


def charge_units(
    demand: Demand, tariff: Tariff, segments: Sequence[Segment], finisher: int | None
) -> dict[int, int]:
    """Units by attempt: its own output, and of the prompt a part in proportion to output delivered.

    `finisher` is the attempt that ended the job with success; it is paid for the prompt of an answer that
    has no tokens. Nothing delivered and nobody finished: nothing is owed. Remainders go to the last.

    Training is paid to who finished it: it ends with a checkpoint, or was for nothing.
    """
    if demand.training is not None:
        return {} if finisher is None else {finisher: training_units(demand.shape, demand.training)}
    units: dict[int, int] = {}
    tokens: dict[int, int] = {}
    for segment in segments:
        if segment.tokens:
            part = output_units(demand, segment.start, segment.tokens)
            units[segment.attempt] = units.get(segment.attempt, 0) + part
            tokens[segment.attempt] = tokens.get(segment.attempt, 0) + segment.tokens
    if not tokens:
        return {} if finisher is None else {finisher: prompt_units(demand, tariff)}
    prompt, total, given = prompt_units(demand, tariff), sum(tokens.values()), 0
    last = max(tokens)
    for attempt in sorted(tokens):
        share = prompt - given if attempt == last else prompt * tokens[attempt] // total
        units[attempt] += share
        given += share
    return units


def amounts(units: Mapping[int, int]) -> dict[int, int]:
    """Microcredits by attempt: one charge, rounded up as a whole, divided with the remainder to the last."""
    if not units:
        return {}
    charge, given, parts = microcredits(sum(units.values())), 0, {}
    last = max(units)
    for number in sorted(units):
        parts[number] = charge - given if number == last else units[number] // UNITS_PER_MICROCREDIT
        given += parts[number]
    return parts


def fee_of(amount: int, tariff: Tariff) -> int:
    """What goes to the commons of what one attempt earned; rounded down."""
    return amount * tariff.fee_permille // 1_000
