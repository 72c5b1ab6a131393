"""What an entry says beside its amounts, as JSON: enough to recompute a charge, and to put it into words.

Only the parties to an entry see its details; to all others they are a digest (`potluck.chain`). They name
accounts and workers by id, and hold no text of any job.
"""

import json
from collections.abc import Sequence
from typing import Any, Final

from coordinator.core.entries import Payment
from coordinator.core.jobs import AccountId, Job
from coordinator.core.ledger import Bucket
from coordinator.core.pricing import Demand, Segment, Tariff, Training

_SPELLING: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def written(**facts: Any) -> str:
    """One spelling for one meaning: sorted, compact, ASCII."""
    return _SPELLING.encode(facts)


def of_hold(job: Job) -> str:
    return written(kind=job.kind.value, model=job.model)


def of_refund(job: Job, why: str) -> str:
    """Of a close without a charge."""
    return written(kind=job.kind.value, model=job.model, why=why)


def of_rest(job: Job, why: str) -> str:
    """Of the close of a whole, whose parts were charged along the way."""
    facts = {"kind": job.kind.value, "model": job.model, "settled": job.settled}
    return written(**facts, why=why) if why else written(**facts)


def of_work(
    job: Job,
    demand: Demand,
    tariff: Tariff,
    segments: Sequence[Segment],
    finisher: int | None,
    paid: Sequence[Payment],
) -> str:
    """Of a close with a charge: the arguments of `pricing.charge_units` and what came of them.

    `shape` is [N, H, a], `tariff` [permille of a prompt's work, permille of the fee], a segment
    [attempt, choice, start, tokens]. `training` stands there only for a part of a fine-tune, whose segment
    is what was trained.
    """
    shape, attempts = demand.shape, {attempt.number: attempt for attempt in job.attempts}
    trained = {} if demand.training is None else {"training": _training(demand.training)}
    return written(
        kind=job.kind.value,
        model=job.model,
        prompts=demand.prompts,
        shape=[shape.active_parameters, shape.head_parameters, shape.attention],
        tariff=[tariff.prompt_weight_permille, tariff.fee_permille],
        segments=[[s.attempt, s.choice, s.start, s.tokens] for s in segments],
        finisher=finisher,
        paid=[
            {
                "attempt": p.attempt,
                "worker": attempts[p.attempt].worker,
                "account": p.account,
                "tokens": attempts[p.attempt].tokens,
                "amount": p.amount,
                "fee": p.fee,
                "held": p.bucket is Bucket.HELD,
            }
            for p in paid
        ],
        **trained,
    )


def _training(done: Training) -> dict[str, Any]:
    return {
        "method": done.method,
        "adapter_parameters": done.adapter_parameters,
        "tokens": done.tokens,
        "square_tokens": done.square_tokens,
        "valid_tokens": done.valid_tokens,
        "valid_square_tokens": done.valid_square_tokens,
    }


def of_transfer(sender: AccountId, to: AccountId, note: str) -> str:
    return _with({"from": sender, "to": to}, note=note)


def of_grant(to: AccountId, by: AccountId, reason: str) -> str:
    """`by`: the account of the admin who granted it."""
    return _with({"to": to, "by": by}, reason=reason)


def of_line(by: AccountId) -> str:
    """Of a line that an admin changed."""
    return _with({"by": by})


def of_invite(invite: str, lender: AccountId, became: str) -> str:
    """`became`: open, accepted, revoked or expired."""
    return _with({"invite": invite, "lender": lender}, became=became)


def of_retire(why: str) -> str:
    return _with({}, why=why)


def _with(parties: dict[str, str], **said: str) -> str:
    return written(**parties, **{name: text for name, text in said.items() if text})
