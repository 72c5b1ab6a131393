"""Hyper-parameters: what a member may ask for, and what becomes of "auto" once the examples are known."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from coordinator.core.course import Course, steps_of
from coordinator.submission import Wanted as Workers
from potluck import pricing
from potluck.v1 import work_pb2

EPOCHS_MAX: Final = 50
BATCH_MAX: Final = 256
BATCH_AUTO_MAX: Final = 32
# Less than the least of these would change no number of an adapter, and look as if its worker did nothing.
MULTIPLIER_MIN, MULTIPLIER_MAX = 1e-4, 100.0
LEARNING_RATE_MIN, LEARNING_RATE_MAX = 1e-9, 0.1
BETA_MIN, BETA_MAX = 1e-4, 10.0
ALPHA_MIN, ALPHA_MAX = 0.01, 65_536.0
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
STEPS_MAX: Final = 100_000
GRADIENT_NORM_MAX: Final = 1.0
ROUND_S: Final = 1_800.0  # who has not sent its share of a round by then is closed out


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
    only: Workers = None  # that may see the examples


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is done. `steps` are optimizer steps: of all of it, or in rounds of each worker."""

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
    validation: int = 0  # examples of that file; 0: there is none

    @property
    def rounds(self) -> bool:
        """Whether several workers train side by side."""
        return self.workers > 1

    def course(self) -> Course:
        """As the state machine wants it."""
        return Course(
            examples=self.examples,
            epochs=self.epochs,
            batch_size=self.batch_size,
            steps=self.steps,
            seed=self.seed,
            workers=self.workers,
            local_steps=self.local_steps,
            validation=self.validation,
            segment_s=self.checkpoint_s,
            round_s=ROUND_S,
        )

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
    steps = steps_of(examples, epochs, batch_size, wanted.workers)
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
