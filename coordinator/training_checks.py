"""What can be wrong with a worker's words about training, seen from the words and the work alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from potluck.pricing import DPO
from potluck.v1 import work_pb2

STEPS_MAX: Final = 256  # of one frame
COUNT_MAX: Final = 2**53  # of tokens, and of their squares


@dataclass(slots=True)
class Told:
    """What the attempt of this number has told of its steps; `last`: -1 before the first."""

    number: int
    steps: int = 0
    last: int = -1

    def add(self, steps: Sequence[work_pb2.TrainingStep]) -> None:
        self.steps, self.last = self.steps + len(steps), steps[-1].step


def wrong_steps(work: work_pb2.TrainingWork, steps: Sequence[work_pb2.TrainingStep], told: Told) -> str:
    """Of the next frame; empty if nothing is."""
    if not steps:
        return "an empty frame"
    if len(steps) > STEPS_MAX:
        return f"{len(steps)} steps in a frame; {STEPS_MAX} are allowed"
    last, plan = told.last, work.plan
    sequences = plan.batch_size * (2 if plan.method == DPO else 1)
    for step in steps:
        if not work.first_step <= step.step < work.last_step:
            return f"step {step.step} of a part from {work.first_step} to {work.last_step}"
        if step.step <= last:
            return f"step {step.step} after step {last}"
        last = step.step
        if not _all_sound(step.train_loss, step.gradient_norm, step.learning_rate):
            return f"step {last} tells no sound numbers"
        if not _is_share(step.train_accuracy):
            return f"step {last} has an accuracy of {step.train_accuracy}"
        if not step.target_tokens <= step.tokens <= sequences * plan.sequence_tokens:
            return f"step {last} counts {step.target_tokens} of {step.tokens} tokens"
    return ""


def wrong_trained(work: work_pb2.TrainingWork, trained: work_pb2.Trained, told: Told) -> str:
    """Of what a part came to, apart from its artifacts; empty if nothing is."""
    if trained.steps != told.steps:
        return f"it says {trained.steps} steps, and told {told.steps}"
    if work.first_step < work.last_step and not trained.steps:
        return "not one step was done"
    if trained.steps and not trained.first_step == work.first_step == told.last + 1 - told.steps:
        return f"{trained.steps} steps from {trained.first_step} to {told.last}, with gaps"
    if trained.tokens and not trained.steps:
        return f"{trained.tokens} tokens without a step"
    longest = work.plan.sequence_tokens
    for tokens, squares in (
        (trained.tokens, trained.square_tokens),
        (trained.valid_tokens, trained.valid_square_tokens),
    ):
        if not tokens <= squares <= min(COUNT_MAX, tokens * longest):
            return f"{tokens} tokens in sequences of {longest} at most have not {squares} as squares"
    has_state = bool(trained.steps) and not work.delta
    if (trained.HasField("adapter"), trained.HasField("state")) != (bool(trained.steps), has_state):
        return "not the artifacts that were asked for"
    return _wrong_validation(work, trained)


def _wrong_validation(work: work_pb2.TrainingWork, trained: work_pb2.Trained) -> str:
    told = trained.HasField("valid_loss")
    if not work.validate and (told or trained.valid_tokens):
        return "a validation that was not asked for"
    if work.validate and not told and trained.valid_target_tokens:
        return "a validation without its loss"
    if trained.valid_target_tokens > trained.valid_tokens:
        return f"{trained.valid_target_tokens} of {trained.valid_tokens} tokens of the validation"
    if not _all_sound(trained.valid_loss) or not _is_share(trained.valid_accuracy):
        return "a validation without sound numbers"
    return ""


def _all_sound(*values: float) -> bool:
    return all(math.isfinite(value) and value >= 0.0 for value in values)


def _is_share(value: float) -> bool:
    return 0.0 <= value <= 1.0
