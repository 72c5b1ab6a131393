"""What a piece of training is to do: which examples each step takes, at which learning rate. Pure."""

import math
from collections.abc import Sequence
from typing import Final

from potluck import shuffle
from potluck.lora import RANK_MAX
from potluck.v1 import work_pb2
from worker.engines.engine import JobError

SFT: Final = "sft"
DPO: Final = "dpo"
SCHEDULES: Final = ("constant", "linear", "cosine")
SHARE_WARMUP_STEPS: Final = 2  # of each share of a round, whose Adam moments begin at zero


def check(work: work_pb2.TrainingWork, context_tokens: int) -> None:
    """Raises JobError for what nobody could do."""
    plan = work.plan
    wrong = [
        (plan.method in (SFT, DPO), f"its method is {plan.method[:40]!r}; {SFT} and {DPO} are known"),
        (1 <= plan.lora.rank <= RANK_MAX, f"the rank is {plan.lora.rank}; 1 to {RANK_MAX} is possible"),
        (_positive(plan.lora.alpha), "alpha must be a number above 0"),
        (plan.batch_size > 0, "a step must take at least one example"),
        (plan.examples > 0, "there must be at least one example"),
        (
            2 <= plan.sequence_tokens <= context_tokens,
            f"examples may have {plan.sequence_tokens} tokens; this model holds 2 to {context_tokens}",
        ),
        (_positive(plan.learning_rate), "the learning rate must be a number above 0"),
        (plan.schedule in SCHEDULES, f"its schedule must be one of {', '.join(SCHEDULES)}"),
        (0 <= plan.weight_decay <= 1, "the weight decay must be a number from 0 to 1"),
        (plan.gradient_norm_max >= 0, "the greatest norm of a gradient must be a number from 0"),
        (plan.method != DPO or _positive(plan.dpo_beta), "beta must be a number above 0"),
        (work.first_step <= work.last_step, "it ends before it begins"),
        (work.first_step < work.last_step or work.validate, "it has neither steps nor a validation"),
        (not (work.delta and work.HasField("state")), "a share of a round has no state"),
    ]  # fmt: skip
    if work.leased:
        wrong += [
            (max(work.leased) < plan.examples, "an example is leased that is not in the file"),
            (
                -(-len(work.leased) // plan.batch_size) == work.last_step - work.first_step,
                f"{len(work.leased)} leased examples are not what its steps take",
            ),
        ]
    else:
        wrong.append((work.last_step <= plan.steps, f"the fine-tune has {plan.steps} steps"))
    for holds, why in wrong:
        if not holds:
            raise JobError("bad_plan", f"this training cannot be done: {why}")


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0


def examples_of(work: work_pb2.TrainingWork, step: int) -> Sequence[int]:
    """The lines, from 0, that a step takes; steps are counted over the whole fine-tune."""
    plan = work.plan
    if work.leased:
        begin = (step - work.first_step) * plan.batch_size
        return work.leased[begin : begin + plan.batch_size]
    return shuffle.examples_of(plan.seed, plan.examples, plan.batch_size, step)


def learning_rate(work: work_pb2.TrainingWork, step: int) -> float:
    """Of one step. Nothing is done at a rate of zero: the first step has a little, and so has the last."""
    plan, rate = work.plan, work.plan.learning_rate
    if step < plan.warmup_steps:
        rate *= (step + 1) / (plan.warmup_steps + 1)
    elif plan.schedule != "constant":
        whole = max(1, plan.steps - plan.warmup_steps)
        done = min(step - plan.warmup_steps, whole - 1) / whole
        rate *= 1 - done if plan.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    if work.delta:
        rate *= min(1.0, (step - work.first_step + 1) / (SHARE_WARMUP_STEPS + 1))
    return rate
