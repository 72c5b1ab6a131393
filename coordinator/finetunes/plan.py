"""Hyper-parameters: what a member may ask for, and what becomes of "auto" once the examples are known."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from potluck import pricing, shuffle
from potluck.v1 import work_pb2

EPOCHS_MAX: Final = 50
BATCH_MAX: Final = 256
BATCH_AUTO_MAX: Final = 32
MULTIPLIER_MAX: Final = 100.0
LEARNING_RATE_MAX: Final = 0.1
BETA_MAX: Final = 10.0
ALPHA_MAX: Final = 65_536.0
SEQUENCE_MIN: Final = 16
SEQUENCE_AUTO: Final = 2_048
WORKERS_MAX: Final = 64
LOCAL_STEPS: Final = 10
LOCAL_STEPS_MAX: Final = 1_000
CHECKPOINT_S_MIN: Final = 1.0
CHECKPOINT_S_MAX: Final = 3_600.0
RANK: Final = 16
LEARNING_RATE: Final = {"sft": 2e-4, pricing.DPO: 2e-5}  # multiplied by what is asked for
BETA: Final = 0.1
PASSES_AUTO: Final = (100, 25_000)  # examples seen in all: so many at least, so many at most
EPOCHS_AUTO: Final = 3
EPOCHS_AUTO_MAX: Final = 10
EXAMPLES_A_STEP: Final = 32  # of the file for each of a batch: a few dozen steps an epoch
WARMUP_SHARE: Final = 0.05
WARMUP_MAX: Final = 100
SCHEDULE: Final = "cosine"
GRADIENT_NORM_MAX: Final = 1.0
VALIDATED_MAX: Final = 256  # examples of the validation file that are read, each time
VALIDATIONS_AN_EPOCH: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """As it was asked for. None is "auto"."""

    method: str  # sft | dpo
    seed: int
    epochs: int | None = None
    batch_size: int | None = None
    multiplier: float | None = None
    learning_rate: float | None = None  # instead of a multiplier
    beta: float | None = None
    rank: int = RANK
    alpha: float | None = None
    targets: tuple[str, ...] = ()  # empty: all that the model has
    sequence_tokens: int | None = None
    workers: int = 1
    local_steps: int = LOCAL_STEPS
    checkpoint_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is done. `steps` are optimizer steps: of all of it, or in rounds of each worker.

    `validated`: how many examples are read for one validation; 0: there is none.
    """

    method: str
    seed: int
    epochs: int
    batch_size: int
    learning_rate: float
    multiplier: float
    warmup_steps: int
    beta: float
    rank: int
    alpha: float
    targets: tuple[str, ...]
    parameters: int  # P of the price
    sequence_tokens: int
    examples: int
    tokens: int  # of one epoch, cut, by the coordinator's count
    steps: int
    workers: int
    local_steps: int
    checkpoint_s: float
    validated: int = 0
    validation: int = 0  # examples of that file

    @property
    def rounds(self) -> bool:
        return self.workers > 1

    @property
    def batches(self) -> int:
        """Optimizer steps that one worker would take for all of it."""
        return self.epochs * shuffle.steps_in_epoch(self.examples, self.batch_size)

    @property
    def validations(self) -> int:
        """How often the validation file is read, at the most: what is paid for, and so what is done."""
        if not self.validated:
            return 0
        if self.rounds:
            rounds = -(-self.steps // self.local_steps)
            return 2 * rounds + 1  # some are done again
        return min(self.steps, VALIDATIONS_AN_EPOCH * self.epochs) + 1

    def validated_lines(self) -> tuple[int, ...]:
        """Which examples of the validation file are read: the same each time, or the losses were no curve."""
        return shuffle.order(self.seed, 0, self.validation)[: self.validated]

    def to_wire(self) -> work_pb2.TrainingPlan:
        return work_pb2.TrainingPlan(
            method=self.method,
            lora=work_pb2.LoraConfig(rank=self.rank, alpha=self.alpha, targets=self.targets),
            epochs=self.epochs,
            batch_size=self.batch_size,
            sequence_tokens=self.sequence_tokens,
            learning_rate=self.learning_rate,
            warmup_steps=self.warmup_steps,
            schedule=SCHEDULE,
            weight_decay=0.0,
            gradient_norm_max=GRADIENT_NORM_MAX,
            dpo_beta=self.beta,
            seed=self.seed,
            examples=self.examples,
            steps=self.steps,
        )


def planned(
    wanted: Wanted,
    *,
    examples: int,
    tokens: Callable[[int], int],
    validation: int,
    targets: Sequence[str],
    parameters: int,
    context_tokens: int,
    checkpoint_s: float,
) -> Plan:
    """`tokens`: of an epoch, where a sequence has so many at the most. `targets` and `parameters` are of the
    adapter; `checkpoint_s` is the pool's.
    """
    epochs = wanted.epochs or epochs_for(examples)
    batch_size = wanted.batch_size or batch_for(examples)
    usual = LEARNING_RATE[wanted.method]
    learning_rate = wanted.learning_rate or usual * (wanted.multiplier or 1.0)
    batches = epochs * shuffle.steps_in_epoch(examples, batch_size)
    steps = -(-batches // wanted.workers)
    sequence_tokens = wanted.sequence_tokens or min(SEQUENCE_AUTO, context_tokens)
    return Plan(
        method=wanted.method,
        seed=wanted.seed,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        multiplier=learning_rate / usual,
        warmup_steps=min(WARMUP_MAX, math.ceil(steps * WARMUP_SHARE)),
        beta=(wanted.beta or BETA) if wanted.method == pricing.DPO else 0.0,
        rank=wanted.rank,
        alpha=wanted.alpha or 2.0 * wanted.rank,
        targets=tuple(targets),
        parameters=parameters,
        sequence_tokens=sequence_tokens,
        examples=examples,
        tokens=tokens(sequence_tokens),
        steps=steps,
        workers=wanted.workers,
        local_steps=wanted.local_steps,
        checkpoint_s=wanted.checkpoint_s or checkpoint_s,
        validated=min(validation, VALIDATED_MAX),
        validation=validation,
    )


def epochs_for(examples: int) -> int:
    """Three; more for few examples, fewer for many."""
    least, most = PASSES_AUTO
    if examples * EPOCHS_AUTO < least:
        return min(EPOCHS_AUTO_MAX, -(-least // examples))
    return max(1, min(EPOCHS_AUTO, most // examples))


def batch_for(examples: int) -> int:
    """A power of two: small files need small batches, or there would be no steps to learn in."""
    most = max(1, min(BATCH_AUTO_MAX, examples // EXAMPLES_A_STEP))
    return 1 << (most.bit_length() - 1)
