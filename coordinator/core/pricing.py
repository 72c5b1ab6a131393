"""Who is paid for a job: the price is `potluck.pricing`'s, which whoever checks the books has, too."""

from collections.abc import Callable, Sequence

from coordinator.core.entries import Payment
from coordinator.core.jobs import AccountId, Attempt, WorkerId
from coordinator.core.ledger import Bucket
from potluck.pricing import (
    EMBEDDING_WEIGHT_PERMILLE,
    UNITS_PER_FLOP,
    UNITS_PER_MICROCREDIT,
    Demand,
    Segment,
    Shape,
    Tariff,
    Training,
    amounts,
    charge_units,
    fee_of,
    microcredits,
    output_units,
    prompt_units,
    quote,
)

__all__ = [
    "EMBEDDING_WEIGHT_PERMILLE",
    "UNITS_PER_FLOP",
    "UNITS_PER_MICROCREDIT",
    "Demand",
    "Segment",
    "Shape",
    "Tariff",
    "Training",
    "charge_units",
    "microcredits",
    "output_units",
    "payments",
    "prompt_units",
    "quote",
]


def payments(
    units: dict[int, int],
    attempts: Sequence[Attempt],
    payer: AccountId,
    tariff: Tariff,
    bucket_of: Callable[[WorkerId], Bucket] = lambda _: Bucket.MAIN,
) -> list[Payment]:
    """Each attempt's part of the charge. Those on the payer's own workers move nothing and pay no fee.

    `bucket_of` says whether what a worker earns can be spent at once.
    """
    by_number = {attempt.number: attempt for attempt in attempts}
    paid = []
    for number, amount in amounts(units).items():
        attempt = by_number[number]
        if amount and attempt.owner != payer:
            fee = fee_of(amount, tariff)
            paid.append(Payment(number, attempt.owner, amount, fee, bucket_of(attempt.worker)))
    return paid
