"""Both files of a fine-tune before any of it is done: how many tokens, how many are cut, what can it cost?"""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from coordinator.core.jobs import Kind
from coordinator.core.pricing import Demand, Training, quote
from coordinator.finetunes.base import Base
from coordinator.finetunes.finetune import Data, gone
from coordinator.finetunes.lengths import Lengths, lengths_of
from coordinator.finetunes.plan import STEPS_MAX, Plan, Wanted, planned
from coordinator.pool import Pool
from coordinator.refusal import Refusal
from potluck import lora
from potluck.training_data import ExampleError

COUNTED_KEPT: Final = 8  # files, so that a quote and the fine-tune after it count once
COUNTED_AT_ONCE: Final = 2
ROUNDING: Final = 100_000  # microcredits: each part is rounded up by less than one


@dataclass(frozen=True, slots=True)
class Checked:
    """`worst`: the most that all of it can cost, in microcredits."""

    plan: Plan
    training: Lengths
    validation: Lengths | None
    worst: int

    @property
    def cut(self) -> int:
        """Examples that are longer than a sequence: their ends are not learned."""
        return self.training.cut(self.plan.sequence_tokens)


@dataclass(slots=True)
class Checks:
    pool: Pool
    counting: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(COUNTED_AT_ONCE))
    counted: OrderedDict[tuple[str, str, bool], Lengths] = field(default_factory=OrderedDict)

    async def check(
        self,
        base: Base,
        wanted: Wanted,
        training: tuple[Data, Path],
        validation: tuple[Data, Path] | None,
    ) -> Checked:
        """Reads both files to their ends. Raises Refusal 400."""
        shapes = base.shapes(wanted.rank, wanted.targets)
        lengths = await self._lengths(base.entry.name, *training)
        others = None if validation is None else await self._lengths(base.entry.name, *validation)
        plan = planned(
            wanted,
            examples=lengths.examples,
            tokens=lambda most: lengths.sums(most)[0],
            validation=0 if others is None else others.examples,
            targets=base.targets(wanted.targets),
            parameters=lora.parameters(shapes),
            context_tokens=base.entry.context_tokens,
            checkpoint_s=self.pool.settings.checkpoint_s,
        )
        if plan.steps > STEPS_MAX:
            message = (
                f"hyperparameters.n_epochs: this would take {plan.steps:,} steps; {STEPS_MAX:,} are the most."
                " Take fewer epochs, or a larger batch_size."
            )
            raise Refusal(400, "invalid_value", message, param="hyperparameters.n_epochs")
        return Checked(plan, lengths, others, self.worst(plan, base.entry.name, lengths, others))

    async def _lengths(self, model: str, data: Data, path: Path) -> Lengths:
        counter = self.pool.counter
        await self.pool.vocabularies.wait(model)
        async with self.counting:
            at = data.sha256, model, counter.exact(model)
            if (known := self.counted.pop(at, None)) is None:
                try:
                    known = await asyncio.to_thread(lengths_of, counter, model, path)
                except ExampleError as error:
                    message = f"The file {data.file} cannot be used: {error}."
                    raise Refusal(400, "invalid_file", message, param="training_file") from None
                except FileNotFoundError:
                    raise Refusal(404, "file_gone", gone(data), param="training_file") from None
            self.counted[at] = known
            while len(self.counted) > COUNTED_KEPT:
                self.counted.popitem(last=False)
        return known

    def worst(self, plan: Plan, model: str, training: Lengths, validation: Lengths | None) -> int:
        """Every example in every epoch, and the validation file as often as it may be read."""
        tokens, squares = training.sums(plan.sequence_tokens)
        valid, valid_squares = _validations(plan, validation)
        bound = Training(
            method=plan.method,
            adapter_parameters=plan.parameters,
            tokens=tokens * plan.epochs,
            square_tokens=squares * plan.epochs,
            valid_tokens=valid,
            valid_square_tokens=valid_squares,
        )
        return priced(self.pool, model, plan, bound) + ROUNDING


def _validations(plan: Plan, validation: Lengths | None) -> tuple[int, int]:
    """Tokens and squares: of the sample again and again, of all of it once, at the end."""
    if validation is None:
        return 0, 0
    course = plan.course()
    tokens, squares = validation.sums(plan.sequence_tokens, course.sample)
    all_tokens, all_squares = validation.sums(plan.sequence_tokens)
    return course.samples_max * tokens + all_tokens, course.samples_max * squares + all_squares


def priced(pool: Pool, model: str, plan: Plan, bound: Training) -> int:
    """In microcredits."""
    shape = pool.shape(model)
    demand = Demand(Kind.FINETUNE, shape, (plan.sequence_tokens,), training=bound)
    return quote(demand, pool.tariff)
